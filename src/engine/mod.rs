//! The life of a job: accepted, queued, at work, ended. Knows the store and the drivers; nothing of gRPC.
//!
//! What always holds: a job is on disk before anyone sees it; a share has at most one active job; an ended job is on disk
//! before anyone sees that it has ended; nobody's deadline or disconnect stops any of this.

mod claims;
mod ledger;
pub mod looks;
mod plan;
pub mod pools;
mod runner;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{Instrument, info, warn};
use uuid::Uuid;

use crate::driver::SpaceId;
use crate::logging::spans;
use crate::meters::Meters;
use crate::model::{Bytes, Job, JobId, JobKind, JobState, PoolName, Reason, Refusal, ShareId};
use crate::store::{Selection, Store, StoreError};
use claims::Claims;
use ledger::Ledger;
use pools::{Pool, Pools};
use state::Event;

pub use claims::{Claim, Denied};
pub use ledger::{Moment, Shortage};

/// How long a pool that did not answer is left alone.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a start waits for what jobs of before it take.
const RESUMING_SOON: Duration = Duration::from_secs(5);
/// How long a pool takes no new jobs before it has told that.
const RESUMING_MOST: Duration = Duration::from_secs(120);

pub struct Engine {
    pub pools: Pools,
    pub store: Store,
    pub claims: Claims,
    ledger: Mutex<Ledger>,
    /// Jobs that have not ended, as they are now: RUNNING and steps are seen here before they are on disk.
    live: Mutex<HashMap<JobId, Live>>,
    /// The id given out last: ids must sort even when the clock is set back.
    last_id: Mutex<JobId>,
    /// How many jobs are at work, for whoever waits until none is.
    running: watch::Sender<usize>,
    pub meters: Arc<Meters>,
    /// When growd was started.
    begun: Instant,
}

/// A job that has not ended.
struct Live {
    job: watch::Sender<Job>,
    promise: Option<Promise>,
    /// Its cancellation is on its way to the disk: it must not start.
    cancelling: bool,
    /// When the step at work began.
    step_begun: Option<Instant>,
    /// Its watchers will be told of its progress in a moment.
    telling: bool,
}

/// Space that was reserved for a job: the growth of an extend, or what a shrink may have to take back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    pub space: SpaceId,
    pub growth: Bytes,
}

impl Engine {
    /// `store` as it was opened; [`Engine::recover`] must follow with its unfinished jobs.
    pub fn new(store: Store, pools: Pools, meters: Arc<Meters>) -> Arc<Self> {
        let last_id = store.newest().unwrap_or(JobId::from_uuid(Uuid::nil()));
        Arc::new(Self {
            pools,
            store,
            claims: Claims::default(),
            ledger: Mutex::default(),
            live: Mutex::default(),
            last_id: Mutex::new(last_id),
            running: watch::channel(0).0,
            meters,
            begun: Instant::now(),
        })
    }

    /// An id that sorts behind all that were given out, also before a restart.
    pub fn new_id(&self) -> JobId {
        let mut last = self.last_id.lock();
        let following = Uuid::from_u128(last.as_uuid().as_u128().wrapping_add(1));
        *last = JobId::from_uuid(Uuid::now_v7().max(following));
        *last
    }

    pub fn moment(&self) -> Moment {
        self.ledger.lock().moment()
    }

    /// # Errors
    /// [`Shortage`] when the growth does not fit into what is `left` since `moment`.
    pub fn reserve(&self, promise: &Promise, moment: &Moment, left: Bytes) -> Result<(), Shortage> {
        self.ledger.lock().reserve(&promise.space, moment, left, promise.growth)
    }

    /// Takes what a shrink gives back off what others may have, until the job has ended. The kernel's account loses it as
    /// soon as the limit is lowered, and the old limit may have to be put back. Before that it counts twice, for a moment.
    pub fn hold(&self, promise: &Promise) {
        self.ledger.lock().add(&promise.space, promise.growth);
    }

    /// Gives back what no job was accepted for.
    pub fn withdraw(&self, promise: &Promise) {
        self.ledger.lock().withdraw(&promise.space, promise.growth);
    }

    pub fn queued_growth(&self, space: &SpaceId) -> Bytes {
        self.ledger.lock().queued(space)
    }

    /// Has a job that is durable seen as one that has not ended.
    fn enliven(&self, job: Job, promise: Option<Promise>) {
        let live =
            Live { job: watch::channel(job.clone()).0, promise, cancelling: false, step_begun: None, telling: false };
        self.live.lock().insert(job.id, live);
    }

    /// Begins the run of a job that is live and whose share is claimed for it: the run may have ended at once, and gives
    /// the share free then.
    fn begin(self: &Arc<Self>, job: &Job) {
        tokio::spawn(Arc::clone(self).run(job.id).instrument(spans::job(job)));
    }

    /// Makes a job durable and starts it. Goes on to its end even if the caller no longer waits.
    ///
    /// # Errors
    /// STORE_UNAVAILABLE; the job is then not accepted, and its promise is given back.
    pub async fn accept(self: &Arc<Self>, claim: Claim<'_>, job: Job, promise: Promise) -> Result<Job, Refusal> {
        let stored = self.store.commit(vec![job.clone()]).await;
        if let Err(error) = stored {
            self.withdraw(&promise);
            return Err(store_refusal(&error));
        }
        self.enliven(job.clone(), Some(promise));
        claim.accepted(job.id);
        self.begin(&job);
        Ok(job)
    }

    /// Queues the jobs that a restart has interrupted; each run asks the kernel what is left to do.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn recover(self: &Arc<Self>, unfinished: Vec<Job>) -> Result<(), StoreError> {
        let now = SystemTime::now();
        let jobs: Vec<Job> = unfinished.iter().filter_map(|job| state::apply(job, Event::Restart, now)).collect();
        if jobs.is_empty() {
            return Ok(());
        }
        info!(jobs = jobs.len(), "going on with the jobs of before the restart");
        // Durable first: the revision must not fall when growd is killed again before they end.
        self.store.commit(jobs.clone()).await?;
        let mut of_pools: HashMap<PoolName, Vec<Job>> = HashMap::new();
        for job in jobs {
            if !self.claims.activate(job.share, job.id) {
                warn!(job = %job.id, share = %job.share, "the share has another unfinished job; this one runs beside it");
            }
            self.enliven(job.clone(), None);
            of_pools.entry(job.pool.clone()).or_default().push(job);
        }
        let mut all = Vec::new();
        for (pool, jobs) in of_pools {
            // Each for itself: a pool that does not answer holds up its own jobs alone.
            let resuming = self.pools.get(&pool).map(|pool| pool.begin_resuming());
            let resumed = jobs.into_iter().map(|job| tokio::spawn(Arc::clone(self).resume(job)));
            let resumed = join_all(resumed.collect::<Vec<_>>());
            all.push(tokio::spawn(async move {
                // Those of a share that never answers would keep all others out.
                let _ = timeout(RESUMING_MOST, resumed).await;
                drop(resuming);
            }));
        }
        // Pools may be on one file system, so none takes new jobs before the others have told, if they do at once.
        let _ = timeout(RESUMING_SOON, join_all(all)).await;
        Ok(())
    }

    /// Reserves what a job of before the restart still takes, and begins it, unless it has been cancelled meanwhile.
    async fn resume(self: Arc<Self>, job: Job) {
        self.promise_again(&job).await;
        if self.live.lock().contains_key(&job.id) {
            self.begin(&job);
        }
    }

    /// Reserves what a job of before the restart still takes, if that is not known yet. Waits for the answer as long as it
    /// takes, or until the job is cancelled: who asks a disk that hangs once more only waits with another thread.
    async fn promise_again(&self, job: &Job) {
        let Ok(mut changes) = self.watch(job.id) else { return };
        let promise = async {
            loop {
                // None that is not there takes anything.
                let pool = self.pools.get(&job.pool)?;
                tokio::select! {
                    promise = promise_of(&pool, job) => match promise {
                        Err(Refusal::Stuck { .. }) => tokio::time::sleep(ASK_AGAIN).await,
                        promise => break promise.ok(),
                    },
                    () = self.pools.replaced(&pool) => {}
                }
            }
        };
        let promise = tokio::select! {
            promise = promise => promise,
            _ = changes.wait_for(|job| job.state.is_ended()) => None,
        };
        if let (Some(promise), Some(live)) = (promise, self.live.lock().get_mut(&job.id))
            && live.promise.is_none()
        {
            self.hold(&promise);
            live.promise = Some(promise);
        }
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// JOB_NOT_FOUND, STORE_UNAVAILABLE.
    pub fn job(&self, id: JobId) -> Result<Job, Refusal> {
        if let Some(live) = self.live.lock().get(&id) {
            return Ok(live.job.borrow().clone());
        }
        self.store.get(id).map_err(|error| store_refusal(&error))?.ok_or(Refusal::JobNotFound { job: id })
    }

    /// A job to look at; whoever waits for a change is woken now and then, and when it has ended, which is the last one.
    ///
    /// # Errors
    /// As [`Engine::job`].
    pub fn watch(&self, id: JobId) -> Result<watch::Receiver<Job>, Refusal> {
        if let Some(live) = self.live.lock().get(&id) {
            return Ok(live.job.subscribe());
        }
        self.job(id).map(|job| watch::channel(job).1)
    }

    /// The newest job of a share that was not cancelled.
    pub fn last_job(&self, share: ShareId) -> Option<Job> {
        let selection = Selection { share: Some(share), state: None };
        // One record is read as a rule: only cancelled jobs lead on to the next.
        let ids = self.store.newest_first(&selection, None, 20);
        ids.into_iter().filter_map(|id| self.job(id).ok()).find(|job| job.state != JobState::Cancelled)
    }

    /// The jobs whose step has been at work for longer than this, and for how long.
    pub fn stuck(&self, longer_than: Duration) -> Vec<(Job, Duration)> {
        let live = self.live.lock();
        let at_work = live.values().filter_map(|live| Some((live, live.step_begun?.elapsed())));
        at_work.filter(|(_, time)| *time > longer_than).map(|(live, time)| (live.job.borrow().clone(), time)).collect()
    }

    /// How many jobs are queued and how many are running.
    pub fn active(&self) -> (usize, usize) {
        let live = self.live.lock();
        let running = live.values().filter(|live| live.job.borrow().state == JobState::Running).count();
        (live.len() - running, running)
    }

    /// Takes each lock that a request takes, and gives what [`Engine::active`] gives. Does not return while one of them is
    /// held for ever. It waits for no disk: a disk that hangs is no reason to give growd up.
    pub fn pulse(&self) -> (usize, usize) {
        self.moment();
        self.claims.active(ShareId::from_uuid(Uuid::nil()));
        self.store.newest();
        self.active()
    }

    /// Cancels a job that is QUEUED. Goes on to its end even if the caller no longer waits.
    ///
    /// # Errors
    /// JOB_NOT_FOUND, JOB_NOT_QUEUED; STORE_UNAVAILABLE when the store turns out not to be writable: the job is cancelled
    /// as soon as it is, and does not begin before.
    pub async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Job, Refusal> {
        let Some(mut job) = self.begin_to_cancel(id)? else {
            return match self.job(id)? {
                job if job.state == JobState::Cancelled => Ok(job),
                job => Err(Refusal::JobNotQueued { job: id, state: job.state }),
            };
        };
        let mut failure = self.store.failure();
        tokio::select! {
            biased;
            Ok(ended) = job.wait_for(|job| job.state.is_ended()) => Ok(ended.clone()),
            Ok(problem) = failure.wait_for(Option::is_some) => Err(unwritable(&problem)),
            else => self.job(id),
        }
    }

    /// From now on a QUEUED job does not start, and its cancellation is on its way to the disk. Gives the job, to wait for
    /// that; `None` when it is not live.
    fn begin_to_cancel(self: &Arc<Self>, id: JobId) -> Result<Option<watch::Receiver<Job>>, Refusal> {
        let mut live = self.live.lock();
        let Some(live) = live.get_mut(&id) else { return Ok(None) };
        let job = live.job.borrow().clone();
        let cancelled = state::apply(&job, Event::Cancel, SystemTime::now());
        let cancelled = cancelled.ok_or(Refusal::JobNotQueued { job: id, state: job.state })?;
        let failure = self.store.failure();
        if failure.borrow().is_some() {
            return Err(unwritable(&failure.borrow()));
        }
        if !std::mem::replace(&mut live.cancelling, true) {
            let engine = Arc::clone(self);
            tokio::spawn(async move { engine.end(vec![cancelled]).await });
        }
        Ok(Some(live.job.subscribe()))
    }

    /// Makes ends durable, then visible. They wait while the store cannot be written. A commit that failed may be on disk
    /// all the same, so nobody may change the jobs otherwise meanwhile.
    async fn end(&self, jobs: Vec<Job>) {
        let mut failure = self.store.failure();
        while let Err(error) = self.store.commit(jobs.clone()).await {
            warn!(%error, jobs = jobs.len(), "the end of jobs waits until the store can be written");
            tokio::select! {
                // The next start finds them unfinished and asks the kernel.
                () = self.claims.closed() => return,
                writable = failure.wait_for(Option::is_none) => if writable.is_err() { return },
            }
        }
        jobs.into_iter().for_each(|job| self.ended(job));
    }

    /// Tells everyone that a job has ended; its record is on disk.
    fn ended(&self, job: Job) {
        let mut all = self.live.lock();
        let Some(live) = all.remove(&job.id) else { return };
        // Before anyone can see the end: who sees it may ask for the next change of the share at once.
        if let Some(promise) = &live.promise {
            self.ledger.lock().release(&promise.space, promise.growth);
        }
        if self.claims.active(job.share) == Some(job.id) {
            self.claims.release(job.share);
        }
        drop(all);
        self.meters.ended(&job);
        live.job.send_replace(job);
    }

    /// Refuses new jobs and waits until the steps at work have ended. Queued jobs stay for the next start.
    pub async fn drain(&self) {
        self.claims.close();
        let mut running = self.running.subscribe();
        // The sender lives as long as the engine, so the wait ends with the last job only.
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

/// What a job of before a restart still takes of its pool.
async fn promise_of(pool: &Pool, job: &Job) -> Result<Promise, Refusal> {
    let assessment = pool.assess_again(job.share, job.requested_size).await?;
    let growth = match job.kind {
        JobKind::Extend => {
            // Of a share that is not mounted yet nobody can tell.
            assessment.observed.extendable()?;
            assessment.growth?
        }
        // Also where the limit is lowered already: it may have to be put back.
        JobKind::Shrink => job.size_before.saturating_sub(job.requested_size),
    };
    Ok(Promise { space: assessment.space.id, growth })
}

pub fn store_refusal(error: &StoreError) -> Refusal {
    Refusal::StoreUnavailable { problem: error.to_string() }
}

fn unwritable(problem: &Option<String>) -> Refusal {
    store_refusal(&StoreError::Write { problem: problem.clone().unwrap_or_default() })
}

/// What a job is told that ends by a refusal.
fn job_error(refusal: &Refusal) -> crate::model::JobError {
    let reason: Reason = refusal.reason();
    crate::model::JobError {
        reason: reason.to_string(),
        message: refusal.to_string(),
        retryable: reason.is_retryable(),
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;
    use crate::model::{DriverKind, JobKind};

    pub fn job() -> Job {
        Job {
            id: JobId::from_uuid(Uuid::now_v7()),
            kind: JobKind::Extend,
            share: ShareId::from_uuid(Uuid::from_u128(7)),
            pool: "home".parse().unwrap(),
            driver: DriverKind::ProjectQuota,
            state: JobState::Queued,
            size_before: Bytes::gib(1),
            requested_size: Bytes::gib(2),
            expected_size: None,
            size_after: None,
            steps: Vec::new(),
            error: None,
            attempt: 1,
            revision: 1,
            requested_by: "uid=0".to_owned(),
            project: "".parse().unwrap(),
            request_id: None,
            trace: None,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
        }
    }
}
