//! growd on disks that fail: the one with its own state, and the one with the shares.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

mod store;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemon::{Clients, Daemon, MIB, TURNS, assert_refused, create_shares, eventually, pool, project, share};
use growd::sys::sync_file_range;
use growd::wire::proto::{CancelJobRequest, Job, JobState};
use nix::errno::Errno;
use support::mapped_disk::{Hang, MappedDisk};
use support::{Filesystem, PRJQUOTA, lab};
use tonic_health::pb::health_check_response::ServingStatus;

/// Extends that are asked for one after the other, each of 1 MiB more.
struct Load {
    size: u64,
    /// Job ids that growd has acknowledged.
    acknowledged: Vec<String>,
}

impl Load {
    fn new() -> Self {
        Self { size: MIB, acknowledged: Vec::new() }
    }

    async fn extend(&mut self, clients: &Clients) {
        self.size += MIB;
        let job = clients.extended(1, self.size).await;
        self.acknowledged.push(job.job_id);
    }

    /// Asks until growd has found out that it cannot write; an extend that was accepted before counts as any other.
    async fn until_refused(&mut self, clients: &Clients) {
        for _ in 0..50 {
            match clients.extend(&share(1), self.size + MIB).await {
                Ok(job) => {
                    self.size += MIB;
                    self.acknowledged.push(job.job_id);
                }
                Err(refusal) => {
                    // The job before may still wait for its end to be written.
                    if daemon::reason(&refusal) == "STORE_UNAVAILABLE" {
                        return assert_refused(&refusal, "STORE_UNAVAILABLE");
                    }
                    assert_refused(&refusal, "SHARE_BUSY");
                }
            }
            match clients.extend(&share(2), 2 * MIB).await {
                Ok(job) => self.acknowledged.push(job.job_id),
                Err(refusal) if daemon::reason(&refusal) == "STORE_UNAVAILABLE" => return,
                Err(_) => {}
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("extends are accepted without a disk");
    }

    async fn all_there_and_ended(&self, clients: &Clients) {
        for id in &self.acknowledged {
            assert_eq!(clients.end_of(id).await.state(), JobState::Succeeded, "{id}");
        }
    }
}

async fn queries_are_answered(clients: &Clients, load: &Load, serving: ServingStatus) {
    eventually(|| clients.healths(), |healths| healths.iter().all(|health| *health == serving)).await;
    assert!(clients.share(&share(1)).await.size_bytes >= Some(MIB));
    assert!(clients.pool("home").await.total_bytes > 0);
    assert_eq!(clients.job(&load.acknowledged[0]).await.state(), JobState::Succeeded);
    assert!(!clients.list_jobs(Default::default()).await.jobs.is_empty());
}

fn forget_what_is_in_memory(fs: &Filesystem) {
    fs.mount_again("defaults");
}

/// sled's own thread may have heard first of data that did not reach the disk.
#[test]
fn a_flush_hears_of_every_write_that_failed_since_the_one_before() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::ext4(&disk.path(), "");
    let path = fs.path().join("file");
    let file = File::options().create_new(true).write(true).open(&path).unwrap();
    let write = |byte| file.write_all_at(&[byte; 4096], 0).unwrap();
    write(1);
    file.sync_all().unwrap();
    sync_file_range::flush(file.as_fd()).unwrap();

    disk.fail_blocks_of(&path);
    write(2);
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
    file.sync_data().expect("the kernel tells it once");
    for _ in 0..2 {
        assert_eq!(sync_file_range::flush(file.as_fd()), Err(Errno::EIO));
    }
    disk.mend();
    // Until it is opened anew.
    sync_file_range::begin(&path);
    write(3);
    assert_eq!(sync_file_range::flush(file.as_fd()), Ok(()));
    sync_file_range::end();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_blocks_under_the_store_refuse_extends_and_nothing_is_lost_when_they_are_mended() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 2, MIB);
    let disk = MappedDisk::over("ubdd");
    let state = Filesystem::ext4(&disk.path(), "");
    // Of such an age growd notes every 10 s for how long jobs have been kept.
    let config = format!("{}[retention]\nage = \"5m\"\n", pool(&shares, ""));
    let mut growd = Daemon::start(state.path(), &config).await;
    let clients = growd.clients().await;
    let mut load = Load::new();
    load.extend(&clients).await;

    // Room for what comes, so that ext4 itself needs no other block and goes on.
    let db = state.path().join("state/jobs/db");
    lab::run("fallocate", &["--keep-size", "--length", "64M", db.to_str().unwrap()]);
    lab::run("sync", &[]);
    disk.fail_blocks_of(&db);
    load.until_refused(&clients).await;
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    disk.mend();
    queries_are_answered(&clients, &load, ServingStatus::Serving).await;
    // Nor must anybody ask for anything: what growd writes of its own accord does not reach the disk.
    disk.fail_blocks_of(&db);
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    disk.mend();
    queries_are_answered(&clients, &load, ServingStatus::Serving).await;
    for _ in 0..20 {
        load.extend(&clients).await;
    }
    growd.kill();
    forget_what_is_in_memory(&state);
    growd.start_again().await;
    let clients = growd.clients().await;
    load.all_there_and_ended(&clients).await;
    assert_eq!(shares.hard_limit(project(1)), load.size);
    assert!(growd.terminate());
    drop(state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_disk_that_hangs_is_told_and_growd_goes_on_when_it_answers() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 2, MIB);
    let disk = MappedDisk::over("ubdd");
    let state = Filesystem::ext4(&disk.path(), "");
    let mut growd = Daemon::start(state.path(), &pool(&shares, "")).await;
    let clients = growd.clients().await;
    let mut load = Load::new();
    load.extend(&clients).await;
    let hang = disk.hang();
    let waits = tokio::spawn({
        let clients = clients.clone();
        async move { clients.extend(&share(2), 2 * MIB).await }
    });
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    let refusal = clients.extend(&share(1), 64 * MIB).await.unwrap_err();
    assert_refused(&refusal, "STORE_UNAVAILABLE");
    assert!(refusal.message().contains("does not answer"), "{refusal:?}");
    assert!(!waits.is_finished(), "an extend was accepted that is not on the disk");
    drop(hang);
    let job = waits.await.unwrap().unwrap();
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    queries_are_answered(&clients, &load, ServingStatus::Serving).await;
    load.extend(&clients).await;
    assert!(growd.terminate());
    drop(state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_disk_that_is_gone_needs_a_mount_and_a_restart_and_growd_says_so() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 2, MIB);
    let disk = MappedDisk::over("ubdd");
    let state = Filesystem::xfs(&disk.path(), "");
    let mut growd = Daemon::start(state.path(), &pool(&shares, "")).await;
    let config = tempfile::tempdir().unwrap();
    let config_file = config.path().join("growd.toml");
    std::fs::copy(state.path().join("growd.toml"), &config_file).unwrap();
    let clients = growd.clients().await;
    let mut load = Load::new();
    for _ in 0..5 {
        load.extend(&clients).await;
    }
    // The configuration was not made durable when it was written.
    lab::run("sync", &[]);
    disk.fail();
    load.until_refused(&clients).await;
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    // XFS shuts itself down when it cannot write its log; the disk alone then brings nothing back.
    let synced = Command::new("sync").arg("--file-system").arg(state.path()).output().unwrap();
    assert!(!synced.status.success(), "the log could be written");
    disk.mend();
    growd.kill();
    let refused = store::growd(&["run"], &config_file);
    assert_eq!(refused.status.code(), Some(1));
    let said = store::err(&refused);
    assert!(said.contains("state") && said.contains("Input/output error"), "{said}");
    state.mount_again("defaults");
    growd.start_again().await;
    let clients = growd.clients().await;
    load.all_there_and_ended(&clients).await;
    load.extend(&clients).await;
    assert_eq!(shares.hard_limit(project(1)), load.size);
    assert!(growd.terminate());
    drop(state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_whose_disk_fails_is_a_failed_job_with_a_reason_and_its_size_is_told_truly_afterwards() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let shares = Filesystem::xfs(&disk.path(), "prjquota");
    create_shares(&shares, 2, MIB);
    let home = tempfile::tempdir().unwrap();
    let mut growd = Daemon::start(home.path(), &pool(&shares, "")).await;
    let clients = growd.clients().await;
    let mut load = Load::new();
    load.extend(&clients).await;
    disk.fail();
    let job = match clients.extend(&share(1), 64 * MIB).await {
        Ok(job) => clients.end_of(&job.job_id).await,
        Err(refusal) => panic!("the disk is not known to be bad yet: {refusal:?}"),
    };
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    let error = job.error.unwrap();
    assert!(!error.reason.is_empty() && !error.message.is_empty(), "{error:?}");
    println!("the job failed with {}: {}", error.reason, error.message);
    disk.mend();
    shares.mount_again("prjquota");
    let truth = shares.hard_limit(project(1));
    assert_eq!(clients.share(&share(1)).await.size_bytes, Some(truth));
    clients.extended(1, 65 * MIB).await;
    assert_eq!(shares.hard_limit(project(1)), 65 * MIB);
    assert!(growd.terminate());
    drop(shares);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_mounted_read_only_grows_nothing_and_goes_on_when_it_is_writable() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 1, MIB);
    let home = tempfile::tempdir().unwrap();
    let mut growd = Daemon::start(home.path(), &pool(&shares, "")).await;
    let clients = growd.clients().await;
    shares.remount("ro");
    let problem = match clients.extend(&share(1), 2 * MIB).await {
        Ok(job) => clients.end_of(&job.job_id).await.error.expect("the job fails").message,
        Err(refusal) => refusal.message().to_owned(),
    };
    assert!(problem.to_lowercase().contains("read-only"), "{problem}");
    assert_eq!(clients.share(&share(1)).await.size_bytes, Some(MIB));
    shares.remount("rw");
    Load::new().extend(&clients).await;
    assert_eq!(shares.hard_limit(project(1)), 2 * MIB);
    assert!(growd.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_system_that_turns_read_only_refuses_extends_and_loses_nothing() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 2, MIB);
    let state = Filesystem::ext4("ubdd", "errors=remount-ro");
    let mut growd = Daemon::start(state.path(), &pool(&shares, "")).await;
    let clients = growd.clients().await;
    let mut load = Load::new();
    load.extend(&clients).await;
    lab::run("sync", &[]);
    // What ext4 does by itself when its journal fails; a plain remount is refused while files are open for writing.
    state.remount("abort");
    load.until_refused(&clients).await;
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    growd.kill();
    state.mount_again("defaults");
    growd.start_again().await;
    let clients = growd.clients().await;
    load.all_there_and_ended(&clients).await;
    load.extend(&clients).await;
    assert!(growd.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_taken_away_is_noticed_before_anything_is_acknowledged() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 2, MIB);
    let home = tempfile::tempdir().unwrap();
    let mut growd = Daemon::start(home.path(), &pool(&shares, "")).await;
    let clients = growd.clients().await;
    let mut load = Load::new();
    load.extend(&clients).await;
    let (state, away) = (home.path().join("state"), home.path().join("away"));
    std::fs::rename(&state, &away).unwrap();
    let refusal = clients.extend(&share(1), 64 * MIB).await.unwrap_err();
    assert_refused(&refusal, "STORE_UNAVAILABLE");
    assert!(refusal.message().contains("removed or replaced"), "{refusal:?}");
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    // An empty directory in its place is another store; growd must not go on with it.
    std::fs::create_dir(&state).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    queries_are_answered(&clients, &load, ServingStatus::NotServing).await;
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "growd has begun a second store");
    std::fs::remove_dir(&state).unwrap();
    std::fs::rename(&away, &state).unwrap();
    queries_are_answered(&clients, &load, ServingStatus::Serving).await;
    load.extend(&clients).await;
    growd.kill();
    growd.start_again().await;
    load.all_there_and_ended(&growd.clients().await).await;
    assert!(growd.terminate());
}

/// A growd whose disk of shares hangs and whose state directory is away: all turns are taken, and the cancellation of a job
/// that waits for one could not be written.
struct Uncancelled<'a> {
    growd: Daemon,
    clients: Clients,
    hang: Hang<'a>,
    running: Vec<Job>,
    waiting: Job,
    state: PathBuf,
    away: PathBuf,
}

impl<'a> Uncancelled<'a> {
    async fn on(disk: &'a MappedDisk, shares: &Filesystem, home: &Path) -> Self {
        create_shares(shares, TURNS + 1, MIB);
        let growd = Daemon::start(home, &pool(shares, "")).await;
        let clients = growd.clients().await;
        let hang = clients.hang(disk).await;
        let running = clients.fill_turns(2 * MIB).await;
        let waiting = clients.extend(&share(TURNS + 1), 2 * MIB).await.unwrap();
        let (state, away) = (home.join("state"), home.join("away"));
        std::fs::rename(&state, &away).unwrap();
        let cancel = CancelJobRequest { job_id: waiting.job_id.clone() };
        for _ in 0..2 {
            let refusal = clients.jobs.clone().cancel_job(cancel.clone()).await.unwrap_err();
            assert_refused(&refusal, "STORE_UNAVAILABLE");
            assert!(refusal.message().contains("is cancelled once it can"), "{refusal:?}");
        }
        Self { growd, clients, hang, running, waiting, state, away }
    }
}

/// What has failed to be written may be on disk all the same: then nothing that is done afterwards may say otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_could_not_be_written_holds_its_job_and_an_end_that_could_not_does_not_hold_growd() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let shares = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let home = tempfile::tempdir().unwrap();
    let Uncancelled { mut growd, clients, hang, running, waiting, state, away } =
        Uncancelled::on(&disk, &shares, home.path()).await;
    drop(hang);
    for n in 1..=TURNS {
        eventually(|| async { shares.hard_limit(project(n)) }, |limit| *limit == 2 * MIB).await;
    }
    // It would have begun by now.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(clients.job(&waiting.job_id).await.state(), JobState::Queued);
    assert!(growd.terminate());
    std::fs::rename(&away, &state).unwrap();
    growd.start_again().await;
    let clients = growd.clients().await;
    for job in &running {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    // The record was written, and only its directory had gone.
    assert_eq!(clients.job(&waiting.job_id).await.state(), JobState::Cancelled);
    assert_eq!(shares.hard_limit(project(TURNS + 1)), MIB, "a job that is told to be cancelled has changed the size");
    assert!(growd.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_is_made_up_for_when_the_store_can_be_written_again() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let shares = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let home = tempfile::tempdir().unwrap();
    let Uncancelled { mut growd, clients, hang, waiting, state, away, .. } =
        Uncancelled::on(&disk, &shares, home.path()).await;
    std::fs::rename(&away, &state).unwrap();
    assert_eq!(clients.end_of(&waiting.job_id).await.state(), JobState::Cancelled);
    drop(hang);
    assert!(growd.terminate());
    assert_eq!(shares.hard_limit(project(TURNS + 1)), MIB);
}

/// Runs growd without the rights of root.
fn start_as_nobody(config: &Path) -> (Option<i32>, String) {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_growd"), "run", "--config"])
        .arg(config)
        .env("RUST_LOG", "warn,audit=off")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_growd_may_not_use_is_named_at_start() {
    lab::require();
    let disk = Filesystem::ext4("ubdd", "");
    let dir = disk.path();
    lab::run("chmod", &["755", dir.to_str().unwrap()]);
    let state = dir.join("state");
    let pool = "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"/nowhere/{share_id}\"\n";
    let config = Daemon::configure(dir, pool);
    let named = |what: &str| {
        let (code, said) = start_as_nobody(&config);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains(state.to_str().unwrap()) && said.contains("Permission denied"), "{what}: {said}");
    };
    named("no right to make it");
    std::fs::create_dir(&state).unwrap();
    lab::run("chmod", &["700", state.to_str().unwrap()]);
    named("another user's");
    lab::run("chmod", &["755", state.to_str().unwrap()]);
    named("not writable");
}
