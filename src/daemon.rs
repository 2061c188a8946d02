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
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
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
use crate::wire::gate::Rules;
use crate::wire::server::{Control, ServeError};
use crate::wire::tls::Tls;
use crate::wire::{limits, metrics, server};
use pools::PoolMaker;
use reload::Reload;

/// Pools that there are threads for beyond those of the first configuration: more may be added while growd runs. A
/// thread is made when it is needed.
const POOLS_ADDED: usize = 16;

/// How long a thread stays when it has nothing to do: longer than it is between two looks at the pools. To make one for each
/// look takes more wake-ups than the look, the allocator's among them.
pub const THREADS_STAY: Duration = Duration::from_secs(35);

/// Threads that drivers, and reads of the job store, may block at once: what hangs leaves room for the rest.
pub fn blocking_threads(config: &Config) -> usize {
    (config.pools.len() + POOLS_ADDED) * (TURNS + looks::THREADS) + looks::THREADS
}

/// Runs until SIGTERM or SIGINT, then drains. SIGHUP reads the configuration anew, from `path`, the level of the log with
/// it.
///
/// # Errors
/// When growd cannot be started, or its socket fails.
pub async fn run(config: Config, path: PathBuf, log: Arc<Log>) -> Result<()> {
    let mut signals = Signals::new()?;
    let (rules, problems) = access::rules(&config.access);
    problems.iter().for_each(|problem| warn!("{problem}"));
    // Before the socket, which another growd with the same state may serve.
    let claimed = Claimed::of(&config.state_dir)?;
    // Before the store opens: whoever asks meanwhile hears that growd is starting.
    let mut listening = listen(&config, rules).await?;
    // SIGTERM waits for it to end.
    let (engine, maker) = recover(&config, claimed, &mut listening).await?;
    let (asked, (readable, any_readable)) = (Arc::new(Notify::new()), watch::channel(None));
    let health = tokio::spawn(health::watch_readable(Arc::clone(&engine), Arc::clone(&asked), readable));
    info!(socket = %config.listen.display(), jobs = engine.store.kept(), "growd is ready");
    // Not before the jobs of before are queued again.
    systemd::ready();
    let heartbeat = tokio::spawn(heartbeat::beat(Arc::clone(&engine)));

    let mut reload = Reload {
        path,
        first: config,
        log,
        own_socket: listening.own_socket,
        maker,
        engine: Arc::clone(&engine),
        control: listening.control.clone(),
        tls: listening.tls.clone(),
    };
    follow(&mut signals, &mut reload, any_readable, &asked).await;
    drain(&engine, listening).await;
    heartbeat.abort();
    health.abort();
    engine.store.close().await;
    info!("growd has ended");
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The server on its sockets.
struct Listening {
    control: Control,
    server: JoinHandle<Result<(), ServeError>>,
    stop: watch::Sender<bool>,
    /// Who may connect to a socket that systemd holds is said in growd.socket.
    own_socket: bool,
    tls: Option<Arc<Tls>>,
    /// Taken once there is something to scrape.
    scraped: Option<TcpListener>,
    meters: Arc<Meters>,
}

/// Takes the sockets and serves them.
async fn listen(config: &Config, rules: Rules) -> Result<Listening> {
    let (stop, stopped) = watch::channel(false);
    let held = systemd::held_socket().context("cannot take over the socket of growd.socket")?;
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
    let tcp = access::listen(config).await?;
    let tls = tcp.as_ref().and_then(|tcp| tcp.tls.clone());
    let meters = Arc::new(Meters::new()?);
    let listeners = 1 + u64::from(tcp.is_some());
    let files = open_files::raise(limits::files(listeners)).context("cannot raise the limit of open files")?;
    let connections = limits::connections(files, listeners);
    if connections < limits::CONNECTIONS_MOST {
        info!(files, connections, "the limit of open files allows each listener fewer connections than there may be");
    }
    let (control, server) = server::serve(listener, tcp, rules, connections, Arc::clone(&meters), stopped).await?;
    Ok(Listening { control, server: tokio::spawn(server), stop, own_socket, tls, scraped, meters })
}

/// Opens the job store, goes on with its unfinished jobs, and answers requests from then on.
async fn recover(config: &Config, claimed: Claimed, listening: &mut Listening) -> Result<(Arc<Engine>, PoolMaker)> {
    systemd::status("opening the job store");
    let retention = Retention { age: config.retention_age, jobs: config.retention_jobs };
    let (meters, of_store) = (Arc::clone(&listening.meters), Arc::clone(&listening.meters));
    let (store, unfinished) = tokio::task::spawn_blocking(move || claimed.open(retention, of_store)).await??;
    let recorder = Arc::new(FlightRecorder::default());
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
    listening.control.start(Arc::clone(&service));
    if let Some(listener) = listening.scraped.take() {
        let tls = listening.tls.clone();
        tokio::spawn(async move {
            if let Err(error) = metrics::serve(listener, service, &meters, tls).await {
                warn!(%error, "no metrics are served");
            }
        });
    }
    Ok((engine, maker))
}

/// Tells callers of growd's health, and follows the configuration, until growd is to end.
async fn follow(
    signals: &mut Signals,
    reload: &mut Reload,
    mut any_readable: watch::Receiver<Option<bool>>,
    asked: &Notify,
) {
    let mut failure = reload.engine.store.failure();
    loop {
        let serving = failure.borrow_and_update().is_none();
        let shares = serving && *any_readable.borrow_and_update() == Some(true);
        reload.control.set_serving(serving, shares).await;
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => {
                systemd::reloading();
                reload.reload();
                asked.notify_one();
                systemd::ready();
            }
            Ok(()) = any_readable.changed() => {}
            changed = failure.changed() => if changed.is_err() { return },
        }
    }
}

/// Ends the running steps and then the server. What matters is on disk.
async fn drain(engine: &Engine, listening: Listening) {
    let (queued, running) = engine.active();
    info!(queued, running, "draining: running steps end, queued jobs stay for the next start");
    systemd::stopping();
    listening.control.set_serving(false, false).await;
    engine.drain().await;
    listening.stop.send_replace(true);
    // Watchers of queued jobs would hold the server for ever.
    if timeout(Duration::from_secs(2), listening.server).await.is_err() {
        info!("closing connections that are still open");
    }
}
