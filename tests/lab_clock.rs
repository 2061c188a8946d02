//! A clock that is stepped back a year and forward a year while growd runs, and between two runs: ids still sort by
//! acceptance, nothing expires, and no wait hangs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daemon::*;
use growd::wire::proto::{ExtendShareRequest, JobState, ListJobsRequest, WatchJobRequest};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, lab};
use tokio::sync::{Mutex, MutexGuard};

const YEAR: i64 = 365 * 24 * 3600;
/// A year back, two years forward, and right again.
const STEPS: [i64; 3] = [-YEAR, YEAR, 0];

/// The clock of the node, which all tests of this binary share. It is right again when this is dropped.
struct Clock {
    _mine: MutexGuard<'static, ()>,
    right: SystemTime,
    since: Instant,
}

static CLOCK: Mutex<()> = Mutex::const_new(());

impl Clock {
    async fn take() -> Self {
        lab::require();
        Self { _mine: CLOCK.lock().await, right: SystemTime::now(), since: Instant::now() }
    }

    fn is_wrong_by(&self, seconds: i64) {
        let right = (self.right + self.since.elapsed()).duration_since(UNIX_EPOCH).unwrap();
        let time = right.as_secs() as i64 + seconds;
        lab::run("date", &["-s", &format!("@{time}")]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!((now.as_secs() as i64 - time).abs() < 60, "the clock was not set");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.is_wrong_by(0);
    }
}

/// The ids of all jobs, the newest first.
async fn history(clients: &Clients) -> Vec<String> {
    let all = clients.list_jobs(ListJobsRequest { page_size: 1000, ..Default::default() }).await;
    all.jobs.into_iter().map(|job| job.job_id).collect()
}

/// What the service manager hears; a watchdog of two seconds, which kills nobody here.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(dir: &Path) -> (Self, [(&'static str, String); 2]) {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        (Self(socket), [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "2000000".to_owned())])
    }

    /// Waits for beats that were sent from now on.
    fn hears_the_heart(&self) {
        self.0.set_nonblocking(true).unwrap();
        let mut message = [0; 4096];
        while self.0.recv(&mut message).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
        let mut beats = 0;
        while beats < 2 {
            let length = self.0.recv(&mut message).expect("the heart has stopped");
            beats += usize::from(message[..length].windows(10).any(|word| word == b"WATCHDOG=1"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_sort_and_jobs_end_whatever_the_clock_says() {
    let clock = Clock::take().await;
    let fs = Filesystem::xfs("ubda", "prjquota");
    create_shares(&fs, 4, MIB);
    let dir = tempfile::tempdir().unwrap();
    let (manager, environment) = Manager::listen(dir.path());
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut daemon = Daemon::start_with(dir.path(), &pool(&fs, ""), &environment).await;
    let mut clients = daemon.clients().await;
    let mut accepted = Vec::new();
    let mut size = MIB;
    for restart in [false, true] {
        for step in STEPS {
            size += MIB;
            accepted.push(clients.extended(1, size).await.job_id);
            if restart {
                assert!(daemon.terminate());
            }
            clock.is_wrong_by(step);
            if restart {
                daemon.start_again().await;
                clients = daemon.clients().await;
            }
            for n in 2..=4 {
                accepted.push(clients.extended(n, size).await.job_id);
            }
            assert!(accepted.is_sorted(), "{accepted:?}");
            let newest_first: Vec<String> = accepted.iter().rev().cloned().collect();
            assert_eq!(history(&clients).await, newest_first);
            assert_eq!(clients.share(&share(4)).await.last_job_id, *newest_first[0]);
            tokio::task::block_in_place(|| manager.hears_the_heart());
        }
    }
    // A directory that was changed at a time that is to come is looked at no less well.
    clock.is_wrong_by(YEAR);
    fs.create_share(&share(5), project(5), MIB);
    clock.is_wrong_by(-YEAR);
    clients.extended(5, 2 * MIB).await;
    fs.create_share(&share(6), project(5), 2 * MIB);
    let refused = clients.extend(&share(5), 3 * MIB).await.unwrap_err();
    assert_refused(&refused, "PROJECT_ID_SHARED");
    assert!(daemon.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wait_hangs_and_none_ends_too_early() {
    let clock = Clock::take().await;
    let disk = MappedDisk::over("ubdb");
    let fs = Filesystem::xfs(&disk.path(), "prjquota");
    create_shares(&fs, 2, MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let job = clients.extend(&share(1), 2 * MIB).await.unwrap();
    let begun = || async { clients.job(&job.job_id).await.state() };
    eventually(begun, |state| *state == JobState::Running).await;
    let watch = WatchJobRequest { job_id: job.job_id.clone() };
    let mut watched = clients.jobs.clone().watch_job(watch).await.unwrap().into_inner();
    for step in STEPS {
        clock.is_wrong_by(step);
        let other = clients.list_jobs(ListJobsRequest::default()).await;
        assert_eq!(other.jobs.len(), 1);
        // Nothing counts as stuck for the clock's sake.
        assert_eq!(clients.diagnose().await.findings, []);
    }
    clock.is_wrong_by(-YEAR);
    daemon.begin_to_terminate();
    // A check that changes nothing.
    let check = ExtendShareRequest { validate_only: true, ..request(&share(2), 2 * MIB) };
    let draining = || async { clients.ask(check.clone()).await.err().map(|status| reason(&status)) };
    eventually(draining, |reason| reason.as_deref() == Some("DRAINING")).await;
    clock.is_wrong_by(YEAR);
    drop(hang);
    let mut last = None;
    let watch = async {
        while let Ok(Some(job)) = watched.message().await {
            last = Some(job);
        }
    };
    tokio::time::timeout(PATIENCE, watch).await.expect("the watcher hangs");
    assert_eq!(last.map(|job| (job.state(), job.size_after_bytes)), Some((JobState::Succeeded, Some(2 * MIB))));
    assert!(daemon.ended_in_order());
}

/// As with a hardware clock that is wrong at a boot, until the network sets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_a_year_ahead_takes_no_history_away() {
    const KEPT: usize = 4;
    let clock = Clock::take().await;
    let fs = Filesystem::xfs("ubdc", "prjquota");
    create_shares(&fs, 1, MIB);
    let dir = tempfile::tempdir().unwrap();
    let config = format!("{}[retention]\nage = \"90d\"\njobs = {KEPT}\n", pool(&fs, ""));
    let mut daemon = Daemon::start(dir.path(), &config).await;
    let mut clients = daemon.clients().await;
    let mut accepted = Vec::new();
    for step in [STEPS[0], 0, STEPS[1]] {
        clock.is_wrong_by(step);
        for _ in 0..3 {
            accepted.push(clients.extended(1, (2 + accepted.len() as u64) * MIB).await.job_id);
        }
        // The first sweep after a start removes what is above the number, and so is seen.
        assert!(daemon.terminate());
        daemon.start_again().await;
        clients = daemon.clients().await;
        let newest: Vec<String> = accepted.iter().rev().take(KEPT).cloned().collect();
        eventually(|| history(&clients), |history| history.len() <= KEPT).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(history(&clients).await, newest);
    }
    assert!(daemon.terminate());
}
