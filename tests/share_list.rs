//! What growd tells of shares that it cannot read: those of a pool that is not there, and one whose last job failed. And
//! the jobs of one, page by page.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;
mod store;

#[path = "support/scrape.rs"]
mod scrape;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use access::{Growd, PATIENCE, SHARE, pool};
use growd::model::{Job, JobState, ProjectLabel};
use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{DiagnoseRequest, ListJobsRequest, ListSharesRequest, ShareStatus};
use scrape::scrape;
use store::{Home, job, job_of};

#[tokio::test(flavor = "multi_thread")]
async fn shares_and_pools_that_cannot_be_read_are_told() {
    let home = Home::new();
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let jobs = [job_of(ago(60), JobState::Failed), job_of(ago(30), JobState::Cancelled)];
    home.store(&jobs).await;
    let images = tempfile::tempdir().unwrap();
    fs::write(images.path().join(format!("{}.img", jobs[0].share)), "no file system").unwrap();
    let path = format!("{}/{{share_id}}.img", images.path().display());
    let image = format!("[[pool]]\nname = \"home\"\ndriver = \"image\"\npath = \"{path}\"\n");
    let metrics = "[metrics]\nlisten = \"127.0.0.1:{port}\"\n";
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let growd = Growd::start(home.dir, &[metrics, &pool("a"), &image].concat()).await;

    let mut shares = ShareServiceClient::new(client::connect(&growd.socket(), None).await.unwrap());
    let list = shares.list_shares(ListSharesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.unreadable_pools, ["a"]);
    let [share] = list.shares.try_into().unwrap();
    // One that was cancelled since changes nothing of the failure, whose reason is asked for by the job's id.
    assert_eq!((share.status(), share.last_job_id), (ShareStatus::ExtendingError, jobs[0].id.to_string()));

    let growctl = Command::new(env!("CARGO_BIN_EXE_growctl")).args(["--endpoint", &growd.socket(), "shares"]).output();
    let growctl = growctl.unwrap();
    let told = String::from_utf8(growctl.stderr).unwrap();
    assert!(growctl.status.success() && told.starts_with("warning: the shares of a are missing"), "{told}");

    // From this time on the alert counts that no pool may be silent for long.
    let name = "growd_pool_looked_at_timestamp_seconds{driver=\"project-quota\",pool=\"a\"} ";
    let waiting = Instant::now();
    let time: u64 = loop {
        let metrics = scrape(growd.address);
        if let Some(value) = metrics.lines().find_map(|line| line.strip_prefix(name)) {
            break value.parse().unwrap();
        }
        assert!(waiting.elapsed() < PATIENCE, "no alert can fire: {metrics}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(time >= begin, "{time} is before {begin}");
}

/// Who is told to move something there would look for a share that is in the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_on_a_file_system_that_its_driver_cannot_use_is_told_with_what_to_change() {
    for driver in ["project-quota", "btrfs"] {
        let config = format!("[[pool]]\nname = \"home\"\ndriver = \"{driver}\"\npath = \"/proc/{{share_id}}\"\n");
        let growd = Growd::start(tempfile::tempdir().unwrap(), &config).await;
        let mut node = NodeServiceClient::new(client::connect(&growd.socket(), None).await.unwrap());
        let [found] = node.diagnose(DiagnoseRequest {}).await.unwrap().into_inner().findings.try_into().unwrap();
        assert!(found.share_id.is_empty() && !found.remedy.contains("move"), "{found:?}");
        assert!(found.remedy.starts_with("mount "), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_follows_another_however_the_share_is_spelled() {
    let home = Home::new();
    home.store(&[(); 2].map(|()| Job { share: SHARE.parse().unwrap(), ..job(JobState::Succeeded) })).await;
    let growd = Growd::start(home.dir, &pool("a")).await;
    let mut jobs = JobServiceClient::new(client::connect(&growd.socket(), None).await.unwrap());
    let mut seen = Vec::new();
    let mut request = ListJobsRequest { share_id: SHARE.to_owned(), page_size: 1, ..ListJobsRequest::default() };
    for spelled in [SHARE.to_uppercase(), SHARE.to_owned()] {
        let page = jobs.list_jobs(request.clone()).await.unwrap().into_inner();
        seen.extend(page.jobs.into_iter().map(|job| job.job_id));
        request = ListJobsRequest { share_id: spelled, page_token: page.next_page_token, ..request };
    }
    seen.dedup();
    assert_eq!(seen.len(), 2, "{seen:?}");
}

/// The store has jobs whose labels were taken before labels had a rule.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_found_by_a_label_that_would_not_be_taken_now() {
    let home = Home::new();
    let label = "taken\u{202e}once";
    let labelled = Job { project: ProjectLabel::of_record(label.to_owned()), ..job(JobState::Succeeded) };
    home.store(&[labelled.clone(), job(JobState::Succeeded)]).await;
    let growd = Growd::start(home.dir, &pool("a")).await;
    let mut jobs = JobServiceClient::new(client::connect(&growd.socket(), None).await.unwrap());
    let request = ListJobsRequest { project_id: label.to_owned(), ..ListJobsRequest::default() };
    let [found] = jobs.list_jobs(request).await.unwrap().into_inner().jobs.try_into().unwrap();
    assert_eq!((found.job_id, found.project_id), (labelled.id.to_string(), label.to_owned()));
}
