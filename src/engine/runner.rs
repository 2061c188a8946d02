//! One run of one job: wait for a turn, then observe, plan, apply one step, observe again, until nothing is left.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tracing::{Span, info, warn};

use super::looks::catch;
use super::state::{self, Event};
use super::{Engine, job_error, plan};
use crate::driver::{Driver, DriverError, Outcome, Sizes, Step};
use crate::engine::pools::Pool;
use crate::logging::spans;
use crate::model::{Bytes, Job, JobId, JobKind, Reason, Refusal, ShareId};

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

/// A job of those that one thread carries out together.
struct Member {
    id: JobId,
    share: ShareId,
    span: Span,
    _at_work: AtWork,
}

/// Counts a job as at work until it is dropped, by a panic at the latest: a drain waits for it.
struct AtWork(Arc<Engine>);

impl AtWork {
    fn begin(engine: &Arc<Engine>) -> Self {
        engine.running.send_modify(|running| *running += 1);
        Self(Arc::clone(engine))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

/// A job, and the size that was reached or why it was not.
type End = (Member, Result<Bytes, Refusal>);

/// What the size that is read back must be.
enum Bound {
    AtLeast(Bytes),
    AtMost(Bytes),
}

impl Engine {
    pub(super) async fn run(self: Arc<Self>, mut changes: watch::Receiver<Job>) {
        let job = changes.borrow().clone();
        if self.claims.accepting() > 0 {
            let _ = timeout(GIVE_WAY, self.claims.none_accepting()).await;
        }
        let Some((pool, turn)) = self.turn(&job, &mut changes).await else { return };
        let jobs = pool.take_ready(job.id);
        if jobs.is_empty() {
            // Another has taken this one along. It is still one of those who look, see `change`.
            drop(turn);
            let _ = changes.wait_for(|job| job.state.is_ended()).await;
            return;
        }
        let engine = Arc::clone(&self);
        // It fails only when growd ends.
        let _ = tokio::task::spawn_blocking(move || engine.carry_out(&pool, jobs)).await;
    }

    /// Waits for a turn in the pool that has the name of the job's by then. `None` when the job has ended meanwhile, or
    /// another has taken it along.
    async fn turn(
        self: &Arc<Self>,
        job: &Job,
        changes: &mut watch::Receiver<Job>,
    ) -> Option<(Arc<Pool>, OwnedSemaphorePermit)> {
        let mut awaited = false;
        loop {
            let Some(pool) = self.pools.get(&job.pool) else {
                self.end_without_pool(job).await;
                return None;
            };
            // It takes no turn meanwhile: those behind it may be mounted.
            let awaits = tokio::select! {
                awaits = self.awaits_mount(job, &pool) => awaits,
                () = self.pools.replaced(&pool) => continue,
            };
            if let Some(problem) = awaits {
                if !std::mem::replace(&mut awaited, true) {
                    info!(%problem, "the job waits: its share may be mounted yet");
                }
                tokio::time::sleep(MOUNT_LOOKS_EVERY).await;
                continue;
            }
            pool.ready.lock().insert(job.id, job.kind);
            tokio::select! {
                // Looked at first: a job that has not begun does not begin with a pool that is configured no more.
                biased;
                () = self.pools.replaced(&pool) => {}
                // A cancelled job gives up its seat, or a stuck pool would collect them.
                _ = changes.wait_for(|job| job.state.is_ended()) => {}
                turn = Arc::clone(&pool.turns).acquire_owned() => return Some((pool, turn.ok()?)),
            }
            if pool.ready.lock().remove(&job.id).is_none() || changes.borrow().state.is_ended() {
                return None;
            }
        }
    }

    async fn end_without_pool(self: &Arc<Self>, job: &Job) {
        if let Some(member) = self.start(job.id) {
            let problem = "it is not in the configuration any more".to_owned();
            self.finish(vec![(member, Err(Refusal::NotMounted { pool: job.pool.clone(), problem }))]).await;
        }
    }

    /// From QUEUED to RUNNING, unless the job was cancelled or growd is draining.
    fn start(self: &Arc<Self>, id: JobId) -> Option<Member> {
        // Counted first: a drain that begins now either is seen below or waits for it.
        let _at_work = AtWork::begin(self);
        if self.claims.is_closed() {
            return None;
        }
        let (share, span) = self.change(id, Event::Start)?;
        Some(Member { id, share, span, _at_work })
    }

    /// A change that is seen by whoever looks and reaches the disk with the next commit of the job. Watchers are told of it
    /// after a while: steps take microseconds as a rule, and telling of each would take longer. Gives the job's
    /// share and span, or none where nothing may change.
    fn change(self: &Arc<Self>, id: JobId, event: Event) -> Option<(ShareId, Span)> {
        let starts = event == Event::Start;
        let mut live = self.live.lock();
        let live = live.get_mut(&id).filter(|live| !live.cancelling)?;
        let job = state::apply(&live.job.borrow(), event, SystemTime::now())?;
        if starts {
            self.meters.started(&job);
        }
        let at_work = state::step_at_work(&job).is_some();
        if let Some(begun) = live.step_begun.take() {
            self.meters.step_ended(&job, begun.elapsed());
        }
        live.step_begun = at_work.then(Instant::now);
        let of_job = (job.share, live.span.clone());
        live.job.send_if_modified(|current| {
            *current = job;
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
        Some(of_job)
    }

    /// Does the work of jobs, makes it durable at once for all, and then their ends: on one blocking thread, since what the
    /// kernel does in microseconds should not wait for threads to take turns.
    fn carry_out(self: &Arc<Self>, pool: &Arc<Pool>, jobs: Vec<JobId>) {
        let (mut changed, mut ends) = (Vec::new(), Vec::new());
        for id in jobs {
            if !self.pools.has(pool) {
                self.begin(id);
                continue;
            }
            // Each when it is at work: until then it can be cancelled, and may be carried out with another pool.
            let Some(member) = self.start(id) else { continue };
            let bring = || catch(|| self.bring_about(&*pool.driver, id)).map_err(|what| pool.crashed(&what));
            match member.span.in_scope(bring).flatten() {
                Ok(Some(bound)) => changed.push((member, bound)),
                // growd drains between two steps.
                Ok(None) => {}
                Err(refusal) => ends.push((member, Err(refusal))),
            }
        }
        if !changed.is_empty() {
            ends.extend(self.verify(pool, changed));
        }
        Handle::current().block_on(self.finish(ends));
    }

    fn bring_about(self: &Arc<Self>, driver: &dyn Driver, id: JobId) -> Result<Option<Bound>, Refusal> {
        let job = self.live_job(id).ok_or(Refusal::JobNotFound { job: id })?;
        match job.kind {
            JobKind::Extend => self.grow(driver, &job),
            JobKind::Shrink => self.lower(driver, &job).map(Some),
        }
    }

    /// After a boot growd may be there before volumes and mounts are: a job of before is worth a wait. Tells why it waits.
    async fn awaits_mount(&self, job: &Job, pool: &Pool) -> Option<Refusal> {
        if job.attempt == 1 || self.begun.elapsed() > MOUNTS_COME {
            return None;
        }
        let share = job.share;
        let refusal = pool.call(move |driver| driver.measure(share)).await.err()?;
        // What is under a mount that is missing may pass for a pool without shares.
        let may_pass = matches!(refusal.reason(), Reason::NotMounted | Reason::ShareNotFound | Reason::Stuck);
        may_pass.then_some(refusal)
    }

    /// One step, which looks itself at what is in use: nothing that was seen before it would still be true. A limit counts
    /// blocks, so what the step has read back is what can be had.
    fn lower(self: &Arc<Self>, driver: &dyn Driver, job: &Job) -> Result<Bound, Refusal> {
        let step = Step::LowerLimit { from: job.size_before, to: job.requested_size };
        self.take(driver, job, step).map(|outcome| Bound::AtMost(outcome.size()))
    }

    /// Takes steps until none is left; `None` when growd drains between two.
    fn grow(self: &Arc<Self>, driver: &dyn Driver, job: &Job) -> Result<Option<Bound>, Refusal> {
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
                return Ok(Some(Bound::AtLeast(job.requested_size)));
            };
            if taken > 0 {
                if self.claims.is_closed() {
                    return Ok(None);
                }
                // What was done so far is on disk before the next step begins: after a crash the job tells of it.
                let job = self.live_job(id).into_iter().collect();
                if let Err(error) = Handle::current().block_on(self.store.commit(job)) {
                    warn!(%error, "a step's record must wait for the next commit");
                }
            }
            let outcome = self.take(driver, job, step)?;
            sizes = match step {
                // A limit has been read back.
                Step::SetLimit { .. } => Sizes::Limit(outcome.size()),
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
    fn verify(self: &Arc<Self>, pool: &Pool, changed: Vec<(Member, Bound)>) -> Vec<End> {
        let begin = |(member, _): &(Member, Bound)| {
            self.change(member.id, Event::BeginStep { name: "verify" });
            member.span.in_scope(|| spans::step("verify"))
        };
        let steps: Vec<Span> = changed.iter().map(begin).collect();
        let shares: Vec<ShareId> = changed.iter().map(|(member, _)| member.share).collect();
        let sizes = catch(|| pool.driver.verify_all(&shares));
        let sizes = sizes.unwrap_or_else(|what| shares.iter().map(|_| Err(pool.crashed(&what).into())).collect());
        drop(steps);
        let end = |((member, bound), size): ((Member, Bound), Result<Bytes, DriverError>)| {
            let size = size.map_err(DriverError::into_refusal).and_then(|size| {
                self.change(member.id, Event::EndStep { detail: format!("read back {size}") });
                bound.check(member.share, size)
            });
            (member, size)
        };
        changed.into_iter().zip(sizes).map(end).collect()
    }

    /// Ends jobs as they went.
    async fn finish(&self, ends: Vec<End>) {
        let now = SystemTime::now();
        let apply = |(member, result): End| {
            let event = match result {
                Ok(size) => Event::Succeed { size },
                Err(refusal) => Event::Fail(job_error(&refusal)),
            };
            Some((state::apply(&self.live_job(member.id)?, event, now)?, member))
        };
        // They are at work until their ends were told.
        let (jobs, _members): (Vec<Job>, Vec<Member>) = ends.into_iter().filter_map(apply).unzip();
        if !jobs.is_empty() {
            self.end(jobs).await;
        }
    }
}

impl Bound {
    fn check(&self, share: ShareId, size: Bytes) -> Result<Bytes, Refusal> {
        let (kept, before) = match *self {
            Self::AtLeast(before) => (size >= before, before),
            Self::AtMost(before) => (size <= before, before),
        };
        let problem = || format!("share {share} has {size} where {before} was read before");
        if kept { Ok(size) } else { Err(Refusal::Internal { problem: problem() }) }
    }
}
