//! More extends than the queue has places, as fast as they come, and watchers that never read: growd refuses what is too
//! much, keeps every job that it has accepted, and goes on answering.
//!
//! A round is 1000 extends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;
#[path = "support/seed.rs"]
mod seed;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use daemon::*;
use growd::wire::limits::STREAMS_MOST;
use growd::wire::proto::{GetJobRequest, Job, JobState, WatchJobRequest};
use http2::{HEADERS, Raw, call};
use process::Usage;
use prost::Message;
use seed::rounds;
use support::mapped_disk::MappedDisk;
use support::{Filesystem, lab};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Fewer would not keep the queue full for long.
const USUAL_ROUNDS: usize = 5;
const EXTENDS: usize = 1000;
const QUEUE: u32 = 1000;
/// A few more than the queue has places for.
const SHARES: u32 = 1100;
/// Shares that are asked for: a full queue refuses before it looks whether there is such a share.
const ASKED_FOR: usize = 4000;
const CALLERS: usize = 32;
/// What an overload may cost, in KiB.
const COST_MOST: u64 = 64 << 10;

/// Lets the tests of this binary follow each other: they measure.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Times of one GetJob after the other, on a connection and a thread of its own, for as long as the answer lives.
struct Stopwatch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Stopwatch {
    fn start(endpoint: String, job_id: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut jobs = Clients::when_ready(&endpoint).await.jobs;
                let mut times = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    jobs.get_job(GetJobRequest { job_id: job_id.clone() }).await.unwrap();
                    times.push(begin.elapsed());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                times
            })
        });
        Self { stop, thread }
    }

    /// The 99th percentile.
    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().unwrap();
        times.sort_unstable();
        println!("{} status queries, median {:?}", times.len(), times[times.len() / 2]);
        times[times.len() * 99 / 100]
    }
}

/// What has become of the requests.
#[derive(Default)]
struct Tally {
    accepted: Vec<Job>,
    refused: BTreeMap<String, usize>,
}

/// Sends extends from many callers, numbers `from` to `to`, each as soon as its last one is answered.
async fn storm(daemon: &Daemon, from: usize, to: usize, tally: &Arc<Mutex<Tally>>) {
    let next = Arc::new(AtomicUsize::new(from));
    let mut callers = JoinSet::new();
    let connections = [daemon.clients().await, daemon.clients().await, daemon.clients().await, daemon.clients().await];
    for caller in 0..CALLERS {
        let (next, tally) = (Arc::clone(&next), Arc::clone(tally));
        let clients = connections[caller % connections.len()].clone();
        callers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= to {
                    return;
                }
                let size = (2 + n / ASKED_FOR) as u64 * MIB;
                let answer = clients.extend(&share((n % ASKED_FOR) as u32 + 1), size).await;
                let mut tally = tally.lock().await;
                match answer {
                    Ok(job) => tally.accepted.push(job),
                    Err(status) => {
                        let reason = reason(&status);
                        // With RetryInfo, as the contract says.
                        assert_refused(&status, &reason);
                        *tally.refused.entry(reason).or_default() += 1;
                    }
                }
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_loses_nothing() {
    lab::require();
    let _alone = ALONE.lock().await;
    let extends = rounds(USUAL_ROUNDS).max(USUAL_ROUNDS) * EXTENDS;
    let disk = MappedDisk::over("ubdb");
    let fs = Filesystem::xfs(&disk.path(), "prjquota");
    create_shares(&fs, SHARES, MIB);
    let state = Filesystem::small_ext4("ubdd", "1G");
    let config = format!("max_active_jobs = {QUEUE}\n{}", pool(&fs, "overcommit = 100.0"));
    let mut daemon = Daemon::start(state.path(), &config).await;
    let clients = daemon.clients().await;
    let tally = Arc::new(Mutex::new(Tally::default()));

    let first = clients.extended(SHARES, MIB + MIB / 2).await;
    let before = Usage::of(daemon.pid());
    let watch = Stopwatch::start(daemon.endpoint(), first.job_id.clone());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let unloaded = watch.stop();

    let watch = Stopwatch::start(daemon.endpoint(), first.job_id.clone());
    let begin = Instant::now();
    let hang = clients.hang(&disk).await;
    storm(&daemon, 0, extends / 2, &tally).await;
    let node = clients.node().await;
    assert_eq!(node.queued_jobs + node.running_jobs, QUEUE, "the queue is full, and no fuller");
    drop(hang);
    // The queue empties while it is filled.
    storm(&daemon, extends / 2, extends, &tally).await;
    let took = begin.elapsed();
    let loaded = watch.stop();
    let after = Usage::of(daemon.pid());

    let active = || async { clients.node().await.queued_jobs + clients.node().await.running_jobs };
    eventually(active, |active| *active == 0).await;
    let Tally { accepted, refused } = std::mem::take(&mut *tally.lock().await);
    println!("{extends} extends in {took:?}: {} accepted, refused: {refused:?}", accepted.len());
    println!("before: {before}\nafter: {after}");
    let ratio = loaded.as_secs_f64() / unloaded.as_secs_f64();
    println!("p99 of GetJob: {unloaded:?} without load, {loaded:?} with it: {ratio:.1} times as long");
    assert!(refused["QUEUE_FULL"] > extends / 10, "{refused:?}");
    let known = ["QUEUE_FULL", "SHARE_BUSY", "SHARE_NOT_FOUND"];
    assert!(refused.keys().all(|reason| known.contains(&reason.as_str())), "{refused:?}");
    assert!(accepted.len() > QUEUE as usize, "nothing was accepted after the queue was full");
    assert!(after.peak <= before.peak + COST_MOST, "from {before} to {after}");

    let all = clients.all_jobs().await;
    assert_eq!(all.len(), accepted.len() + 1, "a refused request has a job, or an accepted one has none");
    let mut largest: HashMap<&str, u64> = HashMap::new();
    for job in &accepted {
        let now = all.get(&job.job_id).unwrap_or_else(|| panic!("lost: {job:?}"));
        assert_eq!((now.state(), now.size_after_bytes), (JobState::Succeeded, Some(job.requested_size_bytes)));
        let largest = largest.entry(&job.share_id).or_default();
        *largest = job.requested_size_bytes.max(*largest);
    }
    let limits = fs.hard_limits();
    for n in 1..SHARES {
        let expected = largest.get(share(n).as_str()).copied().unwrap_or(MIB);
        assert_eq!(limits[&project(n)], expected, "share {n}");
    }
    assert!(daemon.terminate());
}

/// A pool on the disk with twice as many shares as the queue has places, another with share 100, and a configuration.
fn two_pools(disk: &MappedDisk, queue: u32) -> (Filesystem, Filesystem, TempDir, String) {
    let fs = Filesystem::xfs(&disk.path(), "prjquota");
    create_shares(&fs, 2 * queue, MIB);
    let other = Filesystem::xfs("ubda", "prjquota");
    other.create_shares(&[(share(100), project(100))], MIB);
    let pools = [pool(&fs, ""), pool(&other, "").replace("\"home\"", "\"other\"")].concat();
    (fs, other, tempfile::tempdir().unwrap(), format!("max_active_jobs = {queue}\n{pools}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_hangs_leaves_the_others_their_places() {
    const QUEUE: u32 = 20;
    lab::require();
    let _alone = ALONE.lock().await;
    let disk = MappedDisk::over("ubdb");
    let (_fs, _other, dir, pools) = two_pools(&disk, QUEUE);
    let mut daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let mut accepted = clients.fill_turns(2 * MIB).await;
    let refused = loop {
        match clients.extend(&share(accepted.len() as u32 + 1), 2 * MIB).await {
            Ok(job) => accepted.push(job),
            Err(refusal) => break refusal,
        }
    };
    assert_refused(&refused, "QUEUE_FULL");
    assert_eq!(accepted.len() as u32, QUEUE / 2, "half of the places");
    clients.extended(100, 2 * MIB).await;
    drop(hang);
    for job in &accepted {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    assert!(daemon.terminate());
}

/// Whoever is not even looked at yet takes a place too.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_cannot_be_looked_at_leaves_the_others_their_places() {
    const QUEUE: u32 = 20;
    lab::require();
    let _alone = ALONE.lock().await;
    let disk = MappedDisk::over("ubdb");
    let (fs, _other, dir, pools) = two_pools(&disk, QUEUE);
    let mut daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;
    // What the kernel has in memory it would answer without the disk.
    fs.mount_again("prjquota");
    let hang = disk.hang();
    let mut waiting = JoinSet::new();
    for n in 1..=2 * QUEUE {
        let clients = clients.clone();
        waiting.spawn(async move { clients.extend(&share(n), 2 * MIB).await });
    }
    for _ in 0..2 * QUEUE - QUEUE / 2 {
        let refused = tokio::time::timeout(PATIENCE, waiting.join_next()).await.expect("too many wait").unwrap();
        assert_refused(&refused.unwrap().unwrap_err(), "QUEUE_FULL");
    }
    clients.extended(100, 2 * MIB).await;
    drop(hang);
    while let Some(job) = waiting.join_next().await {
        let job = job.unwrap().unwrap();
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    assert!(daemon.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_do_not_read_hold_up_nobody() {
    const SHARES: u32 = 64;
    const CONNECTIONS: usize = 8;
    lab::require();
    let _alone = ALONE.lock().await;
    let disk = MappedDisk::over("ubdb");
    let fs = Filesystem::xfs(&disk.path(), "prjquota");
    create_shares(&fs, SHARES, MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let mut ids = Vec::new();
    for n in 1..=SHARES {
        ids.push(clients.extend(&share(n), 2 * MIB).await.unwrap().job_id);
    }
    let before = Usage::of(daemon.pid());
    let mut watchers = Vec::new();
    for _ in 0..CONNECTIONS {
        // No room for any data.
        let mut raw = Raw::greet(&dir.path().join("sock"), &[0, 4, 0, 0, 0, 0]).await.unwrap();
        for n in 0..STREAMS_MOST {
            let job_id = ids[n as usize % ids.len()].clone();
            let question = WatchJobRequest { job_id }.encode_to_vec();
            raw.say(&call(2 * n + 1, "/growd.v1.JobService/WatchJob", &question)).await.unwrap();
        }
        for _ in 0..STREAMS_MOST {
            raw.until(|frame| frame.kind == HEADERS).await.expect("growd begins to tell");
        }
        watchers.push(raw);
    }
    let watched = clients.job(&ids[0]).await;
    assert_eq!(watched.state(), JobState::Running);
    drop(hang);
    for id in &ids {
        assert_eq!(clients.end_of(id).await.state(), JobState::Succeeded);
    }
    let after = Usage::of(daemon.pid());
    println!("{} watchers that do not read: from {before} to {after}", CONNECTIONS * STREAMS_MOST as usize);
    assert!(after.peak <= before.peak + COST_MOST, "from {before} to {after}");
    drop(watchers);
    let files = || async { Usage::of(daemon.pid()).files };
    eventually(files, |files| *files <= before.files).await;
    // Nor do they keep growd from going.
    let mut last = Raw::greet(&dir.path().join("sock"), &[0, 4, 0, 0, 0, 0]).await.unwrap();
    last.say(&call(1, "/growd.v1.JobService/WatchJob", &WatchJobRequest { job_id: ids[0].clone() }.encode_to_vec()))
        .await
        .unwrap();
    last.until(|frame| frame.kind == HEADERS).await.expect("growd begins to tell");
    assert!(daemon.terminate());
}
