//! SIGKILL at random moments under load: what was acknowledged is there afterwards, and all of it ends.
//!
//! The moments come from a seed, which is printed. GROWD_SEED sets it; the moments are then the same, what growd happens
//! to do at them need not be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/seed.rs"]
mod seed;

use std::time::Duration;

use daemon::{Clients, Daemon, MIB, create_shares, pool, project, request, share};
use growd::wire::proto::{ExtendShareRequest, Job, JobState};
use seed::{Random, rounds};
use support::{Filesystem, lab};
use tokio::task::JoinSet;
use uuid::Uuid;

const USUAL_ROUNDS: usize = 100;
const SHARES: u32 = 8;
/// A round of load takes about so long when it is not cut off: each moment of it shall be hit.
const LOAD: Duration = Duration::from_millis(120);

fn moment(random: &mut Random) -> Duration {
    Duration::from_micros(random.below(usize::try_from(LOAD.as_micros()).unwrap()) as u64)
}

fn asked(round: u64, n: u32) -> ExtendShareRequest {
    let id = Uuid::from_u128(u128::from(round) << 64 | u128::from(n));
    ExtendShareRequest { request_id: Some(id.to_string()), ..request(&share(n), (1 + round) * MIB) }
}

/// Asks all shares for their size of the round at once; the answers of those that got one.
fn load(clients: &Clients, round: u64) -> JoinSet<Option<Job>> {
    let mut load = JoinSet::new();
    for n in 1..=SHARES {
        let clients = clients.clone();
        load.spawn(async move { clients.ask(asked(round, n)).await.ok() });
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_no_acknowledged_job_is_lost() {
    lab::require();
    let mut random = Random::from_environment();
    let rounds = rounds(USUAL_ROUNDS) as u64;
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, SHARES, MIB);
    // More rounds promise more than the disk has.
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "overcommit = 100.0")).await;
    let mut acknowledged: Vec<Job> = Vec::new();
    let (mut kills, mut resumed) = (0, 0);

    for round in 1..=rounds {
        let before = fs.hard_limits();
        let mut answers = load(&daemon.clients().await, round);
        tokio::time::sleep(moment(&mut random)).await;
        daemon.kill();
        kills += 1;
        let mut answered = Vec::new();
        while let Some(answer) = answers.join_next().await {
            answered.extend(answer.unwrap());
        }
        // Every fourth time growd is killed again, while it takes up what the first kill left.
        if round % 4 == 0 {
            daemon.spawn_again();
            tokio::time::sleep(moment(&mut random)).await;
            daemon.kill();
            kills += 1;
        }
        let killed = fs.hard_limits();
        for n in 1..=SHARES {
            let (before, now) = (before[&project(n)], killed[&project(n)]);
            assert!(now == before || now == (1 + round) * MIB, "share {n} went from {before} to {now}");
        }

        daemon.start_again().await;
        let clients = daemon.clients().await;
        for job in &answered {
            let now = clients.job(&job.job_id).await;
            assert_same(job, &now);
            resumed += u64::from(now.attempt > 1);
        }
        // A caller without an answer asks again with the same id, and so does one with an answer: it is one job.
        for n in 1..=SHARES {
            let job = clients.ask(asked(round, n)).await.unwrap();
            let ended = clients.end_of(&job.job_id).await;
            assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
            if let Some(first) = answered.iter().find(|first| first.share_id == share(n)) {
                assert_eq!(job.job_id, first.job_id, "a request id gave two jobs");
            }
        }
        assert!(fs.hard_limits().values().all(|limit| *limit == (1 + round) * MIB), "{:?}", fs.hard_limits());
        acknowledged.append(&mut answered);
    }

    let clients = daemon.clients().await;
    let all = clients.all_jobs().await;
    for job in &acknowledged {
        let now = all.get(&job.job_id).unwrap_or_else(|| panic!("lost: {job:?}"));
        assert_same(job, now);
    }
    assert_eq!(all.len() as u64, rounds * u64::from(SHARES), "each request id has made one job");
    let ended = |job: &Job| match job.state() {
        JobState::Succeeded => job.size_after_bytes >= Some(job.requested_size_bytes),
        JobState::Failed => job.error.as_ref().is_some_and(|error| !error.reason.is_empty()),
        _ => false,
    };
    assert!(all.values().all(ended), "{all:?}");
    // Both kinds of kill must have been among them, or nothing was shown.
    let count = acknowledged.len() as u64;
    assert!(0 < count && count < rounds * u64::from(SHARES), "{count} acknowledged");
    assert!(resumed > 0, "no kill came between an acknowledgement and the job's end");
    println!("{count} jobs were acknowledged before {kills} kills, {resumed} of them unfinished; none was lost");
    assert!(daemon.terminate());
}

/// Panics unless both are the same job, whatever has become of it.
fn assert_same(then: &Job, now: &Job) {
    let what = |job: &Job| {
        let ids = (job.job_id.clone(), job.share_id.clone(), job.request_id.clone());
        (ids, job.size_before_bytes, job.requested_size_bytes, job.requested_by.clone(), job.created_at)
    };
    assert_eq!(what(then), what(now));
    assert!(now.revision >= then.revision, "the revision fell: {then:?} {now:?}");
}
