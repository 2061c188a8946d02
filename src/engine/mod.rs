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
mod search;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{Instrument, Span, info, warn};
use uuid::Uuid;

use crate::logging::spans;
use crate::meters::Meters;
use crate::model::{Bytes, DriverKind, Job, JobError, JobId, JobState, Reason, Refusal, ShareId};
use crate::store::{Store, StoreError};
use claims::Claims;
use ledger::Ledger;
use looks::{Looks, Unanswered};
use pools::{Pool, Pools, Seat};
use state::Event;

pub use claims::{Claim, Denied};
pub use ledger::Moment;

/// How long a look at all pools waits for their answers.
pub const LOOK_MOST: Duration = Duration::from_secs(5);

pub struct Engine {
    pub pools: Pools,
    pub store: Store,
    /// For what has to be read from the store's disk, which may hang.
    reads: Arc<Looks>,
    /// As many of the threads that serve others may look for an ended job themselves: the rest goes on when it hangs.
    looks_here: Semaphore,
    pub claims: Claims,
    pub ledger: Ledger,
    /// Jobs that have not ended, as they are now: RUNNING and steps are seen here before they are on disk.
    live: Mutex<HashMap<JobId, Live>>,
    /// The id given out last: ids must sort even when the clock is set back, and also behind jobs that are gone.
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
    /// Of the job until its end, whoever brings that about.
    span: Span,
    /// Given back with all this.
    _seat: Seat,
    /// Its cancellation is on its way to the disk: it must not start.
    cancelling: bool,
    /// When the step at work began.
    step_begun: Option<Instant>,
    /// Its watchers will be told of its progress in a moment.
    telling: bool,
}

impl Engine {
    /// `store` as it was opened; [`Engine::recover`] must follow with its unfinished jobs. To be called within a runtime.
    pub fn new(store: Store, pools: Pools, meters: Arc<Meters>) -> Arc<Self> {
        let last_id = store.newest().unwrap_or(JobId::from_uuid(Uuid::nil()));
        Arc::new(Self {
            pools,
            store,
            reads: Arc::default(),
            looks_here: Semaphore::new(Handle::current().metrics().num_workers() / 2),
            claims: Claims::default(),
            ledger: Ledger::default(),
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

    /// Has a job that is durable seen as one that has not ended, once `claimed` has marked its share: nobody can end the
    /// job, and so give the share free, before.
    fn enliven(&self, job: Job, seat: Seat, claimed: impl FnOnce()) {
        let id = job.id;
        let span = spans::job(&job);
        let job = watch::channel(job).0;
        let live = Live { job, span, _seat: seat, cancelling: false, step_begun: None, telling: false };
        let mut all = self.live.lock();
        claimed();
        all.insert(id, live);
    }

    /// Begins the run of a job that is live and whose share is claimed for it: the run may have ended at once, and gives
    /// the share free then.
    fn begin(self: &Arc<Self>, id: JobId) {
        let live = self.live.lock().get(&id).map(|live| (live.job.subscribe(), live.span.clone()));
        let Some((job, span)) = live else { return };
        tokio::spawn(Arc::clone(self).run(job).instrument(span));
    }

    /// Makes a job durable and starts it. Goes on to its end even if the caller no longer waits.
    ///
    /// # Errors
    /// STORE_UNAVAILABLE. The job may be on disk then: a restart of growd would carry it out, while a store that can be
    /// written again forgets it. What it was promised is given back.
    pub async fn accept(self: &Arc<Self>, claim: Claim<'_>, job: Job, seat: Seat) -> Result<Job, Refusal> {
        if let Err(error) = self.store.commit(vec![job.clone()]).await {
            self.ledger.withdraw(&job.pool, job.promised);
            return Err(error.into());
        }
        self.enliven(job.clone(), seat, || claim.accepted(job.id));
        self.begin(job.id);
        Ok(job)
    }

    /// Queues the jobs that a restart has interrupted; each run asks the kernel what is left to do. Looks at the pools.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn recover(self: &Arc<Self>, unfinished: Vec<Job>) -> Result<(), StoreError> {
        let now = SystemTime::now();
        let jobs: Vec<Job> = unfinished.iter().filter_map(|job| state::apply(job, Event::Restart, now)).collect();
        if !jobs.is_empty() {
            info!(jobs = jobs.len(), "going on with the jobs of before the restart");
            // Durable first: the revision must not fall when growd is killed again before they end.
            self.store.commit(jobs.clone()).await?;
        }
        for job in &jobs {
            // As it was promised: where a part has been given by now, that counts twice until the job ends.
            self.ledger.add(&job.pool, job.promised);
            let seat = self.pools.get(&job.pool).map_or_else(Seat::default, |pool| pool.seats.take());
            self.enliven(job.clone(), seat, || {
                if !self.claims.activate(job.share, job.id) {
                    warn!(job = %job.id, share = %job.share, "another unfinished job has the share; this one runs beside it");
                }
            });
        }
        // The pools are asked before the jobs ask them, since the start waits for these answers and not for theirs.
        tokio::join!(self.learn_spaces(), async { jobs.iter().for_each(|job| self.begin(job.id)) });
        Ok(())
    }

    /// Asks each pool what its shares grow into: new jobs of another may want the space that its jobs were promised, and
    /// pools on one file system know only then where symbolic links in each other's paths lead. Waits for the answers for
    /// a moment, so that one that does not answer holds up its own jobs alone.
    pub async fn learn_spaces(self: &Arc<Self>) {
        // lvm takes a while, and what no job was promised nobody else can want.
        let asked = |pool: &Arc<Pool>| pool.driver.kind() != DriverKind::Lvm || pool.seats.taken() > 0;
        let looks = self.pools.all().into_iter().filter(asked).map(|pool| {
            let engine = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(space) = pool.call(|driver| driver.space()).await {
                    engine.ledger.learn(&pool.name, space.id);
                }
            })
        });
        let _ = timeout(LOOK_MOST, join_all(looks)).await;
    }

    /// Whether what is accepted now can be made durable.
    ///
    /// # Errors
    /// STORE_UNAVAILABLE.
    pub fn check_writable(&self) -> Result<(), Refusal> {
        match self.store.failure().borrow().as_ref() {
            Some(failure) => Err(StoreError::Write { problem: failure.to_string() }.into()),
            None => Ok(()),
        }
    }

    /// A job that has not ended, as it is now.
    fn live_job(&self, id: JobId) -> Option<Job> {
        self.live.lock().get(&id).map(|live| live.job.borrow().clone())
    }

    /// A job as it is now. One that is on disk and not live yet is not seen: nobody could wait for its changes.
    ///
    /// # Errors
    /// JOB_NOT_FOUND, STORE_UNAVAILABLE.
    pub async fn job(self: &Arc<Self>, id: JobId) -> Result<Job, Refusal> {
        if let Some(job) = self.live_job(id) {
            return Ok(job);
        }
        // As a rule sled has it in memory, and to ask another thread takes longer than to look.
        let seen = match self.looks_here.try_acquire() {
            Ok(_permit) => {
                hand_over();
                self.job_if_seen(id)?
            }
            Err(_) => self.read(move |engine| engine.job_if_seen(id)).await?,
        };
        seen.ok_or(Refusal::JobNotFound { job: id })
    }

    /// Looks at jobs on a thread that the disk of the store may block.
    ///
    /// # Errors
    /// What `look` answers; STORE_UNAVAILABLE when the disk does not.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let engine = Arc::clone(self);
        let answer = self.reads.wait_for(self.reads.ask(move || look(&engine))).await;
        answer.unwrap_or_else(|unanswered| {
            let problem = match unanswered {
                Unanswered::Hangs => "its disk does not answer".to_owned(),
                Unanswered::Crashed(what) => what,
            };
            Err(StoreError::Read { problem }.into())
        })
    }

    /// As [`Engine::job`], within [`Engine::read`]: `None` when retention removed the job at this moment, or it is being
    /// accepted.
    ///
    /// # Errors
    /// STORE_UNAVAILABLE.
    pub fn job_if_seen(&self, id: JobId) -> Result<Option<Job>, Refusal> {
        if let Some(job) = self.live_job(id) {
            return Ok(Some(job));
        }
        // Read second: a job that is live no more has ended on disk before.
        Ok(self.store.get(id)?.filter(|job| job.state.is_ended()))
    }

    /// A job to look at; whoever waits for a change is woken now and then, and when it has ended, which is the last one. Of
    /// one that has ended there is no other change.
    ///
    /// # Errors
    /// As [`Engine::job`].
    pub async fn watch(self: &Arc<Self>, id: JobId) -> Result<watch::Receiver<Job>, Refusal> {
        if let Some(live) = self.live.lock().get(&id) {
            return Ok(live.job.subscribe());
        }
        self.job(id).await.map(|job| watch::channel(job).1)
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
        self.ledger.moment();
        self.claims.active(ShareId::from_uuid(Uuid::nil()));
        self.store.newest();
        self.active()
    }

    /// Cancels a job that has not begun. Goes on to its end even if the caller no longer waits.
    ///
    /// # Errors
    /// JOB_NOT_FOUND, JOB_NOT_QUEUED; STORE_UNAVAILABLE when the store turns out not to be writable: the job is cancelled
    /// as soon as it is, and does not begin before, but may after the next start where growd ends first.
    pub async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Job, Refusal> {
        let Some(mut job) = self.begin_to_cancel(id)? else {
            return match self.job(id).await? {
                job if job.state == JobState::Cancelled => Ok(job),
                job => Err(Refusal::JobNotQueued { job: id, state: job.state }),
            };
        };
        let mut failure = self.store.failure();
        tokio::select! {
            biased;
            Ok(ended) = job.wait_for(|job| job.state.is_ended()) => Ok(ended.clone()),
            Ok(failure) = failure.wait_for(Option::is_some) => {
                let problem = failure.as_ref().map(ToString::to_string).unwrap_or_default();
                let problem = format!("{problem}. Job {id} is cancelled once it can, unless growd ends before");
                Err(StoreError::Write { problem }.into())
            }
            // Both last as long as growd does.
            else => Err(Refusal::Draining),
        }
    }

    /// From now on a job that has not begun does not start, and its cancellation is on its way to the disk. Gives the job,
    /// to wait for that; `None` when it is not live.
    fn begin_to_cancel(self: &Arc<Self>, id: JobId) -> Result<Option<watch::Receiver<Job>>, Refusal> {
        let mut live = self.live.lock();
        let Some(live) = live.get_mut(&id) else { return Ok(None) };
        let job = live.job.borrow().clone();
        let cancelled = state::apply(&job, Event::Cancel, SystemTime::now());
        let cancelled = cancelled.ok_or(Refusal::JobNotQueued { job: id, state: job.state })?;
        if !live.cancelling {
            self.check_writable()?;
            live.cancelling = true;
            let engine = Arc::clone(self);
            tokio::spawn(async move { engine.end(vec![cancelled]).await });
        }
        Ok(Some(live.job.subscribe()))
    }

    /// Makes ends durable, then visible, and tells the log of them. They wait while the store cannot be written. A commit
    /// that failed may be on disk all the same, so nobody may change the jobs otherwise meanwhile.
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
        let ended: Vec<_> = jobs.into_iter().filter_map(|job| Some((self.ended(job.clone())?, job))).collect();
        ended.iter().for_each(|(span, job)| span.in_scope(|| tell_end(job)));
    }

    /// Tells everyone that a job has ended; its record is on disk. Gives the job's span.
    fn ended(&self, job: Job) -> Option<Span> {
        let mut all = self.live.lock();
        let live = all.remove(&job.id)?;
        // Before anyone can see the end: who sees it may ask for the next change of the share at once.
        self.ledger.release(&job.pool, live.job.borrow().promised);
        if self.claims.active(job.share) == Some(job.id) {
            self.claims.release(job.share);
        }
        drop(all);
        self.meters.ended(&job);
        live.job.send_replace(job);
        Some(live.span)
    }

    /// Refuses new jobs and waits until the steps at work have ended. Queued jobs stay for the next start.
    pub async fn drain(&self) {
        self.claims.close();
        let mut running = self.running.subscribe();
        // The sender lives as long as the engine, so the wait ends with the last job only.
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable { problem: error.to_string() }
    }
}

/// What a job is told that ends by a refusal.
fn job_error(refusal: &Refusal) -> JobError {
    let reason: Reason = refusal.reason();
    JobError { reason: reason.to_string(), message: refusal.to_string(), retryable: reason.is_retryable() }
}

/// Tells the log, within the job's span, how it has ended.
fn tell_end(job: &Job) {
    let attempt = job.attempt;
    match &job.error {
        Some(JobError { reason, message, .. }) => {
            warn!(%reason, error = %message, attempt, "job failed");
            spans::failed(job);
        }
        None if job.state == JobState::Cancelled => info!(attempt, "job cancelled"),
        None => info!(size = job.size_after.map(Bytes::get), attempt, "job succeeded"),
    }
}

/// Lets another thread of the runtime do what only this one would: a disk may hold it up. It may be the one that waits for
/// events on behalf of all, and the task that it woke last is out of reach of others. Each task that is spawned here moves
/// the one before it to where others take it, and tells one that sleeps, which waits for events when there is no more to do.
fn hand_over() {
    for _ in 0..2 {
        tokio::spawn(async {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Claimed, Retention};
    use state::fixture;

    fn is_unknown<T>(answer: Result<T, Refusal>) -> bool {
        matches!(answer, Err(Refusal::JobNotFound { .. }))
    }

    #[test]
    fn the_log_names_a_job_where_it_tells_only_of_errors() {
        use tracing_subscriber::filter::LevelFilter;
        use tracing_subscriber::layer::SubscriberExt;
        let only_errors = tracing_subscriber::registry().with(LevelFilter::ERROR);
        tracing::subscriber::with_default(only_errors, || assert!(!spans::job(&fixture::job()).is_disabled()));
    }

    #[tokio::test]
    async fn a_job_is_seen_from_when_its_share_is_taken_and_its_changes_can_be_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (retention, meters) =
            (Retention { age: Duration::MAX, jobs: usize::MAX }, Arc::new(Meters::new().unwrap()));
        let (store, _) = Claimed::of(dir.path()).unwrap().open(retention, Arc::clone(&meters)).unwrap();
        let engine = Engine::new(store, Pools::new(Vec::new()), meters);
        let job = fixture::job();
        engine.store.commit(vec![job.clone()]).await.unwrap();
        // On disk, and listed there, before whoever asked for it goes on.
        assert!(is_unknown(engine.job(job.id).await) && is_unknown(engine.watch(job.id).await));
        assert!(is_unknown(engine.cancel(job.id).await));

        engine.enliven(job.clone(), Seat::default(), || {
            assert!(engine.live.try_lock().is_none(), "somebody may end it now, and its share be taken for ever");
            assert!(engine.claims.activate(job.share, job.id));
        });
        let mut watched = engine.watch(job.id).await.unwrap();
        let cancelled = engine.cancel(job.id).await.unwrap();
        assert_eq!(watched.wait_for(|job| job.state.is_ended()).await.unwrap().clone(), cancelled);
        assert_eq!(engine.claims.active(job.share), None);
        assert_eq!(engine.job(job.id).await, Ok(cancelled));
        engine.store.close().await;
    }
}
