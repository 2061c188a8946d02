//! The calls to growd: each bounded in time, lists with all their pages, a change of a size repeated until it is answered.

use std::future::Future;
use std::time::Duration;

use growd::model::{JobId, JobKind, Reason, ShareId};
use growd::wire::client::{self, Credentials};
use growd::wire::proto::{self, job_service_client::JobServiceClient, node_service_client::NodeServiceClient};
use growd::wire::proto::{CancelJobRequest, GetJobRequest, GetShareRequest, WatchJobRequest};
use growd::wire::proto::{ExtendShareRequest, ListJobsRequest, ListSharesRequest};
use growd::wire::proto::{ListJobsResponse, ListSharesResponse};
use growd::wire::proto::{Node, share_service_client::ShareServiceClient};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

use crate::failure::{CallError, Failure};

/// How often a change without an answer is asked in all. With the pause, a restart of growd lies between.
const RESIZE_ATTEMPTS: u32 = 4;
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Items in a page: some hundred KiB, well below the 4 MiB that a gRPC message may have.
const PAGE: u32 = 500;
/// Findings do not come in pages. Each takes some 300 bytes, so tonic's own limit of 4 MiB would be passed where 15,000 shares
/// have one; with this it is 200,000.
const FINDINGS_MOST: usize = 64 << 20;

pub struct Calls {
    channel: Channel,
    limit: Duration,
}

impl Calls {
    pub async fn connect(endpoint: &str, as_whom: Option<&Credentials>, limit: Duration) -> Result<Self, Failure> {
        match tokio::time::timeout(limit, client::connect(endpoint, as_whom)).await {
            Ok(channel) => Ok(Self { channel: channel?, limit }),
            Err(_) => Err(Failure::timed_out(limit)),
        }
    }

    fn shares(&self) -> ShareServiceClient<Channel> {
        ShareServiceClient::new(self.channel.clone())
    }

    fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// The answer of one call within the limit.
    async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(CallError::TimedOut(self.limit)),
        }
    }

    pub async fn node(&self) -> Result<Node, Failure> {
        Ok(self.answer(self.nodes().get_node(proto::GetNodeRequest {})).await?)
    }

    pub async fn pools(&self) -> Result<proto::ListPoolsResponse, Failure> {
        Ok(self.answer(self.nodes().list_pools(proto::ListPoolsRequest {})).await?)
    }

    pub async fn diagnose(&self) -> Result<proto::DiagnoseResponse, Failure> {
        let mut nodes = self.nodes().max_decoding_message_size(FINDINGS_MOST);
        Ok(self.answer(nodes.diagnose(proto::DiagnoseRequest {})).await?)
    }

    pub async fn share(&self, id: ShareId) -> Result<proto::Share, Failure> {
        Ok(self.answer(self.shares().get_share(GetShareRequest { share_id: id.to_string() })).await?)
    }

    pub async fn job(&self, id: JobId) -> Result<proto::Job, Failure> {
        Ok(self.answer(self.jobs().get_job(GetJobRequest { job_id: id.to_string() })).await?)
    }

    pub async fn cancel(&self, id: JobId) -> Result<proto::Job, Failure> {
        Ok(self.answer(self.jobs().cancel_job(CancelJobRequest { job_id: id.to_string() })).await?)
    }

    /// The stream of the job's changes; it has no limit of its own, only its beginning has.
    pub async fn watch(&self, job_id: &str) -> Result<Streaming<proto::Job>, CallError> {
        self.answer(self.jobs().watch_job(WatchJobRequest { job_id: job_id.to_owned() })).await
    }

    /// All shares, of one pool when it is named.
    pub async fn all_shares(&self, pool: String) -> Result<ListSharesResponse, Failure> {
        let mut all = ListSharesResponse::default();
        let mut request = ListSharesRequest { pool, page_size: PAGE, ..ListSharesRequest::default() };
        loop {
            let page = self.answer(self.shares().list_shares(request.clone())).await?;
            all.shares.extend(page.shares);
            // Each page names them all.
            all.unreadable_pools.extend(page.unreadable_pools);
            all.unreadable_pools.sort_unstable();
            all.unreadable_pools.dedup();
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The newest jobs that pass the filter, at most `limit`; the answer has a page token when there are more.
    pub async fn newest_jobs(&self, filter: ListJobsRequest, limit: u32) -> Result<ListJobsResponse, Failure> {
        let mut all = ListJobsResponse::default();
        let mut request = filter;
        let mut wanted = limit;
        while wanted > 0 {
            request.page_size = wanted.min(PAGE);
            let page = self.answer(self.jobs().list_jobs(request.clone())).await?;
            wanted = wanted.saturating_sub(u32::try_from(page.jobs.len()).unwrap_or(u32::MAX));
            all.jobs.extend(page.jobs);
            all.next_page_token = page.next_page_token;
            if all.next_page_token.is_empty() {
                break;
            }
            request.page_token.clone_from(&all.next_page_token);
        }
        Ok(all)
    }

    /// Asks for an extend or a shrink and, when the connection fails before the answer, asks again: the request id makes all
    /// attempts one request. The limit holds for all of them together.
    pub async fn resize(&self, kind: JobKind, mut request: ExtendShareRequest) -> Result<proto::Job, Failure> {
        let id = request.request_id.get_or_insert_with(|| Uuid::new_v4().to_string()).clone();
        let mut lost = false;
        let attempts = async {
            let mut attempt = 1;
            loop {
                let answer = client::resize(self.channel.clone(), kind, request.clone(), None).await;
                let answer = answer.map_err(CallError::from);
                lost |= matches!(answer, Err(CallError::Lost(_)));
                let unanswered = lost && answer.as_ref().is_err_and(CallError::is_no_answer);
                if !unanswered || attempt == RESIZE_ATTEMPTS {
                    return answer;
                }
                attempt += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        let answer = tokio::time::timeout(self.limit, attempts).await.unwrap_or(Err(CallError::TimedOut(self.limit)));
        match answer {
            Ok(job) => Ok(job.into_inner()),
            Err(error) => {
                let refused = matches!(error, CallError::Refused(_)) && !(lost && error.is_no_answer());
                let failure = Failure::from(error);
                // What growd could not write may be on disk all the same.
                let unwritten = failure.reason == Reason::StoreUnavailable.as_str();
                Err(if refused && !unwritten { failure } else { failure.unanswered_change(&id) })
            }
        }
    }

    /// Lets growd check the request without accepting it; the answer is no job.
    pub async fn try_resize(&self, kind: JobKind, request: ExtendShareRequest) -> Result<proto::Job, Failure> {
        Ok(self.answer(client::resize(self.channel.clone(), kind, request, None)).await?)
    }
}
