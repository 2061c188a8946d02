//! GetJob from the real daemon with a large store against a bare service that answers the same message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use growd::model::Job;
use growd::wire::proto::GetJobRequest;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::{client, job_message};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::baselines::{Baseline, Kind};
use crate::growd::{Growd, call_for};
use crate::results::{Results, Row, Series, Target, milliseconds, rounds};
use crate::stored::{self, JOBS};

const CLIENTS: [usize; 3] = [1, 16, 128];
const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(700);
/// Jobs that are asked for, all over the store.
const ASKED: usize = 10_000;

pub fn run(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let jobs = runtime.block_on(stored::fill(&dir.path().join("state"), JOBS, 0));
    let jobs: Arc<[Job]> = jobs.into_iter().step_by(JOBS / ASKED).collect();
    let growd = runtime.block_on(Growd::start(dir.path(), &dir.path().join("state"), &stored::config(JOBS)));
    let bare =
        Baseline::start(Kind::Echo, &dir.path().join("bare"), &job_message(jobs[0].clone()), &Default::default());
    let endpoints = [growd.endpoint().to_owned(), bare.endpoint()];
    runtime.block_on(same_answers(&endpoints, &jobs[0]));

    results.heading("GetJob");
    let header = ["server", "clients", "median", "p99", "per second", "server CPU per call"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for clients in CLIENTS {
        let servers = [("growd", growd.pid()), ("echo", bare.pid())];
        let contender = |((name, pid), endpoint): ((&'static str, u32), &String)| {
            let channels = (0..clients).map(|_| runtime.block_on(client::connect(endpoint, None)).unwrap());
            Contender { name, pid, channels: channels.collect(), calls: Series::default(), cpu: Duration::ZERO }
        };
        let mut contenders: Vec<Contender> = servers.into_iter().zip(&endpoints).map(contender).collect();
        rounds(&mut contenders, 1, |contender| drop(contender.round(&runtime, &jobs)));
        rounds(&mut contenders, ROUNDS, |contender| contender.measure(&runtime, &jobs));
        for contender in &contenders {
            table.push(contender.cells(clients));
            results.throughput(&format!("GetJob: {}", contender.name), clients, &contender.calls);
            if clients == CLIENTS[0] {
                results.latency(&format!("GetJob: {}", contender.name), &contender.calls);
            }
        }
        let [growd, echo] = [&contenders[0].calls, &contenders[1].calls];
        results.row(Row {
            path: format!("GetJob, {JOBS} jobs kept, {clients} clients: throughput"),
            ours: format!("{:.0}/s", growd.throughput()),
            baseline: format!("echo {:.0}/s", echo.throughput()),
            ratio: growd.throughput_by(echo),
            target: if clients == 128 { Target::AtLeast(0.9) } else { Target::None },
        });
    }
    results.table(&table);
    results.note(
        "Both servers are processes of their own with tokio's default threads; each client has its own connection to \
         a unix socket, and clients and server share the CPUs. growd finds a job in its store and makes a message of it; \
         echo answers a copy of one that it has.",
    );
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
        let (begin, cpu) = (Instant::now(), stored::cpu_time(self.pid));
        let took = self.round(runtime, jobs);
        self.calls.add(took, begin.elapsed());
        self.cpu += stored::cpu_time(self.pid) - cpu;
    }

    fn round(&self, runtime: &Runtime, jobs: &Arc<[Job]>) -> Vec<Duration> {
        let jobs = Arc::clone(jobs);
        call_for(runtime, ROUND, &self.channels, move |channel, number| {
            let request = GetJobRequest { job_id: jobs[number % jobs.len()].id.to_string() };
            async move { drop(JobServiceClient::new(channel).get_job(request).await.unwrap()) }
        })
    }

    fn cells(&self, clients: usize) -> Vec<String> {
        let cpu = self.cpu.as_secs_f64() * 1e6 / self.calls.calls() as f64;
        vec![
            self.name.to_owned(),
            clients.to_string(),
            milliseconds(self.calls.median()),
            self.calls.tail(99.0),
            format!("{:.0}", self.calls.throughput()),
            format!("{cpu:.1} us"),
        ]
    }
}

/// Two servers that answer differently are not to be compared.
async fn same_answers(endpoints: &[String], job: &Job) {
    for endpoint in endpoints {
        let mut client = JobServiceClient::new(client::connect(endpoint, None).await.unwrap());
        let request = GetJobRequest { job_id: job.id.to_string() };
        assert_eq!(client.get_job(request).await.unwrap().into_inner(), job_message(job.clone()), "{endpoint}");
    }
}
