//! SIGKILL of growd at every system call by which a limit is lowered and made durable: it is the old one or the new one, and
//! after the restart the job ends right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/kill_at_calls.rs"]
mod kill_at_calls;

use std::path::Path;

use daemon::{Daemon, MIB, btrfs_pool, eventually, pool, project, share};
use growd::wire::proto::JobKind;
use kill_at_calls::killed_at_every_call;
use support::btrfs::Btrfs;
use support::{Filesystem, PRJQUOTA, fill, lab};

const GIB: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_call_a_shrink_ends_after_the_restart() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), project(1), GIB);
        let calls = ["quotactl_fd", "utimensat", "fsync", "fdatasync"];
        killed_at_every_call(JobKind::Shrink, dir.path(), &pool(&fs, ""), &calls, || fs.hard_limit(project(1))).await;
    }
    let fs = Btrfs::new("ubdc");
    let dir = tempfile::tempdir().unwrap();
    let path = fs.create_share(&share(1), GIB);
    killed_at_every_call(JobKind::Shrink, dir.path(), &btrfs_pool(&fs), &["ioctl", "fdatasync"], || {
        fs.limit(&path).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_below_what_is_in_use_gets_its_old_limit_back() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let place = fs.create_share(&share(1), project(1), 16 * MIB);
        let set = |limit| fs.set_limits(project(1), 0, limit);
        crashes_below_what_is_in_use(&pool(&fs, ""), "utimensat:delay_enter=60s", &place, set, || {
            fs.hard_limit(project(1))
        })
        .await;
    }
    let fs = Btrfs::new("ubdc");
    let place = fs.create_share(&share(1), 16 * MIB);
    let set = |limit: u64| drop(fs.btrfs(&["qgroup", "limit", &limit.to_string()], &place));
    // The first is before the limit is set.
    crashes_below_what_is_in_use(&btrfs_pool(&fs), "syncfs:delay_enter=60s:when=2", &place, set, || {
        fs.limit(&place).unwrap()
    })
    .await;
}

/// `hang` keeps growd from looking at what is in use or from making the limit durable, once it is lowered; `set` and
/// `limit` are the kernel's word.
async fn crashes_below_what_is_in_use(
    pool: &str,
    hang: &str,
    place: &Path,
    set: impl Fn(u64),
    limit: impl Fn() -> u64,
) {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), pool).await;
    let clients = daemon.clients().await;
    let slow = daemon.inject(hang).await;
    let job = clients.shrink(&share(1), 8 * MIB).await.unwrap();
    eventually(async || limit(), |limit| *limit == 8 * MIB).await;
    // As if the writer had come between growd's last look and the new limit, and growd had died before the next.
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(daemon.was_killed());
    drop(slow);
    set(16 * MIB);
    assert_eq!(fill(&place.join("data"), 12 * MIB).unwrap(), 12 * MIB);
    set(8 * MIB);
    daemon.start_again().await;
    let clients = daemon.clients().await;
    let job = clients.end_of(&job.job_id).await;
    assert_eq!(job.error.as_ref().map(|error| error.reason.as_str()), Some("WOULD_LOSE_DATA"), "{job:?}");
    assert_eq!((job.kind(), job.attempt, limit()), (JobKind::Shrink, 2, 16 * MIB));
}
