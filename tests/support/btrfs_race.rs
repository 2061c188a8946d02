//! A shrink of a btrfs share, and a writer that comes in between.

use std::time::Duration;

use growd::wire::proto::ShareStatus;

use super::daemon::{Daemon, MIB, btrfs_pool, eventually, share};
use super::support::btrfs::Btrfs;

/// As long as growd waits after it has written out all data: before it looks at what is in use, and before it looks again.
const PAUSE: Duration = Duration::from_secs(5);

/// Whoever writes between the look and the new limit finds the old limit again.
pub async fn a_writer_that_is_faster_keeps_its_data_and_the_old_limit(fs: &Btrfs) {
    let dir = tempfile::tempdir().unwrap();
    let place = fs.create_share(&share(1), 64 * MIB);
    let daemon = Daemon::start(dir.path(), &btrfs_pool(fs)).await;
    let clients = daemon.clients().await;
    let log = dir.path().join("calls");
    let slow = daemon.inject_and_log(&format!("syncfs:delay_exit={}s", PAUSE.as_secs()), &log).await;
    let job = clients.shrink(&share(1), 8 * MIB).await.unwrap();
    let paused = async || std::fs::read_to_string(&log).unwrap();
    eventually(paused, |calls| calls.contains("DELAYED")).await;
    // Only the page cache has it, so it is not counted before growd writes it out again.
    let data = vec![1; 16 << 20];
    std::fs::write(place.join("data"), &data).unwrap();
    eventually(async || fs.limit(&place), |limit| *limit == Some(8 * MIB)).await;
    let job = clients.end_of(&job.job_id).await;
    drop(slow);
    assert_eq!(fs.limit(&place), Some(64 * MIB), "{job:?}");
    let error = job.error.unwrap();
    assert_eq!((error.reason.as_str(), error.retryable), ("WOULD_LOSE_DATA", false), "{error:?}");
    assert_eq!(clients.share(&share(1)).await.status(), ShareStatus::ShrinkingError);
    assert!(std::fs::read(place.join("data")).unwrap() == data, "data that was written has changed");
    assert!(fs.qgroup(&place).used > 16 * MIB);
}
