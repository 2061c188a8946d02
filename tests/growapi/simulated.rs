//! Storage nodes in this process: the contract's services over unix sockets, with shares in memory, counted calls, and
//! moods.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use growd::wire::proto::job_service_server::{JobService, JobServiceServer};
use growd::wire::proto::share_service_server::{ShareService, ShareServiceServer};
use growd::wire::proto::*;
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::front::{Front, NOBODY};

pub const GIB: u64 = 1 << 30;
/// A job that no node can read.
pub const BROKEN_JOB: &str = "broken";

pub fn share(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// One node with share 1, of 2 GiB, and growapi in front of it.
pub fn one_node() -> (Cluster, Front) {
    let cluster = Cluster::new(1);
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB);
    let front = Front::start(cluster.dir.path(), &format!("request_timeout = \"3s\"\n{NOBODY}{}", cluster.config()));
    (cluster, front)
}

/// How a node answers.
#[derive(Clone, Default)]
pub enum Mood {
    #[default]
    Right,
    /// Takes every call and answers none.
    Silent,
    /// Takes an extend and does not answer it.
    SilentAfterExtend,
    /// Answers extends with this.
    Refusing(Status),
    /// Answers with a message of the right type and the wrong content.
    Wrong,
    /// Every answer is a status that growd does not give.
    Foreign,
}

#[derive(Default)]
pub struct State {
    pub shares: BTreeMap<String, Share>,
    pub jobs: BTreeMap<String, Job>,
    pub unreadable_pools: Vec<String>,
    /// Answers GetShare.
    pub refusing_looks: Option<Status>,
    /// Answers ListShares of one pool.
    pub refusing_lists: Option<Status>,
    /// ListShares refuses to go on behind a page.
    pub refusing_pages: bool,
    /// GetJob is not answered.
    pub silent_jobs: bool,
    /// Requests of both kinds that were received.
    pub extends: Vec<ExtendShareRequest>,
    pub shrinks: Vec<ShrinkShareRequest>,
    /// Calls of ShareService.
    pub calls: usize,
    /// Calls of GetJob.
    pub jobs_asked: usize,
    pub mood: Mood,
}

#[derive(Clone, Default)]
pub struct Simulated(pub Arc<Mutex<State>>);

impl Simulated {
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    /// Gives the node a share in a pool.
    pub fn hold(&self, share_id: &str, pool: &str, size: u64) {
        let share = Share {
            share_id: share_id.to_owned(),
            pool: pool.to_owned(),
            size_bytes: Some(size),
            status: ShareStatus::Available.into(),
            ..Share::default()
        };
        self.with(|state| state.shares.insert(share_id.to_owned(), share));
    }

    /// Gives the node a share whose place says a project.
    pub fn hold_for(&self, project: &str, share_id: &str, pool: &str, size: u64) {
        self.hold(share_id, pool, size);
        self.with(|state| project.clone_into(&mut state.shares.get_mut(share_id).unwrap().project_id));
    }

    /// What the job of a share has come to: it ends with success.
    pub fn finish(&self, share_id: &str) {
        self.with(|state| {
            let share = state.shares.get_mut(share_id).unwrap();
            share.set_status(ShareStatus::Available);
            state.jobs.get_mut(&share.last_job_id).unwrap().set_state(JobState::Succeeded);
        });
    }

    /// Counts the call; what it is to be answered with.
    async fn mood(&self) -> Result<Mood, Status> {
        let mood = self.with(|state| {
            state.calls += 1;
            state.mood.clone()
        });
        match mood {
            Mood::Silent => std::future::pending().await,
            Mood::Foreign => Err(Status::failed_precondition("a proxy says no")),
            mood => Ok(mood),
        }
    }
}

pub fn refusal(code: Code, reason: &str, http_status: u16, metadata: &[(&str, String)]) -> Status {
    let mut all: HashMap<_, _> = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    all.insert("http_status".to_owned(), http_status.to_string());
    Status::with_error_details(
        code,
        format!("refused with {reason}"),
        ErrorDetails::with_error_info(reason, "growd", all),
    )
}

fn unknown_share() -> Status {
    refusal(Code::NotFound, "SHARE_NOT_FOUND", 404, &[])
}

impl Simulated {
    async fn resize(&self, kind: JobKind, request: ExtendShareRequest) -> Result<Response<Job>, Status> {
        let mood = self.mood().await?;
        let silent = matches!(mood, Mood::SilentAfterExtend);
        let answer = self.with(|state| {
            if let Mood::Refusing(status) = mood {
                return Err(status);
            }
            let share = state.shares.get_mut(&request.share_id).ok_or_else(unknown_share)?;
            if !share.project_id.is_empty() && share.project_id != request.project_id {
                return Err(unknown_share());
            }
            let request_id = request.request_id.unwrap_or_default();
            if let Some(job) = state.jobs.values().find(|job| job.request_id == request_id) {
                let asked = (kind, &request.share_id, request.new_size_bytes);
                if asked == (job.kind(), &job.share_id, job.requested_size_bytes) {
                    return Ok(job.clone());
                }
                return Err(refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", 409, &[]));
            }
            let current = share.size_bytes.unwrap();
            if matches!(share.status(), ShareStatus::Extending | ShareStatus::Shrinking) {
                return Err(refusal(Code::Aborted, "SHARE_BUSY", 409, &[]));
            }
            let wrong = match kind {
                JobKind::Shrink => (request.new_size_bytes >= current).then_some("SIZE_NOT_SMALLER"),
                _ => (request.new_size_bytes <= current).then_some("SIZE_NOT_GREATER"),
            };
            if let Some(wrong) = wrong {
                let current = ("current_size_bytes", current.to_string());
                return Err(refusal(Code::InvalidArgument, wrong, 400, &[current]));
            }
            if kind == JobKind::Shrink && share.used_bytes() > request.new_size_bytes {
                return Err(refusal(Code::FailedPrecondition, "WOULD_LOSE_DATA", 409, &[]));
            }
            let job = Job {
                job_id: uuid::Uuid::now_v7().to_string(),
                share_id: if matches!(mood, Mood::Wrong) { String::new() } else { request.share_id },
                pool: share.pool.clone(),
                size_before_bytes: current,
                requested_size_bytes: request.new_size_bytes,
                state: JobState::Running.into(),
                kind: kind.into(),
                request_id,
                ..Job::default()
            };
            let shrinks = kind == JobKind::Shrink;
            share.set_status(if shrinks { ShareStatus::Shrinking } else { ShareStatus::Extending });
            share.active_job_id.clone_from(&job.job_id);
            share.last_job_id.clone_from(&job.job_id);
            // Half of the work is visible before all of it is done.
            share.size_bytes = Some(request.new_size_bytes);
            state.jobs.insert(job.job_id.clone(), job.clone());
            Ok(job)
        });
        if silent {
            self.with(|state| state.mood = Mood::Right);
            std::future::pending::<()>().await;
        }
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl ShareService for Simulated {
    async fn extend_share(&self, request: Request<ExtendShareRequest>) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        self.with(|state| state.extends.push(request.clone()));
        self.resize(JobKind::Extend, request).await
    }

    async fn shrink_share(&self, request: Request<ShrinkShareRequest>) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        self.with(|state| state.shrinks.push(request.clone()));
        let request = ExtendShareRequest {
            share_id: request.share_id,
            new_size_bytes: request.new_size_bytes,
            request_id: request.request_id,
            project_id: request.project_id,
            ..ExtendShareRequest::default()
        };
        self.resize(JobKind::Shrink, request).await
    }

    async fn get_share(&self, request: Request<GetShareRequest>) -> Result<Response<Share>, Status> {
        let mood = self.mood().await?;
        if let Some(status) = self.with(|state| state.refusing_looks.clone()) {
            return Err(status);
        }
        let share = self.with(|state| state.shares.get(&request.get_ref().share_id).cloned());
        let mut share = share.ok_or_else(unknown_share)?;
        if matches!(mood, Mood::Wrong) {
            share.set_status(ShareStatus::Unspecified);
        }
        Ok(Response::new(share))
    }

    async fn list_shares(&self, request: Request<ListSharesRequest>) -> Result<Response<ListSharesResponse>, Status> {
        self.mood().await?;
        let ListSharesRequest { pool, page_size, page_token, project_id } = request.into_inner();
        if self.with(|state| state.unreadable_pools.contains(&pool)) {
            return Err(refusal(Code::FailedPrecondition, "NOT_MOUNTED", 409, &[]));
        }
        if let (false, Some(status)) = (pool.is_empty(), self.with(|state| state.refusing_lists.clone())) {
            return Err(status);
        }
        if !page_token.is_empty() && self.with(|state| state.refusing_pages) {
            return Err(refusal(Code::InvalidArgument, "INVALID_REQUEST", 400, &[]));
        }
        let behind = page_token.split_once('.').map(|(_, id)| id.to_owned()).unwrap_or_default();
        let shares = self.with(|state| {
            let all = state.shares.values().filter(|share| pool.is_empty() || share.pool == pool);
            let all = all.filter(|share| project_id.as_ref().is_none_or(|project| *project == share.project_id));
            all.filter(|share| share.share_id > behind).cloned().collect::<Vec<_>>()
        });
        let more = shares.len() > page_size as usize;
        let shares: Vec<_> = shares.into_iter().take(page_size as usize).collect();
        let next_page_token = if more { format!("x.{}", shares.last().unwrap().share_id) } else { String::new() };
        let unreadable_pools = self.with(|state| state.unreadable_pools.clone());
        Ok(Response::new(ListSharesResponse { shares, next_page_token, unreadable_pools }))
    }
}

#[tonic::async_trait]
impl JobService for Simulated {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<Job, Status>> + Send>>;

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let id = &request.get_ref().job_id;
        let (job, silent) = self.with(|state| {
            state.jobs_asked += 1;
            (state.jobs.get(id).cloned(), state.silent_jobs)
        });
        if silent {
            std::future::pending::<()>().await;
        }
        if id == BROKEN_JOB {
            return Err(refusal(Code::Unavailable, "STORE_UNAVAILABLE", 503, &[]));
        }
        job.map(Response::new).ok_or_else(|| refusal(Code::NotFound, "JOB_NOT_FOUND", 404, &[]))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let share_id = &request.get_ref().share_id;
        let jobs =
            self.with(|state| state.jobs.values().rev().filter(|job| job.share_id == *share_id).cloned().collect());
        Ok(Response::new(ListJobsResponse { jobs, ..ListJobsResponse::default() }))
    }

    async fn watch_job(&self, _: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Simulated nodes with a runtime of their own: to drop it is to kill the daemons, connections and all.
pub struct Servers {
    runtime: tokio::runtime::Runtime,
}

impl Servers {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime }
    }

    pub fn serve(&self, socket: &Path, node: &Simulated) {
        let listener = self.listen(socket);
        let (health, service) = tonic_health::server::health_reporter();
        let node = node.clone();
        self.runtime.spawn(async move {
            health.set_service_status("", tonic_health::ServingStatus::Serving).await;
            tonic::transport::Server::builder()
                .add_service(service)
                .add_service(ShareServiceServer::new(node.clone()))
                .add_service(JobServiceServer::new(node))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
    }

    /// A server that says the same bytes to whoever connects, then nothing more.
    pub fn serve_bytes(&self, socket: &Path, bytes: &'static [u8]) {
        let listener = self.listen(socket);
        self.runtime.spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await;
                open.push(stream);
            }
        });
    }

    fn listen(&self, socket: &Path) -> UnixListener {
        let _inside = self.runtime.enter();
        // What a killed server leaves behind.
        let _ = std::fs::remove_file(socket);
        UnixListener::bind(socket).unwrap()
    }
}

/// Nodes n00, n01, ... and the configuration that names them.
pub struct Cluster {
    pub servers: Option<Servers>,
    pub nodes: Vec<Simulated>,
    pub dir: tempfile::TempDir,
}

impl Cluster {
    pub fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nodes = (0..count).map(|_| Simulated::default()).collect();
        let servers = Servers::new();
        let cluster = Self { servers: None, nodes, dir };
        for (index, node) in cluster.nodes.iter().enumerate() {
            servers.serve(&cluster.socket(index), node);
        }
        Self { servers: Some(servers), ..cluster }
    }

    pub fn socket(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("n{index:02}.sock"))
    }

    pub fn config(&self) -> String {
        let node = |index| super::front::node(&format!("n{index:02}"), &self.socket(index));
        (0..self.nodes.len()).map(node).collect()
    }

    pub fn calls(&self) -> usize {
        self.nodes.iter().map(|node| node.with(|state| state.calls)).sum()
    }
}
