//! One run of one job: wait for a turn, then observe, plan, apply one step, observe again, until nothing is left.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{Span, info, warn};

use super::state::{self, Event};
use super::{Engine, job_error, plan};
use crate::driver::{Driver, DriverError, Outcome, Sizes, Step};
use crate::engine::pools::Pool;
use crate::logging::spans;
use crate::model::{Bytes, Job, JobId, JobKind, JobState, Refusal};

/// Steps that a job may take: a backend that reports success and does not grow must not be asked for ever.
const MOST_STEPS: usize = 8;

/// How often watchers hear of progress. Of a job's end they hear at once.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long after growd's start mounts may still come: longer than systemd waits for a device.
const MOUNTS_COME: Duration = Duration::from_secs(120);
const MOUNT_LOOKS_EVERY: Duration = Duration::from_secs(1);

/// How long a job lets others be accepted before it waits for its turn: somebody waits for each answer, and jobs that begin
/// together are made durable together. A disk that keeps an acceptance waiting must not hold up the jobs of others.
const GIVE_WAY: Duration = Duration::from_millis(20);

impl Engine {
    pub(super) async fn run(self: Arc<Self>, id: JobId) {
        let Ok(job) = self.job(id) else { return };
        let Ok(mut changes) = self.watch(id) else { return };
        if self.claims.accepting() > 0 {
            let _ = timeout(GIVE_WAY, self.claims.none_accepting()).await;
        }
        let (pool, _turn) = loop {
            let Some(pool) = self.pools.get(&job.pool) else {
                let problem = "it is not in the configuration any more".to_owned();
                if self.start(id) {
                    self.finish(id, Err(Refusal::NotMounted { pool: job.pool, problem })).await;
                    self.stopped();
                }
                return;
            };
            tokio::select! {
                // Looked at first: a job that has not begun does not begin with a pool that is configured no more.
                biased;
                () = self.pools.replaced(&pool) => {}
                // A cancelled job gives up its place, or a stuck pool would collect them.
                _ = changes.wait_for(|job| job.state.is_ended()) => return,
                turn = Arc::clone(&pool.turns).acquire_owned() => break (pool, turn),
            }
        };
        if !self.start(id) {
            return;
        }
        self.work(&pool, id).await;
        self.stopped();
    }

    /// The counterpart of [`Engine::start`]: a drain waits for it.
    fn stopped(&self) {
        self.running.send_modify(|running| *running -= 1);
    }

    /// From QUEUED to RUNNING, unless the job was cancelled or growd is draining.
    fn start(self: &Arc<Self>, id: JobId) -> bool {
        let job = if self.claims.is_closed() { None } else { self.change(id, Event::Start) };
        if let Some(job) = &job {
            self.meters.started(job);
            self.running.send_modify(|running| *running += 1);
        }
        job.is_some()
    }

    /// A change that is seen by whoever looks and reaches the disk with the next commit of the job. Watchers are told of it
    /// after a while: steps take microseconds as a rule, and telling of each would take longer.
    fn change(self: &Arc<Self>, id: JobId, event: Event) -> Option<Job> {
        let mut live = self.live.lock();
        let live = live.get_mut(&id).filter(|live| !live.cancelling)?;
        let job = state::apply(&live.job.borrow(), event, SystemTime::now())?;
        let at_work = state::step_at_work(&job).is_some();
        if let Some(begun) = live.step_begun.take() {
            self.meters.step_ended(&job, begun.elapsed());
        }
        live.step_begun = at_work.then(Instant::now);
        live.job.send_if_modified(|current| {
            current.clone_from(&job);
            false
        });
        // The run of the job is one of those who look.
        if live.job.receiver_count() > 1 && !live.telling {
            live.telling = true;
            let engine = Arc::clone(self);
            Handle::current().spawn(async move {
                tokio::time::sleep(PROGRESS_EVERY).await;
                if let Some(live) = engine.live.lock().get_mut(&id) {
                    live.telling = false;
                    live.job.send_modify(|_| {});
                }
            });
        }
        Some(job)
    }

    /// Does the work and makes its end durable: all on one blocking thread, since what the kernel does in microseconds
    /// should not wait for threads to take turns.
    async fn work(self: &Arc<Self>, pool: &Pool, id: JobId) {
        let (engine, driver, span) = (Arc::clone(self), Arc::clone(&pool.driver), Span::current());
        let work = tokio::task::spawn_blocking(move || {
            let _job = span.entered();
            if let Some(result) = engine.carry_out(&*driver, id).transpose() {
                Handle::current().block_on(engine.finish(id, result));
            }
        });
        if let Err(error) = work.await {
            let problem = format!("driver of pool {}: {error}", pool.name);
            self.finish(id, Err(Refusal::Internal { problem })).await;
        }
    }

    /// The size that was reached; `None` when growd drains between two steps.
    fn carry_out(self: &Arc<Self>, driver: &dyn Driver, id: JobId) -> Result<Option<Bytes>, Refusal> {
        let job = self.job(id)?;
        loop {
            let result = match job.kind {
                JobKind::Extend => self.grow(driver, &job),
                JobKind::Shrink => self.lower(driver, &job).map(Some),
            };
            match &result {
                Err(Refusal::NotMounted { problem, .. }) if self.may_be_mounted_yet(&job)? => {
                    info!(problem, "the job waits: its share may be mounted yet");
                }
                _ => return result,
            }
            std::thread::sleep(MOUNT_LOOKS_EVERY);
            if self.claims.is_closed() {
                return Ok(None);
            }
        }
    }

    /// After a boot growd may be there before volumes and mounts are: a job of before is worth a wait.
    fn may_be_mounted_yet(&self, job: &Job) -> Result<bool, Refusal> {
        let at_rest = state::step_at_work(&self.job(job.id)?).is_none();
        Ok(job.attempt > 1 && self.begun.elapsed() < MOUNTS_COME && at_rest)
    }

    /// One step, which looks itself at what is in use: nothing that was seen before it would still be true. A limit counts
    /// blocks, so what the step has read back is what can be had.
    fn lower(self: &Arc<Self>, driver: &dyn Driver, job: &Job) -> Result<Bytes, Refusal> {
        let step = Step::LowerLimit { from: job.size_before, to: job.requested_size };
        let (Outcome::Changed { to: reached, .. } | Outcome::AlreadyThere { size: reached }) =
            self.take(driver, job, step)?;
        let size = self.verify(driver, job)?;
        if size > reached {
            let problem = format!("share {} has {size} where {reached} was read before", job.share);
            return Err(Refusal::Internal { problem });
        }
        Ok(size)
    }

    fn grow(self: &Arc<Self>, driver: &dyn Driver, job: &Job) -> Result<Option<Bytes>, Refusal> {
        let (id, share) = (job.id, job.share);
        // What could be wrong with the share was looked at before it was accepted, and is by the step that would suffer.
        let mut sizes = if job.attempt == 1 && driver.kind().is_quota() {
            // Nor does a limit have to be read for a step that reads it itself.
            Sizes::Limit(job.size_before)
        } else {
            driver.measure(share).map_err(DriverError::into_refusal)?
        };
        for taken in 0..MOST_STEPS {
            let Some(step) = plan::next_step(job.requested_size, sizes) else {
                let size = self.verify(driver, job)?;
                if size < job.requested_size {
                    let problem = format!("share {share} has {size} where {} was read before", job.requested_size);
                    return Err(Refusal::Internal { problem });
                }
                return Ok(Some(size));
            };
            if taken > 0 {
                if self.claims.is_closed() {
                    return Ok(None);
                }
                // What was done so far is on disk before the next step begins: after a crash the job tells of it.
                if let Err(error) = Handle::current().block_on(self.store.commit(vec![self.job(id)?])) {
                    warn!(%error, "a step's record must wait for the next commit");
                }
            }
            let outcome = self.take(driver, job, step)?;
            sizes = match (step, outcome) {
                // A limit has been read back.
                (Step::SetLimit { .. }, Outcome::Changed { to: limit, .. } | Outcome::AlreadyThere { size: limit }) => {
                    Sizes::Limit(limit)
                }
                _ => driver.measure(share).map_err(DriverError::into_refusal)?,
            };
        }
        let problem = format!("{MOST_STEPS} steps did not bring share {share} to {}", job.requested_size);
        Err(Refusal::Internal { problem })
    }

    fn take(self: &Arc<Self>, driver: &dyn Driver, job: &Job, step: Step) -> Result<Outcome, Refusal> {
        self.change(job.id, Event::BeginStep { name: step.name() });
        let outcome = {
            let _step = spans::step(step.name()).entered();
            let outcome = driver.apply(job.share, step).map_err(DriverError::into_refusal)?;
            info!(%outcome, "step done");
            outcome
        };
        self.change(job.id, Event::EndStep { detail: outcome.to_string() });
        Ok(outcome)
    }

    /// Durable in the file system before the job's success is durable in the store: after a power cut, a job that
    /// SUCCEEDED with a limit that is the old one again would be a lie.
    fn verify(self: &Arc<Self>, driver: &dyn Driver, job: &Job) -> Result<Bytes, Refusal> {
        let share = job.share;
        self.change(job.id, Event::BeginStep { name: "verify" });
        let _step = spans::step("verify").entered();
        let size = driver.verify(share).map_err(DriverError::into_refusal)?;
        self.change(job.id, Event::EndStep { detail: format!("read back {size}") });
        Ok(size)
    }

    /// Makes the end durable, then visible. While the store cannot be written the job stays RUNNING and waits.
    async fn finish(&self, id: JobId, result: Result<Bytes, Refusal>) {
        let event = match &result {
            Ok(size) => Event::Succeed { size: *size },
            Err(refusal) => Event::Fail(job_error(refusal)),
        };
        let ended = self.job(id).ok().and_then(|job| state::apply(&job, event, SystemTime::now()));
        if let Some(job) = ended {
            if job.state == JobState::Failed {
                warn!(error = ?job.error, "job failed");
                spans::failed(&job);
            }
            let mut failure = self.store.failure();
            while let Err(error) = self.store.commit(vec![job.clone()]).await {
                warn!(%error, "the end of the job waits until the store can be written");
                if self.claims.is_closed() || failure.wait_for(Option::is_none).await.is_err() {
                    // The next start finds the job unfinished and asks the kernel.
                    return;
                }
            }
            self.ended(job);
        }
    }
}
