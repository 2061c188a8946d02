//! The real daemon, optimized, as its operators run it: log at its default level, into a file.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, GetNodeRequest, Job, JobState, WatchJobRequest};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// Longer than a start takes with a large store on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Growd {
    child: Child,
    endpoint: String,
}

impl Growd {
    /// Starts growd with the given pools (TOML) and waits until it serves. Its socket and log are in `dir`.
    pub async fn start(dir: &Path, state_dir: &Path, pools: &str) -> Self {
        Self::start_under(dir, state_dir, pools, &[]).await
    }

    /// As [`Growd::start`], with what a service manager adds to the environment.
    pub async fn start_under(dir: &Path, state_dir: &Path, pools: &str, environment: &[(&str, &str)]) -> Self {
        let (config, endpoint) = (dir.join("growd.toml"), format!("unix:{}/sock", dir.display()));
        let text = format!("listen = {endpoint:?}\nstate_dir = {:?}\n{pools}", state_dir.display().to_string());
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_growd"))
            .args(["run", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("growd.log")).unwrap())
            .spawn()
            .unwrap();
        let mut growd = Self { child, endpoint };
        growd.ready(dir).await;
        growd
    }

    async fn ready(&mut self, dir: &Path) {
        let begin = Instant::now();
        // One for all questions: to connect for each would load the start that is measured.
        let mut channel = None;
        while begin.elapsed() < PATIENCE && self.child.try_wait().unwrap().is_none() {
            if channel.is_none() {
                channel = client::connect(&self.endpoint, None).await.ok();
            }
            if let Some(channel) = &channel
                && NodeServiceClient::new(channel.clone()).get_node(GetNodeRequest {}).await.is_ok()
            {
                return;
            }
            // What a start took is as exact as this.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("growd did not become ready:\n{}", std::fs::read_to_string(dir.join("growd.log")).unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Ends it as a service manager does.
    pub fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Channel {
        client::connect(&self.endpoint, None).await.unwrap()
    }
}

impl Drop for Growd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one extend took: until it was accepted, and until it had finished, which includes the first.
pub type Took = (Duration, Duration);

/// Extends a share and waits for the job's end through WatchJob.
pub async fn extend(channel: Channel, share: &str, size: u64) -> Took {
    let begin = Instant::now();
    let job = accept(channel.clone(), share, size).await;
    let accepted = begin.elapsed();
    succeeded(channel, job).await;
    (accepted, begin.elapsed())
}

/// Has an extend accepted.
pub async fn accept(channel: Channel, share: &str, size: u64) -> Job {
    let request = ExtendShareRequest { share_id: share.to_owned(), new_size_bytes: size, ..Default::default() };
    ShareServiceClient::new(channel).extend_share(request).await.unwrap().into_inner()
}

/// Waits for a job's end through WatchJob.
pub async fn succeeded(channel: Channel, mut job: Job) {
    let request = WatchJobRequest { job_id: job.job_id.clone() };
    let mut changes = JobServiceClient::new(channel).watch_job(request).await.unwrap().into_inner();
    while job.state() != JobState::Succeeded {
        job = changes.message().await.unwrap().unwrap_or_else(|| panic!("the last that was seen is {job:?}"));
    }
}

/// The id of a share by its number.
pub fn share_id(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// The configuration of a pool of directories with project quotas, with more lines.
pub fn quota_pool(name: &str, directory: &Path, more: &str) -> String {
    let path = directory.display();
    format!("[[pool]]\nname = {name:?}\ndriver = \"project-quota\"\npath = \"{path}/{{share_id}}\"\n{more}\n")
}

/// Has every client make calls, one after the other, until the time is over, and gives what each call took. A call gets its
/// number, which no other call of the round has.
pub fn call_for<F: Future<Output = ()> + Send>(
    runtime: &Runtime,
    time: Duration,
    channels: &[Channel],
    call: impl Fn(Channel, usize) -> F + Clone + Send + 'static,
) -> Vec<Duration> {
    let next = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + time;
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for channel in channels {
            let (channel, next, call) = (channel.clone(), Arc::clone(&next), call.clone());
            clients.spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < end {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let begin = Instant::now();
                    call(channel.clone(), number).await;
                    took.push(begin.elapsed());
                }
                took
            });
        }
        clients.join_all().await.concat()
    })
}
