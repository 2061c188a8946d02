//! SIGKILL of growd at every system call by which a limit is raised and made durable: after the restart the job ends right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/kill_at_calls.rs"]
mod kill_at_calls;

use daemon::{MIB, project, share};
use growd::wire::proto::JobKind;
use kill_at_calls::killed_at_every_call;
use support::btrfs::Btrfs;
use support::{Filesystem, PRJQUOTA, lab};

#[tokio::test]
async fn of_quotas_on_xfs_and_ext4() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), project(1), 4 * MIB);
        let calls = ["quotactl_fd", "utimensat", "fsync", "fdatasync"];
        killed_at_every_call(JobKind::Extend, dir.path(), &daemon::pool(&fs, ""), &calls, || fs.hard_limit(project(1)))
            .await;
    }
}

#[tokio::test]
async fn of_quota_groups_on_btrfs() {
    lab::require();
    let fs = Btrfs::new("ubdc");
    let dir = tempfile::tempdir().unwrap();
    let path = fs.create_share(&share(1), 4 * MIB);
    killed_at_every_call(JobKind::Extend, dir.path(), &daemon::btrfs_pool(&fs), &["ioctl", "fdatasync"], || {
        fs.limit(&path).unwrap()
    })
    .await;
}
