//! One storage node: its connection, the calls to its growd, and whether it answers at all.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use growd::model::{JobKind, Reason, ShareId, TraceParent};
use growd::wire::client::{self, Credentials};
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, GetJobRequest, GetShareRequest, Job, ListJobsRequest};
use growd::wire::proto::{ListSharesRequest, ListSharesResponse, Share, ShareStatus};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::failure::{Failure, Refused};

/// How often a call is made again after its connection broke. Every call is safe to repeat: reads change nothing, and
/// a change with a request id is one request however often it is sent.
const RETRIES: u32 = 2;
/// The first pause is half of this up to one and a half, the second twice as long.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at a node's health: half of it up to one and a half.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

pub struct Node {
    pub name: String,
    pub endpoint: String,
    /// For https.
    credentials: Option<Credentials>,
    /// For a call with all its attempts.
    timeout: Duration,
    channel: OnceCell<Channel>,
    down: AtomicBool,
}

/// The answer to an extend or a shrink.
pub struct Taken {
    pub job: Job,
    /// It was asked for more than once: the job may be of an attempt that was not answered.
    pub repeated: bool,
}

impl Node {
    pub fn new(name: String, endpoint: String, credentials: Option<Credentials>, timeout: Duration) -> Self {
        Self { name, endpoint, credentials, timeout, channel: OnceCell::new(), down: AtomicBool::new(false) }
    }

    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the node did not answer when it was last asked.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// # Errors
    /// Every [`Failure`].
    pub async fn share(&self, id: ShareId) -> Result<Share, Failure> {
        let request = GetShareRequest { share_id: id.to_string() };
        let ask = |channel, request| async move { ShareServiceClient::new(channel).get_share(request).await };
        let share = self.call(request, ask).await?;
        if share.share_id == id.to_string() { Ok(share) } else { Err(Failure::nonsense("it tells of another share")) }
    }

    /// The job of a share whose size is being changed, or could not be; `None` where there is none, or none any more.
    ///
    /// # Errors
    /// Every [`Failure`].
    pub async fn job_of(&self, share: &Share) -> Result<Option<Job>, Failure> {
        let job_id = match share.status() {
            ShareStatus::Extending | ShareStatus::Shrinking => &share.active_job_id,
            ShareStatus::ExtendingError | ShareStatus::ShrinkingError => &share.last_job_id,
            ShareStatus::Available | ShareStatus::Unspecified => return Ok(None),
        };
        match self.job(job_id).await {
            // Ended and removed since: nothing to tell.
            Err(failure) if failure.has_reason(Reason::JobNotFound) => Ok(None),
            job => job.map(Some),
        }
    }

    async fn job(&self, job_id: &str) -> Result<Job, Failure> {
        let request = GetJobRequest { job_id: job_id.to_owned() };
        let ask = |channel, request| async move { JobServiceClient::new(channel).get_job(request).await };
        let answer = self.call(request, ask).await;
        // No pool holds up this answer, and a list asks for many jobs.
        if let Err(Failure::Silent) = answer {
            self.note_down("no answer in time");
        }
        answer
    }

    /// The last jobs of the share, the newest first.
    ///
    /// # Errors
    /// Every [`Failure`].
    pub async fn jobs_of(&self, share: ShareId) -> Result<Vec<Job>, Failure> {
        let request = ListJobsRequest { share_id: share.to_string(), ..ListJobsRequest::default() };
        let ask = |channel, request| async move { JobServiceClient::new(channel).list_jobs(request).await };
        self.call(request, ask).await.map(|answer| answer.jobs)
    }

    /// Must carry a request id, since it may be sent again.
    ///
    /// # Errors
    /// Every [`Failure`].
    pub async fn resize(
        &self,
        kind: JobKind,
        request: ExtendShareRequest,
        caller: Option<TraceParent>,
    ) -> Result<Taken, Failure> {
        let share_id = request.share_id.clone();
        let asked = AtomicU32::new(0);
        let ask = |channel, request| {
            asked.fetch_add(1, Ordering::Relaxed);
            client::resize(channel, kind, request, caller)
        };
        let job = self.call(request, ask).await?;
        let fits = job.share_id == share_id && !job.job_id.is_empty();
        let repeated = asked.into_inner() > 1;
        if fits { Ok(Taken { job, repeated }) } else { Err(Failure::nonsense("it took the job of another share")) }
    }

    /// A page of the shares of a pool, or of all with an empty name, in the order of their ids. With a project those whose
    /// places say it, or say none when it is empty.
    ///
    /// # Errors
    /// Every [`Failure`].
    pub async fn shares(
        &self,
        pool: &str,
        project: Option<&str>,
        behind: Option<ShareId>,
        page_size: u32,
    ) -> Result<ListSharesResponse, Failure> {
        let page_token = behind.map(|share| client::page_behind(share, pool, project)).unwrap_or_default();
        let project_id = project.map(str::to_owned);
        let request = ListSharesRequest { pool: pool.to_owned(), page_size, page_token, project_id };
        let ask = |channel, request| async move { ShareServiceClient::new(channel).list_shares(request).await };
        self.call(request, ask).await
    }

    async fn call<Q, T, F>(&self, request: Q, ask: impl Fn(Channel, Q) -> F) -> Result<T, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let attempts = async {
            let mut retries = 0;
            loop {
                match self.attempt(request.clone(), &ask).await {
                    Err(Failure::Unreachable { .. } | Failure::Closed { .. }) if retries < RETRIES => {
                        let pause = PAUSE * (1 << retries);
                        tokio::time::sleep(pause / 2 + jitter(pause)).await;
                        retries += 1;
                    }
                    answer => return answer,
                }
            }
        };
        let answer = tokio::time::timeout(self.timeout, attempts).await.unwrap_or(Err(Failure::Silent));
        // The tenant hears neither which node it was nor, as a rule, what it said: whoever runs growapi finds both here.
        match &answer {
            Ok(_) => self.note_up(),
            Err(Failure::Refused(refused)) => {
                self.note_up();
                if !refused.is_told() {
                    let Refused { reason, message: problem, .. } = refused;
                    tracing::warn!(node = self.name, reason, problem, "the node refuses");
                }
            }
            Err(Failure::Unreachable { problem }) => self.note_down(problem),
            // A call that waits for a pool which hangs says nothing of the others.
            Err(failure @ Failure::Silent) if !self.is_down() => tracing::warn!(node = self.name, "{failure}"),
            Err(Failure::Silent) => {}
            Err(failure @ (Failure::Closed { .. } | Failure::Denied { .. } | Failure::Nonsense { .. })) => {
                tracing::error!(node = self.name, "{failure}");
            }
        }
        answer
    }

    async fn attempt<Q, T, F>(&self, request: Q, ask: &impl Fn(Channel, Q) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        // Connects again by itself from then on.
        let channel =
            self.channel.get_or_try_init(|| client::connect(&self.endpoint, self.credentials.as_ref())).await?;
        Ok(ask(channel.clone(), request).await?.into_inner())
    }

    fn note_down(&self, problem: &str) {
        if !self.down.swap(true, Ordering::Relaxed) {
            tracing::warn!(node = self.name, endpoint = self.endpoint, problem, "the node does not answer");
        }
    }

    fn note_up(&self) {
        if self.down.swap(false, Ordering::Relaxed) {
            tracing::info!(node = self.name, "the node answers again");
        }
    }
}

/// Looks at the node's health again and again, for as long as somebody else holds it: a node that is down is noticed
/// before a request has to wait for it, and one that is back is asked again.
pub async fn watch_health(node: Weak<Node>) {
    loop {
        let Some(held) = node.upgrade() else { return };
        let check = |channel, request| async move { HealthClient::new(channel).check(request).await };
        // NOT_SERVING is an answer too: growd recovers or drains, and still tells of its shares.
        if held.call(HealthCheckRequest::default(), check).await == Err(Failure::Silent) {
            held.note_down("no answer in time");
        }
        drop(held);
        tokio::time::sleep(HEALTH_INTERVAL / 2 + jitter(HEALTH_INTERVAL)).await;
    }
}

/// A time below the given one, as good as random.
fn jitter(most: Duration) -> Duration {
    let random = (uuid::Uuid::new_v4().as_u128() & 0xffff) as u32;
    most * random / 0x1_0000
}
