//! What growd takes while nobody asks anything of it: disk, wake-ups, and the size of its program.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use growd::model::{Job, JobState};
use growd::store::Store;
use tokio::runtime::Runtime;

use crate::growd::Growd;
use crate::results::{Results, Row, Spread, Target};
use crate::stored::{self, JOBS};

/// What is kept by default.
const KEPT: usize = 100_000;
/// Commits that the store has at once, as from so many clients.
const TOGETHER: usize = 128;
const RESTARTS: usize = 10;
const MIB: f64 = (1 << 20) as f64;
/// Longer than retention takes to catch up.
const PATIENCE: Duration = Duration::from_secs(600);

/// The disk that jobs take when they come and go, over restarts, and when fewer are to be kept.
pub fn disk(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    runtime.block_on(pass_through(&state));
    report(results, &state, &format!("disk of a store that {JOBS} jobs went through, {KEPT} kept"), true);
    for _ in 0..RESTARTS {
        runtime.block_on(Growd::start(dir.path(), &state, &stored::config(KEPT))).terminate();
    }
    report(results, &state, &format!("the same after {RESTARTS} restarts"), true);

    let state = dir.path().join("shrinking");
    runtime.block_on(stored::fill(&state, JOBS, 0));
    let before = report(results, &state, &format!("disk of {JOBS} jobs kept"), true);
    runtime.block_on(retire(&state));
    report(results, &state, &format!("the same when only {KEPT} are kept any more, before a restart"), false);
    runtime.block_on(Growd::start(dir.path(), &state, &stored::config(KEPT))).terminate();
    let after = report(results, &state, "the same after a restart", true);
    results.row(Row {
        path: format!("store with {KEPT} of {JOBS} jobs left, after a restart"),
        ours: format!("{:.0} MiB", after / MIB),
        baseline: format!("before {:.0} MiB", before / MIB),
        ratio: Spread::single(after / before),
        // A tenth of the jobs, and some air.
        target: Target::AtMost(0.2),
    });
}

/// Accepts and ends jobs, by the library as growd does; old ones go meanwhile.
async fn pass_through(state: &Path) {
    let store = stored::open(state, KEPT);
    for _ in 0..JOBS / TOGETHER {
        let jobs: Vec<Job> = (0..TOGETHER).map(|_| stored::job(true)).collect();
        let accepted =
            jobs.iter().map(|job| Job { state: JobState::Queued, revision: 1, steps: Vec::new(), ..job.clone() });
        store.commit(accepted.collect()).await.unwrap();
        store.commit(jobs).await.unwrap();
    }
    kept(&store).await;
    store.close().await;
}

/// Has a store keep fewer jobs than it has.
async fn retire(state: &Path) {
    let store = stored::open(state, KEPT);
    kept(&store).await;
    store.close().await;
}

/// Waits until no more is kept than shall be.
async fn kept(store: &Store) {
    let begin = Instant::now();
    while store.kept() > KEPT {
        assert!(begin.elapsed() < PATIENCE, "{} jobs are still there", store.kept());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Adds what the database takes by what its records have, and gives its bytes.
fn report(results: &mut Results, state: &Path, what: &str, has_target: bool) -> f64 {
    let database = state.join("jobs");
    let bytes = bytes_on_disk(&database);
    // Read on a copy: reading writes.
    let copy = tempfile::tempdir_in(state).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(&database).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    let (records, live) = stored::records(&stored::open_bare(&copy.path().join("jobs")));
    results.row(Row {
        path: what.to_owned(),
        ours: format!("{:.0} MiB, {:.0} bytes a job", bytes / MIB, bytes / records as f64),
        baseline: format!("its record: {} bytes", live / records),
        ratio: Spread::single(bytes / live as f64),
        target: if has_target { Target::AtMost(4.0) } else { Target::None },
    });
    bytes
}

fn bytes_on_disk(dir: &Path) -> f64 {
    let of = |entry: fs::DirEntry| {
        let data = entry.metadata().unwrap();
        // stat(2) counts blocks of 512 bytes, whatever the file system's are.
        if data.is_dir() { bytes_on_disk(&entry.path()) } else { data.blocks() as f64 * 512.0 }
    };
    fs::read_dir(dir).unwrap().map(Result::unwrap).map(of).sum()
}

/// Until threads that were at work have ended, and the mark of the store is written, which follows a start after 20 s.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(30);

/// Wake-ups and processor time of a growd with a service manager that watches it and jobs in its store.
pub fn idle(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    runtime.block_on(stored::fill(&state, KEPT, 0));
    let notified = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notified).unwrap();
    std::thread::spawn(move || while manager.recv(&mut [0; 4096]).is_ok() {});
    // As growd.service has it.
    let environment = [("NOTIFY_SOCKET", notified.to_str().unwrap()), ("WATCHDOG_USEC", "30000000")];
    // A pool that can be read, as that of a node in service: none is looked at more often.
    let pool =
        format!("[[pool]]\nname = \"home\"\ndriver = \"image\"\npath = \"{}/{{share_id}}.img\"", dir.path().display());
    let config = format!("{pool}\n[retention]\njobs = {KEPT}");
    let growd = runtime.block_on(Growd::start_under(dir.path(), &state, &config, &environment));
    std::thread::sleep(SETTLE);
    let before = threads(growd.pid());
    std::thread::sleep(LOOK);
    let after = threads(growd.pid());

    let (mut by_name, mut cpu) = (BTreeMap::<&str, u64>::new(), Duration::ZERO);
    for (id, thread) in &after {
        let before = before.get(id);
        *by_name.entry(&thread.name).or_default() += thread.wakeups - before.map_or(0, |before| before.wakeups);
        cpu += thread.cpu - before.map_or(Duration::ZERO, |before| before.cpu);
    }
    let a_second = |count: u64| count as f64 / LOOK.as_secs_f64();
    let all = a_second(by_name.values().sum());
    results.row(Row {
        path: format!("idle, {KEPT} jobs kept, watched by a service manager: wake-ups a second"),
        ours: format!("{all:.2}/s"),
        baseline: String::new(),
        ratio: Spread::single(all),
        target: Target::AtMost(1.0),
    });
    results.row(Row {
        path: format!("idle: processor time in {} s, in ticks of 10 ms", LOOK.as_secs()),
        ours: format!("{:.1} ms", cpu.as_secs_f64() * 1000.0),
        baseline: String::new(),
        ratio: Spread::single(cpu.as_secs_f64() * 100.0),
        target: Target::AtMost(1.0),
    });
    results.heading("Idle");
    let rows = by_name.into_iter().filter(|(_, count)| *count > 0);
    let rows = rows.map(|(name, count)| vec![name.to_owned(), format!("{:.2}", a_second(count))]);
    let header = vec!["threads".to_owned(), "wake-ups a second".to_owned()];
    results.table(&std::iter::once(header).chain(rows).collect::<Vec<_>>());
    results.note(
        "This growd has one pool, of images, of which there are none, so no shells of lvm, and serves no metrics, \
         for which pools are asked for their space every 30 s. Its health service looks as often whether any pool is there.",
    );
}

struct Thread {
    name: String,
    /// How often it has waited.
    wakeups: u64,
    /// Its processor time by the scheduler's own count: proc(5) has whole ticks of 10 ms elsewhere.
    cpu: Duration,
}

/// The threads of a process by their ids.
fn threads(pid: u32) -> BTreeMap<u32, Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        // sled numbers its threads.
        let name = field("Name:").trim_end_matches(|last: char| last.is_ascii_digit());
        let wakeups = field("voluntary_ctxt_switches:").parse().unwrap();
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let cpu = Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap());
        let id = task.file_name().to_str().unwrap().parse().unwrap();
        Some((id, Thread { name: name.to_owned(), wakeups, cpu }))
    };
    // A thread may end meanwhile; the first does not, so whatever is missing of it is missing of all.
    let threads: BTreeMap<u32, Thread> = tasks.map(Result::unwrap).filter_map(of).collect();
    assert!(threads.contains_key(&pid), "no status or schedstat of {pid}");
    threads
}

pub fn binary(results: &mut Results) {
    let size = fs::metadata(env!("CARGO_BIN_EXE_growd")).unwrap().len() as f64 / MIB;
    results.row(Row {
        path: "growd's program, stripped: MiB".to_owned(),
        ours: format!("{size:.1} MiB"),
        baseline: String::new(),
        ratio: Spread::single(size),
        target: Target::AtMost(12.0),
    });
}
