//! The daemon: open, recover, serve, drain. The only file that knows all rooms.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use crate::config::{Config, PoolConfig};
use crate::driver::project_quota::{ProjectQuota, Promises};
use crate::engine::Engine;
use crate::engine::pools::{LOOKS, Pool, Pools, TURNS};
use crate::model::DriverKind;
use crate::service::{Host, Service};
use crate::store::{Retention, Store};
use crate::wire::server;

/// Threads that drivers may block at once, so that one pool's hanging calls leave room for the others'.
pub fn blocking_threads(config: &Config) -> usize {
    config.pools.len() * (TURNS + LOOKS) + LOOKS
}

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// When growd cannot be started, or its socket fails.
pub async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for problem in config.missing_directories() {
        warn!("{problem}");
    }
    let retention = Retention { age: config.retention_age, jobs: config.retention_jobs };
    let (store, unfinished) = Store::open(&config.state_dir, retention)?;

    let (stop, stopped) = watch::channel(false);
    let listener = server::bind(&config.listen)?;
    let shutdown = async move {
        let mut stopped = stopped;
        // The sender lives until the end of this function.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let (control, server) = server::serve(listener, shutdown).await?;
    let server = tokio::spawn(server);

    let engine = Engine::new(store, pools(&config));
    engine.recover(unfinished).await.context("cannot note the restart in the job store")?;
    let host = nix::sys::utsname::uname()?;
    let host = Host {
        name: host.nodename().to_string_lossy().into_owned(),
        kernel: host.release().to_string_lossy().into_owned(),
    };
    control.start(Arc::new(Service::new(Arc::clone(&engine), config.max_active_jobs, host)));
    let mut failure = engine.store.failure();
    info!(socket = %config.listen.display(), jobs = engine.store.len(), "growd is ready");

    loop {
        let healthy = failure.borrow_and_update().is_none();
        control.set_serving(healthy).await;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = failure.changed() => if changed.is_err() { break },
        }
    }
    info!("draining: running steps end, queued jobs stay for the next start");
    control.set_serving(false).await;
    engine.drain().await;
    stop.send_replace(true);
    // Watchers of queued jobs would hold the server for ever; what matters is on disk.
    if tokio::time::timeout(std::time::Duration::from_secs(2), server).await.is_err() {
        info!("closing connections that are still open");
    }
    engine.store.close().await;
    Ok(())
}

/// The pools as configured, each with its driver.
pub fn pools(config: &Config) -> Pools {
    let promises = Arc::new(Promises::default());
    let pool = |pool: &PoolConfig| {
        let driver = match pool.driver {
            DriverKind::ProjectQuota => Arc::new(ProjectQuota::new(
                pool.name.clone(),
                pool.path.clone(),
                pool.shares.clone(),
                Arc::clone(&promises),
            )),
        };
        Pool::new(pool.name.clone(), driver, pool.reserve, pool.overcommit, Arc::new(Semaphore::new(TURNS)))
    };
    Pools::new(config.pools.iter().map(pool).collect())
}
