//! SIGKILL of growd at every system call by which a limit is lowered and made durable: it is the old one or the new one, and
//! after the restart the job ends right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::path::Path;

use daemon::{Daemon, MIB, btrfs_pool, eventually, pool, project, share, shrink_request};
use growd::wire::proto::{JobKind, JobState, ShrinkShareRequest};
use support::btrfs::Btrfs;
use support::{Filesystem, PRJQUOTA, fill, lab};

const GIB: u64 = 1 << 30;

async fn killed_at_every_call(dir: &Path, pool: &str, calls: &[&str], limit: impl Fn() -> u64) {
    let mut daemon = Daemon::start(dir, pool).await;
    let (mut killed, mut resumed) = (0, 0);
    for call in calls {
        for nth in 1.. {
            let clients = daemon.clients().await;
            let (before, size) = (limit(), limit() - 8 * MIB);
            let request_id = Some(uuid::Uuid::now_v7().to_string());
            let request = ShrinkShareRequest { request_id, ..shrink_request(&share(1), size) };
            let injected = daemon.inject(&format!("{call}:signal=KILL:when={nth}")).await;
            let answer = clients.ask_to_shrink(request.clone()).await;
            let ended = match &answer {
                Ok(job) => clients.end_or_death(&job.job_id).await.is_some(),
                Err(_) => false,
            };
            assert!(ended || daemon.was_killed(), "{call} {nth}: {answer:?}");
            drop(injected);
            assert!(limit() == before || limit() == size, "{call} {nth}: {}", limit());
            if !ended {
                killed += 1;
                daemon.start_again().await;
                let clients = daemon.clients().await;
                let job = clients.ask_to_shrink(request).await.unwrap();
                let job = clients.end_of(&job.job_id).await;
                assert_eq!((job.state(), job.size_after_bytes()), (JobState::Succeeded, size), "{call} {nth}: {job:?}");
                assert_eq!(job.kind(), JobKind::Shrink);
                resumed += u32::from(answer.is_ok() && job.attempt == 2);
            }
            assert_eq!(limit(), size, "{call} {nth}");
            if ended {
                break;
            }
        }
    }
    println!("growd was killed {killed} times, {resumed} of them in the middle of an accepted job");
    assert!(resumed > 0, "{killed}, {resumed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_call_a_shrink_ends_after_the_restart() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), project(1), GIB);
        let calls = ["quotactl_fd", "utimensat", "fsync", "fdatasync"];
        killed_at_every_call(dir.path(), &pool(&fs, ""), &calls, || fs.hard_limit(project(1))).await;
    }
    let fs = Btrfs::new("ubdc");
    let dir = tempfile::tempdir().unwrap();
    let path = fs.create_share(&share(1), GIB);
    killed_at_every_call(dir.path(), &btrfs_pool(&fs), &["ioctl", "fdatasync"], || fs.limit(&path).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_below_what_is_in_use_gets_its_old_limit_back() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let dir = tempfile::tempdir().unwrap();
        let place = fs.create_share(&share(1), project(1), 16 * MIB);
        let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
        let clients = daemon.clients().await;
        let slow = daemon.inject("utimensat:delay_enter=60s").await;
        let job = clients.shrink(&share(1), 8 * MIB).await.unwrap();
        eventually(async || fs.hard_limit(project(1)), |limit| *limit == 8 * MIB).await;
        // As if the writer had come between growd's last look and the new limit, and growd had died before the next.
        daemon.signal(nix::sys::signal::Signal::SIGKILL);
        assert!(daemon.was_killed());
        drop(slow);
        fs.set_limits(project(1), 0, 16 * MIB);
        assert_eq!(fill(&place.join("data"), 12 * MIB).unwrap(), 12 * MIB);
        fs.set_limits(project(1), 0, 8 * MIB);
        daemon.start_again().await;
        let clients = daemon.clients().await;
        let job = clients.end_of(&job.job_id).await;
        assert_eq!(job.error.as_ref().map(|error| error.reason.as_str()), Some("WOULD_LOSE_DATA"), "{job:?}");
        assert_eq!((job.kind(), job.attempt, fs.hard_limit(project(1))), (JobKind::Shrink, 2, 16 * MIB));
    }
}
