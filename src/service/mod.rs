//! The use cases: what each request does, and by which rules it is let in. Knows nothing of gRPC.

pub mod admission;
mod list;
mod report;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::driver::Assessment;
use crate::driver::flight_recorder::FlightRecorder;
use crate::engine::pools::Pool;
use crate::engine::{Denied, Engine, Moment};
use crate::model::{Bytes, Job, JobId, JobKind, ProjectLabel, Refusal};
use admission::SizeRequest;

pub use crate::store::Selection;

/// Records that one page of a listing may read: a filter that fits few jobs gives short pages, not a long wait.
const MOST_READ: usize = 10_000;
const QUEUE_RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct Service {
    engine: Arc<Engine>,
    max_active_jobs: usize,
    started_at: SystemTime,
    host: Host,
    recorder: Arc<FlightRecorder>,
}

/// The machine, for whoever looks at several.
pub struct Host {
    pub name: String,
    pub kernel: String,
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct NodeReport {
    pub hostname: String,
    pub kernel: String,
    pub started_at: SystemTime,
    pub draining: bool,
    pub store_failed: bool,
    pub queued: usize,
    pub running: usize,
    pub max_active_jobs: usize,
    pub kept_jobs: usize,
    pub store_bytes: u64,
}

impl Service {
    pub fn new(engine: Arc<Engine>, max_active_jobs: usize, host: Host, recorder: Arc<FlightRecorder>) -> Self {
        Self { engine, max_active_jobs, started_at: SystemTime::now(), host, recorder }
    }

    /// Accepts a request to extend or to shrink a share: the job is on disk when this returns. Must be driven to its end,
    /// also when the caller no longer waits.
    ///
    /// # Errors
    /// Every refusal of an extend, or of a shrink.
    pub async fn resize(&self, request: SizeRequest) -> Result<Job, Refusal> {
        let engine = &self.engine;
        engine.check_writable()?;
        let known = |id| engine.store.of_request(id);
        let claim = engine.claims.claim(request.share, request.request_id, self.max_active_jobs, known).await;
        let claim = match claim {
            Ok(claim) => claim,
            Err(Denied::Known(id)) => return self.repeated(&request, id).await,
            Err(Denied::Busy(job)) => {
                self.may_hear_of(&request, job).await?;
                return Err(Refusal::ShareBusy { share: request.share, job });
            }
            Err(Denied::Full(active)) => return Err(Refusal::QueueFull { active, retry_after: QUEUE_RETRY_AFTER }),
            Err(Denied::Held(waited)) => return Err(Refusal::ShareStuck { share: request.share, waited }),
            Err(Denied::Closed) => return Err(Refusal::Draining),
        };

        let (share, target) = (request.share, request.new_size);
        // The moment is taken before the kernel is asked, so that no job that ends in between counts in neither.
        let moment = engine.ledger.moment();
        // What waits for a disk that hangs leaves the other pools their seats.
        let most = if engine.pools.are_several() { self.max_active_jobs.div_ceil(2) } else { self.max_active_jobs };
        let assess = move |pool: Arc<Pool>| async move {
            let active = pool.seats.taken();
            if active >= most {
                return Err(Refusal::QueueFull { active, retry_after: QUEUE_RETRY_AFTER });
            }
            let seat = pool.seats.take();
            Ok((pool.assess(share, target).await?, seat))
        };
        let (pool, (assessment, seat)) = engine.pools.find(share, assess).await?;
        admission::check_project(&request, &assessment.observed.project)?;
        let driver = pool.driver.kind();
        if request.kind == JobKind::Shrink && !driver.is_quota() {
            let what = format!("making share {share} smaller, which no quota bounds (driver {driver}),");
            return Err(Refusal::Unsupported { what });
        }
        let current = assessment.observed.extendable()?.usable();
        admission::check_size(&request, current)?;
        let promised = self.promise(&request, &pool, assessment, &moment)?;
        let validate_only = request.validate_only;
        let mut job = request.into_job(engine.new_id(), &pool.name, driver, current, promised);
        if validate_only {
            engine.ledger.withdraw(&pool.name, promised);
            job.id = JobId::from_uuid(uuid::Uuid::nil());
            return Ok(job);
        }
        engine.accept(claim, job, seat).await
    }

    /// Promises what the change takes of its pool's space, measured since `moment`, and gives it: withdraw it where no job
    /// comes of the request.
    fn promise(
        &self,
        request: &SizeRequest,
        pool: &Pool,
        assessment: Assessment,
        moment: &Moment,
    ) -> Result<Bytes, Refusal> {
        let (ledger, space) = (&self.engine.ledger, assessment.space);
        match request.kind {
            JobKind::Extend => {
                let growth = assessment.growth?;
                let left = admission::left(&space, pool.reserve, pool.overcommit);
                let reserved = ledger.reserve(&pool.name, &space.id, moment, left, growth);
                reserved.map_err(|shortage| Refusal::PoolFull {
                    pool: pool.name.clone(),
                    free: shortage.free,
                    reserved: pool.reserve.saturating_add(shortage.queued),
                    asked: growth,
                })?;
                Ok(growth)
            }
            JobKind::Shrink => {
                let now = assessment.observed.shrinkable()?;
                admission::check_use(request, now)?;
                // Others must not have what it gives back before it has ended: the kernel's account loses it as soon as the
                // limit is lowered, and the old limit may have to be put back. Before that it counts twice, for a moment.
                let freed = now.limit.saturating_sub(request.new_size);
                ledger.learn(&pool.name, space.id);
                ledger.add(&pool.name, freed);
                Ok(freed)
            }
        }
    }

    async fn repeated(&self, request: &SizeRequest, id: JobId) -> Result<Job, Refusal> {
        let job = self.engine.job(id).await?;
        let same = request.request_id.map_or(Ok(()), |id| admission::same_request(request, id, &job));
        if same.is_err() {
            self.may_hear_of(request, id).await?;
        }
        same.map(|()| job)
    }

    /// Whether a refusal may name a job to whoever asks for a share: not when the share is another project's. A job of the
    /// project that is asked for tells enough; that of another may be an operator's, so that only the share's place tells.
    async fn may_hear_of(&self, request: &SizeRequest, job: JobId) -> Result<(), Refusal> {
        let (share, project) = (request.share, &request.project);
        if project.is_empty() || self.engine.job(job).await.is_ok_and(|job| job.project == *project) {
            return Ok(());
        }
        let (_, observed) = self.engine.pools.find(share, move |pool| async move { pool.observe(share).await }).await?;
        admission::check_project(request, &observed.project)
    }

    /// # Errors
    /// JOB_NOT_FOUND, STORE_UNAVAILABLE.
    pub async fn job(&self, id: JobId) -> Result<Job, Refusal> {
        self.engine.job(id).await
    }

    /// # Errors
    /// JOB_NOT_FOUND, STORE_UNAVAILABLE.
    pub async fn watch(&self, id: JobId) -> Result<tokio::sync::watch::Receiver<Job>, Refusal> {
        self.engine.watch(id).await
    }

    /// # Errors
    /// JOB_NOT_FOUND, JOB_NOT_QUEUED, STORE_UNAVAILABLE.
    pub async fn cancel(&self, id: JobId) -> Result<Job, Refusal> {
        self.engine.cancel(id).await
    }

    /// A page of jobs, newest first, from the one before `before` on, and the job that the next page goes on from.
    ///
    /// # Errors
    /// STORE_UNAVAILABLE.
    pub async fn list_jobs(
        &self,
        selection: Selection,
        project: ProjectLabel,
        before: Option<JobId>,
        size: usize,
    ) -> Result<(Vec<Job>, Option<JobId>), Refusal> {
        let fits = move |job: &Job| {
            let state = selection.state.is_none_or(|state| state == job.state);
            state && (project.is_empty() || job.project == project)
        };
        let list = move |engine: &Engine| {
            let mut page = Vec::new();
            let (mut from, mut read) = (before, 0);
            loop {
                let ids = engine.store.newest_first(&selection, from, size);
                let exhausted = ids.len() < size;
                read += ids.len();
                for id in ids {
                    from = Some(id);
                    page.extend(engine.job_if_seen(id)?.filter(&fits));
                    if page.len() == size {
                        return Ok((page, from));
                    }
                }
                if exhausted {
                    return Ok((page, None));
                }
                if read >= MOST_READ {
                    return Ok((page, from));
                }
            }
        };
        self.engine.read(list).await
    }

    pub fn node(&self) -> NodeReport {
        let (queued, running) = self.engine.active();
        NodeReport {
            hostname: self.host.name.clone(),
            kernel: self.host.kernel.clone(),
            started_at: self.started_at,
            draining: self.engine.claims.is_closed(),
            store_failed: self.engine.store.failure().borrow().is_some(),
            queued,
            running,
            max_active_jobs: self.max_active_jobs,
            kept_jobs: self.engine.store.kept(),
            store_bytes: self.engine.store.size_on_disk(),
        }
    }
}
