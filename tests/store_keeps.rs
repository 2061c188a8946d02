//! What the store keeps: retention by age and by number, request ids, and its commit numbers across restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use growd::engine::Engine;
use growd::engine::pools::Pools;
use growd::meters::Meters;
use growd::model::{Job, JobId, JobState};
use growd::store::{Retention, Selection, Store};
use store::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often the store looks for jobs that are no longer kept, the first time so long after it was opened.
const TICK: Duration = Duration::from_secs(10);

/// What is kept once retention has had its way, newest first, and again after the store was opened anew: what was
/// removed must not come back.
async fn kept(home: &Home, retention: Retention, expected: usize) -> Vec<JobId> {
    let list = |store: &Store| store.newest_first(&Selection::default(), None, usize::MAX);
    let (store, _) = open(&home.state(), retention).unwrap();
    until("retention has removed what is not kept", || store.kept() <= expected).await;
    let kept = list(&store);
    store.close().await;
    drop(store);
    let (store, _) = open(&home.state(), KEEP_ALL).unwrap();
    assert_eq!(list(&store), kept, "what was removed came back, or what was kept is gone");
    store.close().await;
    kept
}

fn newest_first(jobs: impl IntoIterator<Item = Job>) -> Vec<JobId> {
    let mut ids: Vec<JobId> = jobs.into_iter().map(|job| job.id).collect();
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jobs_go_active_jobs_stay_and_request_ids_are_free_again() {
    let home = Home::new();
    let old: Vec<Job> = (0..30).map(|_| job(JobState::Succeeded)).collect();
    let active = [job(JobState::Queued), job(JobState::Running)];
    home.store(&[&old[..], &active].concat()).await;

    let retention = Retention { age: TICK * 3 / 2, jobs: 1000 };
    let (store, unfinished) = open(&home.state(), retention).unwrap();
    assert_eq!(unfinished.len(), 2);
    until("what is old is gone", || store.kept() == 2).await;
    let young = [job(JobState::Failed), job(JobState::Cancelled)];
    store.commit(young.to_vec()).await.unwrap();
    store.close().await;
    drop(store);
    assert_eq!(kept(&home, retention, 4).await, newest_first([active, young.clone()].concat()));

    let (store, _) = open(&home.state(), KEEP_ALL).unwrap();
    assert_eq!(store.of_request(old[0].request_id.unwrap()), None);
    assert_eq!(store.get(old[0].id).unwrap(), None);
    assert_eq!(store.of_request(young[0].request_id.unwrap()), Some(young[0].id));
    let again = Job { request_id: old[0].request_id, ..job(JobState::Queued) };
    store.commit(vec![again.clone()]).await.unwrap();
    assert_eq!(store.of_request(old[0].request_id.unwrap()), Some(again.id));
    store.close().await;
}

/// Neither a node that was off for long, nor a clock that was wrong when jobs were accepted or is wrong at a start.
#[tokio::test(flavor = "multi_thread")]
async fn no_job_goes_by_what_a_clock_says() {
    let home = Home::new();
    let now = SystemTime::now();
    let times = [now - 20_000 * DAY, now - 400 * DAY, now - 2 * DAY, now, now + 400 * DAY];
    let jobs = times.map(|time| job_of(time, JobState::Succeeded));
    home.store(&jobs).await;
    for _ in 0..2 {
        let (store, _) = open(&home.state(), Retention { age: DAY, jobs: 1000 }).unwrap();
        store.commit(vec![job_of(now + 500 * DAY, JobState::Cancelled)]).await.unwrap();
        tokio::time::sleep(TICK + TICK / 2).await;
        for job in &jobs {
            assert_eq!(store.get(job.id).unwrap().as_ref(), Some(job));
        }
        store.close().await;
    }
}

/// The store has noted its newest job, and takes whatever is below that for as old, also when the job itself is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_clock_that_was_ahead_takes_no_later_ones_with_it() {
    let home = Home::new();
    let ahead = job_of(SystemTime::now() + 400 * DAY, JobState::Succeeded);
    home.store(std::slice::from_ref(&ahead)).await;
    let retention = Retention { age: TICK * 5 / 2, jobs: 1000 };
    assert_eq!(kept(&home, retention, 0).await, []);

    let (store, _) = open(&home.state(), retention).unwrap();
    let engine = Engine::new(store, Pools::new(Vec::new()), Arc::new(Meters::new().unwrap()));
    let later = Job { id: engine.new_id(), ..job(JobState::Succeeded) };
    assert!(later.id > ahead.id, "{} is not above {}", later.id, ahead.id);
    engine.store.commit(vec![later.clone()]).await.unwrap();
    tokio::time::sleep(TICK * 2 + TICK / 4).await;
    assert_eq!(engine.store.get(later.id).unwrap(), Some(later));
    engine.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_before_a_restart_counts() {
    let home = Home::new();
    home.store(&[job(JobState::Succeeded)]).await;
    let retention = Retention { age: TICK * 3 / 2, jobs: 1000 };
    // Each run is shorter than the age.
    for runs in 1.. {
        let (store, _) = open(&home.state(), retention).unwrap();
        tokio::time::sleep(TICK + TICK / 4).await;
        let gone = store.kept() == 0;
        store.close().await;
        if gone {
            assert!(runs > 1, "the job went before its age");
            return;
        }
        assert!(runs < 12, "the job does not get older");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_number_the_oldest_ended_jobs_go_while_others_are_committed() {
    let home = Home::new();
    let now = SystemTime::now();
    let active: Vec<Job> = (1..4).map(|n| job_of(now - n * DAY, JobState::Queued)).collect();
    let ended: Vec<Job> =
        (0..150_u64).map(|n| job_of(now - DAY / 2 + Duration::from_millis(n), JobState::Succeeded)).collect();
    let retention = Retention { age: 90 * DAY, jobs: 20 };
    let (store, _) = open(&home.state(), retention).unwrap();
    store.commit(active.clone()).await.unwrap();
    for job in &ended {
        store.commit(vec![job.clone()]).await.unwrap();
    }
    store.close().await;
    drop(store);
    let newest = ended[ended.len() - 20..].to_vec();
    assert_eq!(kept(&home, retention, 23).await, newest_first([active, newest].concat()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_newest_job_was_removed_opens_again() {
    let home = Home::new();
    // The job with the highest commit number is the first to go.
    home.store(&[job(JobState::Succeeded), job_of(SystemTime::now() - 9 * DAY, JobState::Succeeded)]).await;
    assert_eq!(kept(&home, Retention { age: DAY, jobs: 1 }, 1).await.len(), 1);
}
