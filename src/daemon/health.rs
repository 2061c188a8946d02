//! Whether any pool can be read: without one growd has no share to tell of, whatever else works.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::engine::pools::{Pool, Pools};
use crate::engine::{Engine, LOOK_MOST};

/// Each look wakes growd up.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Tells it again and again, and at once when it is asked for: one look at a time.
pub async fn look_at_pools(engine: Arc<Engine>, asked: Arc<Notify>, readable: watch::Sender<bool>) {
    let (mut found, mut told) = (None, None);
    loop {
        found = a_readable_one(&engine.pools, found).await;
        let now = found.is_some();
        if told != Some(now) {
            told = Some(now);
            readable.send_replace(now);
            match now {
                true => info!("a pool can be read"),
                false => warn!("no pool can be read"),
            }
        }
        let _ = timeout(LOOK_EVERY, asked.notified()).await;
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
    if pool.is_silent() {
        return false;
    }
    let answer = timeout(LOOK_MOST, pool.call(|driver| driver.check_mounted())).await;
    if answer.is_err() {
        pool.has_kept_silent();
    }
    matches!(answer, Ok(Ok(())))
}
