//! The pools of the node, and how their drivers are called: on threads of each pool, so that one whose disk hangs holds up
//! nobody else.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Span;

use super::looks::{Looks, Together};
use crate::driver::{Assessment, Driver, DriverError, Observed};
use crate::model::{Bytes, JobId, JobKind, PoolName, Refusal, ShareId};

/// Threads that carry out jobs of a pool at once: where each share has a file system of its own, which may hang.
pub const TURNS: usize = 16;
/// The same where all shares are on one file system: while it makes the changes of one thread's jobs durable, another can
/// make the next ones.
pub const TURNS_TOGETHER: usize = 2;
/// Jobs that one thread carries out together, and makes durable at once.
const MOST_TOGETHER: usize = 64;
/// Questions about shares of one file system that are answered together. A disk that hangs hangs for all of them.
const LOOKS_TOGETHER: usize = 16;

/// Longer than a question to lvm may take. Whoever waited so long is told; the thread stays behind until it is answered.
const PATIENCE: Duration = Duration::from_secs(40);
/// Shares whose pools are remembered; beyond it all are forgotten, and found again when they are asked for.
const MOST_KNOWN: usize = 100_000;

pub struct Pool {
    pub name: PoolName,
    pub driver: Arc<dyn Driver>,
    /// Space that is never promised to shares.
    pub reserve: Bytes,
    /// Limits may add up to this times (total - reserve).
    pub overcommit: f64,
    /// How many threads carry out its jobs at once.
    pub turns: Arc<Semaphore>,
    /// The jobs that wait for a turn, in the order of their acceptance, each with its span.
    pub ready: Mutex<BTreeMap<JobId, (JobKind, Span)>>,
    /// Those of the pools that had its name before as well: their jobs have not ended.
    places: Arc<Places>,
    looks: Arc<Looks>,
    observing: Arc<Together<ShareId, Result<Observed, DriverError>>>,
    assessing: Arc<Together<(ShareId, Bytes), Result<Assessment, DriverError>>>,
}

/// A place among the jobs of a pool: from the question whether one can be accepted until it has ended.
#[derive(Clone, Default)]
pub struct Place(Arc<()>);

/// The places of all pools that have had the same name.
#[derive(Default)]
pub struct Places(Place);

impl Places {
    /// Gives a place, which is given back when it is dropped.
    fn take(&self) -> Place {
        self.0.clone()
    }

    pub fn taken(&self) -> usize {
        Arc::strong_count(&self.0.0) - 1
    }
}

impl Pool {
    /// `turns` are shared by the pools that must wait for each other: those of one volume group; `places` by all that ever
    /// had the name.
    pub fn new(
        name: PoolName,
        driver: Arc<dyn Driver>,
        reserve: Bytes,
        overcommit: f64,
        turns: Arc<Semaphore>,
        places: Arc<Places>,
    ) -> Self {
        let most = if driver.kind().is_quota() { LOOKS_TOGETHER } else { 1 };
        let [observing, assessing] = [Arc::clone(&driver), Arc::clone(&driver)];
        Self {
            name,
            driver,
            reserve,
            overcommit,
            turns,
            ready: Mutex::default(),
            places,
            looks: Arc::default(),
            observing: Together::new(most, move |shares: &[ShareId]| observing.observe_all(shares)),
            assessing: Together::new(most, move |asked: &[(ShareId, Bytes)]| assessing.assess_all(asked)),
        }
    }

    /// Takes a job whose turn it is, and where all shares are on one file system other extends with it. None when it was
    /// taken before.
    pub fn take_ready(&self, id: JobId) -> Vec<(JobId, Span)> {
        let mut ready = self.ready.lock();
        let Some((kind, span)) = ready.remove(&id) else { return Vec::new() };
        let mut taken = vec![(id, span)];
        // A shrink may have to write out what is in the page cache.
        if self.driver.kind().is_quota() && kind == JobKind::Extend {
            let extends = ready.iter().filter(|(_, (kind, _))| *kind == JobKind::Extend).map(|(id, _)| *id);
            let others: Vec<JobId> = extends.take(MOST_TOGETHER - 1).collect();
            taken.extend(others.into_iter().filter_map(|id| Some((id, ready.remove(&id)?.1))));
        }
        taken
    }

    /// Asks the driver, on a thread that it may block. Not for what changes something: that has all the time it needs.
    ///
    /// # Errors
    /// What the driver answers; STUCK when it does not; INTERNAL when it panicked.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Driver) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let driver = Arc::clone(&self.driver);
        self.wait_for(self.looks.ask(move || call(&*driver))).await
    }

    /// What the kernel says of a share.
    ///
    /// # Errors
    /// Those of [`Driver::observe`] and [`Pool::call`].
    pub async fn observe(&self, share: ShareId) -> Result<Observed, Refusal> {
        self.wait_for(self.observing.ask(&self.looks, share)).await
    }

    /// Takes a place, which is given back when it is dropped.
    pub fn place(&self) -> Place {
        self.places.take()
    }

    pub fn places_taken(&self) -> usize {
        self.places.taken()
    }

    /// All that decides on a new job that brings a share to `target`.
    ///
    /// # Errors
    /// Those of [`Driver::assess_all`] and [`Pool::call`].
    pub async fn assess(&self, share: ShareId, target: Bytes) -> Result<Assessment, Refusal> {
        self.wait_for(self.assessing.ask(&self.looks, (share, target))).await
    }

    fn stuck(&self) -> Refusal {
        Refusal::Stuck { pool: self.name.clone(), waited: PATIENCE }
    }

    async fn wait_for<T>(
        &self,
        answer: impl Future<Output = Result<Result<T, DriverError>, String>>,
    ) -> Result<T, Refusal> {
        if self.looks.are_overrun() {
            return Err(self.stuck());
        }
        let answer = timeout(PATIENCE, answer).await.map_err(|_| self.stuck())?;
        answer.map_err(|what| self.crashed(&what))?.map_err(DriverError::into_refusal)
    }

    pub fn crashed(&self, what: &str) -> Refusal {
        Refusal::Internal { problem: format!("driver of pool {}: {what}", self.name) }
    }
}

/// All pools, in the order of the configuration. Others may take their place at any time; what has begun with a pool
/// ends with it.
pub struct Pools {
    now: watch::Sender<Vec<Arc<Pool>>>,
    /// The pools that shares were found in last, where there are several pools.
    known: Mutex<HashMap<ShareId, Arc<Pool>>>,
}

fn is_among(pools: &[Arc<Pool>], pool: &Arc<Pool>) -> bool {
    pools.iter().any(|one| Arc::ptr_eq(one, pool))
}

impl Pools {
    pub fn new(pools: Vec<Arc<Pool>>) -> Self {
        Self { now: watch::channel(pools).0, known: Mutex::default() }
    }

    pub fn replace(&self, pools: Vec<Arc<Pool>>) {
        self.now.send_replace(pools);
        self.known.lock().clear();
    }

    /// The pools as they are now.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.now.borrow().clone()
    }

    pub fn get(&self, name: &PoolName) -> Option<Arc<Pool>> {
        self.now.borrow().iter().find(|pool| pool.name == *name).cloned()
    }

    pub fn are_several(&self) -> bool {
        self.now.borrow().len() > 1
    }

    /// Whether the pool is one of those that are configured now.
    pub fn has(&self, pool: &Arc<Pool>) -> bool {
        is_among(&self.now.borrow(), pool)
    }

    /// Waits until the pool of this name is another one, or there is none any more.
    pub async fn replaced(&self, pool: &Arc<Pool>) {
        // The sender lives as long as this does, so the wait only ends by a change.
        let _ = self.now.subscribe().wait_for(|pools| !is_among(pools, pool)).await;
    }

    /// Asks the pool that the share was found in last, and all pools when it is not there any more.
    ///
    /// # Errors
    /// SHARE_NOT_FOUND when every pool says so; otherwise what the pool said that could not tell.
    pub async fn find<T: Send + 'static, A: Future<Output = Result<T, Refusal>> + Send + 'static>(
        &self,
        share: ShareId,
        ask: impl Fn(Arc<Pool>) -> A,
    ) -> Result<(Arc<Pool>, T), Refusal> {
        let all = self.all();
        let known = match all.as_slice() {
            [only] => Some(Arc::clone(only)),
            _ => self.known.lock().get(&share).filter(|pool| is_among(&all, pool)).cloned(),
        };
        if let Some(pool) = known {
            match ask(Arc::clone(&pool)).await {
                Ok(answer) => return Ok((pool, answer)),
                // It may have moved: this question goes to all pools, or the next one if this pool could not tell.
                Err(refusal) => {
                    self.known.lock().remove(&share);
                    if all.len() == 1 || !matches!(refusal, Refusal::ShareNotFound { .. }) {
                        return Err(refusal);
                    }
                }
            }
        }
        let found = Self::search(share, all, ask).await?;
        let mut known = self.known.lock();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(share, Arc::clone(&found.0));
        Ok(found)
    }

    /// Asks all pools at once, so that one that hangs does not hide the others.
    async fn search<T: Send + 'static, A: Future<Output = Result<T, Refusal>> + Send + 'static>(
        share: ShareId,
        pools: Vec<Arc<Pool>>,
        ask: impl Fn(Arc<Pool>) -> A,
    ) -> Result<(Arc<Pool>, T), Refusal> {
        let mut answers = JoinSet::new();
        for pool in pools {
            let answer = ask(Arc::clone(&pool));
            answers.spawn(async move { (answer.await, pool) });
        }
        let mut undecided = None;
        while let Some(answer) = answers.join_next().await {
            match answer {
                Ok((Ok(answer), pool)) => return Ok((pool, answer)),
                Ok((Err(Refusal::ShareNotFound { .. }), _)) => {}
                // What a pool says of the share counts more than that it can say nothing.
                Ok((Err(Refusal::NotMounted { .. } | Refusal::Stuck { .. } | Refusal::QueueFull { .. }), _))
                    if undecided.is_some() => {}
                Ok((Err(refusal), _)) => undecided = Some(refusal),
                Err(error) => undecided = Some(Refusal::Internal { problem: error.to_string() }),
            }
        }
        Err(undecided.unwrap_or(Refusal::ShareNotFound { share }))
    }
}
