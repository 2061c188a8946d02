//! The daemon: open, recover, serve, drain. The only room that knows all others.

pub mod drop_in;
mod heartbeat;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use crate::config::{Backend, Config, PoolConfig};
use crate::driver::Driver;
use crate::driver::btrfs::Btrfs;
use crate::driver::flight_recorder::FlightRecorder;
use crate::driver::image::{Image, Images};
use crate::driver::lvm::{Lvm, VolumeGroup, find_lvm};
use crate::driver::project_quota::{ProjectQuota, Promises};
use crate::engine::Engine;
use crate::engine::pools::{LOOKS, Pool, Pools, TURNS};
use crate::meters::Meters;
use crate::service::{Host, Service};
use crate::store::{Claimed, Retention};
use crate::sys::systemd;
use crate::wire::{metrics, server};

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
    let claimed = Claimed::of(&config.state_dir)?;

    let (stop, stopped) = watch::channel(false);
    let listener = match systemd::held_socket().context("cannot take over the socket of growd.socket")? {
        Some(held) => server::adopt(held, &config.listen)?,
        None => server::bind(&config.listen)?,
    };
    let scraped = match config.metrics {
        Some(address) => {
            Some(TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for metrics"))?)
        }
        None => None,
    };
    let shutdown = async move {
        let mut stopped = stopped;
        // The sender lives until the end of this function.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let (control, server) = server::serve(listener, shutdown).await?;
    let server = tokio::spawn(server);

    systemd::status("opening the job store");
    // Served already, so that whoever asks meanwhile hears that growd is starting. SIGTERM waits for the opening to end.
    let retention = Retention { age: config.retention_age, jobs: config.retention_jobs };
    let (store, unfinished) = tokio::task::spawn_blocking(move || claimed.open(retention)).await??;
    let recorder = Arc::new(FlightRecorder::default());
    let meters = Arc::new(Meters::new()?);
    store.measure(Arc::clone(&meters));
    let engine = Engine::new(store, pools(&config, &recorder), Arc::clone(&meters));
    engine.recover(unfinished).await.context("cannot note the restart in the job store")?;
    let host = nix::sys::utsname::uname()?;
    let host = Host {
        name: host.nodename().to_string_lossy().into_owned(),
        kernel: host.release().to_string_lossy().into_owned(),
    };
    let service = Arc::new(Service::new(Arc::clone(&engine), config.max_active_jobs, host, recorder));
    control.start(Arc::clone(&service));
    if let Some(listener) = scraped {
        tokio::spawn(async move {
            if let Err(error) = metrics::serve(listener, service, &meters).await {
                warn!(%error, "no more metrics are served");
            }
        });
    }
    let mut failure = engine.store.failure();
    info!(socket = %config.listen.display(), jobs = engine.store.len(), "growd is ready");
    systemd::ready();
    let heartbeat = tokio::spawn(heartbeat::beat(Arc::clone(&engine)));

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
    systemd::stopping();
    control.set_serving(false).await;
    engine.drain().await;
    stop.send_replace(true);
    // Watchers of queued jobs would hold the server for ever; what matters is on disk.
    if tokio::time::timeout(std::time::Duration::from_secs(2), server).await.is_err() {
        info!("closing connections that are still open");
    }
    heartbeat.abort();
    engine.store.close().await;
    Ok(())
}

/// The pools as configured, each with its driver.
pub fn pools(config: &Config, recorder: &Arc<FlightRecorder>) -> Pools {
    let program = find_lvm();
    if program.is_none() && config.pools.iter().any(|pool| matches!(pool.backend, Backend::Lvm(_))) {
        warn!("lvm is not installed: pools of logical volumes are refused as not mounted");
    }
    let (promises, images) = (Arc::new(Promises::default()), Arc::new(Images::default()));
    let mut groups: BTreeMap<String, (Arc<VolumeGroup>, Arc<Semaphore>)> = BTreeMap::new();
    let pool = |pool: &PoolConfig| {
        let (driver, turns): (Arc<dyn Driver>, _) = match &pool.backend {
            Backend::ProjectQuota { path, shares } => {
                let driver = ProjectQuota::new(pool.name.clone(), path.clone(), shares.clone(), Arc::clone(&promises));
                (Arc::new(driver), Arc::new(Semaphore::new(TURNS)))
            }
            Backend::Lvm(lvm) => {
                // LVM changes one volume of a group at a time; whoever waits for that should still be QUEUED.
                let (group, turns) = groups.entry(lvm.volume_group.clone()).or_insert_with(|| {
                    let group = VolumeGroup::new(lvm.volume_group.clone(), program.clone(), Arc::clone(recorder));
                    (Arc::new(group), Arc::new(Semaphore::new(1)))
                });
                let driver = Lvm {
                    pool: pool.name.clone(),
                    group: Arc::clone(group),
                    template: lvm.volume.clone(),
                    explicit: lvm.shares.clone(),
                    thin: lvm.thin_pool.clone(),
                    allow_any_growth: lvm.allow_any_growth,
                };
                (Arc::new(driver), Arc::clone(turns))
            }
            Backend::Image { path, shares, allow_any_growth } => {
                let driver = Image::new(
                    pool.name.clone(),
                    path.clone(),
                    shares.clone(),
                    *allow_any_growth,
                    pool.overcommit > 1.0,
                    Arc::clone(&images),
                );
                (Arc::new(driver), Arc::new(Semaphore::new(TURNS)))
            }
            Backend::Btrfs { path, shares } => {
                let driver = Btrfs::new(pool.name.clone(), path.clone(), shares.clone());
                (Arc::new(driver), Arc::new(Semaphore::new(TURNS)))
            }
        };
        Pool::new(pool.name.clone(), driver, pool.reserve, pool.overcommit, turns)
    };
    Pools::new(config.pools.iter().map(pool).collect())
}
