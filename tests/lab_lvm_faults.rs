//! An `lvm` that hangs, lies or dies: each time the right reason, the true size, and nobody else waits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use daemon::{Clients, Daemon, MIB, assert_refused, create_shares, eventually, metadata, share};
use growd::wire::proto::{CancelJobRequest, HostCommand, Job, JobState};
use support::{Filesystem, PRJQUOTA};
use volumes::{FakeLvm, Group, shell};

async fn ended(clients: &Clients, share: &str, size: u64) -> Job {
    let job = clients.extend(share, size).await.unwrap();
    clients.end_of(&job.job_id).await
}

async fn last_lvextend(clients: &Clients) -> HostCommand {
    let commands = clients.diagnose().await.commands;
    commands.into_iter().rev().find(|command| command.command.starts_with("lvextend")).unwrap()
}

#[tokio::test]
async fn a_hanging_lvextend_holds_up_nobody_else() {
    let (group, other) = (Group::on("vg", &["ubda"]), Group::on("other", &["ubdb"]));
    let quotas = Filesystem::xfs("ubdc", PRJQUOTA);
    create_shares(&quotas, 1, 100 * MIB);
    let volume = group.create(11, "-L 320m").formatted("mkfs.xfs -q");
    let neighbour = group.create(12, "-L 320m");
    let elsewhere = other.create(13, "-L 320m");
    let fake = FakeLvm::new();
    let hang = fake.dir().join("hang");
    fs::write(&hang, "").unwrap();
    fake.lvextend("case $line in *\" vg/\"*) while [ -e $dir/hang ]; do sleep 0.1; done ;; esac; real");
    let pools = group.pool("") + &other.pool("") + &daemon::pool(&quotas, "");
    let daemon = Daemon::start_with(group.dir(), &pools, &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;

    let begin = Instant::now();
    let stuck = clients.extend(&share(11), 400 * MIB).await.unwrap();
    eventually(|| async { fake.asked() }, |asked| *asked == 1).await;
    let queued = clients.extend(&share(12), 400 * MIB).await.unwrap();
    let cancelled = clients.extend(&share(12), 500 * MIB).await.unwrap_err();
    assert_refused(&cancelled, "SHARE_BUSY");
    // Other groups and pools go on, and whoever asks is answered.
    let job = ended(&clients, &share(13), 400 * MIB).await;
    assert_eq!((job.state(), elsewhere.size()), (JobState::Succeeded, 400 * MIB), "{job:?}");
    let job = ended(&clients, &share(1), 200 * MIB).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    let seen = clients.share(&share(11)).await;
    assert_eq!((seen.size_bytes, seen.active_job_id.as_str()), (Some(320 * MIB), stuck.job_id.as_str()));
    assert_eq!(clients.pool("vg").await.queued_bytes, 2 * 80 * MIB);
    assert_eq!(clients.job(&queued.job_id).await.state(), JobState::Queued);
    let command = last_lvextend(&clients).await;
    assert!(command.command.contains("other/"), "{command:?}");
    let at_work = clients.job(&stuck.job_id).await;
    assert_eq!((at_work.state(), at_work.steps[0].name.as_str()), (JobState::Running, "grow_volume"));
    assert_eq!(at_work.steps[0].finished_at, None);
    // Who waits may give up; who is stuck is never killed.
    let request = |job: &Job| CancelJobRequest { job_id: job.job_id.clone() };
    assert_refused(&clients.jobs.clone().cancel_job(request(&stuck)).await.unwrap_err(), "JOB_NOT_QUEUED");
    clients.jobs.clone().cancel_job(request(&queued)).await.unwrap();

    // A minute later it is a finding.
    let finding = loop {
        let told = clients.diagnose().await;
        let running = told.commands.iter().find(|command| command.command.contains(" vg/share-")).unwrap();
        assert!(running.finished_at.is_none() || !running.command.starts_with("lvextend"), "{running:?}");
        if let Some(finding) = told.findings.into_iter().find(|finding| finding.kind == "STUCK") {
            break finding;
        }
        assert!(begin.elapsed() < Duration::from_secs(150), "a job that hangs is not found");
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    assert_eq!((finding.pool.as_str(), finding.share_id), ("vg", share(11)));
    assert!(finding.message.contains(&stuck.job_id) && finding.message.contains("grow_volume"), "{}", finding.message);

    fs::remove_file(&hang).unwrap();
    let job = clients.end_of(&stuck.job_id).await;
    assert_eq!((job.state(), job.attempt, volume.usable()), (JobState::Succeeded, 1, 400 * MIB), "{job:?}");
    assert_eq!(clients.diagnose().await.findings, []);
    assert_eq!(neighbour.size(), 320 * MIB);
    assert_eq!(ended(&clients, &share(12), 400 * MIB).await.state(), JobState::Succeeded);
}

/// What lvm is made to do, and what the job then ends with; empty for success.
const LIES: [(&str, &str, &str); 9] = [
    ("says that there is no space", "echo '  Insufficient free space: 20 extents needed, 0 available' >&2", "INTERNAL"),
    ("fails", "echo '  Device or resource busy' >&2", "INTERNAL"),
    ("succeeds without growing", "echo '  Logical volume successfully resized.'", "INTERNAL"),
    ("says nothing", ":", "INTERNAL"),
    ("prints garbage", "head -c 100000 /dev/urandom", "INTERNAL"),
    ("prints without end", "yes rubbish | head -c 100000000", "INTERNAL"),
    ("dies before it has done anything", "echo oh; kill -KILL $lvm $$", "INTERNAL"),
    ("dies when it is done", "real; exec 3>&-; wait $lvm; kill -KILL $$", ""),
    ("complains and has done it", "real; echo '  Failed to do it' >&2", ""),
];

/// As a long pvmove or vgreduce has it.
#[tokio::test]
async fn a_lock_of_lvm_that_somebody_else_holds_holds_up_changes_alone() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    let volumes = [group.create(1, "-L 320m"), group.create(2, "-L 320m --type raid1 -m 1 --nosync")];
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    clients.share(&share(1)).await;
    let mut holder = Command::new("flock");
    holder.args(["/run/lock/lvm/V_vg", "-c", "echo; exec cat"]);
    let mut lock = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(lock.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();

    let begun = Instant::now();
    for n in [1, 2] {
        let seen = clients.share(&share(n)).await;
        assert_eq!((seen.size_bytes, seen.findings), (Some(320 * MIB), vec![]));
    }
    assert_eq!(clients.pool("vg").await.findings, []);
    let jobs =
        [clients.extend(&share(1), 400 * MIB).await.unwrap(), clients.extend(&share(2), 400 * MIB).await.unwrap()];
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(volumes.iter().all(|volume| volume.size() == 320 * MIB));

    drop(lock.stdin.take());
    for (job, volume) in jobs.iter().zip(&volumes) {
        assert_eq!((clients.end_of(&job.job_id).await.state(), volume.size()), (JobState::Succeeded, 400 * MIB));
    }
    lock.wait().unwrap();
}

#[tokio::test]
async fn what_lvextend_says_is_not_taken_for_the_truth() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 320m").formatted("mkfs.ext4 -q");
    let fake = FakeLvm::new();
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    for (what, script, reason) in LIES {
        let before = volume.size();
        let wanted = before + 20 * MIB;
        fake.lvextend(script);
        let job = ended(&clients, &share(1), wanted).await;
        let error = job.error.clone().unwrap_or_default();
        assert_eq!(error.reason, reason, "{what}: {job:?}");
        assert!(error.message.len() < 8 << 10, "{what}: a message of {} bytes", error.message.len());
        let after = if reason.is_empty() { wanted } else { before };
        assert_eq!((volume.size(), volume.usable()), (after, after), "{what}");
        assert_eq!(clients.share(&share(1)).await.size_bytes, Some(after), "{what}");
        let told = last_lvextend(&clients).await;
        let outcome = if what.starts_with("dies") { "lvm ended in the middle of a command" } else { "done" };
        assert!(told.outcome.starts_with(outcome) && told.finished_at.is_some(), "{what}: {told:?}");
        assert!(told.output.len() <= 2 << 10, "{what}");
        // It is of use again at once.
        fake.lvextend("real");
        let job = ended(&clients, &share(1), after + 20 * MIB).await;
        assert_eq!(job.state(), JobState::Succeeded, "after one that {what}: {job:?}");
    }

    // One that grows by less than it was told, and one that grows by more.
    let before = volume.size();
    fake.lvextend(&format!("line='lvextend -L +4m {}'; real", volume.full_name()));
    let job = ended(&clients, &share(1), before + 20 * MIB).await;
    assert_eq!(job.error.unwrap().reason, "INTERNAL");
    let seen = clients.share(&share(1)).await;
    assert_eq!((seen.size_bytes, volume.usable(), volume.size()), (Some(before), before, before + 4 * MIB));
    assert_eq!(seen.findings[0].kind, "HALF_GROWN");
    fake.lvextend(&format!("line='lvextend -L +100m {}'; real", volume.full_name()));
    let job = ended(&clients, &share(1), before + 20 * MIB).await;
    assert_eq!((job.state(), job.size_after_bytes()), (JobState::Succeeded, before + 104 * MIB), "{job:?}");
    assert_eq!(volume.usable(), before + 104 * MIB);
}

#[tokio::test]
async fn a_group_that_gets_a_disk_while_a_volume_is_extended() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 100m");
    shell("truncate -s 200M /run/disk && losetup /dev/loop7 /run/disk");
    let fake = FakeLvm::new();
    fake.lvextend(
        "[ -e $dir/got ] || { touch $dir/got; vgextend -q -y vg /dev/loop7 </dev/null >/dev/null 2>&1; }; real",
    );
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    for (asked, size) in [(2, 120), (3, 140)] {
        let job = ended(&clients, &share(1), size * MIB).await;
        assert_eq!((job.state(), volume.size()), (JobState::Succeeded, size * MIB), "{job:?}");
        assert_eq!(fake.asked(), asked, "{:?}", last_lvextend(&clients).await);
    }
    assert!(last_lvextend(&clients).await.command.contains("/dev/loop7"));
    shell("vgreduce -q vg /dev/loop7 && pvremove -q /dev/loop7 && losetup -d /dev/loop7 && rm /run/disk");
}

/// Too many to be asked for the metadata one after the other.
#[tokio::test]
async fn lvextend_is_shown_the_disks_of_its_group_alone_also_if_they_are_many() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 100m");
    let of_each = |commands: &str| shell(&format!("for n in 0 1 2 3 4 5 6 7; do disk=/run/disk$n; {commands}; done"));
    of_each("truncate -s 20M $disk; losetup /dev/loop$n $disk; vgextend -q -y vg /dev/loop$n");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    assert_eq!(clients.pool("vg").await.free_bytes, group.free());
    let job = ended(&clients, &share(1), 120 * MIB).await;
    assert_eq!((job.state(), volume.size()), (JobState::Succeeded, 120 * MIB), "{job:?}");
    assert!(last_lvextend(&clients).await.command.contains("|^/dev/loop7$|"));
    of_each("vgreduce -q vg /dev/loop$n; pvremove -q /dev/loop$n; losetup -d /dev/loop$n; rm $disk");
}

/// Since the extend was accepted.
#[tokio::test]
async fn space_that_lvextend_does_not_find_is_told_as_it_is() {
    let group = Group::on("vg", &["ubda"]);
    shell("truncate -s 200M /run/disk && losetup /dev/loop7 /run/disk && vgextend -q vg /dev/loop7");
    let (striped, linear) = (group.create(1, "-L 80m -i 2"), group.create(2, "-L 80m"));
    let fake = FakeLvm::new();
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    // The group has room, and one of its disks none for another stripe.
    let error = ended(&clients, &share(1), 800 * MIB).await.error.unwrap();
    assert_eq!((error.reason.as_str(), striped.size()), ("INTERNAL", 80 * MIB), "{error:?}");
    assert!(error.message.contains("Insufficient suitable allocatable extents"), "{error:?}");
    fake.lvextend("lvcreate -q -y -n other -l 100%FREE vg </dev/null >/dev/null 2>&1; real");
    let error = ended(&clients, &share(2), 120 * MIB).await.error.unwrap();
    assert_eq!((error.reason.as_str(), linear.size()), ("POOL_FULL", 80 * MIB), "{error:?}");
    assert!(error.message.contains("cannot give 40MiB: 0B can still"), "{error:?}");
    shell(&format!("lvremove -q -y vg/other {}", striped.full_name()));
    fake.lvextend("real");
    assert_eq!(ended(&clients, &share(2), 120 * MIB).await.state(), JobState::Succeeded);
    shell("vgreduce -q vg /dev/loop7 && pvremove -q /dev/loop7 && losetup -d /dev/loop7 && rm /run/disk");
}

/// As whoever takes a disk out of use begins, before pvmove.
#[tokio::test]
async fn a_disk_that_takes_no_more_volumes_gives_no_room() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    // LVM alone can tell what the second is.
    let (volume, copied) = (group.create(1, "-L 100m"), group.create(2, "-L 100m --type raid1 -m 1 --nosync"));
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    for disks in ["/dev/ubdb", "/dev/ubda /dev/ubdb"] {
        shell(&format!("pvchange -q -xn {disks}"));
        let free = shell("pvs --noheadings --units b --nosuffix -o pv_free -S pv_allocatable=allocatable");
        let free: u64 = free.split_whitespace().map(|free| free.parse::<u64>().unwrap()).sum();
        assert_eq!(clients.pool("vg").await.free_bytes, free);
        for n in [1, 2] {
            let refused = clients.extend(&share(n), 5000 * MIB).await.unwrap_err();
            assert_refused(&refused, "POOL_FULL");
            assert_eq!(metadata(&refused, "free_bytes"), free.to_string());
        }
    }
    shell("pvchange -q -xy /dev/ubda /dev/ubdb");
    assert_eq!(ended(&clients, &share(1), 5000 * MIB).await.state(), JobState::Succeeded);
    assert_eq!((volume.size(), copied.size()), (5000 * MIB, 100 * MIB));
}

#[tokio::test]
async fn a_volume_that_is_removed_or_deactivated_while_its_job_waits() {
    let group = Group::on("vg", &["ubda"]);
    let _volumes = [1, 2, 3].map(|n| group.create(n, "-L 100m"));
    let fake = FakeLvm::new();
    let hang = fake.dir().join("hang");
    fs::write(&hang, "").unwrap();
    fake.lvextend("while [ -e $dir/hang ]; do sleep 0.1; done; real");
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    let first = clients.extend(&share(1), 200 * MIB).await.unwrap();
    eventually(|| async { fake.asked() }, |asked| *asked == 1).await;
    let mut waiting = Vec::new();
    for n in [2, 3] {
        waiting.push(clients.extend(&share(n), 200 * MIB).await.unwrap());
    }
    shell(&format!("lvremove -q -y vg/share-{0} && lvchange -q -an vg/share-{1}", share(2), share(3)));
    fs::remove_file(&hang).unwrap();
    assert_eq!(clients.end_of(&first.job_id).await.state(), JobState::Succeeded);
    for (job, reason, words) in [(&waiting[0], "SHARE_NOT_FOUND", ""), (&waiting[1], "NOT_MOUNTED", "is not active")] {
        let error = clients.end_of(&job.job_id).await.error.unwrap();
        assert!(error.reason == reason && error.message.ends_with(words), "{error:?}");
    }
}

/// A rollback that waits for the end of a mount would undo the extend.
#[tokio::test]
async fn a_thin_volume_that_a_snapshot_is_to_be_merged_into() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 1g");
    let mut volume = group.create(1, "--thinpool thin -V 100m").formatted("mkfs.ext4 -q");
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"")).await;
    let clients = daemon.clients().await;
    let snapshot = group.snapshot(2, &volume, "-kn");
    shell(&format!("lvconvert -q --merge {}", snapshot.full_name()));
    let refused = clients.extend(&share(1), 200 * MIB).await.unwrap_err();
    assert_refused(&refused, "NOT_MOUNTED");
    assert!(refused.message().contains("a snapshot is merged into"), "{refused:?}");
    volume.unmount();
    shell(&format!("lvchange -q -an {0} && lvchange -q -ay {0}", volume.full_name()));
    volume.mount();
    assert_eq!(ended(&clients, &share(1), 200 * MIB).await.state(), JobState::Succeeded);
}

#[tokio::test]
async fn lvm_that_is_killed_while_it_has_nothing_to_do_is_started_again() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 100m");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    for size in [120, 140, 160] {
        let job = ended(&clients, &share(1), size * MIB).await;
        assert_eq!((job.state(), volume.size()), (JobState::Succeeded, size * MIB), "{job:?}");
        // One for questions and one for changes.
        assert_eq!(shell("pgrep -cx lvm").trim(), "2");
        // A kill takes its time; what is left of a killed process until growd looks is a zombie.
        shell("pkill -KILL -x lvm; while pgrep -x -r R,S,D lvm >/dev/null; do sleep 0.01; done");
    }
}

#[tokio::test]
async fn lvm_that_does_not_answer_a_question_is_given_up() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 100m");
    let fake = FakeLvm::new();
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    // Behind what growd asks at its start.
    clients.pool("vg").await;
    fs::write(fake.dir().join("questions-hang"), "").unwrap();
    let refused = clients.extend(&share(1), 120 * MIB).await.unwrap_err();
    assert_eq!((daemon::reason(&refused).as_str(), refused.code()), ("STUCK", tonic::Code::Unavailable));
    assert_eq!(refused.message(), "pool vg has not answered for 30 s");
    fs::remove_file(fake.dir().join("questions-hang")).unwrap();
    let job = ended(&clients, &share(1), 120 * MIB).await;
    assert_eq!((job.state(), volume.size()), (JobState::Succeeded, 120 * MIB), "{job:?}");
}

#[tokio::test]
async fn a_node_without_lvm() {
    let group = Group::on("vg", &["ubda"]);
    let volume = group.create(1, "-L 100m");
    shell("mount --bind /dev/null /usr/sbin/lvm");
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    shell("umount /usr/sbin/lvm");
    let clients = daemon.clients().await;
    let refused = clients.extend(&share(1), 120 * MIB).await.unwrap_err();
    assert_refused(&refused, "NOT_MOUNTED");
    assert!(refused.message().contains("lvm is not installed"), "{refused:?}");
    let [finding] = &clients.diagnose().await.findings[..] else { panic!("one finding") };
    assert!(finding.kind == "NOT_MOUNTED" && finding.message.contains("not installed"), "{finding:?}");
    assert_eq!(volume.size(), 100 * MIB);
}
