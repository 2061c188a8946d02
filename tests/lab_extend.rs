//! The real daemon over its real socket, on real XFS and ext4 project quotas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::time::Duration;

use daemon::{Clients, Daemon, MIB, assert_refused, create_shares, metadata, pool, project, reason, request, share};
use growd::wire::proto::{self, JobState};
use support::{Filesystem, fill, lab};

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
    let steps: Vec<_> = job.steps.iter().map(|step| (step.name.as_str(), step.detail.as_str())).collect();
    assert_eq!(steps, [("set_limit", "8MiB -> 16MiB"), ("verify", "read back 16MiB")]);
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
    std::os::unix::fs::symlink(share(1), fs.path().join(share(6))).unwrap();
    let daemon = Daemon::start(dir.path(), &pool(&fs, "reserve = \"1GiB\"")).await;
    let clients = daemon.clients().await;

    let cases = [
        (request("", 9), "INVALID_SHARE_ID"),
        (request("../..", 9), "INVALID_SHARE_ID"),
        (request(&share(1), 0), "INVALID_SIZE"),
        (request(&share(1), u64::MAX), "INVALID_SIZE"),
        (request(&share(1), 8 * MIB), "SIZE_NOT_GREATER"),
        (request(&share(1), MIB), "SIZE_NOT_GREATER"),
        (request(&share(9), 9 * MIB), "SHARE_NOT_FOUND"),
        (request(&share(2), 9 * MIB), "PROJECT_ID_SHARED"),
        (request(&share(4), 9 * MIB), "UNLIMITED"),
        (request(&share(5), 9 * MIB), "NO_PROJECT_ID"),
        (request(&share(6), 9 * MIB), "UNSUPPORTED"),
        (request(&share(1), 1 << 50), "POOL_FULL"),
    ];
    for (request, expected) in cases {
        assert_refused(&refused(&clients, &fs, request).await, expected);
    }
    let status = refused(&clients, &fs, request(&share(1), MIB)).await;
    assert!(status.message().contains("(current: 8MiB, new: 1MiB)"), "{}", status.message());
    let expected = proto::ExtendShareRequest { expected_current_size_bytes: Some(MIB), ..request(&share(1), 9 * MIB) };
    assert_refused(&refused(&clients, &fs, expected).await, "CURRENT_SIZE_MISMATCH");

    let id = uuid::Uuid::new_v4().to_string();
    let ask = |size| proto::ExtendShareRequest { request_id: Some(id.clone()), ..request(&share(1), size) };
    let dry = proto::ExtendShareRequest { validate_only: true, ..ask(9 * MIB) };
    assert_eq!(clients.ask(dry).await.unwrap().job_id, "");
    let first = clients.ask(ask(9 * MIB)).await.unwrap();
    assert_eq!(clients.ask(ask(9 * MIB)).await.unwrap().job_id, first.job_id);
    assert_eq!(clients.end_of(&first.job_id).await.state(), JobState::Succeeded);
    assert_eq!(clients.ask(ask(9 * MIB)).await.unwrap().job_id, first.job_id);
    assert_refused(&clients.ask(ask(10 * MIB)).await.unwrap_err(), "REQUEST_ID_REUSED");
}

/// The projects are those of the file system and not of the pool.
#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_shares_of_two_pools_have_is_extended_for_neither() {
    lab::require();
    let (fs, dir) = (Filesystem::xfs("ubda", "prjquota"), tempfile::tempdir().unwrap());
    let mut pools = String::new();
    for (n, name) in [(1, "home"), (2, "work")] {
        std::fs::create_dir(fs.path().join(name)).unwrap();
        fs.create_share(&format!("{name}/{}", share(n)), 101, 8 * MIB);
        pools += &pool(&fs, "")
            .replace("/{share_id}", &format!("/{name}/{{share_id}}"))
            .replace("\"home\"", &format!("\"{name}\""));
    }
    let daemon = Daemon::start(dir.path(), &pools).await;
    let clients = daemon.clients().await;
    for (n, other) in [(1, 2), (2, 1)] {
        let refusal = refused(&clients, &fs, request(&share(n), 9 * MIB)).await;
        assert_refused(&refusal, "PROJECT_ID_SHARED");
        assert!(daemon::metadata(&refusal, "other_location").ends_with(&share(other)), "{refusal:?}");
    }
    fs.set_project(&fs.path().join("work").join(share(2)), 102);
    fs.set_limits(102, 0, 8 * MIB);
    for (n, project) in [(1, 101), (2, 102)] {
        let job = clients.ask(request(&share(n), 9 * MIB)).await.unwrap();
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
        assert_eq!(fs.hard_limit(project), 9 * MIB);
    }

    // What cannot be looked for may be there: the other pool has changed since it was read, this one has not.
    tokio::time::sleep(Duration::from_secs(2)).await;
    clients.extended(1, 10 * MIB).await;
    fs.create_share(&format!("work/{}", share(3)), 101, 10 * MIB);
    let no_files = daemon.inject("getdents64:error=EMFILE").await;
    let refusal = refused(&clients, &fs, request(&share(1), 11 * MIB)).await;
    assert!(refusal.message().contains("EMFILE"), "{refusal:?}");
    drop(no_files);
    assert_refused(&refused(&clients, &fs, request(&share(1), 11 * MIB)).await, "PROJECT_ID_SHARED");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_extends_at_once_one_is_accepted_and_the_others_name_it() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 20, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;

    // growd sums the limits of a file system once a minute, and shall not wait for the thaw with that.
    clients.ask(proto::ExtendShareRequest { validate_only: true, ..request(&share(1), 9 * MIB) }).await.unwrap();
    // A limit is set in less time than eight requests take to arrive.
    fs.freeze();
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..8 {
        let clients = clients.clone();
        asked.spawn(async move { clients.extend(&share(1), (10 + n) * MIB).await });
    }
    let answers = asked.join_all().await;
    fs.thaw();
    let accepted: Vec<_> = answers.iter().flatten().collect();
    assert_eq!(accepted.len(), 1, "{answers:?}");
    for refusal in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_refused(refusal, "SHARE_BUSY");
        assert_eq!(metadata(refusal, "job_id"), accepted[0].job_id);
    }
    assert_eq!(clients.end_of(&accepted[0].job_id).await.state(), JobState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_shares_grow_in_parallel_and_list_page_by_page() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 64, 2 * MIB);
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
    let seen = clients.list_all_jobs(proto::ListJobsRequest { page_size: 10, ..Default::default() }).await;
    assert_eq!(seen.len(), 64);
    assert!(seen.is_sorted_by(|newer, older| newer.job_id > older.job_id));
    let rubbish = proto::ListJobsRequest { page_token: "rubbish".to_owned(), ..Default::default() };
    assert_eq!(reason(&clients.jobs.clone().list_jobs(rubbish).await.unwrap_err()), "INVALID_REQUEST");
    assert!(daemon.terminate(), "SIGTERM did not end growd in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_moved_to_another_pool_is_found_there() {
    lab::require();
    let fs = Filesystem::xfs("ubda", "prjquota");
    let dir = tempfile::tempdir().unwrap();
    let place = |pool: &str| fs.path().join(pool).join(share(1));
    for pool in ["a", "b", "c"] {
        std::fs::create_dir(fs.path().join(pool)).unwrap();
    }
    fs.create_shares(&[(format!("a/{}", share(1)), project(1))], 8 * MIB);
    let config = |name: &str| {
        pool(&fs, "").replace("\"home\"", &format!("{name:?}")).replace("{share_id}", &format!("{name}/{{share_id}}"))
    };
    let daemon = Daemon::start(dir.path(), &(config("a") + &config("b") + &config("c"))).await;
    let clients = daemon.clients().await;

    for (pool, size) in [("a", 9 * MIB), ("b", 10 * MIB), ("c", 11 * MIB), ("a", 12 * MIB)] {
        if !place(pool).exists() {
            let before = ["a", "b", "c"].map(place).into_iter().find(|place| place.exists()).unwrap();
            std::fs::rename(before, place(pool)).unwrap();
        }
        assert_eq!(clients.share(&share(1)).await.pool, pool);
        let job = clients.extend(&share(1), size).await.unwrap();
        assert_eq!(job.pool, pool);
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
        assert_eq!(fs.hard_limit(project(1)), size);
    }
    std::fs::remove_dir(place("a")).unwrap();
    for _ in 0..2 {
        assert_refused(&clients.extend(&share(1), 13 * MIB).await.unwrap_err(), "SHARE_NOT_FOUND");
    }
}
