//! The real daemon over its real socket, on real XFS and ext4 project quotas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use daemon::{Clients, Daemon, metadata, reason, request};
use growd::wire::proto::{self, JobState};
use support::{Filesystem, fill, lab};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn share(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

fn pool(fs: &Filesystem, more: &str) -> String {
    format!(
        "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"{}/{{share_id}}\"\n{more}\n",
        fs.path().display()
    )
}

async fn grows_for_real(fs: Filesystem) {
    let dir = tempfile::tempdir().unwrap();
    let id = share(1);
    let place = fs.create_share(&id, 101, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    let first = fill(&place.join("a"), 20 * MIB).unwrap();
    assert!(first <= 8 * MIB, "the old limit did not hold: {first}");
    let job = clients.extend(&id, 16 * MIB).await.unwrap();
    assert_eq!((job.size_before_bytes, job.requested_size_bytes, job.attempt), (8 * MIB, 16 * MIB, 1));
    let job = clients.end_of(&job.job_id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    assert_eq!(job.size_after_bytes, Some(16 * MIB));
    let steps: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["set_limit", "verify"]);
    assert_eq!(fs.hard_limit(101), 16 * MIB);
    let second = fill(&place.join("b"), 20 * MIB).unwrap();
    assert!(second >= 7 * MIB && first + second <= 16 * MIB, "{first} then {second}");

    let report = clients.shares.clone().get_share(proto::GetShareRequest { share_id: id }).await.unwrap().into_inner();
    assert_eq!((report.size_bytes, report.status()), (Some(16 * MIB), proto::ShareStatus::Available));
    assert_eq!(report.last_job_id, job.job_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_share_grows_for_real() {
    lab::require();
    grows_for_real(Filesystem::xfs("ubda", "prjquota")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_share_grows_for_real() {
    lab::require();
    grows_for_real(Filesystem::ext4("ubdb", "prjquota")).await;
}

/// The refusal of a request, after which the size of share 1 must be what it was.
async fn refused(clients: &Clients, fs: &Filesystem, request: proto::ExtendShareRequest) -> tonic::Status {
    let before = fs.hard_limit(101);
    let status = clients.ask(request).await.expect_err("it was accepted");
    assert_eq!(fs.hard_limit(101), before, "a refusal changed the size");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_reason_and_changes_nothing() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    fs.create_share(&share(1), 101, 8 * MIB);
    fs.create_share(&share(2), 102, 8 * MIB);
    fs.create_share(&share(3), 102, 8 * MIB);
    fs.create_share(&share(4), 104, 0);
    std::fs::create_dir(fs.path().join(share(5))).unwrap();
    let daemon = Daemon::start(dir.path(), &pool(&fs, "reserve = \"1GiB\"")).await;
    let clients = daemon.clients().await;

    let cases = [
        (request("", 9), "INVALID_SHARE_ID", Code::InvalidArgument),
        (request("../..", 9), "INVALID_SHARE_ID", Code::InvalidArgument),
        (request(&share(1), 0), "INVALID_SIZE", Code::InvalidArgument),
        (request(&share(1), u64::MAX), "INVALID_SIZE", Code::InvalidArgument),
        (request(&share(1), 8 * MIB), "SIZE_NOT_GREATER", Code::InvalidArgument),
        (request(&share(1), MIB), "SIZE_NOT_GREATER", Code::InvalidArgument),
        (request(&share(9), 9 * MIB), "SHARE_NOT_FOUND", Code::NotFound),
        (request(&share(2), 9 * MIB), "PROJECT_ID_SHARED", Code::FailedPrecondition),
        (request(&share(4), 9 * MIB), "UNLIMITED", Code::FailedPrecondition),
        (request(&share(5), 9 * MIB), "NO_PROJECT_ID", Code::FailedPrecondition),
        (request(&share(1), 1 << 50), "POOL_FULL", Code::ResourceExhausted),
    ];
    for (request, expected, code) in cases {
        let status = refused(&clients, &fs, request.clone()).await;
        assert_eq!((reason(&status).as_str(), status.code()), (expected, code), "{request:?}: {status:?}");
    }
    let status = refused(&clients, &fs, request(&share(1), MIB)).await;
    assert!(status.message().contains("(current: 8MiB, new: 1MiB)"), "{}", status.message());
    assert_eq!(metadata(&status, "http_status"), "400");
    let expected = proto::ExtendShareRequest { expected_current_size_bytes: Some(MIB), ..request(&share(1), 9 * MIB) };
    assert_eq!(reason(&refused(&clients, &fs, expected).await), "CURRENT_SIZE_MISMATCH");

    let id = uuid::Uuid::new_v4().to_string();
    let ask = |size| proto::ExtendShareRequest { request_id: Some(id.clone()), ..request(&share(1), size) };
    let dry = proto::ExtendShareRequest { validate_only: true, ..ask(9 * MIB) };
    assert_eq!(clients.ask(dry).await.unwrap().job_id, "");
    let first = clients.ask(ask(9 * MIB)).await.unwrap();
    assert_eq!(clients.ask(ask(9 * MIB)).await.unwrap().job_id, first.job_id);
    assert_eq!(clients.end_of(&first.job_id).await.state(), JobState::Succeeded);
    assert_eq!(clients.ask(ask(9 * MIB)).await.unwrap().job_id, first.job_id);
    assert_eq!(reason(&clients.ask(ask(10 * MIB)).await.unwrap_err()), "REQUEST_ID_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_extends_at_once_one_is_accepted_and_the_others_name_it() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=20 {
        fs.create_share(&share(n), 100 + n, 8 * MIB);
    }
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    let mut asked = tokio::task::JoinSet::new();
    for n in 0..8 {
        let clients = clients.clone();
        asked.spawn(async move { clients.extend(&share(1), (10 + n) * MIB).await });
    }
    let answers = asked.join_all().await;
    let accepted: Vec<_> = answers.iter().flatten().collect();
    assert_eq!(accepted.len(), 1, "{answers:?}");
    for refusal in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(reason(refusal), "SHARE_BUSY");
        assert_eq!(metadata(refusal, "job_id"), accepted[0].job_id);
    }
    assert_eq!(clients.end_of(&accepted[0].job_id).await.state(), JobState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_shares_grow_in_parallel_and_list_page_by_page() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=64 {
        fs.create_share(&share(n), 100 + n, 2 * MIB);
    }
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 1..=64 {
        let clients = clients.clone();
        asked.spawn(async move {
            let job = clients.extend(&share(n), (3 + u64::from(n)) * MIB).await.unwrap();
            clients.end_of(&job.job_id).await
        });
    }
    for job in asked.join_all().await {
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    }
    for n in 1..=64 {
        assert_eq!(fs.hard_limit(100 + n), (3 + u64::from(n)) * MIB);
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = proto::ListJobsRequest { page_size: 10, page_token: token, ..Default::default() };
        let page = clients.jobs.clone().list_jobs(page).await.unwrap().into_inner();
        seen.extend(page.jobs.into_iter().map(|job| job.job_id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 64);
    assert!(seen.is_sorted_by(|newer, older| newer > older));
    let rubbish = proto::ListJobsRequest { page_token: "rubbish".to_owned(), ..Default::default() };
    assert_eq!(reason(&clients.jobs.clone().list_jobs(rubbish).await.unwrap_err()), "INVALID_REQUEST");
    assert!(daemon.terminate(), "SIGTERM did not end growd in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_no_acknowledged_job_is_lost() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    const SHARES: u32 = 8;
    const ROUNDS: u64 = 12;
    for n in 1..=SHARES {
        fs.create_share(&share(n), 100 + n, MIB);
    }
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let mut acknowledged: Vec<proto::Job> = Vec::new();
    for round in 1..=ROUNDS {
        let clients = daemon.clients().await;
        let mut asked = tokio::task::JoinSet::new();
        for n in 1..=SHARES {
            let clients = clients.clone();
            asked.spawn(async move { clients.extend(&share(n), (1 + round) * MIB).await });
        }
        // The kill comes at another point of the load in each round.
        tokio::time::sleep(std::time::Duration::from_millis(round * 5)).await;
        daemon.kill_and_restart().await;
        acknowledged.extend(asked.join_all().await.into_iter().flatten());
        let clients = daemon.clients().await;
        for job in &acknowledged {
            let ended = clients.end_of(&job.job_id).await;
            assert_eq!(ended.requested_size_bytes, job.requested_size_bytes);
            assert!(ended.state() == JobState::Succeeded || ended.error.is_some(), "{ended:?}");
            if ended.state() == JobState::Succeeded {
                let id: u32 = ended.share_id[24..].parse().unwrap();
                assert!(fs.hard_limit(100 + id) >= ended.requested_size_bytes, "{ended:?}");
            }
        }
    }
    assert!(!acknowledged.is_empty(), "every kill came before the first acknowledgement: nothing was shown");
    println!("{} acknowledged jobs in {ROUNDS} kills, none lost", acknowledged.len());
}
