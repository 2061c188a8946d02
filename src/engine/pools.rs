//! The pools of the node, and how their drivers are called: on threads of each pool, so that one whose disk hangs holds up
//! nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::looks::{Looks, PATIENCE, Together, Unanswered};
use super::search::{Found, search};
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

/// Shares whose pools are remembered; beyond it all are forgotten, and found again when they are asked for.
const MOST_KNOWN: usize = 100_000;

pub struct Pool {
    pub name: PoolName,
    pub driver: Arc<dyn Driver>,
    /// The shares that the configuration says are in this pool and in no other.
    pub named: BTreeSet<ShareId>,
    /// Space that is never promised to shares.
    pub reserve: Bytes,
    /// Limits may add up to this times (total - reserve).
    pub overcommit: f64,
    /// How many threads carry out its jobs at once.
    pub turns: Arc<Semaphore>,
    /// The jobs that wait for a turn, in the order of their acceptance.
    pub ready: Mutex<BTreeMap<JobId, JobKind>>,
    /// Those of the pools that had its name before as well: their jobs have not ended.
    pub seats: Arc<Seats>,
    /// It was waited for in vain, and has not answered since.
    silent: AtomicBool,
    /// How many questions it has answered as only one that can be read does.
    told: AtomicU64,
    looks: Arc<Looks>,
    observing: Arc<Together<ShareId, Result<Observed, DriverError>>>,
    assessing: Arc<Together<(ShareId, Bytes), Result<Assessment, DriverError>>>,
}

/// A seat among the jobs of a pool: from the question whether one can be accepted until it has ended.
#[derive(Clone, Default)]
pub struct Seat(Arc<()>);

/// The seats of all pools that have had the same name.
#[derive(Default)]
pub struct Seats(Seat);

impl Seats {
    /// Gives a seat, which is given back when it is dropped.
    pub fn take(&self) -> Seat {
        self.0.clone()
    }

    pub fn taken(&self) -> usize {
        Arc::strong_count(&self.0.0) - 1
    }
}

impl Pool {
    /// `turns` are shared by the pools that must wait for each other: those of one volume group; `seats` by all that ever
    /// had the name.
    pub fn new(
        name: PoolName,
        driver: Arc<dyn Driver>,
        named: BTreeSet<ShareId>,
        reserve: Bytes,
        overcommit: f64,
        turns: Arc<Semaphore>,
        seats: Arc<Seats>,
    ) -> Self {
        let most = if driver.kind().is_quota() { LOOKS_TOGETHER } else { 1 };
        let [observing, assessing] = [Arc::clone(&driver), Arc::clone(&driver)];
        Self {
            name,
            driver,
            named,
            reserve,
            overcommit,
            turns,
            ready: Mutex::default(),
            seats,
            silent: AtomicBool::new(false),
            told: AtomicU64::new(0),
            looks: Arc::default(),
            observing: Together::new(most, move |shares: &[ShareId]| observing.observe_all(shares)),
            assessing: Together::new(most, move |asked: &[(ShareId, Bytes)]| assessing.assess_all(asked)),
        }
    }

    /// Takes a job whose turn it is, and where all shares are on one file system other extends with it. None when it was
    /// taken before.
    pub fn take_ready(&self, id: JobId) -> Vec<JobId> {
        let mut ready = self.ready.lock();
        let Some(kind) = ready.remove(&id) else { return Vec::new() };
        let mut taken = vec![id];
        // A shrink may have to write out what is in the page cache.
        if self.driver.kind().is_quota() && kind == JobKind::Extend {
            let extends = ready.iter().filter(|(_, kind)| **kind == JobKind::Extend).map(|(id, _)| *id);
            taken.extend(extends.take(MOST_TOGETHER - 1));
            for id in &taken {
                ready.remove(id);
            }
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

    /// All that decides on a new job that brings a share to `target`.
    ///
    /// # Errors
    /// Those of [`Driver::assess_all`] and [`Pool::call`].
    pub async fn assess(&self, share: ShareId, target: Bytes) -> Result<Assessment, Refusal> {
        self.wait_for(self.assessing.ask(&self.looks, (share, target))).await
    }

    /// Counts what it has told of its shares and its space: while this rises it can be read, however many questions wait.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// From now on nobody who has another pool's answer waits for this one, until it has answered a question.
    pub fn has_kept_silent(self: &Arc<Self>) {
        if !self.silent.swap(true, Ordering::Relaxed) {
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                let driver = Arc::clone(&pool.driver);
                // Any answer will do.
                let _ = pool.looks.ask(move || drop(driver.space())).await;
                pool.silent.store(false, Ordering::Relaxed);
            });
        }
    }

    async fn wait_for<T>(
        &self,
        answer: impl Future<Output = Result<Result<T, DriverError>, String>>,
    ) -> Result<T, Refusal> {
        let answer = match self.looks.wait_for(answer).await {
            Ok(answer) => answer.map_err(DriverError::into_refusal),
            Err(Unanswered::Hangs) => Err(Refusal::Stuck { pool: self.name.clone(), waited: PATIENCE }),
            Err(Unanswered::Crashed(what)) => Err(self.crashed(&what)),
        };
        if matches!(answer, Ok(_) | Err(Refusal::ShareNotFound { .. })) {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    pub fn crashed(&self, what: &str) -> Refusal {
        Refusal::Internal { problem: format!("driver of pool {}: {what}", self.name) }
    }
}

/// All pools, in the order of the configuration. Others may take their place at any time; what has begun with a pool
/// ends with it.
pub struct Pools {
    now: watch::Sender<Vec<Arc<Pool>>>,
    /// Where there are several pools, those that shares were found in when all others said that they do not have them.
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

    /// Where a share was found when all other pools said that they do not have it, which holds for as long as it is there.
    pub fn found_in(&self, share: ShareId) -> Option<Arc<Pool>> {
        self.known.lock().get(&share).cloned()
    }

    /// Asks the pool that the configuration names for the share; failing that the one that it was found in last, and all
    /// pools when it is not there any more.
    ///
    /// # Errors
    /// SHARE_NOT_FOUND when every pool says so; UNSUPPORTED when two pools have it; otherwise what the pool said that could
    /// not tell.
    pub async fn find<T: Send + 'static, A: Future<Output = Result<T, Refusal>> + Send + 'static>(
        &self,
        share: ShareId,
        ask: impl Fn(Arc<Pool>) -> A,
    ) -> Result<(Arc<Pool>, T), Refusal> {
        let all = self.all();
        let own = match all.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|pool| pool.named.contains(&share)),
        };
        if let Some(pool) = own {
            return Ok((Arc::clone(pool), ask(Arc::clone(pool)).await?));
        }
        if let Some(pool) = self.found_in(share).filter(|pool| is_among(&all, pool)) {
            match ask(Arc::clone(&pool)).await {
                Ok(answer) => return Ok((pool, answer)),
                // It may have moved: this question goes to all pools, or the next one if this pool could not tell.
                Err(refusal) => {
                    self.known.lock().remove(&share);
                    if !matches!(refusal, Refusal::ShareNotFound { .. }) {
                        return Err(refusal);
                    }
                }
            }
        }
        let Found { pool, answer, in_no_other } = search(share, all, ask).await?;
        if in_no_other {
            let mut known = self.known.lock();
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            known.insert(share, Arc::clone(&pool));
        }
        Ok((pool, answer))
    }
}

/// The refusal of a share that two pools have, where no `[[share]]` of the configuration says which counts.
pub fn in_two_pools(share: ShareId, one: &PoolName, other: &PoolName) -> Refusal {
    let (first, second) = (one.as_str().min(other.as_str()), one.as_str().max(other.as_str()));
    Refusal::InTwoPlaces { share, one: format!("in pool {first}"), other: format!("in pool {second}") }
}

#[cfg(test)]
pub mod fixture {
    use super::*;
    use crate::driver::project_quota::ProjectQuota;

    pub fn pool(name: &str, named: &[ShareId]) -> Arc<Pool> {
        let name: PoolName = name.parse().unwrap();
        let template = "/nowhere/{share_id}".parse().unwrap();
        let driver = ProjectQuota::new(name.clone(), template, Vec::new(), Arc::default(), Arc::default());
        let named = named.iter().copied().collect();
        let turns = Arc::new(Semaphore::new(1));
        Arc::new(Pool::new(name, Arc::new(driver), named, Bytes::ZERO, 1.0, turns, Arc::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::pool;
    use super::*;
    use crate::engine::LOOK_MOST;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};
    use uuid::Uuid;

    /// What a pool answers.
    #[derive(Clone, Copy, PartialEq)]
    enum Says {
        Has,
        HasNot,
        NotMounted,
        Broken,
        Nothing,
    }

    fn share() -> ShareId {
        ShareId::from_uuid(Uuid::from_u128(7))
    }

    /// The pool that has the share or the refusal, and how many pools were asked.
    async fn found(pools: &Pools, says: &[(&str, Says)]) -> (Result<String, Refusal>, usize) {
        let asked = AtomicUsize::new(0);
        let says: HashMap<String, Says> = says.iter().map(|(name, says)| ((*name).to_owned(), *says)).collect();
        let ask = |pool: Arc<Pool>| {
            asked.fetch_add(1, Ordering::Relaxed);
            let says = says[pool.name.as_str()];
            async move {
                match says {
                    Says::Has => Ok(()),
                    Says::HasNot => Err(Refusal::ShareNotFound { share: share() }),
                    Says::NotMounted => Err(Refusal::NotMounted { pool: pool.name.clone(), problem: String::new() }),
                    Says::Broken => Err(Refusal::Internal { problem: String::new() }),
                    Says::Nothing => std::future::pending().await,
                }
            }
        };
        let found = pools.find(share(), ask).await.map(|(pool, ())| pool.name.to_string());
        (found, asked.into_inner())
    }

    fn twice() -> Result<String, Refusal> {
        Err(in_two_pools(share(), &pool("b", &[]).name, &pool("a", &[]).name))
    }

    #[tokio::test]
    async fn a_share_in_two_pools_is_in_neither_and_one_that_was_found_is_asked_for_where_it_was() {
        let pools = Pools::new(vec![pool("a", &[]), pool("b", &[])]);
        for _ in 0..20 {
            assert_eq!(found(&pools, &[("a", Says::Has), ("b", Says::Has)]).await, (twice(), 2));
        }
        let in_b = [("a", Says::HasNot), ("b", Says::Has)];
        assert_eq!(found(&pools, &in_b).await, (Ok("b".to_owned()), 2));
        assert_eq!(found(&pools, &in_b).await, (Ok("b".to_owned()), 1));
        // It has moved.
        assert_eq!(found(&pools, &[("a", Says::Has), ("b", Says::HasNot)]).await, (Ok("a".to_owned()), 3));
        assert_eq!(found(&pools, &[("a", Says::HasNot), ("b", Says::HasNot)]).await.0, {
            Err(Refusal::ShareNotFound { share: share() })
        });
    }

    #[tokio::test]
    async fn a_share_that_the_configuration_names_is_asked_for_in_its_own_pool_alone() {
        let pools = Pools::new(vec![pool("a", &[]), pool("b", &[share()])]);
        assert_eq!(found(&pools, &[("a", Says::Has), ("b", Says::Has)]).await, (Ok("b".to_owned()), 1));
        let (refusal, asked) = found(&pools, &[("a", Says::Has), ("b", Says::NotMounted)]).await;
        assert!(matches!(refusal, Err(Refusal::NotMounted { .. })) && asked == 1);
    }

    #[tokio::test]
    async fn a_pool_that_cannot_tell_stops_no_other_and_is_asked_again() {
        for says in [Says::NotMounted, Says::Broken] {
            let pools = Pools::new(vec![pool("a", &[]), pool("b", &[])]);
            assert_eq!(found(&pools, &[("a", says), ("b", Says::Has)]).await, (Ok("b".to_owned()), 2));
            assert_eq!(found(&pools, &[("a", Says::Has), ("b", Says::Has)]).await, (twice(), 2));
        }
    }

    #[tokio::test]
    async fn a_pool_that_does_not_answer_is_waited_for_once() {
        let pools = Pools::new(vec![pool("a", &[]), pool("b", &[])]);
        let says = [("a", Says::Nothing), ("b", Says::Has)];
        let begun = Instant::now();
        assert_eq!(found(&pools, &says).await, (Ok("b".to_owned()), 2));
        assert!(begun.elapsed() >= LOOK_MOST);
        // Its driver has answered what it was then asked.
        while pools.all()[0].is_silent() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Its kernel side hangs, as far as anybody knows.
        pools.all()[0].silent.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        assert_eq!(found(&pools, &says).await, (Ok("b".to_owned()), 2));
        assert!(begun.elapsed() < LOOK_MOST);
        // It has answered: it counts again.
        pools.all()[0].silent.store(false, Ordering::Relaxed);
        assert_eq!(found(&pools, &[("a", Says::Has), ("b", Says::Has)]).await, (twice(), 2));
    }
}
