//! The contract over the socket: reflection, cancelling, watching, callers that go away, lists and their pages, and what
//! is told of the node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/reflected.rs"]
mod reflected;

use std::time::{Duration, Instant};

use daemon::{Clients, Daemon, MIB, TURNS, assert_refused, create_shares, eventually, pool, project, request, share};
use growd::wire::proto::{self, ExtendShareRequest, Job, JobState, ListJobsRequest, ListSharesRequest};
use prost_reflect::Value;
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_the_proto_file_lists_describes_and_calls() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 2, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let channel = growd::wire::client::connect(&daemon.endpoint(), None).await.unwrap();

    let contracts = [reflected::by_v1(channel.clone()).await, reflected::by_v1alpha(channel).await];
    for (n, contract) in (1..).zip(contracts) {
        for service in ["growd.v1.ShareService", "growd.v1.JobService", "growd.v1.NodeService", "grpc.health.v1.Health"]
        {
            assert!(contract.services.iter().any(|listed| listed == service), "{:?}", contract.services);
        }
        let node = contract.call("growd.v1.NodeService", "GetNode", []).await.unwrap();
        assert_eq!(node.get_field_by_name("version").unwrap().as_str(), Some(env!("CARGO_PKG_VERSION")));
        let fields = [("share_id", Value::String(share(n))), ("new_size_bytes", Value::U64(9 * MIB))];
        let job = contract.call("growd.v1.ShareService", "ExtendShare", fields).await.unwrap();
        let job_id = job.get_field_by_name("job_id").unwrap().as_str().unwrap().to_owned();
        assert_eq!(clients.end_of(&job_id).await.state(), JobState::Succeeded);
        assert_eq!(fs.hard_limit(project(n)), 9 * MIB);
        let refused = contract.call("growd.v1.ShareService", "ExtendShare", []).await.unwrap_err();
        assert_refused(&refused, "INVALID_SHARE_ID");
    }
}

async fn cancel(clients: &Clients, job: &Job) -> Result<Job, tonic::Status> {
    let request = proto::CancelJobRequest { job_id: job.job_id.clone() };
    clients.jobs.clone().cancel_job(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn extends_that_wait_for_one_file_system_are_carried_out_together_and_end_each_by_itself() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 6, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    let hang = clients.hang(&disk).await;
    let running = clients.fill_turns(9 * MIB).await;
    let mut waiting = Vec::new();
    for n in TURNS + 1..=TURNS + 5 {
        waiting.push(clients.extend(&share(n), 9 * MIB).await.unwrap());
    }
    let shrink = clients.shrink(&share(TURNS + 6), 7 * MIB).await.unwrap();
    let [cancelled, gone, together @ ..] = &waiting[..] else { unreachable!() };
    cancel(&clients, cancelled).await.unwrap();
    std::fs::remove_dir(fs.path().join(&gone.share_id)).unwrap();
    assert_eq!(clients.node().await.queued_jobs, 5);
    drop(hang);

    let gone = clients.end_of(&gone.job_id).await;
    assert_eq!(gone.error.unwrap().reason, "SHARE_NOT_FOUND");
    for job in together {
        let job = clients.end_of(&job.job_id).await;
        assert_eq!((job.state(), job.size_after_bytes), (JobState::Succeeded, Some(9 * MIB)), "{job:?}");
        assert_eq!(job.finished_at, gone.finished_at, "not together with those that waited with it");
    }
    let shrink = clients.end_of(&shrink.job_id).await;
    assert_eq!(shrink.size_after_bytes, Some(7 * MIB), "{shrink:?}");
    assert_ne!(shrink.finished_at, gone.finished_at, "a shrink may take long, and goes alone");
    for job in &running {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    let limits: Vec<u64> = (1..=TURNS + 6).map(|n| fs.hard_limit(project(n)) / MIB).collect();
    assert_eq!(limits, [9, 9, 8, 8, 9, 9, 9, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_job_that_waits_can_be_cancelled_and_its_share_is_free_again() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 2, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    let hang = clients.hang(&disk).await;
    let running = clients.fill_turns(9 * MIB).await;
    let waiting = [TURNS + 1, TURNS + 2].map(share);
    let first = clients.extend(&waiting[0], 9 * MIB).await.unwrap();
    let second = clients.extend(&waiting[1], 9 * MIB).await.unwrap();
    let watch = proto::WatchJobRequest { job_id: first.job_id.clone() };
    let mut changes = clients.jobs.clone().watch_job(watch).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().state(), JobState::Queued);

    let cancelled = cancel(&clients, &first).await.unwrap();
    assert_eq!((cancelled.state(), cancelled.size_after_bytes), (JobState::Cancelled, None));
    assert_eq!(changes.message().await.unwrap(), Some(cancelled.clone()));
    assert_eq!(changes.message().await.unwrap(), None, "the stream goes on after the end");
    assert_eq!(cancel(&clients, &first).await.unwrap(), cancelled, "a repeated cancel is answered as the first");
    let (one, other) = tokio::join!(cancel(&clients, &second), cancel(&clients, &second));
    assert_eq!(one.unwrap().state(), JobState::Cancelled);
    assert_eq!(other.unwrap().state(), JobState::Cancelled, "two cancels at once");
    let anew = clients.extend(&waiting[1], 10 * MIB).await.unwrap();
    let refusal = cancel(&clients, &running[0]).await.unwrap_err();
    assert_refused(&refusal, "JOB_NOT_QUEUED");
    assert_eq!(daemon::metadata(&refusal, "state"), "RUNNING");
    drop(hang);

    for job in running.iter().chain([&anew]) {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    let refusal = cancel(&clients, &running[0]).await.unwrap_err();
    assert_refused(&refusal, "JOB_NOT_QUEUED");
    assert_eq!(daemon::metadata(&refusal, "state"), "SUCCEEDED");
    assert_eq!(fs.hard_limit(project(TURNS + 1)), 8 * MIB, "a cancelled job changed the size");
    assert_eq!(fs.hard_limit(project(TURNS + 2)), 10 * MIB);
    assert_eq!(clients.job(&first.job_id).await, cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_the_job_to_its_end_and_a_late_one_sees_the_end() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let job = clients.extend(&share(1), 9 * MIB).await.unwrap();
    let watch = proto::WatchJobRequest { job_id: job.job_id };
    let mut early = clients.jobs.clone().watch_job(watch.clone()).await.unwrap().into_inner();
    while early.message().await.unwrap().unwrap().state() != JobState::Running {}
    drop(hang);
    let mut last = None;
    while let Some(change) = early.message().await.unwrap() {
        last = Some(change);
    }
    let last = last.expect("the stream closed before the end of the job");
    assert_eq!(last.state(), JobState::Succeeded);

    let mut late = clients.jobs.clone().watch_job(watch).await.unwrap().into_inner();
    assert_eq!(late.message().await.unwrap(), Some(last));
    assert_eq!(late.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_stops_nothing() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let disk = MappedDisk::over("ubdd");
    let state = Filesystem::small_ext4(&disk.path(), "256M");
    create_shares(&fs, 2, 8 * MIB);
    let daemon = Daemon::start(state.path(), &pool(&fs, "")).await;
    let (clients, leaving) = (daemon.clients().await, daemon.clients().await);

    // While the state disk hangs no job is durable, so neither caller can have an answer when it goes.
    let hang = disk.hang();
    let mut short = tonic::Request::new(request(&share(1), 9 * MIB));
    short.set_timeout(Duration::from_secs(5));
    let call = tokio::spawn(async move { leaving.extend(&share(2), 9 * MIB).await });
    let late = clients.shares.clone().extend_share(short).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled(), "the caller had an answer");
    drop(hang);

    for n in 1..=2 {
        let of_share = || clients.list_jobs(ListJobsRequest { share_id: share(n), ..Default::default() });
        eventually(of_share, |listed| listed.jobs.len() == 1).await;
        let job = clients.end_of(&of_share().await.jobs[0].job_id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        assert_eq!(fs.hard_limit(project(n)), 9 * MIB);
    }
}

/// Every page of the jobs that fit, from a page on.
async fn rest_of_jobs(clients: &Clients, page: ListJobsRequest) -> Vec<String> {
    clients.list_all_jobs(page).await.into_iter().map(|job| job.job_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_by_page_over_more_than_a_hundred() {
    const SHARES: u32 = 105;
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, SHARES, MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    let all: Vec<String> = (1..=SHARES).map(share).collect();
    let list = async |request| clients.shares.clone().list_shares(request).await.unwrap().into_inner();
    let ids = |page: &proto::ListSharesResponse| page.shares.iter().map(|s| s.share_id.clone()).collect::<Vec<_>>();
    let home = ListSharesRequest { pool: "home".to_owned(), ..Default::default() };
    let first = list(home.clone()).await;
    assert_eq!(ids(&first), all[..100], "a page has 100 entries when its size is not given");
    assert!(first.shares.iter().all(|share| share.size_bytes == Some(MIB)));
    let second = list(ListSharesRequest { page_token: first.next_page_token, ..home }).await;
    assert_eq!((ids(&second), second.next_page_token.as_str()), (all[100..].to_vec(), ""));
    let whole = list(ListSharesRequest { page_size: 1_000_000, ..Default::default() }).await;
    assert_eq!((ids(&whole), whole.next_page_token.as_str()), (all, ""));

    // Every third job has a label of its own.
    let label = |n: u32| if n.is_multiple_of(3) { "third" } else { "other" }.to_owned();
    let mut made = Vec::new();
    for n in 1..=SHARES {
        let ask = ExtendShareRequest { project_id: label(n), ..request(&share(n), 2 * MIB) };
        made.push(clients.ask(ask).await.unwrap().job_id);
    }
    for job in &made {
        assert_eq!(clients.end_of(job).await.state(), JobState::Succeeded);
    }
    made.reverse();
    let first = clients.list_jobs(ListJobsRequest::default()).await;
    assert_eq!(first.jobs.len(), 100);
    let added = clients.extended(1, 3 * MIB).await;
    let mut seen: Vec<String> = first.jobs.into_iter().map(|job| job.job_id).collect();
    let next = ListJobsRequest { page_size: 2, page_token: first.next_page_token, ..Default::default() };
    seen.extend(rest_of_jobs(&clients, next).await);
    assert_eq!(seen, made, "a job that was added moved the pages");

    made.insert(0, added.job_id);
    let page = ListJobsRequest { page_size: 1_000_000, ..Default::default() };
    assert_eq!(rest_of_jobs(&clients, page.clone()).await, made);
    let of_share = ListJobsRequest { share_id: share(1), page_size: 1, ..Default::default() };
    assert_eq!(rest_of_jobs(&clients, of_share).await, [made[0].clone(), made[SHARES as usize].clone()]);
    let of_project = ListJobsRequest { project_id: "third".to_owned(), page_size: 4, ..Default::default() };
    assert_eq!(rest_of_jobs(&clients, of_project.clone()).await.len(), SHARES as usize / 3);
    for (state, count) in [(JobState::Succeeded, made.len()), (JobState::Failed, 0), (JobState::Queued, 0)] {
        let of_state = ListJobsRequest { state: state.into(), ..page.clone() };
        assert_eq!(rest_of_jobs(&clients, of_state).await.len(), count, "{state:?}");
    }
    let none = ListJobsRequest { share_id: share(1), ..of_project };
    assert_eq!(rest_of_jobs(&clients, none).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_pools_and_findings_say_what_is_true_and_what_heals_it() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 2, 8 * MIB);
    let config = pool(&fs, "reserve = \"1GiB\"\novercommit = 2.0");
    let daemon = Daemon::start(dir.path(), &config).await;
    let clients = daemon.clients().await;
    assert_eq!(clients.diagnose().await.findings, []);
    clients.extended(1, 16 * MIB).await;

    let node = clients.node().await;
    assert_eq!(node.hostname, lab::run("uname", &["-n"]).trim());
    assert_eq!(node.kernel, lab::run("uname", &["-r"]).trim());
    assert_eq!((node.queued_jobs, node.running_jobs, node.kept_jobs, node.max_active_jobs), (0, 0, 1, 1000));
    assert!(node.store_bytes > 0 && node.started_at.is_some(), "{node:?}");

    let pools = clients.node.clone().list_pools(proto::ListPoolsRequest {}).await.unwrap().into_inner().pools;
    let total: u64 = {
        let report = lab::run("df", &["-B1", "--output=size", fs.path().to_str().unwrap()]);
        report.lines().last().unwrap().trim().parse().unwrap()
    };
    let [pool] = &pools[..] else { panic!("{pools:?}") };
    assert_eq!((pool.name.as_str(), pool.driver.as_str(), pool.filesystem.as_str()), ("home", "project-quota", "xfs"));
    assert_eq!((pool.total_bytes, pool.reserve_bytes, pool.overcommit), (total, 1 << 30, 2.0));
    assert_eq!((pool.promised_bytes, pool.queued_bytes, pool.shares), (fs.hard_limits().values().sum(), 0, 2));
    assert_eq!(pool.available_bytes, 2 * (total - (1 << 30)) - pool.promised_bytes);
    assert!(0 < pool.free_bytes && pool.free_bytes < total && pool.findings.is_empty(), "{pool:?}");

    fs.set_limits(project(2), 4 * MIB, 8 * MIB);
    let findings = clients.diagnose().await.findings;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.kind.as_str(), finding.pool.as_str()), ("SOFT_LIMIT_FIRST", "home"));
    assert_eq!((finding.share_id.as_str(), finding.message.is_empty()), (&*share(2), false));
    // The remedy is a command that heals it.
    lab::run("sh", &["-c", &finding.remedy]);
    assert_eq!(clients.diagnose().await.findings, []);
    assert_eq!((fs.soft_limit(project(2)), fs.hard_limit(project(2))), (0, 8 * MIB));

    // As after somebody else's hands; growd would believe its own sum for a minute.
    drop(daemon);
    fs.set_limits(project(2), 0, 2 * total);
    let daemon = Daemon::start(dir.path(), &config).await;
    let clients = daemon.clients().await;
    let pool = clients.pool("home").await;
    assert_eq!((pool.promised_bytes, pool.available_bytes), (2 * total + 16 * MIB, 0));
    let [finding] = &pool.findings[..] else { panic!("{pool:?}") };
    assert_eq!((finding.kind.as_str(), finding.share_id.as_str()), ("POOL_OVERCOMMITTED", ""));
    assert_eq!(clients.diagnose().await.findings, pool.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_hangs_holds_up_no_other_whatever_its_callers_do() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let stuck = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let sound = Filesystem::ext4("ubdb", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&stuck, 1, 8 * MIB);
    sound.create_share(&share(2), project(2), 8 * MIB);
    let pools = pool(&stuck, "") + &pool(&sound, "").replace("home", "sound");
    let daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;

    // What the kernel has in memory it would answer without the disk.
    stuck.mount_again(PRJQUOTA);
    let hang = disk.hang();
    // More callers than growd has threads, in waves that give up one after the other.
    for _ in 0..8 {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let clients = clients.clone();
            calls.spawn(async move {
                let mut get = tonic::Request::new(proto::GetShareRequest { share_id: share(1) });
                get.set_timeout(Duration::from_millis(500));
                clients.shares.clone().get_share(get).await.map(|answer| answer.into_inner())
            });
        }
        for answer in calls.join_all().await {
            let code = answer.unwrap_err().code();
            assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "the disk does not hang: {code:?}");
        }
    }
    let extend = tokio::time::timeout(daemon::PATIENCE, clients.ask(request(&share(2), 9 * MIB)));
    let job = extend.await.expect("the other pool hangs as well").unwrap();
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);

    // Whoever looks at the whole node hears of both, one with its figures and the other with what is wrong.
    let (mut node, mut shares) = (clients.node.clone(), clients.shares.clone());
    let mut node_too = clients.node.clone();
    let (pools, listed, diagnosis, one, other) = tokio::join!(
        node.list_pools(proto::ListPoolsRequest {}),
        async {
            let begin = Instant::now();
            (shares.list_shares(proto::ListSharesRequest::default()).await, begin.elapsed())
        },
        node_too.diagnose(proto::DiagnoseRequest {}),
        clients.ask(request(&share(1), 9 * MIB)),
        clients.ask(request(&share(1), 9 * MIB)),
    );
    // One waits for the pool, the other for the answer to it, and not for its own turn to wait afterwards.
    let refused = [one, other].map(Result::unwrap_err);
    let of = |key| refused.iter().find(|refusal| !daemon::metadata(refusal, key).is_empty()).expect("one of them");
    assert_refused(of("pool"), "STUCK");
    assert_eq!((daemon::reason(of("share_id")).as_str(), of("share_id").code()), ("STUCK", Code::Unavailable));
    let pools = pools.unwrap().into_inner().pools;
    let kinds = |pool: &proto::Pool| pool.findings.iter().map(|finding| finding.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&pools[0]), ["STUCK"]);
    assert!(kinds(&pools[1]).is_empty() && pools[1].total_bytes > 0, "{pools:?}");
    // growapi would not wait so long for the node as for a pool that is asked for alone.
    let (listed, took) = (listed.0.unwrap().into_inner(), listed.1);
    assert!(took < Duration::from_secs(20), "{took:?}");
    let sizes = listed.shares.iter().map(|found| (found.share_id.clone(), found.size_bytes)).collect::<Vec<_>>();
    assert!(sizes.contains(&(share(2), Some(9 * MIB))), "{listed:?}");
    assert!(listed.unreadable_pools == ["home"] || sizes.contains(&(share(1), None)), "{listed:?}");
    let findings = diagnosis.unwrap().into_inner().findings;
    assert!(findings.iter().any(|finding| finding.kind == "STUCK" && finding.pool == "home"), "{findings:?}");
    drop(hang);
    assert_eq!(clients.share(&share(1)).await.size_bytes, Some(8 * MIB));
}
