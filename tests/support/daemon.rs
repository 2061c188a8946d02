//! The real daemon with a state directory and socket of its own, and clients of it.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, Job, JobState, WatchJobRequest};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;

/// Longer than anything here takes on a busy machine; a test that hangs shall fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon {
    child: Child,
    pub dir: PathBuf,
}

#[derive(Clone)]
pub struct Clients {
    pub shares: ShareServiceClient<Channel>,
    pub jobs: JobServiceClient<Channel>,
    pub node: NodeServiceClient<Channel>,
}

impl Daemon {
    /// Starts growd with the given pools (TOML) in a directory, which may hold the state of an earlier one.
    pub async fn start(dir: &Path, pools: &str) -> Self {
        let config = dir.join("growd.toml");
        let text = format!("listen = \"unix:{0}/sock\"\nstate_dir = \"{0}/state\"\n{pools}", dir.display());
        std::fs::write(&config, text).unwrap();
        let child = Self::spawn(&config);
        let daemon = Self { child, dir: dir.to_owned() };
        daemon.ready().await;
        daemon
    }

    fn spawn(config: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_growd"))
            .args(["run", "--config"])
            .arg(config)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}/sock", self.dir.display())
    }

    async fn ready(&self) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Ok(channel) = client::connect(&self.endpoint()).await {
                let request = growd::wire::proto::GetNodeRequest {};
                if NodeServiceClient::new(channel).get_node(request).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("growd did not become ready");
    }

    pub async fn clients(&self) -> Clients {
        let channel = client::connect(&self.endpoint()).await.unwrap();
        Clients {
            shares: ShareServiceClient::new(channel.clone()),
            jobs: JobServiceClient::new(channel.clone()),
            node: NodeServiceClient::new(channel),
        }
    }

    /// SIGKILL, then a new process on the same state.
    pub async fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir.join("growd.toml"));
        self.ready().await;
    }

    /// SIGTERM; whether the daemon then ended in order.
    pub fn terminate(&mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Clients {
    pub async fn extend(&self, share: &str, size: u64) -> Result<Job, Status> {
        self.ask(request(share, size)).await
    }

    pub async fn ask(&self, request: ExtendShareRequest) -> Result<Job, Status> {
        self.shares.clone().extend_share(request).await.map(tonic::Response::into_inner)
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

pub fn request(share: &str, size: u64) -> ExtendShareRequest {
    ExtendShareRequest { share_id: share.to_owned(), new_size_bytes: size, ..Default::default() }
}

/// The reason of a refusal, from its google.rpc.ErrorInfo.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

pub fn metadata(status: &Status, key: &str) -> String {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get(key).cloned()).unwrap_or_default()
}
