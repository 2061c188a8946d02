//! The whole daemon through power cuts, with its state on a disk as well: a job that SUCCEEDED has its limit after the
//! boot, and one that was only accepted is still there and finishes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/power_cut.rs"]
mod power_cut;

use daemon::{Clients, Daemon, request};
use growd::wire::proto::{ExtendShareRequest, GetJobRequest, Job, JobState, WatchJobRequest};
use power_cut::{Disks, cut, tell};
use support::{Filesystem, Kind, PRJQUOTA, lab};

const MIB: u64 = 1 << 20;
const PROJECT: u32 = 42;
const POOLS: [(Kind, &str, &str); 2] = [
    (Kind::Xfs, "ubda", "00000000-0000-4000-8000-000000000001"),
    (Kind::Ext4, "ubdb", "00000000-0000-4000-8000-000000000002"),
];

/// At which moment of the jobs the power is cut. Each round extends all shares and ends with one.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// As soon as both have SUCCEEDED.
    Ended,
    /// As soon as both were accepted, with pools that write nothing any more.
    Accepted,
    /// When both have set their limits, which the pools do not write any more.
    LimitSet,
}

const ROUNDS: [Moment; 3] = [Moment::Ended, Moment::Accepted, Moment::LimitSet];

/// What the shares have before a round.
fn size(round: usize) -> u64 {
    (4 << round) * MIB
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let disks = Disks::blank();
    let mut jobs = String::new();
    for round in 0..ROUNDS.len() {
        let environment = [("ROUND", round.to_string()), ("JOBS", jobs)];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        jobs = disks.run_until_cut("in_the_lab_a_round", &environment).join(" ");
    }
    disks.run("in_the_lab_a_round", &[("ROUND", &ROUNDS.len().to_string()), ("JOBS", &jobs)]);
}

/// Looks at what the round before has left, then plays its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs on a lab node, which the other test boots"]
async fn in_the_lab_a_round() {
    lab::require();
    let round: usize = std::env::var("ROUND").unwrap().parse().unwrap();
    let jobs = std::env::var("JOBS").unwrap();
    let make = if round == 0 { Filesystem::make } else { Filesystem::left_behind };
    let pools = POOLS.map(|(kind, disk, _)| make(kind, &mapped(disk), PRJQUOTA));
    let state = make(Kind::Xfs, "ubdd", "defaults");

    if let Some(before) = round.checked_sub(1) {
        let reached = if matches!(ROUNDS[before], Moment::Ended) { round } else { before };
        check_limits(&pools, size(reached), "before growd starts");
    } else {
        for (pool, (.., share)) in pools.iter().zip(POOLS) {
            pool.create_share(share, PROJECT, size(0));
        }
        lab::run("sync", &[]);
    }
    let daemon = Daemon::start(state.path(), &config(&pools)).await;
    let clients = daemon.clients().await;
    if let Some(before) = round.checked_sub(1) {
        let jobs: Vec<&str> = jobs.split(' ').collect();
        assert_eq!(jobs.len(), POOLS.len());
        for job in jobs {
            check_job(&clients, job, ROUNDS[before]).await;
        }
        check_limits(&pools, size(round), "with all jobs ended");
    }
    if let Some(moment) = ROUNDS.get(round) {
        play(&clients, *moment, size(round + 1)).await;
        cut();
    }
}

/// The device of a disk that can be suspended.
fn mapped(disk: &str) -> String {
    let sectors = lab::run("blockdev", &["--getsz", &format!("/dev/{disk}")]);
    let table = format!("0 {} linear /dev/{disk} 0", sectors.trim());
    lab::run("dmsetup", &["create", disk, "--noudevsync", "--table", &table]);
    lab::run("dmsetup", &["mknodes"]);
    format!("/dev/mapper/{disk}")
}

fn config(pools: &[Filesystem]) -> String {
    let pool = |filesystem: &Filesystem| {
        let (name, path) = (format!("{:?}", filesystem.kind()).to_lowercase(), filesystem.path().display());
        format!("[[pool]]\nname = \"{name}\"\ndriver = \"project-quota\"\npath = \"{path}/{{share_id}}\"\n")
    };
    pools.iter().map(pool).collect()
}

#[track_caller]
fn check_limits(pools: &[Filesystem], limit: u64, when: &str) {
    for pool in pools {
        assert_eq!(pool.hard_limit(PROJECT), limit, "{:?} {when}", pool.kind());
    }
}

async fn check_job(clients: &Clients, job: &str, cut_at: Moment) {
    let request = GetJobRequest { job_id: job.to_owned() };
    let found = clients.jobs.clone().get_job(request).await.expect("an acknowledged job is lost").into_inner();
    let (ended, attempts) = match cut_at {
        Moment::Ended => (found, 1),
        Moment::Accepted | Moment::LimitSet => (clients.end_of(job).await, 2),
    };
    assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, attempts), "{cut_at:?}: {ended:?}");
}

async fn play(clients: &Clients, moment: Moment, size: u64) {
    if !matches!(moment, Moment::Ended) {
        // Brings all that is read for an extend into memory.
        for (.., share) in POOLS {
            let dry = ExtendShareRequest { validate_only: true, ..request(share, size) };
            clients.ask(dry).await.unwrap();
        }
        // What is written from now on waits for ever, and what waits for it does too.
        for (_, disk, _) in POOLS {
            lab::run("dmsetup", &["suspend", "--noflush", "--nolockfs", "--noudevsync", disk]);
        }
    }
    let mut jobs = Vec::new();
    for (.., share) in POOLS {
        let job = clients.extend(share, size).await.unwrap();
        tell(&job.job_id);
        jobs.push(job);
    }
    for job in jobs {
        match moment {
            Moment::Ended => assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded),
            Moment::Accepted => {}
            Moment::LimitSet => limit_set(clients, &job).await,
        }
    }
}

/// Follows a job until its limit is set.
async fn limit_set(clients: &Clients, job: &Job) {
    let request = WatchJobRequest { job_id: job.job_id.clone() };
    let mut changes = clients.jobs.clone().watch_job(request).await.unwrap().into_inner();
    let follow = async {
        while let Some(job) = changes.message().await.unwrap() {
            if job.steps.iter().any(|step| step.name == "set_limit" && step.finished_at.is_some()) {
                return assert_eq!(job.state(), JobState::Running);
            }
        }
        panic!("the job ended without a limit");
    };
    tokio::time::timeout(daemon::PATIENCE, follow).await.expect("no limit was set");
}
