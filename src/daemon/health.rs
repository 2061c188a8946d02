//! Whether any pool can be read: without one growd has no share to tell of, whatever else works.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{pending, ready};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::engine::pools::{Pool, Pools};
use crate::engine::{Engine, LOOK_MOST};

/// Each look wakes growd up.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// While no pool can be read: callers stay away for as long as growd tells them so.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Tells it again and again, and at once when it is asked for: one look at a time. Nothing before the first has ended.
pub async fn watch_readable(engine: Arc<Engine>, asked: Arc<Notify>, readable: watch::Sender<Option<bool>>) {
    let mut found = None;
    loop {
        found = a_readable_one(&engine.pools, found).await;
        let now = found.is_some();
        if readable.send_if_modified(|told| told.replace(now) != Some(now)) {
            match now {
                true => info!("a pool can be read"),
                false => warn!("no pool can be read"),
            }
        }
        let _ = timeout(if now { LOOK_EVERY } else { LOOK_AGAIN }, asked.notified()).await;
    }
}

/// Asks the one of before, and all of them only where that cannot be read any more.
async fn a_readable_one(pools: &Pools, before: Option<Arc<Pool>>) -> Option<Arc<Pool>> {
    if let Some(pool) = before.filter(|pool| pools.has(pool))
        && is_readable(&pool).await
    {
        return Some(pool);
    }
    let ask = |pool: Arc<Pool>| async move { is_readable(&pool).await.then_some(pool) };
    let answers: FuturesUnordered<_> = pools.all().into_iter().map(ask).collect();
    // The first will do, so nobody waits for one that is slow.
    pin!(answers.filter_map(ready)).next().await
}

/// A pool that has kept silent is not asked again before it has answered, so that no questions pile up on it.
async fn is_readable(pool: &Arc<Pool>) -> bool {
    let told = pool.told();
    let asked = async {
        if pool.is_silent() {
            return pending().await;
        }
        pool.call(|driver| driver.check_mounted()).await
    };
    match timeout(LOOK_MOST, asked).await {
        Ok(answer) => answer.is_ok(),
        // So many have asked before that it is not this question's turn: their answers will do.
        Err(_) if pool.told() > told => true,
        Err(_) => {
            pool.has_kept_silent();
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::sync::Semaphore;
    use uuid::Uuid;

    use crate::driver::{Assessment, Driver, DriverError, Observed, Outcome, Shares, Sizes, Space, Step};
    use crate::model::{Bytes, DriverKind, ProjectLabel, Refusal, ShareId};

    /// Answers one question after the other, as lvm does, and has no shares.
    struct Slow {
        takes: Duration,
        one: Mutex<()>,
    }

    impl Slow {
        fn answer<T>(&self, answer: Result<T, Refusal>) -> Result<T, DriverError> {
            let _one = self.one.lock();
            std::thread::sleep(self.takes);
            Ok(answer?)
        }
    }

    impl Driver for Slow {
        fn kind(&self) -> DriverKind {
            DriverKind::Lvm
        }

        fn location(&self) -> String {
            String::new()
        }

        fn shares(&self, _: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
            self.answer(Ok(Shares::from([])))
        }

        fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>> {
            shares.iter().map(|share| self.answer(Err(Refusal::ShareNotFound { share: *share }))).collect()
        }

        fn assess_all(&self, _: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>> {
            unreachable!("it has no shares")
        }

        fn space(&self) -> Result<Space, DriverError> {
            self.answer(Err(Refusal::Internal { problem: String::new() }))
        }

        fn check_mounted(&self) -> Result<(), DriverError> {
            self.answer(Ok(()))
        }

        fn measure(&self, _: ShareId) -> Result<Sizes, DriverError> {
            unreachable!("it has no shares")
        }

        fn apply(&self, _: ShareId, _: Step) -> Result<Outcome, DriverError> {
            unreachable!("it has no shares")
        }

        fn verify_all(&self, _: &[ShareId]) -> Vec<Result<Bytes, DriverError>> {
            unreachable!("it has no shares")
        }
    }

    /// Looks at a pool that takes so long for each answer, behind so many other questions.
    async fn look(takes: Duration, others: u32) -> (bool, Arc<Pool>) {
        let driver = Arc::new(Slow { takes, one: Mutex::default() });
        let (name, turns) = ("vols".parse().unwrap(), Arc::new(Semaphore::new(1)));
        let pool = Pool::new(name, driver, Default::default(), Bytes::ZERO, 1.0, turns, Arc::default());
        let pool = Arc::new(pool);
        for n in 0..others.into() {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.observe(ShareId::from_uuid(Uuid::from_u128(n))).await });
        }
        tokio::task::yield_now().await;
        (is_readable(&pool).await, pool)
    }

    #[test]
    fn a_pool_with_much_to_answer_can_be_read_and_one_that_hangs_cannot() {
        let slow = Duration::from_millis(100);
        let many = 2 * u32::try_from(LOOK_MOST.as_millis() / slow.as_millis()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let looks = async { tokio::join!(look(slow, many), look(LOOK_MOST * 2, 0)) };
        let ((busy, busy_pool), (hangs, hanging_pool)) = runtime.block_on(looks);
        assert!(busy && !busy_pool.is_silent());
        assert!(!hangs && hanging_pool.is_silent());
        // What hangs is not waited for.
        runtime.shutdown_background();
    }
}
