//! The real daemon with a state directory and socket of its own, and clients of it.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code, unused_imports)]

mod refusals;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{
    DiagnoseRequest, DiagnoseResponse, GetShareRequest, ListJobsRequest, ListJobsResponse, ListPoolsRequest,
    ListSharesRequest, Pool, Share,
};
use growd::wire::proto::{
    ExtendShareRequest, GetJobRequest, GetNodeRequest, Job, JobState, Node, ShrinkShareRequest, WatchJobRequest,
};
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub use refusals::{assert_refused, field, metadata, reason, unless_killed};

use super::support::Filesystem;
use super::support::btrfs::Btrfs;
use super::support::mapped_disk::{Hang, MappedDisk};

/// Longer than anything here takes on a busy machine; a test that hangs shall fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const MIB: u64 = 1 << 20;
/// Threads that carry out jobs of a pool of quotas at once; while their disk hangs the next job waits QUEUED.
pub const TURNS: u32 = 2;

/// The services that health is told of, growd as a whole first.
pub const SERVICES: [&str; 4] = ["", "growd.v1.ShareService", "growd.v1.JobService", "growd.v1.NodeService"];

pub struct Daemon {
    child: Child,
    pub dir: PathBuf,
    environment: Vec<(String, String)>,
}

#[derive(Clone)]
pub struct Clients {
    pub shares: ShareServiceClient<Channel>,
    pub jobs: JobServiceClient<Channel>,
    pub node: NodeServiceClient<Channel>,
    pub health: HealthClient<Channel>,
}

impl Daemon {
    /// Starts growd with the given pools (TOML) in a directory, which may hold the state of an earlier one.
    pub async fn start(dir: &Path, pools: &str) -> Self {
        Self::start_with(dir, pools, &[]).await
    }

    /// As [`Daemon::start`], with variables of its environment that are others.
    pub async fn start_with(dir: &Path, pools: &str, environment: &[(&str, &str)]) -> Self {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = Self::configure(dir, pools);
        let child = Self::spawn(&config, &environment);
        let daemon = Self { child, dir: dir.to_owned(), environment };
        daemon.ready().await;
        daemon
    }

    /// Writes the configuration, for the next start.
    pub fn configure(dir: &Path, pools: &str) -> PathBuf {
        let config = dir.join("growd.toml");
        let text = format!("listen = \"unix:{0}/sock\"\nstate_dir = \"{0}/state\"\n{pools}", dir.display());
        std::fs::write(&config, text).unwrap();
        config
    }

    /// Other pools, and SIGHUP.
    pub fn reload(&self, pools: &str) {
        Self::configure(&self.dir, pools);
        self.signal(nix::sys::signal::Signal::SIGHUP);
    }

    fn spawn(config: &Path, environment: &[(String, String)]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_growd"))
            .args(["run", "--config"])
            .arg(config)
            .env("RUST_LOG", "warn,audit=off")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}/sock", self.dir.display())
    }

    async fn ready(&self) {
        Clients::when_ready(&self.endpoint()).await;
    }

    pub async fn clients(&self) -> Clients {
        Clients::when_ready(&self.endpoint()).await
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new process on the same state, which may not be ready yet.
    pub fn spawn_again(&mut self) {
        self.child = Self::spawn(&self.dir.join("growd.toml"), &self.environment);
    }

    /// A new process on the same state.
    pub async fn start_again(&mut self) {
        self.spawn_again();
        self.ready().await;
    }

    /// Sends SIGTERM, which begins the drain.
    pub fn begin_to_terminate(&self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
    }

    /// Lets system calls of the daemon fail or wait for as long as the answer lives: `fsync:error=EIO`, see strace(1).
    pub async fn inject(&self, calls: &str) -> Injected {
        self.inject_and_log(calls, Path::new("/dev/null")).await
    }

    /// As [`Daemon::inject`]; the calls are written down as strace does.
    pub async fn inject_and_log(&self, calls: &str, log: &Path) -> Injected {
        let name = calls.split(':').next().unwrap();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(log)
            .args(["-e", &format!("trace={name}"), "-e", &format!("inject={calls}")])
            .args(["-p", &self.child.id().to_string()])
            .spawn()
            .unwrap();
        let injected = Injected(strace);
        let tasks = format!("/proc/{}/task", self.child.id());
        let untraced = || async {
            // A thread may end between the two reads.
            let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
            tasks
                .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
                // What the injection has killed already is traced no more.
                .filter(|status| status.contains("TracerPid:\t0\n") && !status.contains("State:\tZ"))
                .count()
        };
        eventually(untraced, |count| *count == 0).await;
        injected
    }

    /// SIGSTOP or SIGCONT: a stopped process keeps its connections and answers nothing.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end of the process; whether it was in order.
    pub fn ended_in_order(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// Waits for the end of the process; whether it was SIGKILL.
    pub fn was_killed(&mut self) -> bool {
        self.child.wait().unwrap().signal() == Some(9)
    }

    /// SIGKILL while a disk hangs: a process in the middle of a system call dies when that has ended.
    pub fn kill_in(&mut self, hang: Hang<'_>) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        drop(hang);
        assert!(self.was_killed());
    }

    /// SIGTERM; whether the daemon then ended in order.
    pub fn terminate(&mut self) -> bool {
        self.begin_to_terminate();
        self.ended_in_order()
    }
}

pub struct Injected(Child);

impl Drop for Injected {
    fn drop(&mut self) {
        // Killed outright it would not give its processes back as they were.
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Clients {
    /// Of the daemon behind a socket, as soon as it answers.
    pub async fn when_ready(endpoint: &str) -> Self {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Ok(channel) = client::connect(endpoint, None).await
                && NodeServiceClient::new(channel.clone()).get_node(GetNodeRequest {}).await.is_ok()
            {
                return Self {
                    shares: ShareServiceClient::new(channel.clone()),
                    jobs: JobServiceClient::new(channel.clone()),
                    node: NodeServiceClient::new(channel.clone()),
                    health: HealthClient::new(channel),
                };
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("growd did not become ready");
    }

    pub async fn extend(&self, share: &str, size: u64) -> Result<Job, Status> {
        self.ask(request(share, size)).await
    }

    /// Extends [`share`] `n`, which must succeed.
    pub async fn extended(&self, n: u32, size: u64) -> Job {
        let job = self.extend(&share(n), size).await.unwrap();
        let job = self.end_of(&job.job_id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        assert!(job.size_after_bytes() >= size, "{job:?}");
        job
    }

    /// Extends the shares up to that of [`TURNS`] while their disk hangs: whoever comes then waits.
    pub async fn fill_turns(&self, size: u64) -> Vec<Job> {
        let mut running = Vec::new();
        for n in 1..=TURNS {
            running.push(self.extend(&share(n), size).await.unwrap());
            // A job that was ready at the same time would be carried out together with it.
            eventually(|| self.node(), |node| node.running_jobs == n).await;
        }
        running
    }

    pub async fn ask(&self, request: ExtendShareRequest) -> Result<Job, Status> {
        self.shares.clone().extend_share(request).await.map(tonic::Response::into_inner)
    }

    pub async fn shrink(&self, share: &str, size: u64) -> Result<Job, Status> {
        self.ask_to_shrink(shrink_request(share, size)).await
    }

    pub async fn ask_to_shrink(&self, request: ShrinkShareRequest) -> Result<Job, Status> {
        self.shares.clone().shrink_share(request).await.map(tonic::Response::into_inner)
    }

    /// Lets a pool's disk hang, so that jobs begin and do not end. growd sums the limits of a file system once a minute,
    /// and shall not wait for the disk with that: a check that changes nothing lets it do that before.
    pub async fn hang<'a>(&self, disk: &'a MappedDisk) -> Hang<'a> {
        self.ask(ExtendShareRequest { validate_only: true, ..request(&share(1), 1 << 30) }).await.unwrap();
        disk.hang()
    }

    pub async fn job(&self, job_id: &str) -> Job {
        let request = GetJobRequest { job_id: job_id.to_owned() };
        self.jobs.clone().get_job(request).await.unwrap().into_inner()
    }

    pub async fn list_jobs(&self, request: ListJobsRequest) -> ListJobsResponse {
        self.jobs.clone().list_jobs(request).await.unwrap().into_inner()
    }

    /// A list of jobs to its end, page by page.
    pub async fn list_all_jobs(&self, mut request: ListJobsRequest) -> Vec<Job> {
        let mut all = Vec::new();
        loop {
            let page = self.list_jobs(request.clone()).await;
            all.extend(page.jobs);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return all;
            }
        }
    }

    /// Every job that growd knows, by its id.
    pub async fn all_jobs(&self) -> BTreeMap<String, Job> {
        let all = self.list_all_jobs(ListJobsRequest { page_size: 1000, ..Default::default() }).await;
        all.into_iter().map(|job| (job.job_id.clone(), job)).collect()
    }

    /// The pool of a name, with what is wrong with it.
    pub async fn pool(&self, name: &str) -> Pool {
        let pools = self.node.clone().list_pools(ListPoolsRequest {}).await.unwrap().into_inner().pools;
        pools.into_iter().find(|pool| pool.name == name).unwrap()
    }

    pub async fn share(&self, share: &str) -> Share {
        let request = GetShareRequest { share_id: share.to_owned() };
        self.shares.clone().get_share(request).await.unwrap().into_inner()
    }

    /// The shares of all pools, so many to a page.
    pub async fn list_shares(&self, page_size: u32) -> Vec<Share> {
        self.list_shares_of("", page_size).await
    }

    /// Those of one pool.
    pub async fn list_shares_of(&self, pool: &str, page_size: u32) -> Vec<Share> {
        self.list_all_shares(ListSharesRequest { pool: pool.to_owned(), page_size, ..Default::default() }).await
    }

    /// A list of shares to its end, page by page.
    pub async fn list_all_shares(&self, mut request: ListSharesRequest) -> Vec<Share> {
        let mut all = Vec::new();
        loop {
            let page = self.shares.clone().list_shares(request.clone()).await.unwrap().into_inner();
            all.extend(page.shares);
            if page.next_page_token.is_empty() {
                return all;
            }
            request.page_token = page.next_page_token;
        }
    }

    pub async fn diagnose(&self) -> DiagnoseResponse {
        self.node.clone().diagnose(DiagnoseRequest {}).await.unwrap().into_inner()
    }

    pub async fn node(&self) -> Node {
        self.node.clone().get_node(GetNodeRequest {}).await.unwrap().into_inner()
    }

    /// What the health service says of each of [`SERVICES`].
    pub async fn healths(&self) -> Vec<ServingStatus> {
        let mut healths = Vec::new();
        for service in SERVICES {
            let request = HealthCheckRequest { service: service.to_owned() };
            healths.push(self.health.clone().check(request).await.unwrap().into_inner().status());
        }
        healths
    }

    /// The end of a job that succeeds; `None` when growd dies before it.
    pub async fn end_or_death(&self, job_id: &str) -> Option<Job> {
        let request = WatchJobRequest { job_id: job_id.to_owned() };
        let follow = async {
            let mut changes = unless_killed(self.jobs.clone().watch_job(request).await, &[])?.into_inner();
            let mut last = None;
            while let Some(job) = unless_killed(changes.message().await, &[])? {
                last = Some(job);
            }
            last
        };
        let job = tokio::time::timeout(PATIENCE, follow).await.expect("the job neither ends nor dies")?;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        Some(job)
    }

    /// Follows a job to its end.
    pub async fn end_of(&self, job_id: &str) -> Job {
        let follow = async {
            let request = WatchJobRequest { job_id: job_id.to_owned() };
            let mut changes = self.jobs.clone().watch_job(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(job) = changes.message().await.unwrap() {
                if let Some(last) = &last {
                    let last: &Job = last;
                    assert!(job.revision >= last.revision, "the revision fell");
                }
                last = Some(job);
            }
            last.unwrap()
        };
        let job = tokio::time::timeout(PATIENCE, follow).await.expect("the job does not end");
        assert!(matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled), "{job:?}");
        job
    }
}

/// Asks again until the answer is as wanted.
pub async fn eventually<T: std::fmt::Debug, F: Future<Output = T>>(ask: impl Fn() -> F, wanted: impl Fn(&T) -> bool) {
    let begin = Instant::now();
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "it stays {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn share(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// The project id that tests give to [`share`] `n`.
pub fn project(n: u32) -> u32 {
    100 + n
}

/// Makes shares 1 to `count` of one size.
pub fn create_shares(fs: &Filesystem, count: u32, size: u64) {
    let shares: Vec<(String, u32)> = (1..=count).map(|n| (share(n), project(n))).collect();
    fs.create_shares(&shares, size);
}

/// A pool named "home" at the root of a file system, with more lines of configuration.
pub fn pool(fs: &Filesystem, more: &str) -> String {
    format!(
        "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"{}/{{share_id}}\"\n{more}\n",
        fs.path().display()
    )
}

/// As [`pool`], of subvolumes.
pub fn btrfs_pool(fs: &Btrfs) -> String {
    format!("[[pool]]\nname = \"home\"\ndriver = \"btrfs\"\npath = \"{}/{{share_id}}\"\n", fs.path().display())
}

pub fn request(share: &str, size: u64) -> ExtendShareRequest {
    ExtendShareRequest { share_id: share.to_owned(), new_size_bytes: size, ..Default::default() }
}

pub fn shrink_request(share: &str, size: u64) -> ShrinkShareRequest {
    ShrinkShareRequest { share_id: share.to_owned(), new_size_bytes: size, ..Default::default() }
}
