//! Shares on logical volumes, through the daemon: grown while they are mounted and written to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::fs;
use std::path::Path;

use daemon::{Clients, Daemon, MIB, assert_refused, metadata, share};
use growd::wire::proto::{Job, JobState};
use support::{lab, unmount};
use volumes::{EXTENT, Group, Volume, shell};

/// Extends a share to its end, which must be a good one.
async fn grown(clients: &Clients, share: &str, size: u64) -> Job {
    let job = clients.extend(share, size).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    assert!(job.size_after_bytes() >= size);
    job
}

fn steps(job: &Job) -> Vec<&str> {
    job.steps.iter().map(|step| step.name.as_str()).collect()
}

/// Fills a volume, extends it under a writer, and looks at everything with other eyes than growd's.
async fn grows_under_its_writers(clients: &Clients, n: u32, volume: &Volume, has_filesystem: bool) {
    let seed: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
    let writer = has_filesystem.then(|| {
        fs::write(volume.path().join("before"), &seed).unwrap();
        volume.writer()
    });
    if !has_filesystem {
        shell(&format!("dd if=/dev/urandom of={} bs=1M count=8 conv=fsync status=none", volume.node().display()));
    }
    let head = || shell(&format!("head -c 8M {} | md5sum", volume.node().display()));
    let head_before = head();
    volume.fill();
    let before = volume.usable();
    let seen = clients.share(&share(n)).await;
    assert_eq!(seen.size_bytes, Some(before), "{seen:?}");
    assert_eq!(seen.findings, []);

    let size = before + 200 * MIB + 1;
    let job = grown(clients, &share(n), size).await;
    volume.write_beyond(before, 150 * MIB);
    assert_eq!((job.size_before_bytes, job.size_after_bytes()), (before, volume.usable()));
    assert!(volume.usable() >= size && volume.size() < size + 2 * EXTENT, "{} of {size}", volume.size());
    match writer {
        Some(writer) => {
            assert_eq!(steps(&job), ["grow_volume", "grow_filesystem", "verify"]);
            assert!(writer.finish() > 0);
            assert_eq!(fs::read(volume.path().join("before")).unwrap(), seed);
        }
        None => {
            assert_eq!(steps(&job), ["grow_volume", "verify"]);
            assert_eq!(head(), head_before);
        }
    }
    let seen = clients.share(&share(n)).await;
    assert_eq!((seen.size_bytes, seen.findings), (Some(volume.usable()), Vec::new()));
}

const KINDS: [&str; 4] = ["mkfs.xfs -q", "mkfs.ext4 -q", "mkfs.btrfs -q", ""];

fn formatted(volume: Volume, mkfs: &str) -> Volume {
    if mkfs.is_empty() { volume } else { volume.formatted(mkfs) }
}

#[tokio::test]
async fn thick_volumes_grow_under_their_writers() {
    let group = Group::on("vg-with-hyphens", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    for (n, mkfs) in (1..).zip(KINDS) {
        let volume = formatted(group.create(n, "-L 400m"), mkfs);
        grows_under_its_writers(&clients, n, &volume, !mkfs.is_empty()).await;
    }
}

#[tokio::test]
async fn thin_volumes_grow_under_their_writers() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 3g");
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"")).await;
    let clients = daemon.clients().await;
    for (n, mkfs) in (1..).zip(KINDS) {
        let volume = formatted(group.create(n, "--thinpool thin -V 400m"), mkfs);
        grows_under_its_writers(&clients, n, &volume, !mkfs.is_empty()).await;
    }
    let pool = clients.pool("vg").await;
    assert_eq!(pool.total_bytes, 3 << 30);
    let virtual_sizes = shell("lvs --noheadings --units b --nosuffix -o lv_size -S pool_lv=thin vg");
    let promised: u64 = virtual_sizes.split_whitespace().map(|size| size.parse::<u64>().unwrap()).sum();
    assert_eq!(pool.promised_bytes, promised);
    assert_eq!(pool.shares, 4);
}

/// XFS recovers a growth that is in its log alone, but not two of them: the first must be at its place before the second.
#[tokio::test]
async fn xfs_that_grew_three_times_in_a_moment_mounts_after_a_power_cut() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let mut volume = group.create(1, "-L 400m").formatted("mkfs.xfs -q");
    let mut size = 0;
    for _ in 0..3 {
        size = grown(&clients, &share(1), volume.usable() + MIB).await.size_after_bytes();
        fs::write(volume.path().join(size.to_string()), "after a growth").unwrap();
    }
    // The log is on the disk, and nothing after it: as a power cut leaves it.
    let mount = volume.path().display().to_string();
    shell(&format!("sync -f {mount} && xfs_io -x -c 'shutdown -f' {mount}"));
    volume.unmount();
    volume.mount();
    assert_eq!(volume.usable(), size);
    assert_eq!(fs::read(volume.path().join(size.to_string())).unwrap(), b"after a growth");
    grown(&clients, &share(1), size + MIB).await;
}

/// What LVM rounds to, and what a growth costs the group.
#[tokio::test]
async fn stripes_and_copies_are_rounded_and_counted_as_lvm_does() {
    let group = Group::on("vg", &["ubda", "ubdb", "ubdc", "ubdd"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    // Growth by one byte: extents of the volume, and extents taken of the group.
    let layouts = [
        ("--type linear", 1, 1),
        ("--type striped -i 2", 2, 2),
        ("--type striped -i 3", 3, 3),
        ("--type raid0 -i 2", 2, 2),
        ("--type raid1 -m 1 --nosync", 1, 2),
        ("--type raid1 -m 2 --nosync", 1, 3),
        ("--type striped -i 4", 4, 4),
        ("--type mirror -m 1 --nosync", 1, 2),
        ("--type raid5 -i 2 --nosync", 2, 3),
        ("--type raid5 -i 3", 3, 4),
        ("--type raid10 -i 2 -m 1 --nosync", 2, 4),
    ];
    for (n, (layout, extents, taken)) in (1..).zip(layouts) {
        let volume = group.create(n, &format!("-L 320m {layout}"));
        let volume = if n % 2 == 0 { volume.formatted("mkfs.xfs -q") } else { volume };
        let (size, free) = (volume.size(), group.free());
        // More than there is: the refusal tells what would be taken.
        let refused = clients.extend(&share(n), size + (20 << 30)).await.unwrap_err();
        assert_refused(&refused, "POOL_FULL");
        let unit = extents * EXTENT;
        let asked = (20_u64 << 30).div_ceil(unit) * taken * EXTENT;
        assert_eq!(metadata(&refused, "asked_bytes"), asked.to_string(), "{layout}");
        assert_eq!(metadata(&refused, "free_bytes"), free.to_string(), "{layout}");
        let job = grown(&clients, &share(n), size + 1).await;
        assert_eq!(volume.size(), size + unit, "{layout}");
        assert_eq!(group.free(), free - taken * EXTENT, "{layout}");
        assert_eq!(job.size_after_bytes(), volume.usable(), "{layout}");
        grown(&clients, &share(n), size + 100 * MIB).await;
    }
}

#[tokio::test]
async fn a_share_may_have_a_name_of_its_own_and_be_mounted_anywhere() {
    let group = Group::on("vg-a", &["ubda"]);
    let volume = group.create_named("legacy_home-2.x", "-L 320m").formatted("mkfs.ext4 -q");
    let explicit = format!("[[share]]\nid = \"{}\"\npool = \"vg-a\"\nvolume = \"{}\"\n", share(1), volume.name);
    let daemon = Daemon::start(group.dir(), &format!("{}{explicit}", group.pool(""))).await;
    let clients = daemon.clients().await;
    assert_eq!(clients.pool("vg-a").await.shares, 1);
    assert_eq!(clients.share(&share(1)).await.location, "/dev/vg-a/legacy_home-2.x");
    grown(&clients, &share(1), 330 * MIB).await;

    // Two more mounts; then only a bind mount of a directory is left, under a name with a space.
    let first = volume.path().display().to_string();
    shell(&format!("mkdir {first}/sub '/mnt/lv-bind here' /mnt/lv-second"));
    shell(&format!("mount --bind {first}/sub '/mnt/lv-bind here' && mount {} /mnt/lv-second", volume.node().display()));
    grown(&clients, &share(1), 340 * MIB).await;
    for place in [first.as_str(), "/mnt/lv-second"] {
        unmount(Path::new(place)).unwrap();
    }
    grown(&clients, &share(1), 350 * MIB).await;
    assert!(volume.size() >= 350 * MIB);
    unmount(Path::new("/mnt/lv-bind here")).unwrap();
    shell(&format!("mount {} {first}", volume.node().display()));
    assert_eq!(volume.filesystem_size(), volume.size());
}

#[tokio::test]
async fn a_half_grown_volume_is_found_and_healed_by_the_command_that_is_told() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    for (n, mkfs) in (1..).zip(["mkfs.xfs -q", "mkfs.ext4 -q", "mkfs.btrfs -q"]) {
        let volume = group.create(n, "-L 320m").formatted(mkfs);
        shell(&format!("lvextend -q -L 500m {}", volume.full_name()));
        let seen = clients.share(&share(n)).await;
        assert_eq!(seen.size_bytes, Some(volume.filesystem_size()));
        assert_eq!(volume.filesystem_size(), 320 * MIB);
        let [finding] = seen.findings.as_slice() else { panic!("{:?}", seen.findings) };
        assert_eq!(finding.kind, "HALF_GROWN");
        assert!(clients.diagnose().await.findings.contains(finding));

        // Not with the words of the remedy alone: the command itself heals.
        let command = finding.remedy.replace("growctl", env!("CARGO_BIN_EXE_growctl"));
        shell(&format!("{command} --endpoint {}", daemon.endpoint()));
        assert_eq!((volume.filesystem_size(), volume.size()), (500 * MIB, 500 * MIB));
        assert_eq!(clients.share(&share(n)).await.findings, []);
        // Asked again for what it has.
        let refused = clients.extend(&share(n), 500 * MIB).await.unwrap_err();
        assert_refused(&refused, "SIZE_NOT_GREATER");
        assert_eq!(volume.size(), 500 * MIB);
    }

    // A target between the two sizes needs the file system alone; one beyond both needs both.
    let volume = group.create(9, "-L 320m").formatted("mkfs.xfs -q");
    shell(&format!("lvextend -q -L 500m {}", volume.full_name()));
    let job = grown(&clients, &share(9), 400 * MIB).await;
    assert_eq!(steps(&job), ["grow_filesystem", "verify"]);
    assert_eq!((job.size_after_bytes(), volume.size()), (500 * MIB, 500 * MIB));
    shell(&format!("lvextend -q -L 600m {}", volume.full_name()));
    let job = grown(&clients, &share(9), 700 * MIB).await;
    assert_eq!(steps(&job), ["grow_volume", "grow_filesystem", "verify"]);
    assert_eq!((job.size_after_bytes(), volume.size()), (700 * MIB, 700 * MIB));
    lab::run("xfs_info", &[volume.path().to_str().unwrap()]);
}
