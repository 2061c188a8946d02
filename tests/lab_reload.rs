//! Jobs while the configuration changes: what is at work ends with its pool, what waits begins with the pool of its name
//! by then, and none is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::path::Path;
use std::time::{Duration, SystemTime};

use daemon::{Clients, Daemon, MIB, TURNS, assert_refused, create_shares, eventually, pool, project, share};
use growd::wire::proto::{CancelJobRequest, Job, JobState, ListPoolsRequest};
use nix::mount::{MsFlags, mount, umount};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};

async fn names(clients: &Clients) -> Vec<String> {
    let pools = clients.node.clone().list_pools(ListPoolsRequest {}).await.unwrap().into_inner().pools;
    pools.into_iter().map(|pool| pool.name).collect()
}

/// Fills all turns of a hanging pool, and lets two jobs wait behind them.
async fn busy(clients: &Clients) -> (Vec<Job>, Vec<Job>) {
    let running = clients.fill_turns(9 * MIB).await;
    let mut waiting = Vec::new();
    for n in [TURNS + 1, TURNS + 2] {
        waiting.push(clients.extend(&share(n), 9 * MIB).await.unwrap());
    }
    (running, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_pool_that_was_taken_out_end_if_they_had_begun_and_fail_if_not() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let other = Filesystem::xfs("ubdb", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 2, 8 * MIB);
    let elsewhere = [(share(100), project(100))];
    other.create_shares(&elsewhere, 8 * MIB);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let (running, waiting) = busy(&clients).await;

    daemon.reload(&pool(&other, "").replace("\"home\"", "\"other\""));
    eventually(|| names(&clients), |names| names == &["other"]).await;
    for job in &waiting {
        let failed = clients.end_of(&job.job_id).await;
        assert_eq!(failed.error.unwrap().reason, "NOT_MOUNTED");
    }
    assert_refused(&clients.extend(&share(TURNS + 1), 9 * MIB).await.unwrap_err(), "SHARE_NOT_FOUND");
    // The new pool is there at once, whatever hangs in the old one.
    clients.extended(100, 9 * MIB).await;
    assert_eq!(clients.job(&running[0].job_id).await.state(), JobState::Running);
    drop(hang);
    for job in &running {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    assert_eq!(fs.hard_limit(project(1)), 9 * MIB);
    assert_eq!(fs.hard_limit(project(TURNS + 1)), 8 * MIB, "a job that failed changed the size");
    assert!(daemon.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_begin_with_the_changed_pool_and_those_at_work_end_with_the_old_one() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 2, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let (running, waiting) = busy(&clients).await;
    daemon.reload(&pool(&fs, "reserve = \"32MiB\""));
    let reserve = async || clients.pool("home").await.reserve_bytes;
    eventually(reserve, |bytes| *bytes == 32 * MIB).await;
    for job in &waiting {
        eventually(|| clients.job(&job.job_id), |job| job.state() == JobState::Running).await;
    }
    drop(hang);
    for job in running.iter().chain(&waiting) {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_before_a_restart_does_not_wait_for_a_pool_that_hangs_and_was_taken_out() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 8 * MIB);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let job = clients.extend(&share(1), 9 * MIB).await.unwrap();
    daemon.kill_in(hang);
    fs.set_limits(project(1), 0, 8 * MIB);
    // What the kernel has in memory it would answer without the disk.
    fs.mount_again(PRJQUOTA);
    let hang = disk.hang();
    daemon.start_again().await;
    let clients = daemon.clients().await;
    assert_eq!(clients.job(&job.job_id).await.state(), JobState::Queued);
    daemon.reload("[[pool]]\nname = \"other\"\ndriver = \"project-quota\"\npath = \"/nowhere/{share_id}\"\n");
    let ended = clients.end_of(&job.job_id).await;
    assert_eq!(ended.error.as_ref().map(|error| error.reason.as_str()), Some("NOT_MOUNTED"), "{ended:?}");
    drop(hang);
}

/// A growd that finds jobs of before, an extend and a shrink, and not their pool: after a boot it may be there before what it
/// serves. A limit that was lowered may have to be put back then.
async fn without_its_pool(dir: &Path, disk: &MappedDisk, fs: &Filesystem) -> (Daemon, Clients, [Job; 2]) {
    create_shares(fs, 2, 8 * MIB);
    let mut daemon = Daemon::start(dir, &pool(fs, "")).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(disk).await;
    let jobs = [clients.extend(&share(1), 9 * MIB).await.unwrap(), clients.shrink(&share(2), 7 * MIB).await.unwrap()];
    daemon.kill_in(hang);
    for n in [1, 2] {
        fs.set_limits(project(n), 0, 8 * MIB);
    }
    fs.unmount();
    daemon.start_again().await;
    let clients = daemon.clients().await;
    (daemon, clients, jobs)
}

async fn assert_queued(clients: &Clients, jobs: &[Job]) {
    for job in jobs {
        assert_eq!(clients.job(&job.job_id).await.state(), JobState::Queued);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_before_a_restart_wait_until_their_pool_is_mounted() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, clients, jobs) = without_its_pool(dir.path(), &disk, &fs).await;
    // It looks more than once before the pool is there.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_queued(&clients, &jobs).await;
    // What lies below a mount that is still missing may pass for the pool, without shares or with its quotas off.
    for options in [PRJQUOTA, "noquota"] {
        let below = Filesystem::xfs("ubdb", options);
        mount(Some(below.path()), fs.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_queued(&clients, &jobs).await;
        fs.unmount();
    }
    // They may have changed their shares before the restart.
    for job in &jobs {
        let cancel = CancelJobRequest { job_id: job.job_id.clone() };
        assert_refused(&clients.jobs.clone().cancel_job(cancel).await.unwrap_err(), "JOB_NOT_QUEUED");
    }
    fs.mount(PRJQUOTA);
    for (n, job) in (1..).zip(&jobs) {
        let ended = clients.end_of(&job.job_id).await;
        assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, 2), "{ended:?}");
        assert_eq!(fs.hard_limit(project(n)), job.requested_size_bytes);
    }
}

/// One with a place of its own may be mounted there, apart from its pool.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_before_a_restart_waits_until_its_share_is_mounted() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/mnt").unwrap());
    let legacy = fs.create_share("legacy", project(1), 8 * MIB);
    let bind = || mount(Some(&legacy), place.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    bind();
    let own = format!("[[share]]\nid = {:?}\npool = \"home\"\npath = {:?}\n", share(1), place.path());
    let mut daemon = Daemon::start(dir.path(), &(pool(&fs, "") + &own)).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let job = clients.extend(&share(1), 9 * MIB).await.unwrap();
    daemon.kill_in(hang);
    fs.set_limits(project(1), 0, 8 * MIB);
    umount(place.path()).unwrap();
    daemon.start_again().await;
    let clients = daemon.clients().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_queued(&clients, std::slice::from_ref(&job)).await;
    bind();
    let ended = clients.end_of(&job.job_id).await;
    assert!(daemon.terminate());
    umount(place.path()).unwrap();
    assert_eq!((ended.state(), ended.size_after_bytes), (JobState::Succeeded, Some(9 * MIB)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_pool_is_not_mounted_two_minutes_after_the_start_fail() {
    lab::require();
    let disk = MappedDisk::over("ubdc");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, clients, jobs) = without_its_pool(dir.path(), &disk, &fs).await;
    let started = clients.node().await.started_at.unwrap().try_into().unwrap();
    let age = SystemTime::now().duration_since(started).unwrap();
    tokio::time::sleep(Duration::from_secs(100).saturating_sub(age)).await;
    assert_queued(&clients, &jobs).await;
    for job in &jobs {
        let ended = clients.end_of(&job.job_id).await;
        assert_eq!(ended.error.as_ref().map(|error| error.reason.as_str()), Some("NOT_MOUNTED"), "{ended:?}");
    }
    fs.mount(PRJQUOTA);
    for n in [1, 2] {
        assert_eq!(fs.hard_limit(project(n)), 8 * MIB);
    }
}
