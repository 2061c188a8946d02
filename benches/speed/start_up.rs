//! From the start of growd until it answers, and the memory it then takes, by the size of its store.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use growd::model::Job;
use growd::wire::job_message;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::{GetJobRequest, ListJobsRequest};
use tokio::runtime::Runtime;

use crate::baselines::{Baseline, Kind};
use crate::growd::Growd;
use crate::results::{Results, Row, Series, Spread, Target, milliseconds, rounds};
use crate::stored::{self, JOBS, SHARE};

/// The first argument of this program when it is to read a bare store once; the database's folder follows.
pub const READ: &str = "read-bare";
const IN_FLIGHT: usize = 1000;
const ROUNDS: usize = 5;
/// After that long without a request growd is idle.
const SETTLE: Duration = Duration::from_secs(10);
const LOAD: Duration = Duration::from_secs(5);
const CLIENTS: usize = 16;
const MIB: f64 = (1 << 20) as f64;

pub fn run(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    results.heading("Start and memory");
    let header = ["jobs kept", "start to ready", "bare store read once", "idle", "idle after load", "bare service"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for kept in [1000, JOBS / 10, JOBS] {
        let dir = tempfile::tempdir().unwrap();
        let original = dir.path().join("original");
        let jobs = runtime.block_on(stored::fill(&original, kept, IN_FLIGHT));
        let mut cells = vec![kept.to_string()];
        cells.extend(start(results, &runtime, dir.path(), &original, kept));
        cells.extend(memory(results, &runtime, dir.path(), &original, &jobs[..kept]));
        table.push(cells);
    }
    results.table(&table);
    results.note(&format!(
        "Each start is on a fresh copy of the same store, whose files are in the page cache, with {IN_FLIGHT} jobs in \
         flight that came after the store was last opened. growd copies the store before it opens it. The bare store is \
         opened with sled, by a process of its own, and every record read once, in order, by one thread; growd reads with two. \
         Memory is resident memory; the load is GetJob all over the store and ListJobs by {CLIENTS} clients."
    ));
}

#[derive(Clone, Copy, PartialEq)]
enum Start {
    Growd,
    Bare,
}

struct Contender {
    start: Start,
    took: Series,
}

fn start(results: &mut Results, runtime: &Runtime, dir: &Path, original: &Path, kept: usize) -> [String; 2] {
    let mut contenders = [Start::Growd, Start::Bare].map(|start| Contender { start, took: Series::default() });
    rounds(&mut contenders, ROUNDS, |contender| {
        let state = dir.join("state");
        copy(original, &state);
        let begin = Instant::now();
        let took = if contender.start == Start::Bare {
            read_bare(&state.join("jobs"));
            begin.elapsed()
        } else {
            let growd = runtime.block_on(Growd::start(dir, &state, &stored::config(kept)));
            let took = begin.elapsed();
            drop(growd);
            took
        };
        std::fs::remove_dir_all(&state).unwrap();
        contender.took.add(vec![took], took);
    });
    let [ours, bare] = contenders.map(|contender| contender.took);
    let figures = [&ours, &bare].map(|series| milliseconds(series.median()));
    results.cost("start to ready, by jobs kept", kept, ours.median());
    results.cost("bare store opened and read once, by jobs kept", kept, bare.median());
    results.row(Row {
        path: format!("start to ready, {kept} jobs kept, {IN_FLIGHT} in flight"),
        ours: figures[0].clone(),
        baseline: format!("bare store opened and read once {}", figures[1]),
        ratio: ours.duration_by(&bare),
        target: if kept == JOBS { Target::AtMost(1.3) } else { Target::None },
    });
    figures
}

/// Makes a copy that is on disk, so that nothing is left to be written when it is measured.
fn copy(from: &Path, to: &Path) {
    for command in [Command::new("cp").arg("-r").args([from, to]), Command::new("sync").arg("-f").arg(to)] {
        assert!(command.status().unwrap().success());
    }
}

/// Has another process open the store and read all of it; its end, which writes, does not count.
fn read_bare(jobs: &Path) {
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .arg(READ)
        .arg(jobs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(reader.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("read "), "{line:?}");
    std::thread::spawn(move || reader.wait());
}

/// The process that reads a bare store.
pub fn read(jobs: &Path) {
    let db = stored::open_bare(jobs);
    let (records, bytes) = stored::records(&db);
    println!("read {records} records, {bytes} bytes");
    std::process::exit(0);
}

fn memory(results: &mut Results, runtime: &Runtime, dir: &Path, state: &Path, jobs: &[Job]) -> [String; 3] {
    let bare = Baseline::start(Kind::Echo, &dir.join("bare"), &job_message(jobs[0].clone()), &Default::default());
    let growd = runtime.block_on(Growd::start(dir, state, &stored::config(jobs.len())));
    std::thread::sleep(SETTLE);
    let [idle, bare] = [growd.pid(), bare.pid()].map(|pid| stored::memory(pid) as f64 / MIB);
    runtime.block_on(load(&growd, jobs));
    std::thread::sleep(SETTLE);
    let loaded = stored::memory(growd.pid()) as f64 / MIB;
    for (when, memory) in [("idle after start", idle), ("idle after a load", loaded)] {
        results.row(Row {
            path: format!("memory above a bare service, {} jobs kept, {when}: MiB", jobs.len()),
            ours: format!("{memory:.1} MiB"),
            baseline: format!("echo {bare:.1} MiB"),
            ratio: Spread::single(memory - bare),
            target: match jobs.len() {
                JOBS => Target::AtMost(256.0),
                kept if kept == JOBS / 10 => Target::AtMost(64.0),
                _ => Target::None,
            },
        });
    }
    [idle, loaded, bare].map(|memory| format!("{memory:.1} MiB"))
}

async fn load(growd: &Growd, jobs: &[Job]) {
    let (mut clients, end) = (tokio::task::JoinSet::new(), Instant::now() + LOAD);
    for first in 0..CLIENTS {
        let mut client = JobServiceClient::new(growd.connect().await);
        let ids: Vec<String> = jobs.iter().skip(first).step_by(37).map(|job| job.id.to_string()).collect();
        clients.spawn(async move {
            let mut lists = 0;
            for id in ids.iter().cycle().take_while(|_| Instant::now() < end) {
                client.get_job(GetJobRequest { job_id: id.clone() }).await.unwrap();
                lists += 1;
                if lists % 50 == 0 {
                    let request = ListJobsRequest { share_id: SHARE.to_string(), ..Default::default() };
                    client.list_jobs(request).await.unwrap();
                }
            }
        });
    }
    clients.join_all().await;
}
