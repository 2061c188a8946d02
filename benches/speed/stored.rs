//! Stores with many jobs, and what a daemon takes of processor and memory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use growd::model::{Bytes, DriverKind, Job, JobId, JobKind, JobState, ShareId, StepRecord};
use growd::store::{Retention, Store};
use uuid::Uuid;

/// Ten times what is kept by default.
pub const JOBS: usize = 1_000_000;

/// A configuration that keeps so many jobs. Its pool is not mounted here, which no question about jobs asks about.
pub fn config(kept: usize) -> String {
    format!(
        "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"/nonexistent/{{share_id}}\"\n\
         [retention]\njobs = {kept}\n"
    )
}

/// Makes a store of so many jobs that have ended and, after them, some that have not.
pub async fn fill(state_dir: &Path, ended: usize, unfinished: usize) -> Vec<Job> {
    let retention = Retention { age: Duration::from_secs(90 * 24 * 3600), jobs: ended.max(1) };
    let (store, _) = Store::open(state_dir, retention).unwrap();
    let jobs: Vec<Job> = (0..ended + unfinished).map(|n| job(n < ended)).collect();
    for some in jobs.chunks(1000) {
        store.commit(some.to_vec()).await.unwrap();
    }
    store.close().await;
    jobs
}

/// A job like those that end well, or that wait.
fn job(ended: bool) -> Job {
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
        share: ShareId::from_uuid(Uuid::new_v4()),
        pool: "home".parse().unwrap(),
        driver: DriverKind::ProjectQuota,
        state: if ended { JobState::Succeeded } else { JobState::Queued },
        size_before: Bytes::gib(1),
        requested_size: Bytes::gib(2),
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
