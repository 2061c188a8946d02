//! SIGKILL of the daemon at every moment of a growth, and many growths at once: what was accepted ends, with the sizes
//! that were asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::collections::BTreeMap;

use daemon::{Daemon, MIB, eventually, share};
use growd::wire::proto::{ExtendShareRequest, Job, JobState};
use volumes::{FakeLvm, Group, Volume, shell};

/// A job that was interrupted once ended as if it had not been.
fn assert_resumed(job: &Job, volume: &Volume, size: u64) {
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2), "{job:?}");
    assert_eq!((volume.size(), volume.usable(), job.size_after_bytes()), (size, size, size), "{job:?}");
}

/// What the fake makes of an lvextend during which growd is killed; and whether the volume has grown at that moment.
const MOMENTS: [(&str, &str, bool); 3] = [
    ("before it begins", BEFORE_IT_BEGINS, false),
    ("when it is done", "real; exec 3>&-; wait $lvm; touch $dir/begun; gate; touch $dir/done", true),
    (LONG_BEFORE, BEFORE_IT_BEGINS, false),
];
const BEFORE_IT_BEGINS: &str = "touch $dir/begun; gate; real; exec 3>&-; wait $lvm; touch $dir/done";
/// The new growd asks for the same while the old command still waits.
const LONG_BEFORE: &str = "long before it begins";

#[tokio::test]
async fn a_command_outlives_growd_and_the_job_is_finished() {
    let group = Group::on("vg", &["ubda"]);
    for (n, mkfs) in (1..).zip(["mkfs.xfs -q", "mkfs.ext4 -q"]) {
        let volume = group.create(n, "-L 320m").formatted(mkfs);
        let writer = volume.writer();
        for (when, script, is_grown) in MOMENTS {
            let fake = FakeLvm::new();
            fake.lvextend(script);
            let path = fake.path();
            let mut daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &path)]).await;
            let before = volume.size();
            let job = daemon.clients().await.extend(&share(n), before + 40 * MIB).await.unwrap();
            let exists = |name: &'static str| fake.dir().join(name).exists();
            eventually(|| async { exists("begun") }, |exists| *exists).await;
            daemon.kill();
            assert_eq!(volume.size(), before + if is_grown { 40 * MIB } else { 0 }, "{when}");
            assert_eq!(volume.usable(), before, "{when}");
            assert!(!exists("done"), "{when}");
            fake.lvextend("real");
            if when != LONG_BEFORE {
                fake.go();
            }
            daemon.start_again().await;
            let job = daemon.clients().await.end_of(&job.job_id).await;
            assert_resumed(&job, &volume, before + 40 * MIB);
            if when == LONG_BEFORE {
                assert_eq!(fake.asked(), 2);
                fake.go();
            }
            // It came to its end although nobody read what it printed.
            eventually(|| async { exists("done") }, |exists| *exists).await;
            assert_eq!((volume.size(), volume.usable()), (before + 40 * MIB, before + 40 * MIB), "{when}");
            assert_eq!(daemon.clients().await.diagnose().await.findings, [], "{when}");
        }
        assert!(writer.finish() > 0);
    }
}

/// After a boot the volumes of a group are mounted one after the other.
#[tokio::test]
async fn a_job_that_waits_for_its_volume_to_be_mounted_holds_up_no_other_of_the_group() {
    let group = Group::on("vg", &["ubda"]);
    let mut late = group.create(1, "-L 320m").formatted("mkfs.ext4 -q");
    let there = group.create(2, "-L 320m").formatted("mkfs.ext4 -q");
    let fake = FakeLvm::new();
    fake.lvextend(BEFORE_IT_BEGINS);
    let path = fake.path();
    let mut daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &path)]).await;
    let clients = daemon.clients().await;
    let size = late.size() + 40 * MIB;
    let first = clients.extend(&share(1), size).await.unwrap();
    let exists = |name: &'static str| fake.dir().join(name).exists();
    eventually(|| async { exists("begun") }, |exists| *exists).await;
    let second = clients.extend(&share(2), size).await.unwrap();
    daemon.kill();
    fake.go();
    eventually(|| async { exists("done") }, |exists| *exists).await;
    fake.lvextend("real");
    late.unmount();
    daemon.start_again().await;
    let clients = daemon.clients().await;
    assert_resumed(&clients.end_of(&second.job_id).await, &there, size);
    assert_eq!(clients.job(&first.job_id).await.state(), JobState::Queued);
    late.mount();
    assert_resumed(&clients.end_of(&first.job_id).await, &late, size);
}

/// growd is killed at the nth of the system calls by which a growth is done and made durable, for every n: of a thick
/// volume with XFS and of a thin one with ext4.
#[tokio::test]
async fn killed_at_every_system_call_it_goes_on_where_it_was() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 1g");
    let thick = ("-L 320m", "", "mkfs.xfs -q", &["write", "ioctl", "fsync,fdatasync"][..]);
    let thin = ("-V 320m --thinpool thin", "thin_pool = \"thin\"", "mkfs.ext4 -q", &["ioctl", "fsync,fdatasync"][..]);
    for (n, (options, pool, mkfs, calls)) in (1..).zip([thick, thin]) {
        let volume = group.create(n, options).formatted(mkfs);
        let mut daemon = Daemon::start(group.dir(), &group.pool(pool)).await;
        let (mut killed, mut resumed) = (BTreeMap::new(), 0);
        for call in calls {
            for nth in 1.. {
                let clients = daemon.clients().await;
                // strace follows processes that begin meanwhile, so both shells of lvm must be there already.
                clients.extended(n, volume.size() + 4 * MIB).await;
                let size = volume.size() + 4 * MIB;
                let request_id = Some(uuid::Uuid::now_v7().to_string());
                let request = ExtendShareRequest { request_id, ..daemon::request(&share(n), size) };
                let injected = daemon.inject(&format!("{call}:signal=KILL:when={nth}")).await;
                let answer = clients.ask(request.clone()).await;
                let ended = match &answer {
                    Ok(job) => clients.end_or_death(&job.job_id).await,
                    Err(_) => None,
                };
                if let Some(job) = ended {
                    drop(injected);
                    assert_eq!((job.state(), volume.usable()), (JobState::Succeeded, size), "{job:?}");
                    break;
                }
                assert!(daemon.was_killed(), "{call} {nth}: {answer:?}");
                // Not before: strace waits for ever when it is told to end while what it traces is dying.
                drop(injected);
                *killed.entry(*call).or_insert(0) += 1;
                println!("killed at {call} {nth}");
                daemon.start_again().await;
                let clients = daemon.clients().await;
                // Whoever had no answer asks again with the same id.
                let job = clients.ask(request).await.unwrap();
                let job = clients.end_of(&job.job_id).await;
                assert_eq!(job.state(), JobState::Succeeded, "{call} {nth}: {job:?}");
                if let Ok(accepted) = answer {
                    assert_eq!(accepted.job_id, job.job_id, "{call} {nth}");
                    // It may have died with the news of the job's end.
                    assert!(job.attempt <= 2, "{job:?}");
                    resumed += u32::from(job.attempt == 2);
                }
                assert_eq!((volume.size(), volume.usable()), (size, size), "{call} {nth}");
                assert_eq!(clients.share(&share(n)).await.findings, [], "{call} {nth}");
            }
        }
        println!("{mkfs}: growd was killed at {killed:?}, {resumed} times in the middle of an accepted job");
        assert!(killed.len() == calls.len() && resumed > 0, "{killed:?}, {resumed}");
    }
}

#[tokio::test]
async fn sixteen_shares_of_a_group_at_once() {
    let group = Group::on("vg", &["ubda"]);
    let volumes: Vec<Volume> = (1..=16).map(|n| group.create(n, "-L 40m").formatted("mkfs.ext4 -q")).collect();
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let mut jobs = tokio::task::JoinSet::new();
    for n in 1..=16 {
        let clients = clients.clone();
        jobs.spawn(async move {
            let job = clients.extend(&share(n), 80 * MIB).await.unwrap();
            clients.end_of(&job.job_id).await
        });
    }
    for job in jobs.join_all().await {
        assert_eq!((job.state(), job.size_after_bytes()), (JobState::Succeeded, 80 * MIB), "{job:?}");
    }
    for volume in &volumes {
        assert_eq!((volume.size(), volume.usable()), (80 * MIB, 80 * MIB));
    }
    assert_eq!(clients.pool("vg").await.queued_bytes, 0);
    assert_eq!(clients.diagnose().await.findings, []);
    assert_eq!(shell("pgrep -cx lvm").trim(), "2");
}
