//! The daemon: open, recover, serve, follow the configuration, drain. The only room that knows all others.

pub mod access;
pub mod drop_in;
mod health;
mod heartbeat;
pub mod pools;
mod reload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::Config;
use crate::driver::flight_recorder::FlightRecorder;
use crate::engine::Engine;
use crate::engine::looks;
use crate::engine::pools::{Pools, TURNS};
use crate::logging::Log;
use crate::meters::Meters;
use crate::service::{Host, Service};
use crate::store::{Claimed, Retention};
use crate::sys::{open_files, systemd};
use crate::wire::{limits, metrics, server};
use pools::PoolMaker;
use reload::Reload;

/// Pools that there are threads for beyond those of the first configuration: more may be added while growd runs. A
/// thread is made when it is needed.
const POOLS_ADDED: usize = 16;

/// How long a thread stays when it has nothing to do: longer than it is between two looks at the pools. To make one for each
/// look takes more wake-ups than the look, the allocator's among them.
pub const THREADS_STAY: Duration = Duration::from_secs(35);

/// Threads that drivers may block at once, so that one pool's hanging calls leave room for the others'.
pub fn blocking_threads(config: &Config) -> usize {
    (config.pools.len() + POOLS_ADDED) * (TURNS + looks::THREADS) + looks::THREADS
}

/// Runs until SIGTERM or SIGINT, then drains. SIGHUP reads the configuration anew, from `path`, the level of the log with
/// it.
///
/// # Errors
/// When growd cannot be started, or its socket fails.
pub async fn run(config: Config, path: PathBuf, log: Arc<Log>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (rules, problems) = access::rules(&config.access);
    problems.iter().for_each(|problem| warn!("{problem}"));
    let claimed = Claimed::of(&config.state_dir)?;

    let (stop, stopped) = watch::channel(false);
    let held = systemd::held_socket().context("cannot take over the socket of growd.socket")?;
    // Who may connect to a socket that systemd holds is said in growd.socket.
    let own_socket = held.is_none();
    let listener = match held {
        Some(held) => server::adopt(held, &config.listen)?,
        None => server::bind(&config.listen)?,
    };
    let scraped = match config.metrics {
        Some(address) => Some(server::bind_tcp(address).await?),
        None => None,
    };
    if own_socket {
        let open = config.access.names_accounts();
        server::open_to_all(&config.listen, open).context("cannot set the mode of the socket")?;
    }
    let tcp = access::listen(&config).await?;
    let tls = tcp.as_ref().and_then(|tcp| tcp.tls.clone());
    let meters = Arc::new(Meters::new()?);
    let listeners = 1 + u64::from(tcp.is_some());
    let files = open_files::raise(limits::files(listeners)).context("cannot raise the limit of open files")?;
    let connections = limits::connections(files, listeners);
    if connections < limits::CONNECTIONS_MOST {
        info!(files, connections, "the limit of open files allows each listener fewer connections than there may be");
    }
    let (control, server) = server::serve(listener, tcp, rules, connections, Arc::clone(&meters), stopped).await?;
    let server = tokio::spawn(server);

    systemd::status("opening the job store");
    // Served already, so that whoever asks meanwhile hears that growd is starting. SIGTERM waits for the opening to end.
    let retention = Retention { age: config.retention_age, jobs: config.retention_jobs };
    let (store, unfinished) = tokio::task::spawn_blocking(move || claimed.open(retention)).await??;
    let recorder = Arc::new(FlightRecorder::default());
    store.measure(Arc::clone(&meters));
    let mut maker = PoolMaker::new(Arc::clone(&recorder));
    let engine = Engine::new(store, Pools::new(maker.make(&config.pools)), Arc::clone(&meters));
    engine.recover(unfinished).await.context("cannot note the restart in the job store")?;
    maker.warn_of_problems();
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
                warn!(%error, "no metrics are served");
            }
        });
    }
    let (look, (readable, mut any_readable)) = (Arc::new(Notify::new()), watch::channel(false));
    let looks = tokio::spawn(health::look_at_pools(Arc::clone(&engine), Arc::clone(&look), readable));
    let mut failure = engine.store.failure();
    info!(socket = %config.listen.display(), jobs = engine.store.len(), "growd is ready");
    systemd::ready();
    let heartbeat = tokio::spawn(heartbeat::beat(Arc::clone(&engine)));
    let mut reload = Reload {
        path,
        first: config,
        log,
        own_socket,
        maker,
        engine: Arc::clone(&engine),
        control: control.clone(),
        tls,
    };

    loop {
        let serving = failure.borrow_and_update().is_none();
        let shares = serving && *any_readable.borrow_and_update();
        control.set_serving(serving, shares).await;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                systemd::reloading();
                reload.reload();
                look.notify_one();
                systemd::ready();
            }
            Ok(()) = any_readable.changed() => {}
            changed = failure.changed() => if changed.is_err() { break },
        }
    }
    let (queued, running) = engine.active();
    info!(queued, running, "draining: running steps end, queued jobs stay for the next start");
    systemd::stopping();
    control.set_serving(false, false).await;
    engine.drain().await;
    stop.send_replace(true);
    // Watchers of queued jobs would hold the server for ever; what matters is on disk.
    if timeout(Duration::from_secs(2), server).await.is_err() {
        info!("closing connections that are still open");
    }
    heartbeat.abort();
    looks.abort();
    engine.store.close().await;
    info!("growd has ended");
    Ok(())
}
