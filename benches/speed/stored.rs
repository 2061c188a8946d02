//! Stores with many jobs, and what a daemon takes of processor and memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use growd::meters::Meters;
use growd::model::{Bytes, DriverKind, Job, JobId, JobKind, JobState, ShareId, StepRecord};
use growd::store::{Claimed, Retention, Store};
use uuid::Uuid;

use crate::growd::quota_pool;

/// Ten times what is kept by default.
pub const JOBS: usize = 1_000_000;

/// A share with some two hundred of the jobs of every store, all over it.
pub const SHARE: ShareId = ShareId::from_uuid(Uuid::from_u128(7));
const OF_SHARE: usize = 200;

/// A configuration that keeps so many jobs. Its pool is not mounted here, which no question about jobs asks about.
pub fn config(kept: usize) -> String {
    quota_pool("home", Path::new("/nonexistent"), &format!("[retention]\njobs = {kept}"))
}

/// Makes a store of so many jobs that have ended and, after a restart, some that have not.
pub async fn fill(state_dir: &Path, ended: usize, unfinished: usize) -> Vec<Job> {
    let of_share = |n: usize| n.is_multiple_of((ended / OF_SHARE).max(1));
    let mut jobs: Vec<Job> =
        (0..ended).map(|n| Job { share: if of_share(n) { SHARE } else { any_share() }, ..job(true) }).collect();
    add(state_dir, ended, &jobs).await;
    let waiting: Vec<Job> = (0..unfinished).map(|_| job(false)).collect();
    add(state_dir, ended, &waiting).await;
    jobs.extend(waiting);
    jobs
}

/// Commits jobs to a store that keeps so many, and closes it.
pub async fn add(state_dir: &Path, kept: usize, jobs: &[Job]) {
    let store = open(state_dir, kept);
    for some in jobs.chunks(1000) {
        store.commit(some.to_vec()).await.unwrap();
    }
    store.close().await;
}

/// Opens a store that keeps so many ended jobs, for the age that is the default.
pub fn open(state_dir: &Path, kept: usize) -> Store {
    let retention = Retention { age: Duration::from_secs(90 * 24 * 3600), jobs: kept.max(1) };
    Claimed::of(state_dir).unwrap().open(retention, Arc::new(Meters::new().unwrap())).unwrap().0
}

/// Opens a database as growd does.
pub fn open_bare(jobs: &Path) -> sled::Db {
    sled::Config::new().path(jobs).cache_capacity(54 << 20).flush_every_ms(None).open().unwrap()
}

/// Reads every record once: their number, and the bytes of their keys and values.
pub fn records(db: &sled::Db) -> (usize, usize) {
    db.iter()
        .map(Result::unwrap)
        .fold((0, 0), |(records, bytes), (key, value)| (records + 1, bytes + key.len() + value.len()))
}

fn any_share() -> ShareId {
    ShareId::from_uuid(Uuid::new_v4())
}

/// A job like those that end well, or that wait.
pub fn job(ended: bool) -> Job {
    let now = SystemTime::now();
    let step = |name: &str, detail: &str| StepRecord {
        name: name.to_owned(),
        started_at: now,
        finished_at: Some(now),
        detail: detail.to_owned(),
    };
    let steps = vec![step("set_limit", "grown from 1GiB to 2GiB"), step("verify", "read back 2GiB")];
    Job {
        id: JobId::from_uuid(Uuid::now_v7()),
        kind: JobKind::Extend,
        share: any_share(),
        pool: "home".parse().unwrap(),
        driver: DriverKind::ProjectQuota,
        state: if ended { JobState::Succeeded } else { JobState::Queued },
        size_before: Bytes::gib(1),
        requested_size: Bytes::gib(2),
        promised: if ended { Bytes::ZERO } else { Bytes::gib(1) },
        expected_size: None,
        size_after: ended.then_some(Bytes::gib(2)),
        steps: if ended { steps } else { Vec::new() },
        error: None,
        attempt: 1,
        revision: if ended { 5 } else { 1 },
        requested_by: "uid=0 pid=12345".to_owned(),
        project: "tenant-a".parse().unwrap(),
        request_id: None,
        trace: None,
        created_at: now,
        started_at: ended.then_some(now),
        finished_at: ended.then_some(now),
    }
}

/// Processor time of a process, user and system.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15, in ticks of 10 ms: USER_HZ is
    // part of Linux's ABI.
    let ticks = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() * 10)
}

/// Resident memory of a process in bytes.
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
