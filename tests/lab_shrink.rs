//! Quotas that are lowered by the real daemon, on real XFS, ext4 and btrfs: what holds, what is refused, and who is faster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/btrfs_race.rs"]
mod btrfs_race;
#[path = "support/volumes.rs"]
mod volumes;

use std::time::Duration;

use daemon::{Clients, Daemon, MIB, TURNS, assert_refused, create_shares, metadata, pool, project, request, share};
use daemon::{btrfs_pool, eventually, shrink_request};
use growd::wire::proto::{ExtendShareRequest, Job, JobKind, JobState, ShareStatus, ShrinkShareRequest};
use support::btrfs::Btrfs;
use support::image::Image;
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, fill, lab};

const GIB: u64 = 1 << 30;

fn steps(job: &Job) -> Vec<&str> {
    job.steps.iter().map(|step| step.name.as_str()).collect()
}

async fn shrinks_for_real(fs: Filesystem) {
    let dir = tempfile::tempdir().unwrap();
    let id = share(1);
    let place = fs.create_share(&id, project(1), 16 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let written = fill(&place.join("a"), 4 * MIB).unwrap();
    assert_eq!(written, 4 * MIB);

    // Not a number of blocks: the limit is rounded up.
    let asked = 8 * MIB - 1000;
    let job = clients.shrink(&id, asked).await.unwrap();
    assert_eq!((job.kind(), job.size_before_bytes, job.requested_size_bytes), (JobKind::Shrink, 16 * MIB, asked));
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((job.state(), job.size_after_bytes), (JobState::Succeeded, Some(8 * MIB)), "{job:?}");
    assert_eq!(steps(&job), ["lower_limit", "verify"]);
    assert_eq!(fs.hard_limit(project(1)), 8 * MIB);
    let written = fill(&place.join("b"), 8 * MIB).unwrap();
    assert!(written <= 4 * MIB, "the new limit does not hold: {written}");
    let told = clients.share(&id).await;
    assert_eq!((told.size_bytes, told.status(), told.last_job_id), (Some(8 * MIB), ShareStatus::Available, job.job_id));

    // Below what is in use nothing goes, not even by a byte.
    let used = fs.used(project(1));
    for size in [used - 1, 4 * MIB, 1] {
        let refusal = clients.shrink(&id, size).await.unwrap_err();
        assert_refused(&refusal, "WOULD_LOSE_DATA");
        assert_eq!(metadata(&refusal, "used_bytes"), used.to_string());
        assert_eq!(metadata(&refusal, "requested_bytes"), size.to_string());
        assert_eq!(fs.hard_limit(project(1)), 8 * MIB);
    }
    std::fs::remove_file(place.join("b")).unwrap();
    eventually(async || fs.used(project(1)), |used| *used < 5 * MIB).await;
    let job = clients.shrink(&id, 5 * MIB).await.unwrap();
    assert_eq!(clients.end_of(&job.job_id).await.size_after_bytes, Some(5 * MIB));
    let job = clients.extend(&id, 12 * MIB).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((job.kind(), job.size_after_bytes), (JobKind::Extend, Some(12 * MIB)));
    assert_eq!(fill(&place.join("c"), 6 * MIB).unwrap(), 6 * MIB);
    assert_eq!(fs.hard_limit(project(1)), 12 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_share_shrinks_for_real() {
    lab::require();
    shrinks_for_real(Filesystem::xfs("ubda", PRJQUOTA)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_share_shrinks_for_real() {
    lab::require();
    shrinks_for_real(Filesystem::ext4("ubdb", PRJQUOTA)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_btrfs_share_shrinks_for_real() {
    lab::require();
    let fs = Btrfs::new("ubdc");
    let dir = tempfile::tempdir().unwrap();
    let place = fs.create_share(&share(1), 64 * MIB);
    let daemon = Daemon::start(dir.path(), &btrfs_pool(&fs)).await;
    let clients = daemon.clients().await;
    // Only the page cache has it: nothing is counted yet, and the shrink must not be misled by that.
    std::fs::write(place.join("a"), vec![1; 16 << 20]).unwrap();
    let job = clients.shrink(&share(1), 8 * MIB).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    assert_eq!(job.error.as_ref().map(|error| error.reason.as_str()), Some("WOULD_LOSE_DATA"), "{job:?}");
    assert_eq!(clients.share(&share(1)).await.status(), ShareStatus::ShrinkingError);
    assert_eq!(fs.limit(&place), Some(64 * MIB));
    assert_refused(&clients.shrink(&share(1), 8 * MIB).await.unwrap_err(), "WOULD_LOSE_DATA");

    let job = clients.shrink(&share(1), 20 * MIB + 1).await.unwrap();
    assert_eq!(clients.end_of(&job.job_id).await.size_after_bytes, Some(20 * MIB + 1));
    assert_eq!(clients.share(&share(1)).await.status(), ShareStatus::Available);
    assert!(fill(&place.join("b"), 16 * MIB).unwrap() <= 4 * MIB, "the new limit does not hold");

    // A count that is not right is nothing to go by.
    fs.btrfs(&["quota", "disable"], fs.path());
    assert_refused(&clients.shrink(&share(1), 19 * MIB).await.unwrap_err(), "QUOTA_NOT_ENFORCED");
}

/// The refusal of a request, after which the size of share 1 must be what it was.
async fn refused(clients: &Clients, fs: &Filesystem, request: ShrinkShareRequest) -> tonic::Status {
    let before = fs.hard_limit(project(1));
    let status = clients.ask_to_shrink(request).await.expect_err("it was accepted");
    assert_eq!(fs.hard_limit(project(1)), before, "a refusal changed the size");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_reason_and_changes_nothing() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    fs.create_share(&share(1), project(1), 8 * MIB);
    fs.create_share(&share(2), project(2), 8 * MIB);
    fs.create_share(&share(3), project(2), 8 * MIB);
    fs.create_share(&share(4), project(4), 0);
    std::fs::create_dir(fs.path().join(share(5))).unwrap();
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let cases = [
        (shrink_request("", 9), "INVALID_SHARE_ID"),
        (shrink_request(&share(1), 0), "INVALID_SIZE"),
        (shrink_request(&share(1), 8 * MIB), "SIZE_NOT_SMALLER"),
        (shrink_request(&share(1), (1 << 63) - 1), "SIZE_NOT_SMALLER"),
        (shrink_request(&share(9), MIB), "SHARE_NOT_FOUND"),
        (shrink_request(&share(2), MIB), "PROJECT_ID_SHARED"),
        (shrink_request(&share(4), MIB), "UNLIMITED"),
        (shrink_request(&share(5), MIB), "NO_PROJECT_ID"),
    ];
    for (request, expected) in cases {
        assert_refused(&refused(&clients, &fs, request).await, expected);
    }
    let status = refused(&clients, &fs, shrink_request(&share(1), 9 * MIB)).await;
    assert!(status.message().contains("less than current size and greater than 0 (current: 8MiB, new: 9MiB)"));
    let expected = ShrinkShareRequest { expected_current_size_bytes: Some(MIB), ..shrink_request(&share(1), 4 * MIB) };
    assert_refused(&refused(&clients, &fs, expected).await, "CURRENT_SIZE_MISMATCH");
    let dry = ShrinkShareRequest { validate_only: true, ..shrink_request(&share(1), 4 * MIB) };
    assert_eq!(clients.ask_to_shrink(dry).await.unwrap().job_id, "");
    assert_eq!(fs.hard_limit(project(1)), 8 * MIB);

    // A request id stands for one request of one kind.
    let id = Some(uuid::Uuid::new_v4().to_string());
    let shrink = |size| ShrinkShareRequest { request_id: id.clone(), ..shrink_request(&share(1), size) };
    let first = clients.ask_to_shrink(shrink(4 * MIB)).await.unwrap();
    assert_eq!(clients.end_of(&first.job_id).await.state(), JobState::Succeeded);
    assert_eq!(clients.ask_to_shrink(shrink(4 * MIB)).await.unwrap().job_id, first.job_id);
    assert_refused(&refused(&clients, &fs, shrink(3 * MIB)).await, "REQUEST_ID_REUSED");
    let extend = ExtendShareRequest { request_id: id.clone(), ..request(&share(1), 4 * MIB) };
    let reused = clients.ask(extend).await.unwrap_err();
    assert_refused(&reused, "REQUEST_ID_REUSED");
    assert!(reused.message().contains("kind"), "{}", reused.message());

    fs.mount_again("pqnoenforce");
    assert_refused(&clients.shrink(&share(1), 2 * MIB).await.unwrap_err(), "QUOTA_NOT_ENFORCED");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_images_are_never_made_smaller() {
    lab::require();
    let group = volumes::Group::on("vg", &["ubda"]);
    let fs = Filesystem::ext4("ubdb", "defaults");
    let dir = tempfile::tempdir().unwrap();
    let volume = group.create(1, "-L 64m");
    let image = Image::blank(fs.path(), &share(2), 64 * MIB, false);
    let images = format!(
        "[[pool]]\nname = \"images\"\ndriver = \"image\"\npath = \"{}/{{share_id}}.img\"\n",
        fs.path().display()
    );
    let daemon = Daemon::start(dir.path(), &format!("{}{images}", group.pool(""))).await;
    let clients = daemon.clients().await;
    for n in [1, 2] {
        let refusal = clients.shrink(&share(n), 32 * MIB).await.unwrap_err();
        assert_refused(&refusal, "UNSUPPORTED");
    }
    assert_refused(&clients.shrink(&share(3), 32 * MIB).await.unwrap_err(), "SHARE_NOT_FOUND");
    assert_eq!(volume.size(), 64 * MIB);
    assert_eq!(std::fs::metadata(&image.path).unwrap().len(), 64 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_at_a_time_and_space_comes_back_with_its_end() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 20, 16 * MIB);
    let (big, of_big) = (share(19), project(19));
    fs.set_limits(of_big, 0, GIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let available = clients.pool("home").await.available_bytes;

    let hang = clients.hang(&disk).await;
    let job = clients.shrink(&big, GIB / 2).await.unwrap();
    eventually(async || fs.hard_limit(of_big), |limit| *limit == GIB / 2).await;
    assert_eq!(clients.share(&big).await.status(), ShareStatus::Shrinking);
    for refusal in [clients.extend(&big, 2 * GIB).await, clients.shrink(&big, GIB / 4).await] {
        let refusal = refusal.unwrap_err();
        assert_refused(&refusal, "SHARE_BUSY");
        assert_eq!(metadata(&refusal, "job_id"), job.job_id);
    }
    assert!(clients.pool("home").await.available_bytes <= available, "what is not given back yet was promised");
    let more = 16 * MIB + available + GIB / 4;
    assert_refused(&clients.extend(&share(2), more).await.unwrap_err(), "POOL_FULL");
    // One that waits for its turn is cancelled and changes nothing.
    for n in 3..TURNS + 2 {
        clients.shrink(&share(n), 8 * MIB).await.unwrap();
    }
    eventually(|| clients.node(), |node| node.running_jobs == TURNS).await;
    let waiting = clients.shrink(&share(18), 8 * MIB).await.unwrap();
    let cancel = growd::wire::proto::CancelJobRequest { job_id: waiting.job_id };
    let cancelled = clients.jobs.clone().cancel_job(cancel).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), JobState::Cancelled);
    drop(hang);
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    assert_eq!(fs.hard_limit(project(18)), 16 * MIB);
    eventually(|| clients.node(), |node| node.running_jobs == 0).await;
    let freed = GIB / 2 + u64::from(TURNS - 1) * 8 * MIB;
    assert_eq!(clients.pool("home").await.available_bytes, available + freed);
    clients.extended(2, more).await;
}

/// Whoever writes between a look and the change finds the old limit again, and whoever comes later the new one.
async fn races(fs: Filesystem) {
    let dir = tempfile::tempdir().unwrap();
    let place = fs.create_share(&share(1), project(1), 16 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let log = dir.path().join("calls");
    let (mut put_back, mut nth, mut rounds) = (0, 0, 0);
    // strace counts the calls of each thread by itself, and the acceptance and the job may have one thread or two: so the
    // call that sets the limit is not always among those of a round.
    while put_back == 0 || nth > 0 {
        nth += 1;
        // For as long as one call of growd waits, there is time to write.
        let slow = daemon.inject_and_log(&format!("quotactl_fd:delay_enter=3s:when={nth}"), &log).await;
        let asking = {
            let clients = clients.clone();
            tokio::spawn(async move { clients.shrink(&share(1), 8 * MIB).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let written = fill(&place.join("data"), 12 * MIB).unwrap();
        let answer = asking.await.unwrap();
        let (limit, ended) = match &answer {
            Ok(job) => (fs.hard_limit(project(1)), Some(clients.end_of(&job.job_id).await)),
            Err(refusal) => {
                assert_refused(refusal, "WOULD_LOSE_DATA");
                (16 * MIB, None)
            }
        };
        drop(slow);
        let limit = ended.as_ref().map_or(limit, |_| fs.hard_limit(project(1)));
        assert!(fs.used(project(1)) <= limit, "{nth}: more is in use than the limit of {limit} allows");
        let calls = std::fs::read_to_string(&log).unwrap();
        let set = calls.lines().filter(|line| line.contains("Q_SETQUOTA")).count();
        match &ended {
            Some(job) if job.state() == JobState::Succeeded => {
                assert!(limit == 8 * MIB && written <= 8 * MIB && set == 1, "{nth}: {limit}, {written}\n{calls}");
                clients.extended(1, 16 * MIB).await;
            }
            // A writer that is at work when the limit is set is stopped before it is put back.
            _ => assert!(
                limit == 16 * MIB && (written == 12 * MIB || set == 2),
                "{nth}: {limit}, {written}, {ended:?}\n{calls}"
            ),
        }
        if let Some(job) = ended.filter(|job| job.state() == JobState::Failed) {
            let error = job.error.unwrap();
            assert_eq!((error.reason.as_str(), error.retryable), ("WOULD_LOSE_DATA", false));
            assert_eq!(clients.share(&share(1)).await.status(), ShareStatus::ShrinkingError);
            put_back += u32::from(set == 2);
        }
        std::fs::remove_file(place.join("data")).unwrap();
        eventually(async || fs.used(project(1)), |used| *used < MIB).await;
        if !calls.contains("DELAYED") {
            println!("{nth} calls: the old limit was put back {put_back} times");
            (nth, rounds) = (0, rounds + 1);
            assert!(put_back > 0 || rounds < 5, "nobody ever came between");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_faster_keeps_its_data_and_the_old_limit() {
    lab::require();
    races(Filesystem::xfs("ubda", PRJQUOTA)).await;
    races(Filesystem::ext4("ubdb", PRJQUOTA)).await;
    btrfs_race::a_writer_that_is_faster_keeps_its_data_and_the_old_limit(&Btrfs::new("ubdc")).await;
}
