//! SIGKILL of growd at every system call by which a limit is raised and made durable: after the restart the job ends right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::BTreeMap;
use std::path::Path;

use daemon::{Daemon, MIB, project, request, share};
use growd::wire::proto::{ExtendShareRequest, JobState};
use support::btrfs::Btrfs;
use support::{Filesystem, PRJQUOTA, lab};

/// `calls` set the limit and make it and the job durable; `limit` asks the kernel.
async fn killed_at_every_call(dir: &Path, pool: &str, calls: &[&'static str], limit: impl Fn() -> u64) {
    let mut daemon = Daemon::start(dir, pool).await;
    let (mut killed, mut resumed) = (BTreeMap::new(), 0);
    for call in calls {
        for nth in 1.. {
            let (before, size) = (limit(), limit() + 4 * MIB);
            let request_id = Some(uuid::Uuid::now_v7().to_string());
            let request = ExtendShareRequest { request_id, ..request(&share(1), size) };
            let clients = daemon.clients().await;
            let injected = daemon.inject(&format!("{call}:signal=KILL:when={nth}")).await;
            let answer = clients.ask(request.clone()).await;
            let ended = match &answer {
                Ok(job) => clients.end_or_death(&job.job_id).await.is_some(),
                Err(_) => false,
            };
            // Before strace is told to end: it waits for ever when what it traces is dying.
            assert!(ended || daemon.was_killed(), "{call} {nth}: {answer:?}");
            drop(injected);
            assert!(limit() == before || limit() == size, "{call} {nth}: {}", limit());
            if ended {
                assert_eq!(limit(), size);
                break;
            }
            *killed.entry(*call).or_insert(0) += 1;
            daemon.start_again().await;
            // Whoever had no answer asks again with the same id.
            let clients = daemon.clients().await;
            let job = clients.ask(request).await.unwrap();
            let job = clients.end_of(&job.job_id).await;
            assert_eq!((job.state(), job.size_after_bytes()), (JobState::Succeeded, size), "{call} {nth}: {job:?}");
            if let Ok(accepted) = answer {
                assert_eq!(accepted.job_id, job.job_id, "{call} {nth}");
                assert!(job.attempt <= 2, "{job:?}");
                resumed += u32::from(job.attempt == 2);
            }
            assert_eq!(limit(), size, "{call} {nth}");
            assert_eq!(clients.diagnose().await.findings, [], "{call} {nth}");
        }
    }
    println!("growd was killed at {killed:?}, {resumed} times in the middle of an accepted job");
    assert!(killed.len() == calls.len() && resumed > 0, "{killed:?}, {resumed}");
}

#[tokio::test]
async fn of_quotas_on_xfs_and_ext4() {
    lab::require();
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), project(1), 4 * MIB);
        let calls = ["quotactl_fd", "utimensat", "fsync", "fdatasync"];
        killed_at_every_call(dir.path(), &daemon::pool(&fs, ""), &calls, || fs.hard_limit(project(1))).await;
    }
}

#[tokio::test]
async fn of_quota_groups_on_btrfs() {
    lab::require();
    let fs = Btrfs::new("ubdc");
    let dir = tempfile::tempdir().unwrap();
    let path = fs.create_share(&share(1), 4 * MIB);
    let pool =
        format!("[[pool]]\nname = \"home\"\ndriver = \"btrfs\"\npath = \"{}/{{share_id}}\"\n", fs.path().display());
    killed_at_every_call(dir.path(), &pool, &["ioctl", "fdatasync"], || fs.limit(&path).unwrap()).await;
}
