//! SIGKILL of growd at every system call by which an image grows: after the restart the job ends right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;

use daemon::{Clients, Daemon, MIB, assert_refused, eventually, share};
use growd::wire::proto::JobState;
use support::image::{Image, KINDS, pool};
use support::{Filesystem, lab};

/// Asks for an extend and follows it until it ends or growd is killed: the id of the job, if growd answered, and whether
/// it ended.
async fn extend_or_die(clients: &Clients, size: u64) -> (Option<String>, bool) {
    let Ok(job) = clients.extend(&share(1), size).await else { return (None, false) };
    let ended = clients.end_or_death(&job.job_id).await.is_some();
    (Some(job.job_id), ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_call_a_growth_is_finished_after_the_restart() {
    lab::require();
    let ground = Filesystem::ext4("ubda", "");
    let (kind, mkfs) = KINDS[0];
    let dir = tempfile::tempdir().unwrap();
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, true, mkfs);
    let seed = image.mount_point().join("seed");
    fs::write(&seed, (0..MIB).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
    let sum = || lab::run("md5sum", &[seed.to_str().unwrap()]);
    let before = sum();
    let mut daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let (mut size, mut resumed, mut states) = (320 * MIB, 0, std::collections::BTreeSet::new());
    // Each call of a growth in turn, until there are no more of them; of the many ioctls every third.
    for (call, step) in [("fallocate", 1), ("fsync", 1), ("ioctl", 3)] {
        for nth in (1..).step_by(step) {
            size += 16 * MIB;
            println!("{call} {nth}");
            let injected = daemon.inject(&format!("{call}:signal=KILL:when={nth}")).await;
            let (job, ended) = extend_or_die(&daemon.clients().await, size).await;
            // Before strace is told to end: it waits for ever when what it traces is dying.
            assert!(ended || daemon.was_killed(), "{kind}, {call} {nth}");
            drop(injected);
            // Where the kill has come between: how far the file and its device were.
            states.insert((image.size() >= size, image.device_size() >= size));
            if !ended {
                daemon.start_again().await;
            }
            let clients = daemon.clients().await;
            let job = match job {
                Some(job) => job,
                // Killed before it was accepted: nothing has happened.
                None => clients.extend(&share(1), size).await.unwrap().job_id,
            };
            let job = clients.end_of(&job).await;
            assert_eq!(job.state(), JobState::Succeeded, "{kind}, {call} {nth}: {job:?}");
            resumed += u32::from(job.attempt > 1);
            assert!(job.size_after_bytes() >= size, "{job:?}");
            assert_eq!(image.size(), image.device_size(), "{kind}, {call} {nth}");
            assert_refused(&clients.extend(&share(1), size).await.unwrap_err(), "SIZE_NOT_GREATER");
            assert_eq!(clients.diagnose().await.findings, [], "{kind}, {call} {nth}");
            if ended {
                assert!(nth > 1, "{kind}: there was no {call} to be killed at");
                break;
            }
        }
    }
    // Before the file had grown, between that and its device, and after both.
    assert_eq!(states.len(), 3, "{states:?}");
    println!("{kind}: {resumed} jobs were finished by the next growd, up to {} MiB", size / MIB);
    assert!(image.is_preallocated());
    assert_eq!(sum(), before);
    assert!(daemon.terminate());
    image.unmount();
    image.check(kind);
}

/// The blocks of a growth come before its size. What a kill leaves behind the end of the file is more than half of what was
/// free, so that there would be no room for it twice.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_a_kill_leaves_behind_the_end_of_a_file_are_its_own() {
    lab::require();
    let (ground, dir) = (Filesystem::small_ext4("ubda", "1100M"), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, true, KINDS[0].1);
    let mut daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let injected = daemon.inject("fallocate:delay_exit=10000000:when=1").await;
    let job = daemon.clients().await.extend(&share(1), 860 * MIB).await.unwrap().job_id;
    eventually(|| async { image.allocated() }, |allocated| *allocated >= 860 * MIB).await;
    daemon.kill();
    drop(injected);
    assert_eq!(image.size(), 320 * MIB);

    daemon.start_again().await;
    let clients = daemon.clients().await;
    let job = clients.end_of(&job).await;
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2), "{job:?}");
    assert_eq!((image.size(), image.device_size()), (860 * MIB, 860 * MIB));

    // Left by a job that is not carried on: they are promised to this share alone, and once.
    lab::run("fallocate", &["--keep-size", "--length", "900M", image.path.to_str().unwrap()]);
    clients.extended(1, 900 * MIB).await;
    lab::run("fallocate", &["--keep-size", "--length", "940M", image.path.to_str().unwrap()]);
    assert_refused(&clients.extend(&share(1), 1200 * MIB).await.unwrap_err(), "POOL_FULL");
    assert!(daemon.terminate());
    // Where space is promised more than once the growth itself finds that there is none, and gives all back.
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "overcommit = 4")).await;
    let clients = daemon.clients().await;
    let job = clients.extend(&share(1), 1200 * MIB).await.unwrap();
    let error = clients.end_of(&job.job_id).await.error.unwrap();
    assert_eq!(error.reason, "POOL_FULL", "{error:?}");
    assert!(image.size() == 900 * MIB && image.allocated() < 902 * MIB, "{} are allocated", image.allocated());
}
