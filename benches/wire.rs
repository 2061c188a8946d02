//! GetJob from the real daemon against a bare tonic service that answers the same message, and what the idle daemon
//! takes of memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing benchmark panics")]

mod support;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use growd::model::{Bytes, DriverKind, Job, JobId, JobKind, JobState, ShareId, StepRecord};
use growd::store::{Retention, Store};
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::job_service_server::{JobService, JobServiceServer};
use growd::wire::proto::{self, CancelJobRequest, GetJobRequest, ListJobsRequest, ListJobsResponse, WatchJobRequest};
use growd::wire::{client, job_message};
use prost::Message;
use support::growd::Growd;
use support::{Report, Series, milliseconds};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use uuid::Uuid;

const CLIENTS: [usize; 3] = [1, 16, 128];
const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(700);
/// Jobs in the store, so that GetJob reads different records.
const JOBS: usize = 10_000;
/// Until what the start-up has left to do is done.
const IDLE: Duration = Duration::from_secs(6);
/// The configuration's defaults.
const RETENTION: Retention = Retention { age: Duration::from_secs(90 * 24 * 3600), jobs: 100_000 };

/// The first argument of this program when it is to be the bare service; the socket and the answer's file follow.
const BARE: &str = "serve-bare";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, socket, answer] = arguments.as_slice()
        && mode == BARE
    {
        return serve_bare(socket, answer);
    }
    if !support::asked_for() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut report = Report::new("wire", "GetJob: growd against a bare tonic service");
    let mut memory = vec![["growd", "VmRSS", "Pss"].map(str::to_owned).to_vec()];

    // Not mounted here, which GetJob does not ask about.
    let pool = "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"/nonexistent/{share_id}\"\n";
    for kept in [0, RETENTION.jobs] {
        let dir = tempfile::tempdir().unwrap();
        let growd = runtime.block_on(start(dir.path(), pool, &jobs(kept)));
        memory.push(memory_row(format!("idle, {kept} jobs kept"), growd.pid()));
    }
    let (dir, jobs) = (tempfile::tempdir().unwrap(), jobs(JOBS));
    let growd = runtime.block_on(start(dir.path(), pool, &jobs));
    memory.push(memory_row(format!("idle, {JOBS} jobs kept"), growd.pid()));

    let bare = Bare::start(dir.path(), &jobs[0]);
    let endpoints = [growd.endpoint().to_owned(), bare.endpoint(dir.path())];
    runtime.block_on(same_answers(&endpoints, &jobs[0]));
    let header = ["server", "clients", "median", "p99", "per second", "throughput ratio", "server CPU per call"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for clients in CLIENTS {
        let servers = [("growd", growd.pid()), ("bare tonic (baseline)", bare.0.id())];
        let mut contenders: Vec<Contender> = servers
            .into_iter()
            .zip(&endpoints)
            .map(|((name, pid), endpoint)| {
                let channels = (0..clients).map(|_| runtime.block_on(client::connect(endpoint)).unwrap());
                Contender { name, pid, channels: channels.collect(), calls: Series::default(), cpu: Duration::ZERO }
            })
            .collect();
        support::rounds(&mut contenders, 1, |contender| drop(contender.round(&runtime, &jobs)));
        support::rounds(&mut contenders, ROUNDS, |contender| contender.measure(&runtime, &jobs));
        let baseline = contenders.last().unwrap();
        rows.extend(contenders.iter().map(|contender| contender.row(clients, baseline)));
    }
    memory.push(memory_row(format!("after the load, {JOBS} jobs kept"), growd.pid()));
    report.table(&rows);
    report.note(
        "Both servers are processes of their own with tokio's default threads; each client has its own connection to \
         a unix socket, and clients and server share the CPUs. growd finds a job of ten thousand in its store and makes \
         a message of it; the bare service answers a copy of one that it has.",
    );
    report.table(&memory);
    report.publish();
}

struct Contender {
    name: &'static str,
    pid: u32,
    channels: Vec<Channel>,
    calls: Series,
    /// What the server's threads used while it was measured.
    cpu: Duration,
}

impl Contender {
    fn measure(&mut self, runtime: &Runtime, jobs: &Arc<[Job]>) {
        let (begin, cpu) = (Instant::now(), cpu_time(self.pid));
        let took = self.round(runtime, jobs);
        self.calls.add(took, begin.elapsed());
        self.cpu += cpu_time(self.pid) - cpu;
    }

    /// Every client asks for one job after the other until the round is over.
    fn round(&self, runtime: &Runtime, jobs: &Arc<[Job]>) -> Vec<Duration> {
        let next = Arc::new(AtomicUsize::new(0));
        let end = Instant::now() + ROUND;
        runtime.block_on(async {
            let mut clients = tokio::task::JoinSet::new();
            for channel in &self.channels {
                let mut client = JobServiceClient::new(channel.clone());
                let (jobs, next) = (Arc::clone(jobs), Arc::clone(&next));
                clients.spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < end {
                        let job = &jobs[next.fetch_add(1, Ordering::Relaxed) % jobs.len()];
                        let request = GetJobRequest { job_id: job.id.to_string() };
                        let begin = Instant::now();
                        client.get_job(request).await.unwrap();
                        took.push(begin.elapsed());
                    }
                    took
                });
            }
            clients.join_all().await.into_iter().flatten().collect()
        })
    }

    fn row(&self, clients: usize, baseline: &Self) -> Vec<String> {
        let cpu = self.cpu.as_secs_f64() * 1e6 / self.calls.calls() as f64;
        vec![
            self.name.to_owned(),
            clients.to_string(),
            milliseconds(self.calls.percentile(50)),
            milliseconds(self.calls.percentile(99)),
            format!("{:.0}", self.calls.throughput()),
            format!("{:.2}", self.calls.throughput_by(&baseline.calls)),
            format!("{cpu:.1} us"),
        ]
    }
}

/// Processor time of a process, user and system.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15, in ticks of 10 ms: USER_HZ is
    // part of Linux's ABI.
    let ticks = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() * 10)
}

/// Resident memory, and the part of it that is this process's own when shared pages are divided among those who share.
fn memory_row(name: String, pid: u32) -> Vec<String> {
    let read = |file: &str, key: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        format!("{:.1} MiB", kib / 1024.0)
    };
    vec![name, read("status", "VmRSS:"), read("smaps_rollup", "Pss:")]
}

/// A job like those that end well.
fn job() -> Job {
    let now = SystemTime::now();
    let step = |name: &str, detail: &str| StepRecord {
        name: name.to_owned(),
        started_at: now,
        finished_at: Some(now),
        detail: detail.to_owned(),
    };
    Job {
        id: JobId::from_uuid(Uuid::now_v7()),
        kind: JobKind::Extend,
        share: ShareId::from_uuid(Uuid::new_v4()),
        pool: "home".parse().unwrap(),
        driver: DriverKind::ProjectQuota,
        state: JobState::Succeeded,
        size_before: Bytes::gib(1),
        requested_size: Bytes::gib(2),
        expected_size: None,
        size_after: Some(Bytes::gib(2)),
        steps: vec![step("set_limit", "grown from 1GiB to 2GiB"), step("verify", "read back 2GiB")],
        error: None,
        attempt: 1,
        revision: 5,
        requested_by: "uid=0 pid=12345".to_owned(),
        project: "tenant-a".parse().unwrap(),
        request_id: None,
        trace: None,
        created_at: now,
        started_at: Some(now),
        finished_at: Some(now),
    }
}

fn jobs(number: usize) -> Arc<[Job]> {
    (0..number).map(|_| job()).collect()
}

/// Starts growd on a store that has these jobs, and waits until it is idle.
async fn start(dir: &Path, pool: &str, jobs: &[Job]) -> Growd {
    let state_dir = dir.join("state");
    let (store, _) = Store::open(&state_dir, RETENTION).unwrap();
    for some in jobs.chunks(1000) {
        store.commit(some.to_vec()).await.unwrap();
    }
    store.close().await;
    // Its lock goes with it.
    drop(store);
    let growd = Growd::start(dir, &state_dir, pool).await;
    tokio::time::sleep(IDLE).await;
    growd
}

/// Two servers that answer differently are not to be compared.
async fn same_answers(endpoints: &[String], job: &Job) {
    for endpoint in endpoints {
        let mut client = JobServiceClient::new(client::connect(endpoint).await.unwrap());
        let request = GetJobRequest { job_id: job.id.to_string() };
        assert_eq!(client.get_job(request).await.unwrap().into_inner(), job_message(job), "{endpoint}");
    }
}

/// The bare service, in a process of its own as growd is.
struct Bare(Child);

impl Bare {
    fn start(dir: &Path, answer: &Job) -> Self {
        let file = dir.join("answer");
        std::fs::write(&file, job_message(answer).encode_to_vec()).unwrap();
        let socket = dir.join("bare");
        let child = Command::new(std::env::current_exe().unwrap()).arg(BARE).arg(&socket).arg(file).spawn().unwrap();
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "the bare service does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }

    fn endpoint(&self, dir: &Path) -> String {
        format!("unix:{}", dir.join("bare").display())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_bare(socket: &str, answer: &str) {
    let answer = proto::Job::decode(std::fs::read(answer).unwrap().as_slice()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        Server::builder().add_service(JobServiceServer::new(Echo(answer))).serve_with_incoming(incoming).await.unwrap();
    });
}

struct Echo(proto::Job);

#[tonic::async_trait]
impl JobService for Echo {
    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<proto::Job>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type WatchJobStream = tokio_stream::Empty<Result<proto::Job, Status>>;

    async fn watch_job(&self, _: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<proto::Job>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
