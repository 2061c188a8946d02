//! What grows with use: many watchers of one job, lists from large stores.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use growd::engine::pools::TURNS_TOGETHER;
use growd::model::{Job, JobId};
use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::{CancelJobRequest, GetJobRequest, JobState, ListJobsRequest, WatchJobRequest};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::baselines::{Baseline, Kind};
use crate::ground::Ground;
use crate::growd::{Growd, accept, share_id};
use crate::results::{Results, Row, Series, Target, milliseconds, rounds};
use crate::stored::{self, JOBS, SHARE};

const WATCHERS: usize = 1000;
const CONNECTIONS: usize = 20;
const CHANGES: usize = 20;
const CALLS: usize = 200;

const LIMIT: u64 = 1 << 20;

/// 1,000 streams wait for the end of one job.
pub fn watchers(results: &mut Results) {
    let Some(ground) = Ground::here() else { return };
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shares: Vec<(String, u32)> = (0..TURNS_TOGETHER + CHANGES).map(|n| (share_id(n), 0)).collect();
    ground.create_shares(&shares, LIMIT);
    let pool = ground.pool("home", ground.path());
    let growd = runtime.block_on(Growd::start(dir.path(), &dir.path().join("state"), &pool));
    // Dropped before growd, which cannot end while its threads wait for a frozen file system.
    let _frozen = Frozen::new(ground.path());
    let queued = runtime.block_on(queue(&growd, &shares));
    runtime.block_on(async {
        let (caller, channels) = connect(growd.endpoint()).await;
        let request = GetJobRequest { job_id: queued[0].to_string() };
        let job = JobServiceClient::new(caller.clone()).get_job(request).await.unwrap().into_inner();
        let echo = Baseline::start(Kind::Echo, &dir.path().join("echo"), &job, &Default::default());
        let (echo_caller, echo_channels) = connect(&echo.endpoint()).await;
        let [mut told, mut bare, mut one, mut alone] = [(); 4].map(|()| Series::default());
        for job in queued.chunks_exact(2) {
            let (took, wall) = get_jobs(&caller, job[0]).await;
            one.add(took, wall);
            let took = cancel(&caller, &channels, job[0], WATCHERS).await;
            told.add(vec![took], took);
            let took = cancel(&caller, &channels, job[1], 1).await;
            alone.add(vec![took], took);
            let took = cancel(&echo_caller, &echo_channels, job[0], WATCHERS).await;
            bare.add(vec![took], took);
        }
        results.row(Row {
            path: format!("WatchJob, {WATCHERS} watchers of one job: from CancelJob until the last was told"),
            ours: milliseconds(told.median()),
            baseline: format!("GetJob of growd, 1 client, p50 {}", milliseconds(one.median())),
            ratio: told.duration_by(&one),
            target: Target::AtMost(50.0),
        });
        results.row(Row {
            path: format!("WatchJob, {WATCHERS} watchers of one job: beside a bare service"),
            ours: milliseconds(told.median()),
            baseline: format!("echo {}", milliseconds(bare.median())),
            ratio: told.duration_by(&bare),
            target: Target::None,
        });
        results.heading("WatchJob");
        results.note(&format!(
            "{WATCHERS} streams on {CONNECTIONS} connections wait for the end of a job; the time counts from the request \
             that ends it, a CancelJob, with its commit to the disk. With a single watcher that takes {}. The bare \
             service tells as many streams of a message that it has, and commits nothing. The watchers are tasks of one \
             process, which shares the CPUs with the service.",
            milliseconds(alone.median())
        ));
    });
}

/// A file system to which nothing is written.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(path: &'a Path) -> Self {
        assert!(Command::new("fsfreeze").arg("--freeze").arg(path).status().unwrap().success());
        Self(path)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
        if !thawed.is_ok_and(|status| status.success()) {
            eprintln!("{} stays frozen", self.0.display());
        }
    }
}

/// The jobs that wait for a turn behind those that have one and cannot write.
async fn queue(growd: &Growd, shares: &[(String, u32)]) -> Vec<JobId> {
    let channel = growd.connect().await;
    let mut client = JobServiceClient::new(channel.clone());
    let mut jobs = Vec::new();
    for (number, (share, _)) in shares.iter().enumerate() {
        let mut job = accept(channel.clone(), share, 2 * LIMIT).await;
        jobs.push(job.job_id.parse().unwrap());
        let request = GetJobRequest { job_id: job.job_id.clone() };
        while number < TURNS_TOGETHER && job.state() != JobState::Running {
            job = client.get_job(request.clone()).await.unwrap().into_inner();
        }
    }
    jobs.split_off(TURNS_TOGETHER)
}

/// A connection for questions, and those of the watchers.
async fn connect(endpoint: &str) -> (Channel, Vec<Channel>) {
    let mut channels = Vec::new();
    for _ in 0..=CONNECTIONS {
        channels.push(client::connect(endpoint, None).await.unwrap());
    }
    (channels.pop().unwrap(), channels)
}

/// Asks for one job, one call after the other.
async fn get_jobs(channel: &Channel, job: JobId) -> (Vec<Duration>, Duration) {
    let mut client = JobServiceClient::new(channel.clone());
    let (mut took, first) = (Vec::new(), Instant::now());
    for _ in 0..CALLS {
        let begin = Instant::now();
        client.get_job(GetJobRequest { job_id: job.to_string() }).await.unwrap();
        took.push(begin.elapsed());
    }
    (took, first.elapsed())
}

/// From the request to cancel a job until the last of its watchers was told.
async fn cancel(caller: &Channel, channels: &[Channel], job: JobId, watchers: usize) -> Duration {
    let mut waiting = JoinSet::new();
    let (ready, mut all_ready) = tokio::sync::mpsc::channel::<()>(1);
    for channel in channels.iter().cycle().take(watchers) {
        let (mut client, ready) = (JobServiceClient::new(channel.clone()), ready.clone());
        waiting.spawn(async move {
            let request = WatchJobRequest { job_id: job.to_string() };
            let mut changes = client.watch_job(request).await.unwrap().into_inner();
            let now = changes.message().await.unwrap().unwrap();
            assert_eq!(now.state(), JobState::Queued);
            drop(ready);
            let last = changes.message().await.unwrap().unwrap();
            assert_eq!(last.state(), JobState::Cancelled);
            Instant::now()
        });
    }
    drop(ready);
    assert_eq!(all_ready.recv().await, None);
    let mut client = JobServiceClient::new(caller.clone());
    let begin = Instant::now();
    client.cancel_job(CancelJobRequest { job_id: job.to_string() }).await.unwrap();
    waiting.join_all().await.into_iter().max().unwrap() - begin
}

const PAGE: u32 = 100;
const LISTS: usize = 50;
const ROUNDS: usize = 20;

/// A page of the jobs of one share, from stores of three sizes.
pub fn lists(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    let mut stores: Vec<Lists> = [1000, JOBS / 10, JOBS].map(|kept| Lists::of(&runtime, kept)).into();
    rounds(&mut stores, 1, |lists| drop(lists.ask(&runtime)));
    rounds(&mut stores, ROUNDS, |lists| {
        let begin = Instant::now();
        let took = lists.ask(&runtime);
        lists.calls.add(took, begin.elapsed());
    });
    for lists in &stores {
        results.cost("ListJobs: a page of a share, by jobs kept", lists.kept, lists.calls.median());
    }
    let [small, .., large] = &stores[..] else { panic!("there are two stores at least") };
    results.row(Row {
        path: format!("ListJobs of a share, page of {PAGE}: {} jobs kept", large.kept),
        ours: milliseconds(large.calls.median()),
        baseline: format!("{} jobs kept: {}", small.kept, milliseconds(small.calls.median())),
        ratio: large.calls.duration_by(&small.calls),
        target: Target::AtMost(1.5),
    });
}

struct Lists {
    kept: usize,
    channel: Channel,
    calls: Series,
    _growd: Growd,
    _dir: tempfile::TempDir,
}

impl Lists {
    fn of(runtime: &Runtime, kept: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let jobs: Vec<Job> = runtime.block_on(stored::fill(&state, kept, 0));
        assert!(jobs.iter().filter(|job| job.share == SHARE).count() >= PAGE as usize);
        let growd = runtime.block_on(Growd::start(dir.path(), &state, &stored::config(kept)));
        let channel = runtime.block_on(client::connect(growd.endpoint(), None)).unwrap();
        Self { kept, channel, calls: Series::default(), _growd: growd, _dir: dir }
    }

    fn ask(&self, runtime: &Runtime) -> Vec<Duration> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = ListJobsRequest { share_id: SHARE.to_string(), page_size: PAGE, ..Default::default() };
        runtime.block_on(async {
            let mut took = Vec::new();
            for _ in 0..LISTS {
                let begin = Instant::now();
                let page = client.list_jobs(request.clone()).await.unwrap().into_inner();
                took.push(begin.elapsed());
                assert_eq!(page.jobs.len(), PAGE as usize);
            }
            took
        })
    }
}
