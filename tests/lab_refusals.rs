//! What growd refuses because of the state that it, the node or the request is in: each with its reason over the socket,
//! with no size changed, and each passing when the cause is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::time::{Duration, Instant};

use daemon::{Daemon, MIB, TURNS, assert_refused, create_shares, eventually, metadata, pool, project, request, share};
use growd::wire::limits::MESSAGE_MOST;
use growd::wire::proto::{self, ExtendShareRequest, JobState, ListJobsRequest, ListSharesRequest, NodeState};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, fill, lab};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_does_not_hold_is_not_extended() {
    lab::require();
    let cases = [
        (Filesystem::xfs("ubda", PRJQUOTA), &["pqnoenforce", "noquota"][..]),
        (Filesystem::ext4("ubdb", PRJQUOTA), &["defaults"][..]),
    ];
    for (fs, mount_options) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), project(1), 8 * MIB);
        let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
        let clients = daemon.clients().await;
        for (n, options) in (9..).zip(mount_options) {
            fs.mount_again(options);
            assert_refused(&clients.extend(&share(1), n * MIB).await.unwrap_err(), "QUOTA_NOT_ENFORCED");
            fs.mount_again(PRJQUOTA);
            assert!(fs.hard_limit(project(1)) < n * MIB, "a refusal changed the size");
            clients.extended(1, n * MIB).await;
            assert_eq!(fs.hard_limit(project(1)), n * MIB);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_mounted_is_told_and_found_again() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    clients.extended(1, 9 * MIB).await;
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;

    fs.unmount();
    daemon.reload(&pool(&fs, ""));
    let unreadable =
        [ServingStatus::NotServing, ServingStatus::NotServing, ServingStatus::Serving, ServingStatus::Serving];
    eventually(|| clients.healths(), |healths| *healths == unreadable).await;
    assert_refused(&clients.extend(&share(1), 10 * MIB).await.unwrap_err(), "NOT_MOUNTED");
    let get = proto::GetShareRequest { share_id: share(1) };
    assert_refused(&clients.shares.clone().get_share(get).await.unwrap_err(), "NOT_MOUNTED");
    let list = ListSharesRequest { pool: "home".to_owned(), ..Default::default() };
    assert_refused(&clients.shares.clone().list_shares(list).await.unwrap_err(), "NOT_MOUNTED");
    let told = clients.pool("home").await;
    assert_eq!((told.findings[0].kind.as_str(), told.total_bytes), ("NOT_MOUNTED", 0));

    fs.mount(PRJQUOTA);
    let mounted = Instant::now();
    assert_eq!(fs.hard_limit(project(1)), 9 * MIB);
    clients.extended(1, 10 * MIB).await;
    assert_eq!(fs.hard_limit(project(1)), 10 * MIB);
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    assert!(mounted.elapsed() < Duration::from_secs(15), "{:?}", mounted.elapsed());
    fs.mount_again("noquota");
    daemon.reload(&pool(&fs, ""));
    eventually(|| clients.healths(), |healths| *healths == unreadable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_in_two_pools_is_extended_in_neither_until_one_is_named() {
    lab::require();
    let (home, other) = (Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA));
    let dir = tempfile::tempdir().unwrap();
    create_shares(&home, 2, 8 * MIB);
    for n in [1, 3] {
        other.create_share(&share(n), project(n), 8 * MIB);
    }
    let pools = format!("{}{}", pool(&home, ""), pool(&other, "").replace("\"home\"", "\"other\""));
    let daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;
    for _ in 0..5 {
        let refusal = clients.extend(&share(1), 9 * MIB).await.unwrap_err();
        assert_refused(&refusal, "UNSUPPORTED");
        assert!(refusal.message().contains("in pool home and in pool other as well"), "{}", refusal.message());
        assert_eq!(["place", "other_place"].map(|key| metadata(&refusal, key)), ["in pool home", "in pool other"]);
        let get = proto::GetShareRequest { share_id: share(1) };
        assert_refused(&clients.shares.clone().get_share(get).await.unwrap_err(), "UNSUPPORTED");
        daemon.reload(&pools);
    }
    clients.extended(2, 9 * MIB).await;
    for page_size in [1, 3, 100] {
        let listed = clients.list_shares(page_size).await;
        let [both, homes, others] = listed.as_slice() else { panic!("{page_size}: {listed:?}") };
        assert_eq!([both, homes, others].map(|share| share.share_id.clone()), [1, 2, 3].map(share));
        let [finding] = both.findings.as_slice() else { panic!("{both:?}") };
        assert_eq!((both.size_bytes, both.used_bytes, finding.kind.as_str()), (None, None, "UNSUPPORTED"));
        assert!(finding.message.contains("in pool home and in pool other as well"), "{finding:?}");
        assert_eq!((homes.size_bytes, others.size_bytes), (Some(9 * MIB), Some(8 * MIB)));
    }
    let findings = clients.diagnose().await.findings;
    let told: Vec<_> = findings.iter().map(|finding| (finding.kind.as_str(), finding.share_id.as_str())).collect();
    assert_eq!(told, [("UNSUPPORTED", share(1).as_str())], "{findings:?}");

    // At a place of its own it is the one that counts.
    let named = other.path().join("legacy");
    std::fs::rename(other.path().join(share(1)), &named).unwrap();
    let (id, named) = (share(1), named.display());
    daemon.reload(&format!("{pools}[[share]]\nid = \"{id}\"\npool = \"other\"\npath = \"{named}\"\n"));
    eventually(async || clients.share(&share(1)).await.pool, |pool| pool == "other").await;
    // And one that was found where it was alone stays there, whatever comes up elsewhere.
    assert_eq!(clients.share(&share(2)).await.pool, "home");
    std::fs::create_dir(other.path().join(share(2))).unwrap();
    for page_size in [1, 100] {
        let listed = clients.list_shares(page_size).await;
        let told: Vec<_> = listed.iter().map(|share| (share.share_id.clone(), share.pool.as_str())).collect();
        assert_eq!(told, [(share(1), "other"), (share(2), "home"), (share(3), "other")]);
        assert_eq!(listed.iter().map(|share| share.size_bytes()).collect::<Vec<_>>(), [8, 9, 8].map(|n| n * MIB));
    }
    // Nor does the other pool's list have it, also while its own cannot be read.
    let listed = async |pool| {
        let pages = [clients.list_shares_of(pool, 1).await, clients.list_shares_of(pool, 100).await];
        let [one, other] = pages.map(|page| page.into_iter().map(|share| share.share_id).collect::<Vec<_>>());
        assert_eq!(one, other, "pages of one share and of all");
        one
    };
    assert_eq!(listed("other").await, [1, 3].map(share));
    home.unmount();
    assert_eq!([listed("other").await, listed("").await], [[1, 3].map(share), [1, 3].map(share)]);
    home.mount(PRJQUOTA);
    assert_eq!((listed("home").await, clients.share(&share(2)).await.pool), (vec![share(2)], "home".to_owned()));
    std::fs::remove_dir(other.path().join(share(2))).unwrap();
    assert_eq!(clients.diagnose().await.findings, []);
    clients.extended(1, 9 * MIB).await;
    assert_eq!((home.hard_limit(project(1)), other.hard_limit(project(1))), (8 * MIB, 9 * MIB));

    // One that has moved is where it is, though nobody has looked for it since.
    std::fs::remove_dir(home.path().join(share(2))).unwrap();
    other.create_share(&share(2), project(2), 8 * MIB);
    assert_eq!([listed("other").await, listed("").await], [[1, 2, 3].map(share), [1, 2, 3].map(share)]);
    assert_eq!(clients.share(&share(2)).await.pool, "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_again() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 3, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &format!("max_active_jobs = 2\n{}", pool(&fs, ""))).await;
    let clients = daemon.clients().await;

    let hang = clients.hang(&disk).await;
    let active = [clients.extend(&share(1), 9 * MIB).await.unwrap(), clients.extend(&share(2), 9 * MIB).await.unwrap()];
    let status = clients.extend(&share(3), 9 * MIB).await.unwrap_err();
    assert_refused(&status, "QUEUE_FULL");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some_and(|delay| !delay.is_zero()));
    assert_refused(&clients.extend(&share(1), 10 * MIB).await.unwrap_err(), "SHARE_BUSY");
    let node = clients.node().await;
    assert_eq!((node.queued_jobs + node.running_jobs, node.max_active_jobs), (2, 2));
    drop(hang);

    for job in active {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    assert_eq!(fs.hard_limit(project(3)), 8 * MIB);
    clients.extended(3, 9 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_refuses_new_jobs_ends_those_at_work_and_keeps_those_that_wait() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 2, 8 * MIB);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    let watch = HealthCheckRequest { service: "growd.v1.ShareService".to_owned() };
    let mut health = clients.health.clone().watch(watch).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let hang = clients.hang(&disk).await;
    let jobs = clients.fill_turns(9 * MIB).await;
    let waiting = clients.extend(&share(TURNS + 1), 9 * MIB).await.unwrap();
    daemon.begin_to_terminate();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(clients.healths().await, [ServingStatus::NotServing; 4]);
    eventually(|| clients.node(), |node| node.state() == NodeState::Draining).await;
    assert_refused(&clients.extend(&share(TURNS + 2), 9 * MIB).await.unwrap_err(), "DRAINING");
    assert_eq!(clients.job(&waiting.job_id).await.state(), JobState::Queued);
    drop(hang);
    assert!(daemon.ended_in_order());
    for n in 1..=TURNS {
        assert_eq!(fs.hard_limit(project(n)), 9 * MIB, "share {n}: the step at work did not end");
    }
    assert_eq!(fs.hard_limit(project(TURNS + 1)), 8 * MIB, "a job began while growd was draining");

    daemon.start_again().await;
    let clients = daemon.clients().await;
    for job in jobs {
        let job = clients.end_of(&job.job_id).await;
        assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 1), "{job:?}");
    }
    let job = clients.end_of(&waiting.job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2), "{job:?}");
    assert_eq!(fs.hard_limit(project(TURNS + 1)), 9 * MIB);
    assert_eq!(fs.hard_limit(project(TURNS + 2)), 8 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_disk_stops_extends_only_and_only_while_it_is_full() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let state = Filesystem::small_ext4("ubdd", "64M");
    create_shares(&fs, 2, 8 * MIB);
    let mut daemon = Daemon::start(state.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let before = clients.extended(1, 9 * MIB).await;

    let ballast = state.path().join("ballast");
    fill(&ballast, 1 << 30).unwrap();
    // What is allocated already can still be written, so a few more jobs may be accepted.
    let (mut accepted, mut size) = (Vec::new(), 9 * MIB);
    let refusal = loop {
        size += 4096;
        match clients.extend(&share(2), size).await {
            Ok(job) => accepted.push(job),
            Err(status) if daemon::reason(&status) == "SHARE_BUSY" => tokio::task::yield_now().await,
            Err(status) => break status,
        }
        assert!(accepted.len() < 1000, "a disk without space takes every job");
    };
    assert_refused(&refusal, "STORE_UNAVAILABLE");
    assert_refused(&clients.extend(&share(1), 10 * MIB).await.unwrap_err(), "STORE_UNAVAILABLE");
    assert_eq!(fs.hard_limit(project(1)), 9 * MIB);
    assert!(fs.hard_limit(project(2)) < size, "a refused extend changed the size");
    assert_eq!(clients.node().await.state(), NodeState::StoreFailed);
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::NotServing; 4]).await;
    assert_eq!(clients.job(&before.job_id).await, before);
    assert_eq!(clients.all_jobs().await.len(), 1 + accepted.len());
    assert_eq!(clients.share(&share(1)).await.size_bytes, Some(9 * MIB));

    std::fs::remove_file(ballast).unwrap();
    eventually(|| clients.healths(), |healths| *healths == [ServingStatus::Serving; 4]).await;
    assert_eq!(clients.node().await.state(), NodeState::Serving);
    for job in &accepted {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    let after = clients.extended(1, 10 * MIB).await;
    assert!(daemon.terminate());
    daemon.start_again().await;
    let clients = daemon.clients().await;
    assert_eq!(clients.job(&after.job_id).await, after);
    assert_eq!(clients.all_jobs().await.len(), 2 + accepted.len(), "a refused extend left a job");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_call_that_fails_is_told_and_the_share_can_be_extended_after_it() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let status = async || clients.share(&share(1)).await.status();

    let broken = daemon.inject("quotactl_fd:error=EIO").await;
    let refusal = clients.extend(&share(1), 9 * MIB).await.unwrap_err();
    assert_refused(&refusal, "INTERNAL");
    // The state of the quotas is asked first, at the pool's directory.
    let told = format!("read the quota state of {}: EIO", fs.path().display());
    assert!(refusal.message().starts_with(&told), "{}", refusal.message());
    drop(broken);
    // As on a kernel that is too old.
    let broken = daemon.inject("quotactl_fd:error=ENOSYS").await;
    let refusal = clients.extend(&share(1), 9 * MIB).await.unwrap_err();
    assert_refused(&refusal, "UNSUPPORTED");
    assert!(refusal.message().contains("quotactl_fd(2), which came with Linux 5.14"), "{}", refusal.message());
    drop(broken);
    assert_eq!(fs.hard_limit(project(1)), 8 * MIB);

    // The last step of a job brings the limit to the disk.
    let broken = daemon.inject("fsync:error=EIO").await;
    let job = clients.extend(&share(1), 9 * MIB).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    let error = job.error.clone().unwrap();
    assert_eq!((job.state(), error.reason.as_str(), error.retryable), (JobState::Failed, "INTERNAL", true));
    assert!(error.message.contains("flush the journal") && error.message.contains("EIO"), "{error:?}");
    assert_eq!(status().await, proto::ShareStatus::ExtendingError);
    assert!(fs.hard_limit(project(1)) >= 8 * MIB);
    drop(broken);
    clients.extended(1, 10 * MIB).await;
    assert_eq!((status().await, fs.hard_limit(project(1))), (proto::ShareStatus::Available, 10 * MIB));
}

/// Panics unless the call is refused with this reason, for this field of the request; empty when it is for none.
async fn refused<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Status>>, reason: &str, field: &str) {
    let status = call.await.unwrap_err();
    assert_refused(&status, reason);
    assert_eq!(daemon::field(&status), field, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_changes_nothing() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 2, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    clients.extended(1, 9 * MIB).await;
    clients.extended(1, 10 * MIB).await;
    let (limits, kept) = (fs.hard_limits(), clients.node().await.kept_jobs);
    let unchanged = async || {
        assert_eq!(fs.hard_limits(), limits);
        assert_eq!(clients.node().await.kept_jobs, kept);
    };

    let good = request(&share(1), 11 * MIB);
    // A request with it is as large as one may be.
    let long = "1".repeat(MESSAGE_MOST - 200);
    let share_id = |id: &str| ExtendShareRequest { share_id: id.to_owned(), ..good.clone() };
    let label = |label: String| ExtendShareRequest { project_id: label, ..good.clone() };
    let extends = [
        (ExtendShareRequest::default(), "INVALID_SHARE_ID", "share_id"),
        (share_id("not a UUID"), "INVALID_SHARE_ID", "share_id"),
        (share_id("../.."), "INVALID_SHARE_ID", "share_id"),
        (share_id(&long), "INVALID_SHARE_ID", "share_id"),
        (ExtendShareRequest { new_size_bytes: 0, ..good.clone() }, "INVALID_SIZE", "new_size_bytes"),
        (ExtendShareRequest { new_size_bytes: u64::MAX, ..good.clone() }, "INVALID_SIZE", "new_size_bytes"),
        (ExtendShareRequest { new_size_bytes: 1 << 63, ..good.clone() }, "INVALID_SIZE", "new_size_bytes"),
        (ExtendShareRequest { new_size_bytes: (1 << 63) - 1, ..good.clone() }, "POOL_FULL", ""),
        (ExtendShareRequest { request_id: Some("7".to_owned()), ..good.clone() }, "INVALID_REQUEST", "request_id"),
        (label("two\nlines".to_owned()), "INVALID_REQUEST", "project_id"),
        (label("x".repeat(256)), "INVALID_REQUEST", "project_id"),
        (label(long.clone()), "INVALID_REQUEST", "project_id"),
        (ExtendShareRequest { request_id: Some(long.clone()), ..good.clone() }, "INVALID_REQUEST", "request_id"),
    ];
    for (request, reason, field) in extends {
        refused(clients.ask(request), reason, field).await;
        unchanged().await;
    }

    let too_large = clients.ask(label("x".repeat(5 << 20))).await.unwrap_err();
    assert_eq!(too_large.code(), Code::OutOfRange);
    assert!(too_large.message().contains(&format!("the limit is: {MESSAGE_MOST} bytes")), "{too_large:?}");
    unchanged().await;

    let unknown = share(9);
    let bad = ["", "../..", &long];
    let cases = bad.map(|id| (id, "INVALID_REQUEST", "job_id")).into_iter().chain([(&*unknown, "JOB_NOT_FOUND", "")]);
    for (id, reason, field) in cases {
        let (mut jobs, job_id) = (clients.jobs.clone(), id.to_owned());
        refused(jobs.get_job(proto::GetJobRequest { job_id: job_id.clone() }), reason, field).await;
        refused(jobs.watch_job(proto::WatchJobRequest { job_id: job_id.clone() }), reason, field).await;
        refused(jobs.cancel_job(proto::CancelJobRequest { job_id }), reason, field).await;
    }
    let cases = bad.map(|id| (id, "INVALID_SHARE_ID", "share_id"));
    for (id, reason, field) in cases.into_iter().chain([(&*unknown, "SHARE_NOT_FOUND", "")]) {
        let get = proto::GetShareRequest { share_id: id.to_owned() };
        refused(clients.shares.clone().get_share(get), reason, field).await;
    }
    unchanged().await;

    let first = ListJobsRequest { page_size: 1, ..Default::default() };
    let jobs_token = clients.list_jobs(first.clone()).await.next_page_token;
    let first = ListSharesRequest { page_size: 1, ..Default::default() };
    let shares_token = clients.shares.clone().list_shares(first).await.unwrap().into_inner().next_page_token;
    assert!(!jobs_token.is_empty() && !shares_token.is_empty());
    let of = |page_token: &str| ListJobsRequest { page_token: page_token.to_owned(), ..Default::default() };
    let lists = [
        (of("rubbish"), "INVALID_REQUEST", "page_token"),
        (of(&long), "INVALID_REQUEST", "page_token"),
        (ListJobsRequest { share_id: long.clone(), ..Default::default() }, "INVALID_SHARE_ID", "share_id"),
        (of(&shares_token), "INVALID_REQUEST", "page_token"),
        (ListJobsRequest { share_id: share(1), ..of(&jobs_token) }, "INVALID_REQUEST", "page_token"),
        (ListJobsRequest { state: 99, ..Default::default() }, "INVALID_REQUEST", "state"),
        (ListJobsRequest { share_id: "../..".to_owned(), ..Default::default() }, "INVALID_SHARE_ID", "share_id"),
    ];
    for (request, reason, field) in lists {
        refused(clients.jobs.clone().list_jobs(request), reason, field).await;
    }
    let of = |page_token: &str| ListSharesRequest { page_token: page_token.to_owned(), ..Default::default() };
    let pool = |pool: &str| ListSharesRequest { pool: pool.to_owned(), ..Default::default() };
    let lists = [
        (of("rubbish"), "page_token"),
        (of(&long), "page_token"),
        (of(&jobs_token), "page_token"),
        (ListSharesRequest { pool: "home".to_owned(), ..of(&shares_token) }, "page_token"),
        (pool("elsewhere"), "pool"),
        (pool("../.."), "pool"),
        (pool(&long), "pool"),
        (ListSharesRequest { project_id: Some(long.clone()), ..Default::default() }, "project_id"),
    ];
    for (request, field) in lists {
        refused(clients.shares.clone().list_shares(request), "INVALID_REQUEST", field).await;
    }
    unchanged().await;
    clients.extended(1, 11 * MIB).await;
}
