//! What an extend of a logical volume is refused with: each time the reason, the finding with what heals it, and a
//! volume of the same size. Where something heals, it is done, and the same extend is accepted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::fs;
use std::time::SystemTime;

use daemon::{Daemon, MIB, assert_refused, eventually, metadata, share};
use growd::wire::proto::{HostCommand, JobState};
use tonic_health::pb::health_check_response::ServingStatus;
use volumes::{EXTENT, FakeLvm, Group, accepted, refused, shell};

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn a_file_system_that_is_not_mounted_and_a_volume_that_is_not_active() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    // The group is there, with nothing in it.
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    for (n, mkfs) in (1..).zip(["mkfs.xfs -q", "mkfs.ext4 -q", "mkfs.btrfs -q"]) {
        let mut volume = group.create(n, "-L 320m").formatted(mkfs);
        volume.unmount();
        let one_share = format!("share {} of pool vg is not ready: ", share(n));
        let status = refused(&clients, n, &volume, "NOT_MOUNTED").await;
        assert!(status.message().starts_with(&one_share), "{status:?}");
        assert!(status.message().contains("mounted nowhere"), "{status:?}");
        shell(&format!("lvchange -an {}", volume.full_name()));
        let status = refused(&clients, n, &volume, "NOT_MOUNTED").await;
        assert!(status.message().starts_with(&one_share), "{status:?}");
        assert!(status.message().contains("not active"), "{status:?}");
        shell(&format!("lvchange -ay {}", volume.full_name()));
        volume.mount();
        // growd asks nothing of a device that would not answer.
        shell(&format!("dmsetup suspend --noudevsync {}", volume.node().display()));
        let status = clients.extend(&share(n), 900 * MIB).await.unwrap_err();
        shell(&format!("dmsetup resume --noudevsync {}", volume.node().display()));
        assert_refused(&status, "NOT_MOUNTED");
        assert!(status.message().contains("suspended"), "{status:?}");
        accepted(&clients, n, &volume, 400 * MIB).await;
    }
}

/// Health of shares, beside that of growd as a whole, of jobs and of the node.
const UNREADABLE: [ServingStatus; 4] =
    [ServingStatus::NotServing, ServingStatus::NotServing, ServingStatus::Serving, ServingStatus::Serving];

#[tokio::test]
async fn health_of_a_thin_pool_or_group_that_is_not_there_while_its_volumes_are_in_use() {
    let group = Group::on("vg", &["ubda"]);
    let _volume = group.create(1, "-L 320m").formatted("mkfs.xfs -q");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    daemon.reload(&group.pool("thin_pool = \"none\""));
    eventually(|| clients.healths(), |healths| *healths == UNREADABLE).await;

    // A disk that can be pulled out.
    shell(
        "modprobe sd_mod && modprobe scsi_debug dev_size_mb=64
         until [ -b /dev/sda ]; do sleep 0.1; done
         vgcreate -q -y pulled /dev/sda && lvcreate -q -y -n one -L 40m pulled",
    );
    let pulled = group.pool("").replace("\"vg\"", "\"pulled\"");
    daemon.reload(&pulled);
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    shell("echo 1 >/sys/block/sda/device/delete; dmsetup info pulled-one");
    daemon.reload(&pulled);
    eventually(|| clients.healths(), |healths| *healths == UNREADABLE).await;
    shell("dmsetup remove --noudevsync pulled-one");
}

/// A report is for a program, whatever lvm.conf says of those for people.
#[tokio::test]
async fn reports_do_not_depend_on_lvm_conf() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    let folder = group.dir().join("lvm");
    let usual = fs::read_to_string(format!("{}/lvm.conf", std::env::var("LVM_SYSTEM_DIR").unwrap())).unwrap();
    let reports = "report { binary_values_as_numeric = 1\n quoted = 0\n separator = \";\"\n list_item_separator = \"+\"
        columns_as_rows = 1\n compact_output = 1\n aligned = 0\n buffered = 0 }\n";
    let logs = "log { report_command_log = 1\n prefix = \"| \"\n command_names = 1 }\n";
    fs::create_dir(&folder).unwrap();
    let variables = [("LVM_SYSTEM_DIR", folder.to_str().unwrap())];
    for conf in [format!("{usual}{reports}"), format!("{usual}{reports}{logs}")] {
        fs::write(folder.join("lvm.conf"), conf).unwrap();
        let daemon = Daemon::start_with(group.dir(), &group.pool(""), &variables).await;
        let clients = daemon.clients().await;
        let (volume, raid) = (group.create(1, "-L 40m"), group.create(2, "-L 40m --type raid1 -m 1 --nosync"));
        accepted(&clients, 1, &volume, 80 * MIB).await;
        accepted(&clients, 2, &raid, 80 * MIB).await;
        let snapshot = group.snapshot(3, &volume, "-L 40m");
        refused(&clients, 1, &volume, "HAS_SNAPSHOT").await;
        assert_eq!(clients.pool("vg").await.free_bytes, group.free());
        drop(daemon);
        for volume in [snapshot, volume, raid] {
            shell(&format!("lvremove -q -y {}", volume.full_name()));
        }
        group.create_thin_pool("-L 100m");
        let volume = group.create(4, "--thinpool thin -V 40m");
        let daemon = Daemon::start_with(group.dir(), &group.pool("thin_pool = \"thin\""), &variables).await;
        accepted(&daemon.clients().await, 4, &volume, 80 * MIB).await;
        drop(daemon);
        shell("lvremove -q -y vg/thin");
    }
    // No command in a shell changes this.
    for more in ["", logs] {
        fs::write(folder.join("lvm.conf"), format!("{usual}{more}report {{ output_format = \"json\" }}\n")).unwrap();
        let daemon = Daemon::start_with(group.dir(), &group.pool(""), &variables).await;
        let status = daemon.clients().await.extend(&share(1), 80 * MIB).await.unwrap_err();
        assert_refused(&status, "INTERNAL");
        assert!(
            status.message().ends_with("lvm.conf has report/output_format=json, which growd cannot read"),
            "{status:?}"
        );
    }
}

/// As where udev has missed it.
#[tokio::test]
async fn a_volume_without_a_node() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m");
    let node = volume.node().canonicalize().unwrap();
    fs::remove_file(&node).unwrap();
    let status = refused(&clients, 1, &volume, "NOT_MOUNTED").await;
    assert!(status.message().ends_with(&format!("{} does not exist", node.display())), "{status:?}");
    shell(&clients.share(&share(1)).await.findings[0].remedy);
    accepted(&clients, 1, &volume, 400 * MIB).await;
}

/// An lvextend is in LVM's metadata first. Whoever has read these before it, and the device behind it, finds the same as
/// behind one that was killed.
#[tokio::test]
async fn a_volume_that_somebody_extends_while_it_is_looked_at() {
    let group = Group::on("vg", &["ubda"]);
    let fake = FakeLvm::new();
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m");
    accepted(&clients, 1, &volume, 330 * MIB).await;
    fake.after_pvck(&format!("/usr/sbin/lvextend -q -L 400m {} >/dev/null 2>&1", volume.full_name()));
    let status = clients.extend(&share(1), 390 * MIB).await.unwrap_err();
    assert!(fake.is_after_pvck());
    assert_refused(&status, "SIZE_NOT_GREATER");
    assert_eq!(metadata(&status, "current_size_bytes"), (400 * MIB).to_string());
}

#[tokio::test]
async fn a_volume_that_is_moved_to_another_disk() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m").formatted("mkfs.xfs -q");
    let place = shell(&format!("lvs --noheadings -o devices {}", volume.full_name()));
    let disk = place.trim().split('(').next().unwrap();
    // It looks whether all is moved, and so ends, half an hour later.
    shell(&format!("pvmove -q -b -i 1800 -n {} {disk} >/dev/null 2>&1", volume.name));
    let status = refused(&clients, 1, &volume, "NOT_MOUNTED").await;
    assert!(status.message().contains("pvmove"), "{status:?}");
    shell("pvmove -q --abort");
    accepted(&clients, 1, &volume, 400 * MIB).await;
}

#[tokio::test]
async fn a_group_that_is_missing_or_has_another_name() {
    let group = Group::on("vg", &["ubda"]);
    let other = group.pool("").replace("\"vg\"", "\"gone\"").replace("share-", "other-");
    let daemon = Daemon::start(group.dir(), &(group.pool("") + &other)).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m");
    accepted(&clients, 1, &volume, 400 * MIB).await;
    let finding = clients.pool("gone").await.findings.remove(0);
    assert_eq!(finding.kind, "NOT_MOUNTED");
    assert!(finding.message.contains("gone"), "{finding:?}");

    shell("vgrename -q vg moved");
    for n in [1, 2] {
        let status = clients.extend(&share(n), 500 * MIB).await.unwrap_err();
        assert_refused(&status, "NOT_MOUNTED");
    }
    assert_eq!(clients.pool("vg").await.findings[0].kind, "NOT_MOUNTED");
    shell("vgrename -q moved vg");
    accepted(&clients, 1, &volume, 500 * MIB).await;
    // As on its way to another node.
    shell("vgchange -q -an vg && vgexport -q vg");
    let status = clients.extend(&share(1), 600 * MIB).await.unwrap_err();
    assert_refused(&status, "NOT_MOUNTED");
    assert!(status.message().contains("vgimport"), "{status:?}");
    assert_eq!(clients.pool("vg").await.findings[0].kind, "NOT_MOUNTED");
    shell("vgimport -q vg && vgchange -q -ay vg");
    accepted(&clients, 1, &volume, 600 * MIB).await;
}

#[tokio::test]
async fn a_group_without_one_of_its_disks() {
    let group = Group::on("vg", &["ubda"]);
    // A loop device comes and goes more easily than a disk.
    shell("truncate -s 200M /run/disk && losetup /dev/loop7 /run/disk && vgextend -q vg /dev/loop7");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m").formatted("mkfs.xfs -q");
    accepted(&clients, 1, &volume, 330 * MIB).await;
    shell("losetup -d /dev/loop7");
    let status = refused(&clients, 1, &volume, "NOT_MOUNTED").await;
    assert!(status.message().contains("physical volume"), "{status:?}");
    shell("losetup /dev/loop7 /run/disk");
    accepted(&clients, 1, &volume, 400 * MIB).await;
    shell("vgreduce -q vg /dev/loop7 && pvremove -q /dev/loop7 && losetup -d /dev/loop7 && rm /run/disk");
}

/// What is believed of them follows each change of the group, and needs no report of all of it.
#[tokio::test]
async fn ordinary_volumes_are_looked_up_in_the_metadata() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    shell("truncate -s 200M /run/disk && losetup /dev/loop7 /run/disk");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volumes = [1, 2].map(|n| group.create(n, "-L 40m"));
    shell("lvcreate -q -y -n raid -L 40m --type raid1 -m 1 --nosync vg");
    for (n, change) in (1..).zip([
        "true",
        "lvcreate -q -y -n other -L 100m vg",
        "vgextend -q -y vg /dev/loop7",
        "vgreduce -q vg /dev/loop7",
        "lvrename -q vg other another",
    ]) {
        shell(change);
        // The first round may learn that there are other physical volumes.
        for again in [false, true] {
            let begun = SystemTime::now();
            let status = clients.extend(&share(1), 100 * GIB).await.unwrap_err();
            assert_refused(&status, "POOL_FULL");
            assert_eq!(metadata(&status, "free_bytes"), group.free().to_string(), "{change}");
            let listed = clients.list_shares(10).await;
            let sizes: Vec<_> = listed.iter().map(|share| share.size_bytes).collect();
            assert_eq!(sizes, volumes.each_ref().map(|volume| Some(volume.size())), "{change}");
            let pool = clients.pool("vg").await;
            assert_eq!((pool.free_bytes, pool.shares), (group.free(), 2), "{change}");
            // All that growd was asked for since, Diagnose included.
            let commands = clients.diagnose().await.commands;
            let is_report = |command: &&HostCommand| {
                let started = SystemTime::try_from(command.started_at.unwrap()).unwrap();
                started >= begun && !command.command.starts_with("pvck")
            };
            let report = commands.iter().find(is_report);
            assert!(!again || report.is_none(), "{change}: {report:?}");
        }
        accepted(&clients, 1, &volumes[0], (40 + 4 * n) * MIB).await;
    }
    let commands = clients.diagnose().await.commands;
    assert!(commands.iter().all(|command| command.output.len() < 1 << 10), "{commands:?}");
    shell("pvremove -q /dev/loop7 && losetup -d /dev/loop7 && rm /run/disk");
}

#[tokio::test]
async fn thick_snapshots_and_what_is_built_on_a_volume() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m").formatted("mkfs.xfs -q");
    let snapshot = group.snapshot(2, &volume, "-L 40m");
    refused(&clients, 1, &volume, "HAS_SNAPSHOT").await;
    refused(&clients, 2, &snapshot, "UNSUPPORTED").await;
    shell(&format!("lvremove -q -y {}", snapshot.full_name()));
    accepted(&clients, 1, &volume, 400 * MIB).await;

    // As dm-crypt is.
    let volume = group.create(3, "-L 40m");
    shell(&format!("dmsetup create --noudevsync holder --table '0 2048 linear {} 0'", volume.node().display()));
    let status = refused(&clients, 3, &volume, "UNSUPPORTED").await;
    assert!(status.message().contains("holder"), "{status:?}");
    shell("dmsetup remove --noudevsync holder");
    accepted(&clients, 3, &volume, 80 * MIB).await;
}

#[tokio::test]
async fn thin_volumes_in_thick_pools_and_the_other_way_round() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 1g");
    shell("lvcreate -q -y --type thin-pool -n other -L 40m vg");
    let (thin, thick) = (group.create(1, "--thinpool thin -V 100m"), group.create(2, "-L 100m"));
    let astray = group.create(3, "--thinpool other -V 20m");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    refused(&clients, 1, &thin, "UNSUPPORTED").await;
    accepted(&clients, 2, &thick, 120 * MIB).await;
    drop(daemon);
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"")).await;
    let clients = daemon.clients().await;
    refused(&clients, 2, &thick, "UNSUPPORTED").await;
    refused(&clients, 3, &astray, "UNSUPPORTED").await;
    // A thin snapshot, and the origin of one, are volumes like any other.
    let snapshot = group.snapshot(4, &thin, "-kn");
    accepted(&clients, 1, &thin, 120 * MIB).await;
    accepted(&clients, 4, &snapshot, 140 * MIB).await;
}

#[tokio::test]
async fn a_thin_pool_that_is_nearly_full() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 100m");
    let limits = "thin_pool = \"thin\"\novercommit = 100\nmax_data_percent = 60";
    let volume = group.create(1, "--thinpool thin -V 100m").formatted("mkfs.ext4 -q");
    let daemon = Daemon::start(group.dir(), &group.pool(&format!("{limits}\nmax_metadata_percent = 1"))).await;
    let status = refused(&daemon.clients().await, 1, &volume, "THIN_POOL_CRITICAL").await;
    let told = ["data_percent", "metadata_percent", "max_data_percent", "max_metadata_percent"];
    let told = told.map(|key| metadata(&status, key).parse::<f64>().unwrap());
    assert!(told[0] < 60.0 && told[1] >= 1.0 && told[2..] == [60.0, 1.0], "{told:?}");
    drop(daemon);
    let daemon = Daemon::start(group.dir(), &group.pool(limits)).await;
    let clients = daemon.clients().await;
    accepted(&clients, 1, &volume, 110 * MIB).await;
    shell(&format!("dd if=/dev/urandom of={}/a bs=1M count=65 conv=fsync status=none", volume.path().display()));
    let status = refused(&clients, 1, &volume, "THIN_POOL_CRITICAL").await;
    let used: f64 = metadata(&status, "data_percent").parse().unwrap();
    assert!((60.0..100.0).contains(&used), "{used}");
    assert_eq!(metadata(&status, "thin_pool"), "vg/thin");
    // It is said once, of the pool.
    assert_eq!(clients.pool("vg").await.findings[0].kind, "THIN_POOL_CRITICAL");
    let told = clients.diagnose().await.findings;
    assert_eq!(told.iter().filter(|finding| finding.kind == "THIN_POOL_CRITICAL").count(), 1, "{told:?}");
    shell("lvextend -q -L +100m vg/thin");
    accepted(&clients, 1, &volume, 120 * MIB).await;
}

#[tokio::test]
async fn a_thin_pool_that_has_failed() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 100m");
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"\novercommit = 100")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "--thinpool thin -V 60m");
    accepted(&clients, 1, &volume, 80 * MIB).await;
    // As when its metadata is full: it takes no more of them, and LVM can still tell how full it is.
    let replace = |device: &str, table: &str| {
        shell(&format!("export DM_DISABLE_UDEV=1; dmsetup load {device} --table '{table}'; dmsetup resume {device}"))
    };
    let table = shell("dmsetup table vg-thin-tpool");
    replace("vg-thin-tpool", &format!("{} 1 read_only", table.trim().strip_suffix(" 0").unwrap()));
    let status = refused(&clients, 1, &volume, "THIN_POOL_CRITICAL").await;
    let [data, used] = ["data_percent", "metadata_percent"].map(|key| metadata(&status, key));
    let told = format!("it has failed (health metadata_read_only, data {data} %, metadata {used} %)");
    assert!(status.message().ends_with(&told) && used.parse::<f64>().unwrap() > 0.0, "{status:?}");
    let remedy = clients.pool("vg").await.findings.remove(0).remedy;
    assert!(remedy.contains("lvextend --poolmetadatasize +SIZE vg/thin"), "{remedy}");
    replace("vg-thin-tpool", table.trim());
    accepted(&clients, 1, &volume, 88 * MIB).await;

    // As when its metadata cannot be written: the kernel then tells nothing of what is in it.
    let sectors = shell("blockdev --getsz /dev/mapper/vg-thin_tmeta");
    replace("vg-thin_tmeta", &format!("0 {} error", sectors.trim()));
    shell(&format!("dd if=/dev/zero of={} bs=1M count=4 conv=fsync status=none || true", volume.node().display()));
    let has_failed = || async { shell("lvs --noheadings -o lv_health_status vg/thin").trim() == "failed" };
    daemon::eventually(has_failed, |failed| *failed).await;
    let status = refused(&clients, 1, &volume, "THIN_POOL_CRITICAL").await;
    assert!(status.message().ends_with("it has failed (health failed, data ? %, metadata ? %)"), "{status:?}");
    assert_eq!(metadata(&status, "data_percent"), "?");
    let pool = clients.pool("vg").await;
    assert_eq!((pool.findings[0].kind.as_str(), pool.free_bytes), ("THIN_POOL_CRITICAL", 0));
    assert!(pool.findings[0].remedy.ends_with("lvconvert --repair vg/thin"), "{pool:?}");
}

#[tokio::test]
async fn the_reserve_of_a_group_and_two_that_do_not_fit_together() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("reserve = \"1GiB\"")).await;
    let clients = daemon.clients().await;
    let (one, two) = (group.create(1, "-L 400m").formatted("mkfs.xfs -q"), group.create(2, "-L 400m"));
    let available = group.free() - GIB;
    assert_eq!(clients.pool("vg").await.available_bytes, available);
    let status = clients.extend(&share(1), 400 * MIB + available + 1).await.unwrap_err();
    assert_refused(&status, "POOL_FULL");
    let told =
        ["free_bytes", "reserved_bytes", "asked_bytes"].map(|key| metadata(&status, key).parse::<u64>().unwrap());
    assert_eq!(told, [available, GIB, available + EXTENT]);
    assert_eq!((one.size(), one.usable()), (400 * MIB, 400 * MIB));

    let size = 400 * MIB + available / EXTENT / 2 * EXTENT + 2 * EXTENT;
    let (share_1, share_2) = (share(1), share(2));
    let answers = tokio::join!(clients.extend(&share_1, size), clients.extend(&share_2, size));
    let (job, status) = match answers {
        (Ok(job), Err(status)) | (Err(status), Ok(job)) => (job, status),
        other => panic!("one of two: {other:?}"),
    };
    assert_refused(&status, "POOL_FULL");
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    let grown = [&one, &two].map(|volume| volume.usable() >= size);
    assert!(grown == [true, false] || grown == [false, true], "{grown:?}");
    assert!(group.free() >= GIB);
    // To the last extent that is not reserved.
    let rest = clients.pool("vg").await.available_bytes;
    let (n, left) = if grown[0] { (2, &two) } else { (1, &one) };
    accepted(&clients, n, left, 400 * MIB + rest).await;
    assert_eq!((group.free(), clients.pool("vg").await.available_bytes), (GIB, 0));
}

#[tokio::test]
async fn thin_volumes_up_to_the_overcommit_ratio() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 1g");
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"\novercommit = 2")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "--thinpool thin -V 400m");
    group.create(2, "--thinpool thin -V 400m");
    let status = clients.extend(&share(1), 2 * GIB - 400 * MIB + 1).await.unwrap_err();
    assert_refused(&status, "POOL_FULL");
    assert_eq!(metadata(&status, "free_bytes"), (2 * GIB - 800 * MIB).to_string());
    assert_eq!(volume.size(), 400 * MIB);
    accepted(&clients, 1, &volume, 2 * GIB - 400 * MIB).await;
}

#[tokio::test]
async fn a_small_file_system_that_would_grow_far_beyond_its_design() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 1g");
    let limits = "thin_pool = \"thin\"\novercommit = 1000";
    let daemon = Daemon::start(group.dir(), &group.pool(limits)).await;
    let clients = daemon.clients().await;
    // It has four allocation groups of 80 MiB.
    let volume = group.create(1, "--thinpool thin -V 320m").formatted("mkfs.xfs -q");
    let status = clients.extend(&share(1), 340 * GIB).await.unwrap_err();
    assert_refused(&status, "GROWTH_TOO_LARGE");
    let told = ["needed", "most"].map(|key| metadata(&status, key).parse::<u64>().unwrap());
    assert_eq!(told, [340 * 1024 / 80, 4096]);
    assert_eq!((volume.size(), volume.usable()), (320 * MIB, 320 * MIB));
    let status = clients.extend(&share(1), 320 * MIB).await.unwrap_err();
    assert_refused(&status, "SIZE_NOT_GREATER");
    drop(daemon);
    let daemon = Daemon::start(group.dir(), &group.pool(&format!("{limits}\nallow_any_growth = true"))).await;
    accepted(&daemon.clients().await, 1, &volume, 340 * GIB).await;
}
