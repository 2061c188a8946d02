//! Requests of every kind, 20 in a second, for as long as GROWD_SOAK_SECONDS says: what growd takes of the node must come
//! to rest. Retention is small, so that the store reaches the state in which as much goes as comes.
//!
//! The requests come from a seed, which is printed; GROWD_SEED sets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/process.rs"]
mod process;
#[path = "support/seed.rs"]
mod seed;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemon::*;
use growd::wire::proto::{
    CancelJobRequest, ExtendShareRequest, GetJobRequest, Job, JobState, ListJobsRequest, ListSharesRequest,
};
use process::Usage;
use seed::{Random, soak};
use support::{Filesystem, lab};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;
use uuid::Uuid;

const USUAL_SECONDS: u64 = 30;
const EACH_SECOND: u32 = 20;
const SHARES: u32 = 20;
/// Jobs kept: so few that the usual length sees many go, and so many that none goes while its caller still asks for it.
const KEPT: usize = 40;
/// Ended jobs that may be above it before they are swept, as in `store::committer`.
const SWEEP_SLACK: usize = 100;

/// How much more the second half may take than the first. Resident memory in KiB: sled's page cache fills up to 64 MiB.
/// Threads and files: a busy moment lets requests come together, each with its thread or its connection. Bytes of the
/// store: sled writes segments of 512 KiB and uses them again once they are old.
const SLACK: [(&str, u64); 4] = [
    ("resident KiB", 16 << 10),
    ("threads", growd::engine::looks::THREADS as u64),
    ("files", 64),
    ("store bytes", 16 << 20),
];

/// Threads that growd may have at rest beyond those of its start.
const MORE_THREADS: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Extend,
    Repeat,
    Cancel,
    Watch,
    Check,
    TooSmall,
    Unknown,
    Malformed,
    Lists,
    Shares,
    ByItself,
}

/// As often as they are named here.
const KINDS: [Kind; 16] = [
    Kind::Extend,
    Kind::Extend,
    Kind::Extend,
    Kind::Extend,
    Kind::Repeat,
    Kind::Cancel,
    Kind::Cancel,
    Kind::Watch,
    Kind::Watch,
    Kind::Check,
    Kind::TooSmall,
    Kind::Unknown,
    Kind::Malformed,
    Kind::Lists,
    Kind::Shares,
    Kind::ByItself,
];

/// A job, or the reason of a refusal that its kind may have beside others' requests.
fn passing(answer: Result<Job, Status>, of: Kind) -> Option<Job> {
    match answer {
        Ok(job) => Some(job),
        Err(status) => {
            let reason = reason(&status);
            assert!(["SHARE_BUSY", "SIZE_NOT_GREATER"].contains(&reason.as_str()), "{of:?}: {status:?}");
            None
        }
    }
}

fn refused(answer: Result<Job, Status>, expected: &str) {
    assert_refused(&answer.expect_err(expected), expected);
}

/// One request with what belongs to it. Whether a job was accepted for it.
async fn act(clients: Clients, endpoint: String, kind: Kind, n: u32, size: u64) -> bool {
    let asked = ExtendShareRequest { request_id: Some(Uuid::new_v4().to_string()), ..request(&share(n), size) };
    match kind {
        Kind::Extend => passing(clients.ask(asked).await, kind).is_some(),
        Kind::Repeat => {
            let Some(first) = passing(clients.ask(asked.clone()).await, kind) else { return false };
            assert_eq!(clients.ask(asked).await.unwrap().job_id, first.job_id);
            true
        }
        Kind::Cancel => {
            let Some(job) = passing(clients.ask(asked).await, kind) else { return false };
            match clients.jobs.clone().cancel_job(CancelJobRequest { job_id: job.job_id }).await {
                Ok(cancelled) => assert_eq!(cancelled.into_inner().state(), JobState::Cancelled),
                Err(status) => assert_refused(&status, "JOB_NOT_QUEUED"),
            }
            true
        }
        Kind::Watch => {
            let Some(job) = passing(clients.ask(asked).await, kind) else { return false };
            let ended = clients.end_of(&job.job_id).await;
            assert_eq!((ended.state(), ended.size_after_bytes), (JobState::Succeeded, Some(size)));
            true
        }
        Kind::Check => {
            passing(clients.ask(ExtendShareRequest { validate_only: true, ..asked }).await, kind);
            false
        }
        Kind::TooSmall => {
            match clients.extend(&share(n), MIB).await {
                Err(status) if reason(&status) == "SHARE_BUSY" => {}
                answer => refused(answer, "SIZE_NOT_GREATER"),
            }
            false
        }
        Kind::Unknown => {
            refused(clients.extend(&share(SHARES + n), size).await, "SHARE_NOT_FOUND");
            let job_id = Uuid::now_v7().to_string();
            assert_refused(&clients.jobs.clone().get_job(GetJobRequest { job_id }).await.unwrap_err(), "JOB_NOT_FOUND");
            false
        }
        Kind::Malformed => {
            refused(clients.extend("../etc", size).await, "INVALID_SHARE_ID");
            false
        }
        Kind::Lists => {
            let page = clients.list_jobs(ListJobsRequest { page_size: 50, ..Default::default() }).await;
            let rest = ListJobsRequest { page_size: 1000, page_token: page.next_page_token, ..Default::default() };
            clients.list_jobs(rest).await;
            false
        }
        Kind::Shares => {
            let shares = clients.shares.clone().list_shares(ListSharesRequest::default()).await.unwrap().into_inner();
            assert_eq!(shares.shares.len(), SHARES as usize);
            assert_eq!(clients.diagnose().await.findings, []);
            false
        }
        Kind::ByItself => {
            let own = Clients::when_ready(&endpoint).await;
            passing(own.ask(asked).await, kind).is_some()
        }
    }
}

/// What the files of the store take.
fn bytes_below(dir: &Path) -> u64 {
    let bytes = std::fs::read_dir(dir).unwrap().map(|entry| match entry.unwrap() {
        entry if entry.file_type().unwrap().is_dir() => bytes_below(&entry.path()),
        // sled may have removed it since.
        entry => entry.metadata().map_or(0, |metadata| metadata.len()),
    });
    bytes.sum()
}

fn sample(daemon: &Daemon) -> [u64; 4] {
    let usage = Usage::of(daemon.pid());
    [usage.resident, usage.threads, usage.files, bytes_below(&daemon.dir.join("state"))]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_growd_takes_comes_to_rest() {
    lab::require();
    let length = soak(USUAL_SECONDS);
    let mut random = Random::from_environment();
    let fs = Filesystem::xfs("ubda", "prjquota");
    create_shares(&fs, SHARES, MIB);
    let state = Filesystem::small_ext4("ubdd", "1G");
    // A long soak promises more than the disk has.
    let config = format!("{}[retention]\njobs = {KEPT}\n", pool(&fs, "overcommit = 100.0"));
    let mut daemon = Daemon::start(state.path(), &config).await;
    let clients = daemon.clients().await;
    let at_first = Usage::of(daemon.pid());

    let sizes: Arc<Vec<AtomicU64>> = Arc::new((0..SHARES).map(|_| AtomicU64::new(MIB)).collect());
    let (mut running, mut counts, mut accepted) = (JoinSet::new(), BTreeMap::<Kind, u64>::new(), 0);
    let mut samples: Vec<[u64; 4]> = Vec::new();
    let mut ticks = interval(Duration::from_secs(1) / EACH_SECOND);
    // What a busy moment held up is made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for tick in 0..length.as_secs() * u64::from(EACH_SECOND) {
        ticks.tick().await;
        let kind = KINDS[random.below(KINDS.len())];
        let n = random.below(SHARES as usize);
        let size = sizes[n].fetch_add(MIB, Ordering::Relaxed) + MIB;
        *counts.entry(kind).or_default() += 1;
        running.spawn(act(clients.clone(), daemon.endpoint(), kind, n as u32 + 1, size));
        while let Some(ended) = running.try_join_next() {
            accepted += u64::from(ended.unwrap());
        }
        if tick % u64::from(EACH_SECOND) == 0 {
            samples.push(sample(&daemon));
        }
    }
    while let Some(ended) = running.join_next().await {
        accepted += u64::from(ended.unwrap());
    }
    let active = || async { clients.node().await.queued_jobs + clients.node().await.running_jobs };
    eventually(active, |active| *active == 0).await;
    let at_rest = || async { Usage::of(daemon.pid()) };
    let most = at_first.threads + MORE_THREADS;
    eventually(at_rest, |usage| usage.files <= at_first.files && usage.threads <= most).await;

    println!("{} requests in {length:?}, {accepted} jobs accepted: {counts:?}", counts.values().sum::<u64>());
    let (first, second) = samples.split_at(samples.len() / 2);
    let most = |half: &[[u64; 4]], what: usize| half.iter().map(|sample| sample[what]).max().unwrap();
    let mut rising = Vec::new();
    for (what, (name, slack)) in SLACK.into_iter().enumerate() {
        let (first, second) = (most(first, what), most(second, what));
        println!("{name}: at most {first} in the first half, {second} in the second");
        if second > first + slack {
            rising.push(name);
        }
    }
    let step = samples.len().div_ceil(24);
    println!("at first: {at_first}\nafterwards: {}", Usage::of(daemon.pid()));
    println!("{:?}: {:?}", SLACK.map(|(name, _)| name), samples.iter().step_by(step).collect::<Vec<_>>());
    assert_eq!(rising, [""; 0], "it has not come to rest");
    let most = (KEPT + SWEEP_SLACK) as u64;
    assert!(accepted > most, "too few jobs for any to go");
    eventually(async || clients.node().await.kept_jobs, |kept| (KEPT as u64..=most).contains(kept)).await;
    for n in 1..=SHARES {
        let size = clients.share(&share(n)).await.size_bytes.unwrap();
        assert_eq!(fs.hard_limit(project(n)), size);
        assert!(size <= sizes[n as usize - 1].load(Ordering::Relaxed), "share {n} is larger than was ever asked for");
    }
    assert!(daemon.terminate());
}
