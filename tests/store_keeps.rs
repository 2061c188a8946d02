//! What the store keeps: retention by age and by number, request ids, and its commit numbers across restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store;

use std::time::{Duration, SystemTime};

use growd::model::{Job, JobId, JobState};
use growd::store::{Retention, Selection, Store};
use store::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is kept once retention has had its way, newest first, and again after the store was opened anew: what was
/// removed must not come back.
async fn kept(home: &Home, retention: Retention, expected: usize) -> Vec<JobId> {
    let list = |store: &Store| store.newest_first(&Selection::default(), None, usize::MAX);
    let (store, _) = Store::open(&home.state(), retention).unwrap();
    until("retention has removed what is not kept", || store.len() <= expected).await;
    let kept = list(&store);
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&home.state(), KEEP_ALL).unwrap();
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
    let now = SystemTime::now();
    let old: Vec<Job> = (2..30).map(|days| job_of(now - days * DAY, JobState::Succeeded)).collect();
    let active = [job_of(now - 400 * DAY, JobState::Queued), job_of(now - 300 * DAY, JobState::Running)];
    let young = [job_of(now - DAY / 2, JobState::Failed), job(JobState::Cancelled)];
    home.store(&[&old[..], &active, &young].concat()).await;

    let retention = Retention { age: DAY, jobs: 1000 };
    assert_eq!(kept(&home, retention, 4).await, newest_first([active, young.clone()].concat()));

    let (store, unfinished) = Store::open(&home.state(), retention).unwrap();
    assert_eq!(unfinished.len(), 2);
    assert_eq!(store.of_request(old[0].request_id.unwrap()), None);
    assert_eq!(store.get(old[0].id).unwrap(), None);
    assert_eq!(store.of_request(young[0].request_id.unwrap()), Some(young[0].id));
    let again = Job { request_id: old[0].request_id, ..job(JobState::Queued) };
    store.commit(vec![again.clone()]).await.unwrap();
    assert_eq!(store.of_request(old[0].request_id.unwrap()), Some(again.id));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_number_the_oldest_ended_jobs_go_while_others_are_committed() {
    let home = Home::new();
    let now = SystemTime::now();
    let active: Vec<Job> = (1..4).map(|n| job_of(now - n * DAY, JobState::Queued)).collect();
    let ended: Vec<Job> =
        (0..150_u64).map(|n| job_of(now - DAY / 2 + Duration::from_millis(n), JobState::Succeeded)).collect();
    let retention = Retention { age: 90 * DAY, jobs: 20 };
    let (store, _) = Store::open(&home.state(), retention).unwrap();
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
    assert_eq!(kept(&home, Retention { age: DAY, jobs: 10 }, 1).await.len(), 1);
}
