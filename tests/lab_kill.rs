//! SIGKILL at random moments under load: what was acknowledged is there afterwards, and all of it ends. Beside each extend
//! comes something else, which must change nothing: a repetition, a conflict, a bad request, or its own cancellation.
//!
//! The moments come from a seed, which is printed. GROWD_SEED sets it; the moments are then the same, what growd happens
//! to do at them need not be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/seed.rs"]
mod seed;

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::{Clients, Daemon, MIB, create_shares, pool, project, reason, request, share, unless_killed};
use growd::wire::proto::{CancelJobRequest, ExtendShareRequest, Job, JobState};
use seed::{Random, rounds};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};
use tokio::task::JoinSet;
use uuid::Uuid;

const USUAL_ROUNDS: usize = 40;
/// More than may be at work at once: only a job that waits can be cancelled.
const SHARES: u32 = 20;
/// Every so many rounds the disk of the shares hangs until the kill, so that jobs wait.
const HANGS_EVERY: u64 = 5;
/// A round of load takes about so long when it is not cut off: each moment of it shall be hit.
const LOAD: Duration = Duration::from_millis(250);

fn moment(random: &mut Random) -> Duration {
    Duration::from_micros(random.below(usize::try_from(LOAD.as_micros()).unwrap()) as u64)
}

fn asked(round: u64, n: u32) -> ExtendShareRequest {
    let id = Uuid::from_u128(u128::from(round) << 64 | u128::from(n));
    ExtendShareRequest { request_id: Some(id.to_string()), ..request(&share(n), (1 + round) * MIB) }
}

/// What is asked beside an extend.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    Repetition,
    Conflict,
    OtherUseOfItsId,
    Smaller,
    Zero,
    UnknownShare,
    Cancellation,
}

const BESIDE: [Beside; 8] = [
    Beside::Nothing,
    Beside::Repetition,
    Beside::Conflict,
    Beside::OtherUseOfItsId,
    Beside::Smaller,
    Beside::Zero,
    Beside::UnknownShare,
    Beside::Cancellation,
];

/// What a caller was told: a job as it was accepted, and as it was cancelled.
type Told = Option<(Job, Option<Job>)>;

/// Asks all shares for their size of the round at once, with something beside each; what was answered before the kill.
fn load(clients: &Clients, round: u64, beside: &[Beside]) -> JoinSet<Told> {
    let mut load = JoinSet::new();
    for (n, beside) in (1..=SHARES).zip(beside.iter().copied()) {
        let caller = clients.clone();
        load.spawn(async move {
            let job = unless_killed(caller.ask(asked(round, n)).await, &[])?;
            let request = CancelJobRequest { job_id: job.job_id.clone() };
            let cancelled = match beside {
                Beside::Cancellation => {
                    unless_killed(caller.jobs.clone().cancel_job(request).await, &["JOB_NOT_QUEUED"])
                }
                _ => None,
            };
            Some((job, cancelled.map(tonic::Response::into_inner)))
        });
        let caller = clients.clone();
        load.spawn(async move { beside_it(&caller, beside, asked(round, n)).await.map(|job| (job, None)) });
    }
    load
}

/// The job of a repetition; everything else is refused with its reason, unless the kill comes first.
async fn beside_it(clients: &Clients, beside: Beside, good: ExtendShareRequest) -> Option<Job> {
    let without_id = ExtendShareRequest { request_id: None, ..good.clone() };
    let (request, reasons): (_, &[&str]) = match beside {
        Beside::Nothing | Beside::Cancellation => return None,
        Beside::Repetition => return unless_killed(clients.ask(good).await, &[]),
        Beside::Conflict => {
            let never = ExtendShareRequest { expected_current_size_bytes: Some(1), ..without_id };
            (never, &["CURRENT_SIZE_MISMATCH", "SHARE_BUSY"])
        }
        // Of its own it would be refused as well, for it may come first.
        Beside::OtherUseOfItsId => {
            (ExtendShareRequest { new_size_bytes: MIB, ..good }, &["REQUEST_ID_REUSED", "SIZE_NOT_GREATER"])
        }
        Beside::Smaller => {
            (ExtendShareRequest { new_size_bytes: MIB, ..without_id }, &["SIZE_NOT_GREATER", "SHARE_BUSY"])
        }
        Beside::Zero => (ExtendShareRequest { new_size_bytes: 0, ..without_id }, &["INVALID_SIZE"]),
        Beside::UnknownShare => (ExtendShareRequest { share_id: share(999), ..without_id }, &["SHARE_NOT_FOUND"]),
    };
    let accepted = unless_killed(clients.ask(request).await, reasons);
    assert_eq!(accepted, None, "{beside:?} was accepted");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_no_acknowledged_job_is_lost() {
    lab::require();
    let mut random = Random::from_environment();
    let rounds = rounds(USUAL_ROUNDS) as u64;
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), "prjquota");
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, SHARES, MIB);
    // More rounds promise more than the disk has.
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "overcommit = 100.0")).await;
    let mut acknowledged: Vec<Job> = Vec::new();
    let (mut kills, mut resumed, mut cancelled) = (0, 0, 0);

    for round in 1..=rounds {
        let before = fs.hard_limits();
        let beside: Vec<Beside> = (0..SHARES).map(|_| BESIDE[random.below(BESIDE.len())]).collect();
        let clients = daemon.clients().await;
        let hangs = round.is_multiple_of(HANGS_EVERY);
        let hang = if hangs { Some(clients.hang(&disk).await) } else { None };
        let mut answers = load(&clients, round, &beside);
        tokio::time::sleep(moment(&mut random)).await;
        // A process that waits for the disk cannot be killed.
        drop(hang);
        daemon.kill();
        kills += 1;
        let mut answered = Vec::new();
        let mut cancellations = Vec::new();
        while let Some(answer) = answers.join_next().await {
            if let Some((job, cancellation)) = answer.unwrap() {
                cancellations.extend(cancellation);
                let known = answered.iter().find(|known: &&Job| known.share_id == job.share_id);
                match known.map(|known| known.job_id == job.job_id) {
                    None => answered.push(job),
                    Some(same) => assert!(same, "a request id gave two jobs at once"),
                }
            }
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
        for job in &cancellations {
            assert_eq!(clients.job(&job.job_id).await.state(), JobState::Cancelled, "{job:?}");
        }
        // A caller without an answer asks again with the same id, and so does one with an answer: it is one job.
        for n in 1..=SHARES {
            let job = clients.ask(asked(round, n)).await.unwrap();
            let ended = clients.end_of(&job.job_id).await;
            if ended.state() == JobState::Cancelled {
                assert_eq!(beside[n as usize - 1], Beside::Cancellation, "{ended:?}");
                assert_eq!(fs.hard_limit(project(n)), before[&project(n)], "a cancelled job changed something");
                let job = clients.ask(ExtendShareRequest { request_id: None, ..asked(round, n) }).await.unwrap();
                assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
                cancelled += 1;
            } else {
                assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
            }
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
    assert_eq!(all.len() as u64, rounds * u64::from(SHARES) + cancelled, "each request id has made one job");
    assert_one_after_the_other(&all);
    let ended = |job: &Job| match job.state() {
        JobState::Succeeded => job.size_after_bytes >= Some(job.requested_size_bytes),
        JobState::Cancelled => job.steps.is_empty() && job.size_after_bytes.is_none(),
        JobState::Failed => job.error.as_ref().is_some_and(|error| !error.reason.is_empty()),
        _ => false,
    };
    assert!(all.values().all(ended), "{all:?}");
    // Both kinds of kill must have been among them, or nothing was shown.
    let count = acknowledged.len() as u64;
    assert!(0 < count && resumed < count, "{count} acknowledged");
    assert!(resumed > 0, "no kill came between an acknowledgement and the job's end");
    // In so many rounds there are twenty as a rule.
    assert!(rounds < USUAL_ROUNDS as u64 || cancelled > 0, "nothing was cancelled");
    println!(
        "{count} jobs were acknowledged before {kills} kills, {resumed} of them unfinished, {cancelled} cancelled; none was \
         lost"
    );
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

/// Panics when two jobs of a share were at work at once: ids are in the order of acceptance.
fn assert_one_after_the_other(all: &BTreeMap<String, Job>) {
    let mut ended: BTreeMap<&str, &Job> = BTreeMap::new();
    for job in all.values() {
        let moment = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
        if let (Some(before), Some(begun)) = (ended.insert(&job.share_id, job), moment(job.started_at)) {
            assert!(moment(before.finished_at) <= Some(begun), "{before:?} {job:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_hangs_at_a_start_holds_up_no_other_and_promises_nothing_twice() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let stuck = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let sound = Filesystem::xfs("ubdb", PRJQUOTA);
    // Even to open the directory of this one takes the disk.
    let other_disk = MappedDisk::over("ubdc");
    let deep = Filesystem::ext4(&other_disk.path(), PRJQUOTA);
    std::fs::create_dir(deep.path().join("shares")).unwrap();
    create_shares(&stuck, 2, 8 * MIB);
    sound.create_share(&share(3), project(3), 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let deep_pool = pool(&deep, "").replace("home", "deep").replace("{share_id}", "shares/{share_id}");
    let pools = [pool(&stuck, ""), pool(&sound, "").replace("home", "sound"), deep_pool].concat();
    let mut daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;
    let room = clients.pool("home").await.available_bytes;
    let hang = clients.hang(&disk).await;
    // More than a half of what is left: the same again is more than there is.
    let large = 8 * MIB + room / 3 * 2 / MIB * MIB;
    let job = clients.extend(&share(1), large).await.unwrap();
    daemon.kill_in(hang);
    stuck.set_limits(project(1), 0, 8 * MIB);
    // What the kernel has in memory it would answer without the disk.
    stuck.mount_again(PRJQUOTA);
    deep.mount_again(PRJQUOTA);
    let (hang, other_hang) = (disk.hang(), other_disk.hang());
    tokio::time::timeout(Duration::from_secs(30), daemon.start_again()).await.expect("the start waits for the disk");
    let clients = daemon.clients().await;
    clients.extended(3, 9 * MIB).await;
    assert_eq!(clients.job(&job.job_id).await.state(), JobState::Queued);
    let waits = tokio::spawn({
        let clients = clients.clone();
        async move { clients.extend(&share(2), large).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(hang);
    assert_eq!(reason(&waits.await.unwrap().unwrap_err()), "POOL_FULL");
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((job.state(), stuck.hard_limit(project(1))), (JobState::Succeeded, large));
    drop(other_hang);
    assert!(daemon.terminate());
}
