//! The handlers: parse, call, answer.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::peer::Peer;
use super::proto::job_service_server::JobService;
use super::proto::node_service_server::NodeService;
use super::proto::share_service_server::ShareService;
use super::{audit, convert, proto};
use crate::meters::Meters;
use crate::model::{Job, JobKind, PoolName, ProjectLabel, Refusal};
use crate::service::{Selection, Service};

/// Answers all three services.
#[derive(Clone)]
pub struct Handlers {
    /// Empty until growd has read its store and taken up what a restart interrupted.
    pub service: Arc<OnceLock<Arc<Service>>>,
    pub meters: Arc<Meters>,
}

impl Handlers {
    fn service(&self) -> Result<&Arc<Service>, Refusal> {
        let starting = || Refusal::StoreUnavailable { problem: "growd is starting: it reads its job store".to_owned() };
        self.service.get().ok_or_else(starting)
    }

    async fn resize(
        &self,
        kind: JobKind,
        request: Request<proto::ExtendShareRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        let (service, meters) = (self.service().cloned(), Arc::clone(&self.meters));
        let (caller, trace) = (caller(&request), request.extensions().get().copied());
        let request = request.into_inner();
        Self::change(async move {
            let asked = convert::size_request(kind, &request, caller.to_string(), trace);
            let answer = async { service?.resize(asked?).await }.await;
            if let Err(refusal) = &answer {
                meters.refused(kind, refusal.reason());
            }
            audit::resize(&caller, kind, &request, &answer);
            answer
        })
        .await
    }

    /// Runs a change to its end in a task of its own: a caller that goes away drops only its answer.
    async fn change<F>(change: F) -> Result<Response<proto::Job>, Status>
    where
        F: Future<Output = Result<Job, Refusal>> + Send + 'static,
    {
        let changed = tokio::spawn(change.in_current_span()).await;
        let changed = changed.map_err(|error| Refusal::Internal { problem: error.to_string() })?;
        Ok(Response::new(convert::job(changed?)))
    }
}

/// The job now, each time that there is something to tell, and when it has ended.
fn follow(changes: watch::Receiver<Job>) -> impl Stream<Item = Job> {
    unfold(Some((changes, None)), |state| async {
        let (mut changes, told) = state?;
        loop {
            let job = changes.borrow_and_update().clone();
            if told != Some(job.revision) {
                let next = (!job.state.is_ended()).then_some((changes, Some(job.revision)));
                return Some((job, next));
            }
            changes.changed().await.ok()?;
        }
    })
}

fn caller<T>(request: &Request<T>) -> Arc<Peer> {
    request.extensions().get().cloned().unwrap_or_default()
}

#[tonic::async_trait]
impl ShareService for Handlers {
    async fn extend_share(&self, request: Request<proto::ExtendShareRequest>) -> Result<Response<proto::Job>, Status> {
        self.resize(JobKind::Extend, request).await
    }

    async fn shrink_share(&self, request: Request<proto::ShrinkShareRequest>) -> Result<Response<proto::Job>, Status> {
        self.resize(JobKind::Shrink, request.map(Into::into)).await
    }

    async fn get_share(&self, request: Request<proto::GetShareRequest>) -> Result<Response<proto::Share>, Status> {
        let share = convert::share_id(&request.get_ref().share_id)?;
        Ok(Response::new(convert::share(self.service()?.share(share).await?)))
    }

    async fn list_shares(
        &self,
        request: Request<proto::ListSharesRequest>,
    ) -> Result<Response<proto::ListSharesResponse>, Status> {
        let request = request.into_inner();
        let filter = convert::shares_filter(&request.pool, request.project_id.as_deref());
        let project = request.project_id.as_deref().map(convert::project).transpose()?;
        let pool = match request.pool.as_str() {
            "" => None,
            name => Some(name.parse::<PoolName>().map_err(|error| convert::invalid("pool", &error))?),
        };
        let after = convert::page_after(&request.page_token, &filter)?;
        let size = convert::page_size(request.page_size);
        let page = self.service()?.shares(pool.as_ref(), project.as_ref(), after, size).await?;
        Ok(Response::new(proto::ListSharesResponse {
            shares: page.shares.into_iter().map(convert::share).collect(),
            next_page_token: convert::page_token(page.next, &filter),
            unreadable_pools: page.unreadable.iter().map(PoolName::to_string).collect(),
        }))
    }
}

#[tonic::async_trait]
impl JobService for Handlers {
    async fn get_job(&self, request: Request<proto::GetJobRequest>) -> Result<Response<proto::Job>, Status> {
        let id = convert::job_id(&request.get_ref().job_id)?;
        Ok(Response::new(convert::job(self.service()?.job(id).await?)))
    }

    async fn list_jobs(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, Status> {
        let request = request.into_inner();
        let share = match request.share_id.as_str() {
            "" => None,
            id => Some(convert::share_id(id)?),
        };
        // An id is the same one in capitals.
        let of_share = share.map(|share| share.to_string()).unwrap_or_default();
        let filter = format!("{of_share}/{}/{}", request.state, request.project_id);
        let selection = Selection { share, state: convert::state_filter(request.state)? };
        // Stored jobs may have labels that would not be taken now.
        let project = ProjectLabel::of_record(request.project_id);
        let before = convert::page_after(&request.page_token, &filter)?;
        let size = convert::page_size(request.page_size);
        let (jobs, next) = self.service()?.list_jobs(selection, project, before, size).await?;
        Ok(Response::new(proto::ListJobsResponse {
            jobs: jobs.into_iter().map(convert::job).collect(),
            next_page_token: convert::page_token(next, &filter),
        }))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<proto::Job, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let changes = self.service()?.watch(convert::job_id(&request.get_ref().job_id)?).await?;
        Ok(Response::new(Box::pin(follow(changes).map(|job| Ok(convert::job(job))))))
    }

    async fn cancel_job(&self, request: Request<proto::CancelJobRequest>) -> Result<Response<proto::Job>, Status> {
        let service = self.service().cloned();
        let caller = caller(&request);
        let request = request.into_inner();
        Self::change(async move {
            let answer = async { service?.cancel(convert::job_id(&request.job_id)?).await }.await;
            audit::cancel(&caller, &request, &answer);
            answer
        })
        .await
    }
}

#[tonic::async_trait]
impl NodeService for Handlers {
    async fn get_node(&self, _: Request<proto::GetNodeRequest>) -> Result<Response<proto::Node>, Status> {
        Ok(Response::new(convert::node(self.service()?.node())))
    }

    async fn list_pools(
        &self,
        _: Request<proto::ListPoolsRequest>,
    ) -> Result<Response<proto::ListPoolsResponse>, Status> {
        let pools = self.service()?.pools().await;
        Ok(Response::new(proto::ListPoolsResponse { pools: pools.into_iter().map(convert::pool).collect() }))
    }

    async fn diagnose(&self, _: Request<proto::DiagnoseRequest>) -> Result<Response<proto::DiagnoseResponse>, Status> {
        let service = self.service()?;
        Ok(Response::new(proto::DiagnoseResponse {
            findings: service.diagnose().await.into_iter().map(convert::finding).collect(),
            commands: service.commands().into_iter().map(convert::command).collect(),
        }))
    }
}
