//! A growd with canned answers, in this process, and the real growctl that is pointed at it.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use growd::wire::proto::job_service_server::{JobService, JobServiceServer};
use growd::wire::proto::node_service_server::{NodeService, NodeServiceServer};
use growd::wire::proto::share_service_server::{ShareService, ShareServiceServer};
use growd::wire::proto::*;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub const SHARE: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
pub const JOB: &str = "0199a5c8-1111-7000-8000-000000000001";
pub const REQUEST: &str = "3f0e9c1a-0b1d-4a7e-8a52-111111111111";
pub const GIB: u64 = 1 << 30;

/// What the server answers and what it was asked. Lists of answers are used up from the front.
#[derive(Default)]
pub struct Script {
    /// Of extends and shrinks.
    pub extend: VecDeque<Act>,
    pub watch: VecDeque<Vec<Act>>,
    pub findings: Vec<Finding>,
    pub commands: Vec<HostCommand>,
    pub jobs: usize,
    /// Of the second page of shares.
    pub unreadable_pools: Vec<String>,
    pub extends: Vec<ExtendShareRequest>,
    pub shrinks: Vec<ShrinkShareRequest>,
    pub job_lists: Vec<ListJobsRequest>,
    pub share_lists: Vec<ListSharesRequest>,
    pub watches: usize,
}

#[derive(Clone)]
pub enum Act {
    Job(Box<Job>),
    Refuse(Status),
    /// No answer, for ever.
    Hang,
}

#[derive(Clone, Default)]
pub struct Canned(pub Arc<Mutex<Script>>);

pub fn job(state: JobState) -> Job {
    Job {
        job_id: JOB.to_owned(),
        share_id: SHARE.to_owned(),
        pool: "home".to_owned(),
        driver: "project-quota".to_owned(),
        state: state.into(),
        size_before_bytes: 2 * GIB,
        requested_size_bytes: 3 * GIB,
        size_after_bytes: (state == JobState::Succeeded).then_some(3 * GIB),
        attempt: 1,
        ..Job::default()
    }
}

pub fn act(state: JobState) -> Act {
    Act::Job(Box::new(job(state)))
}

pub fn refusal(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<_, _> = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let details = ErrorDetails::with_error_info(reason, "growd", metadata);
    Status::with_error_details(code, format!("refused with {reason}"), details)
}

impl Canned {
    async fn resized(&self, request_id: Option<String>, validate_only: bool) -> Result<Response<Job>, Status> {
        let act = self.0.lock().unwrap().extend.pop_front();
        match act {
            Some(Act::Job(mut job)) => {
                job.request_id = request_id.unwrap_or_default();
                // One that has ended is an earlier request's.
                if validate_only && job.state() == JobState::Queued {
                    job.job_id.clear();
                }
                Ok(Response::new(*job))
            }
            Some(Act::Refuse(status)) => Err(status),
            Some(Act::Hang) => std::future::pending().await,
            None => Err(Status::internal("nothing scripted")),
        }
    }
}

#[tonic::async_trait]
impl ShareService for Canned {
    async fn extend_share(&self, request: Request<ExtendShareRequest>) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().extends.push(request.clone());
        self.resized(request.request_id, request.validate_only).await
    }

    async fn shrink_share(&self, request: Request<ShrinkShareRequest>) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().shrinks.push(request.clone());
        self.resized(request.request_id, request.validate_only).await
    }

    async fn get_share(&self, request: Request<GetShareRequest>) -> Result<Response<Share>, Status> {
        let id = request.into_inner().share_id;
        if id != SHARE {
            return Err(refusal(Code::NotFound, "SHARE_NOT_FOUND", &[("share_id", &id)]));
        }
        Ok(Response::new(share(&id)))
    }

    async fn list_shares(&self, request: Request<ListSharesRequest>) -> Result<Response<ListSharesResponse>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        script.share_lists.push(request.clone());
        let mut page = ListSharesResponse::default();
        // Two pages with one share each.
        match request.page_token.as_str() {
            _ if request.pool == "empty" => {}
            "" => (page.shares, page.next_page_token) = (vec![share(SHARE)], "second".to_owned()),
            _ => (page.shares, page.unreadable_pools) = (vec![share(REQUEST)], script.unreadable_pools.clone()),
        }
        Ok(Response::new(page))
    }
}

pub fn share(id: &str) -> Share {
    Share {
        share_id: id.to_owned(),
        pool: "home".to_owned(),
        location: format!("/srv/shares/{id}"),
        filesystem: "xfs".to_owned(),
        size_bytes: Some(2 * GIB),
        used_bytes: Some(GIB),
        status: ShareStatus::Available.into(),
        ..Share::default()
    }
}

#[tonic::async_trait]
impl JobService for Canned {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<Job, Status>> + Send>>;

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let id = request.into_inner().job_id;
        if id == JOB {
            return Ok(Response::new(job(JobState::Failed)));
        }
        Err(refusal(Code::NotFound, "JOB_NOT_FOUND", &[("job_id", &id)]))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        script.job_lists.push(request.clone());
        let first: usize = request.page_token.parse().unwrap_or(0);
        let last = script.jobs.min(first + request.page_size as usize);
        Ok(Response::new(ListJobsResponse {
            jobs: (first..last).map(|_| job(JobState::Succeeded)).collect(),
            next_page_token: if last < script.jobs { last.to_string() } else { String::new() },
        }))
    }

    async fn watch_job(&self, _: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let acts = {
            let mut script = self.0.lock().unwrap();
            script.watches += 1;
            script.watch.pop_front().unwrap_or_default()
        };
        if let Some(Act::Refuse(status)) = acts.first() {
            return Err(status.clone());
        }
        let changes = tokio_stream::iter(acts).then(|act| async move {
            match act {
                Act::Job(job) => Ok(*job),
                Act::Refuse(status) => Err(status),
                Act::Hang => std::future::pending().await,
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let id = request.into_inner().job_id;
        if id == JOB {
            return Ok(Response::new(job(JobState::Cancelled)));
        }
        let metadata = [("job_id", id.as_str()), ("state", "RUNNING")];
        Err(refusal(Code::FailedPrecondition, "JOB_NOT_QUEUED", &metadata))
    }
}

#[tonic::async_trait]
impl NodeService for Canned {
    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let node = Node { hostname: "n1".to_owned(), state: NodeState::Serving.into(), ..Node::default() };
        Ok(Response::new(node))
    }

    async fn list_pools(&self, _: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        let pool = Pool { name: "home".to_owned(), total_bytes: 100 * GIB, overcommit: 1.0, ..Pool::default() };
        Ok(Response::new(ListPoolsResponse { pools: vec![pool] }))
    }

    async fn diagnose(&self, _: Request<DiagnoseRequest>) -> Result<Response<DiagnoseResponse>, Status> {
        let script = self.0.lock().unwrap();
        let (findings, commands) = (script.findings.clone(), script.commands.clone());
        Ok(Response::new(DiagnoseResponse { findings, commands }))
    }
}

/// A server with a runtime of its own: to drop it is to kill the daemon, connections and all.
pub struct Server {
    pub _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(socket: &Path, canned: &Canned) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // What a killed server leaves behind.
        let _ = std::fs::remove_file(socket);
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(ShareServiceServer::new(canned.clone()))
                .add_service(JobServiceServer::new(canned.clone()))
                .add_service(NodeServiceServer::new(canned.clone()))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { _runtime: runtime }
    }
}

pub struct Fixture {
    pub canned: Canned,
    pub server: Option<Server>,
    pub socket: PathBuf,
    pub _directory: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("growd.sock");
        let canned = Canned::default();
        let server = Some(Server::start(&socket, &canned));
        Self { canned, server, socket, _directory: directory }
    }

    pub fn script<T>(&self, with: impl FnOnce(&mut Script) -> T) -> T {
        with(&mut self.canned.0.lock().unwrap())
    }

    pub fn restart_server(&mut self) {
        self.server = None;
        self.server = Some(Server::start(&self.socket, &self.canned));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        growctl(&format!("unix:{}", self.socket.display()), args)
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Waits until the server was asked what is looked for.
    pub fn until(&self, asked: impl Fn(&Script) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.script(|script| asked(script)) {
            assert!(Instant::now() < deadline, "growctl did not ask in time");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

pub fn growctl(endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_growctl"));
    command.args(args).env("GROWD_ENDPOINT", endpoint).stdin(Stdio::null());
    command
}

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    #[track_caller]
    pub fn error(&self) -> Value {
        let whole: Value = serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        whole["error"].clone()
    }
}
