//! Every moment at which the power may go: the disk with growd's state is recorded while jobs run, rebuilt as a power cut
//! could have left it after each flush, and the store on it must hold what was acknowledged by then.
//!
//! There are three states after each flush: without the writes that came after it, with a random half of them, and with
//! those before a random moment. GROWD_ROUNDS says how many of all are looked at on each file system, GROWD_SEED gives
//! the same choice again, as far as the log is the same. A control whose flushes end in sync_file_range, as sled's own
//! do, must lose jobs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/device_mapper.rs"]
mod device_mapper;

#[path = "support/log_writes.rs"]
mod log_writes;

#[path = "support/seed.rs"]
mod seed;

#[path = "support/without_fdatasync.rs"]
mod without_fdatasync;

mod store;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use daemon::{Clients, Daemon, MIB, create_shares, pool, request, share};
use growd::model::JobId;
use growd::wire::job_message;
use growd::wire::proto::{ExtendShareRequest, Job, JobState};
use log_writes::{Entry, Log, Marker, RecordedDisk, ReplayedDisk};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use seed::{Random, rounds};
use store::{KEEP_ALL, Running};
use support::{Disk, Filesystem, Kind, PRJQUOTA, lab};
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use uuid::Uuid;
use without_fdatasync::without_fdatasync;

const SHARES: u32 = 8;
const JOBS_PER_SHARE: u64 = 25;

/// What somebody was told, as job messages: that a job was accepted, or what its end was.
struct Told {
    jobs: Mutex<Vec<Job>>,
    marker: Marker,
}

impl Told {
    /// Marks in the log that one more thing had been told.
    fn note(&self, job: Job) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.push(job);
        self.marker.mark(&jobs.len().to_string());
    }
}

/// What was recorded on the disk, and what was told meanwhile; a mark in the log says how much of it.
struct Recording {
    log: Log,
    told: Vec<Job>,
}

fn start(state: &Path, pools: &str, preload: Option<&Path>) -> Running {
    let config = Daemon::configure(state, pools);
    let mut growd = Command::new(env!("CARGO_BIN_EXE_growd"));
    growd.args(["run", "--config"]).arg(config).env("RUST_LOG", "warn,audit=off").stdin(Stdio::null());
    growd.env("LD_PRELOAD", preload.map_or(OsStr::new(""), Path::as_os_str));
    Running(growd.spawn().unwrap())
}

/// Runs jobs with growd's state on the recorded disk.
async fn record(
    shares: &Filesystem,
    disk: &RecordedDisk,
    copy: &ReplayedDisk,
    kind: Kind,
    preload: Option<&Path>,
) -> Recording {
    create_shares(shares, SHARES, MIB);
    let state = Filesystem::make(kind, disk.path().to_str().unwrap(), "");
    state.unmount();
    disk.record(copy);
    state.mount("");
    let mut growd = start(state.path(), &pool(shares, ""), preload);
    let clients = Clients::when_ready(&format!("unix:{}/sock", state.path().display())).await;
    let told = Told { jobs: Mutex::new(Vec::new()), marker: Marker::new() };
    futures_util::future::join_all((1..=SHARES).map(|n| extend_often(&clients, &told, n))).await;
    assert!(growd.terminate().success());
    drop(state);
    let told = told.jobs.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(told.len() as u64, 2 * u64::from(SHARES) * JOBS_PER_SHARE);
    Recording { log: disk.recording(), told }
}

async fn extend_often(clients: &Clients, told: &Told, n: u32) {
    for size in 2..2 + JOBS_PER_SHARE {
        let request_id = Some(Uuid::new_v4().to_string());
        let accepted = clients.ask(ExtendShareRequest { request_id, ..request(&share(n), size * MIB) }).await.unwrap();
        told.note(accepted.clone());
        let ended = clients.end_of(&accepted.job_id).await;
        assert_eq!(ended.state(), JobState::Succeeded);
        told.note(ended);
    }
}

/// What becomes of the writes after the last flush.
#[derive(Clone, Copy, Debug)]
enum Rest {
    None,
    Half,
    Begin,
}

#[derive(Default)]
struct Outcome {
    states: usize,
    /// States in which the store does not hold what it should, and why.
    bad: Vec<String>,
}

/// Goes through the log and looks at the store in a number of states that a power cut could have left, chosen by chance.
fn look_at_states(recording: &Recording, disk: &ReplayedDisk, kind: Kind, random: &mut Random, most: usize) -> Outcome {
    let entries = &recording.log.entries;
    let ends = (0..entries.len()).filter(|at| entries[*at].is_flush() || entries[*at].is_fua());
    // Nothing of a part is durable for certain before the flush at its end.
    let mut parts: Vec<&[Entry]> = Vec::new();
    let mut begin = 0;
    for end in ends {
        parts.push(&entries[begin..=end]);
        begin = end + 1;
    }
    parts.push(&entries[begin..]);
    let mut left: usize = parts.iter().map(|part| choices(part).len()).sum();
    println!("{kind:?}: {} flushes and writes with FUA, {left} states to choose from", parts.len() - 1);
    let mut wanted = most.min(left);
    let mut outcome = Outcome::default();
    let mut told = 0;
    for (number, part) in parts.into_iter().enumerate() {
        told = part.iter().filter_map(Entry::mark).map(|mark| mark.parse().unwrap()).next_back().unwrap_or(told);
        for rest in choices(part) {
            let chosen = random.below(left) < wanted;
            left -= 1;
            if !chosen {
                continue;
            }
            wanted -= 1;
            let open = open_writes(part);
            let kept: Vec<&Entry> = match rest {
                Rest::None => Vec::new(),
                Rest::Half => open.iter().copied().filter(|_| random.coin()).collect(),
                Rest::Begin => open[..=random.below(open.len())].to_vec(),
            };
            let copy = disk.copy(&recording.log, &kept);
            outcome.states += 1;
            if let Err(problem) = look(&copy, kind, &recording.told[..told]) {
                let writes = format!("{} of {} writes after it", kept.len(), open.len());
                outcome.bad.push(format!("{kind:?} after {number} flushes, with {writes}: {problem}"));
            }
        }
        part.iter().for_each(|entry| disk.apply(&recording.log, entry));
    }
    outcome
}

/// What may happen to the writes of a part.
fn choices(part: &[Entry]) -> &'static [Rest] {
    if open_writes(part).is_empty() { &[Rest::None] } else { &[Rest::None, Rest::Half, Rest::Begin] }
}

/// The writes that a power cut may leave out; the data of the flush at the end comes after it.
fn open_writes(part: &[Entry]) -> Vec<&Entry> {
    part.iter().filter(|entry| entry.is_write() && !entry.is_flush() && !entry.is_fua()).collect()
}

/// Mounts what a power cut left, opens the store as growd does, and looks for what had been told.
fn look(device: &Path, kind: Kind, told: &[Job]) -> Result<(), String> {
    let mount_point = Path::new("/mnt/after-the-cut");
    std::fs::create_dir_all(mount_point).unwrap();
    let kind = if kind == Kind::Xfs { "xfs" } else { "ext4" };
    mount(Some(device), mount_point, Some(kind), MsFlags::empty(), None::<&str>)
        .map_err(|error| format!("the file system cannot be mounted: {error}"))?;
    let found = find(&mount_point.join("state"), told);
    // A thread of sled's may let go of its files a moment after the store is closed.
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(errno) = umount2(mount_point, MntFlags::empty()) {
        assert!(errno == Errno::EBUSY && Instant::now() < deadline, "cannot unmount: {errno}");
        std::thread::sleep(Duration::from_millis(10));
    }
    found
}

fn find(state: &Path, told: &[Job]) -> Result<(), String> {
    let (store, _) = store::open(state, KEEP_ALL).map_err(|error| format!("the store is refused: {error}"))?;
    let lost = told.iter().find_map(|then| {
        let id: JobId = then.job_id.parse().unwrap();
        let problem = match store.get(id) {
            Ok(Some(now)) => difference(then, &job_message(now))?,
            Ok(None) => "is lost".to_owned(),
            Err(error) => error.to_string(),
        };
        Some(format!("job {id}, told as {:?}: {problem}", then.state()))
    });
    // It must be gone before the file system is.
    block_in_place(|| Handle::current().block_on(store.close()));
    lost.map_or(Ok(()), Err)
}

/// Why what was told of a job does not hold any more.
fn difference(then: &Job, now: &Job) -> Option<String> {
    let ended = then.finished_at.is_some();
    let parameters = |job: &Job| Job {
        state: 0,
        size_after_bytes: None,
        steps: Vec::new(),
        attempt: 0,
        revision: 0,
        started_at: None,
        finished_at: None,
        ..job.clone()
    };
    let same = if ended { then == now } else { parameters(then) == parameters(now) && now.revision >= then.revision };
    (!same).then(|| format!("{then:?} has become {now:?}"))
}

async fn outcome(kind: Kind, preload: Option<&Path>, random: &mut Random) -> Outcome {
    let shares = Filesystem::xfs("ubda", PRJQUOTA);
    let _disks = ["ubdb", "ubdc", "ubdd"].map(Disk::take);
    let copy = ReplayedDisk::new();
    let disk = RecordedDisk::prepare();
    let recording = record(&shares, &disk, &copy, kind, preload).await;
    let outcome = look_at_states(&recording, &copy, kind, random, rounds(100));
    disk.assert_same(&copy);
    println!("{kind:?}: {} states were looked at, {} of them bad", outcome.states, outcome.bad.len());
    outcome
}

async fn nothing_is_lost(kind: Kind) {
    lab::require();
    let outcome = outcome(kind, None, &mut Random::from_environment()).await;
    assert!(outcome.states > 0);
    assert!(outcome.bad.is_empty(), "{:#?}", outcome.bad);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_on_ext4_whenever_the_power_goes() {
    nothing_is_lost(Kind::Ext4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_on_xfs_whenever_the_power_goes() {
    nothing_is_lost(Kind::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_without_fdatasync_loses_what_was_acknowledged() {
    lab::require();
    let dir = tempfile::tempdir().unwrap();
    let preload = without_fdatasync(dir.path());
    for kind in [Kind::Ext4, Kind::Xfs] {
        let control = outcome(kind, Some(&preload), &mut Random::from_environment()).await;
        let lost = control.bad.iter().filter(|problem| problem.contains("is lost")).count();
        println!("{lost} states without acknowledged jobs");
        assert!(lost > 0, "nothing is lost without fdatasync, so the other tests show nothing: {:#?}", control.bad);
    }
}
