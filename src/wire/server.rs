//! The server on its listeners, with health and reflection beside the services, and the gate before all of them.

use std::fs::{self, Permissions};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use super::gate::{Gate, Guard, Rules};
use super::handlers::Handlers;
use super::limits::*;
pub use super::listeners::Tcp;
use super::listeners::{Connection, Connections};
use super::proto::job_service_server::{self, JobServiceServer};
use super::proto::node_service_server::{self, NodeServiceServer};
use super::proto::share_service_server::{self, ShareServiceServer};
use super::{listeners, proto};
use crate::meters::Meters;
use crate::service::Service;

/// Only root may connect.
const SOCKET_MODE: u32 = 0o660;
/// Everybody on the node may connect: the gate tells them apart.
const OPEN_SOCKET_MODE: u32 = 0o666;

/// What the daemon tells the server while it serves.
#[derive(Clone)]
pub struct Control {
    service: Arc<OnceLock<Arc<Service>>>,
    health: HealthReporter,
    guard: Arc<Guard>,
}

impl Control {
    /// Requests are answered from now on.
    pub fn start(&self, service: Arc<Service>) {
        // Called once, by the daemon; a second service would not be taken.
        let _ = self.service.set(service);
    }

    /// Who may call what from now on, also on connections that are there already. Those of callers who had no role when
    /// they connected end without losing a call.
    pub fn set_rules(&self, rules: Rules) {
        self.guard.rules.send_if_modified(|current| mem::replace(current, rules) != *current);
    }

    /// What the health service says: of growd as a whole and of its shares, and of the other services.
    pub async fn set_serving(&self, serving: bool, shares: bool) {
        let services = [
            ("", shares),
            (share_service_server::SERVICE_NAME, shares),
            (job_service_server::SERVICE_NAME, serving),
            (node_service_server::SERVICE_NAME, serving),
        ];
        for (service, serving) in services {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.health.set_service_status(service, status).await;
        }
    }
}

/// Why the server could not be started or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}; {}", tcp_remedy(source))]
    ListenTcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {path}")]
    Listen { path: String, source: io::Error },
    #[error(
        "systemd holds the socket {held}, but the configuration has listen = \"unix:{path}\"; make them the same with \
        `systemctl edit growd.socket`: an empty ListenStream= drops the one before, another names the new one"
    )]
    OtherSocket { held: String, path: String },
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot serve the contract by reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What lets growd have a TCP port.
fn tcp_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "`ss -ltnp` shows who listens there",
        io::ErrorKind::PermissionDenied => "under systemd take a port from 1024 on",
        _ => {
            "it must be an address of this node; under systemd, the drop-in of `growd check-config --drop-in` opens the network"
        }
    }
}

/// Binds the socket. One that is there already and that nobody listens on is the leftover of a kill, and is replaced.
///
/// # Errors
/// [`ServeError::Listen`].
pub fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen { path: path.display().to_string(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(failed(io::Error::other("it is not a socket"))),
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(failed(io::Error::other("another process listens on it; stop it first")));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(listener)
}

/// Takes over the socket that the service manager holds for growd, which must be the configured one.
///
/// # Errors
/// [`ServeError`].
pub fn adopt(held: std::os::unix::net::UnixListener, path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen { path: path.display().to_string(), source };
    let address = held.local_addr().map_err(failed)?;
    if address.as_pathname() != Some(path) {
        let held = address.as_pathname().map_or_else(|| "without a path".to_owned(), |held| held.display().to_string());
        return Err(ServeError::OtherSocket { held, path: path.display().to_string() });
    }
    held.set_nonblocking(true).and_then(|()| UnixListener::from_std(held)).map_err(failed)
}

/// Binds a TCP port.
///
/// # Errors
/// [`ServeError::ListenTcp`].
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::ListenTcp { address, source })
}

/// Lets everybody on the node connect to the socket, or root only. The gate decides what they may call.
///
/// # Errors
/// Those of chmod(2).
pub fn open_to_all(socket: &Path, open: bool) -> io::Result<()> {
    fs::set_permissions(socket, Permissions::from_mode(if open { OPEN_SOCKET_MODE } else { SOCKET_MODE }))
}

/// Serves until `stopped`, then lets the requests at hand end. NOT_SERVING until the control says otherwise. Each listener
/// has so many connections at most.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    listener: UnixListener,
    tcp: Option<Tcp>,
    rules: Rules,
    connections: u64,
    meters: Arc<Meters>,
    stopped: watch::Receiver<bool>,
) -> Result<(Control, impl Future<Output = Result<(), ServeError>>), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let handlers = Handlers { service: Arc::default(), meters: Arc::clone(&meters) };
    let guard = Arc::new(Guard::new(rules, Arc::clone(&meters)));
    let control = Control { service: Arc::clone(&handlers.service), health, guard: Arc::clone(&guard) };
    control.set_serving(false, false).await;
    let services = Gate::new(services(health_service, handlers)?, Arc::clone(&guard));
    let most = usize::try_from(connections).unwrap_or(usize::MAX);
    let Connections { known, strangers } = listeners::connections(listener, tcp, most, &guard, &meters);
    let known = server(STREAMS_MOST).serve_with_incoming_shutdown(services.clone(), known, until(stopped.clone()));
    let strangers = serve_strangers(services, strangers, guard, stopped);
    Ok((control, async {
        tokio::try_join!(known, strangers)?;
        Ok(())
    }))
}

/// All services that are served, with the limit of a message for each.
fn services<H: Health>(health: HealthServer<H>, handlers: Handlers) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(health.max_decoding_message_size(MESSAGE_MOST))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MESSAGE_MOST))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MESSAGE_MOST))
        .add_service(ShareServiceServer::new(handlers.clone()).max_decoding_message_size(MESSAGE_MOST))
        .add_service(JobServiceServer::new(handlers.clone()).max_decoding_message_size(MESSAGE_MOST))
        .add_service(NodeServiceServer::new(handlers).max_decoding_message_size(MESSAGE_MOST))
        .prepare())
}

/// Serves the connections of callers that had no role when they connected. Whoever gets one by a change of the rules is a
/// stranger no more: all these connections end in good order then, and their callers connect again as what they are by
/// that time. Calls at hand do not hold that up.
async fn serve_strangers(
    services: Gate<Routes>,
    connections: mpsc::Receiver<io::Result<Connection>>,
    guard: Arc<Guard>,
    stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let connections = Arc::new(Mutex::new(connections));
    let each_rules = WatchStream::new(guard.rules.subscribe()).take_until(until(stopped.clone()));
    let served = each_rules.map(Ok).try_for_each_concurrent(None, |_| {
        let connections = stream::unfold(Arc::clone(&connections), async |connections| {
            let connection = connections.lock().await.recv().await?;
            Some((connection, connections))
        });
        let (mut rules, stop) = (guard.rules.subscribe(), until(stopped.clone()));
        let changed = async move { tokio::select!(_ = rules.changed() => {}, () = stop => {}) };
        server(STRANGERS_STREAMS_MOST).serve_with_incoming_shutdown(services.clone(), connections, changed)
    });
    served.await
}

/// Waits for the word to stop; a sender that is gone says the same.
async fn until(mut stopped: watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Connections have so many streams at once.
fn server(streams: u32) -> Server {
    Server::builder()
        .max_concurrent_streams(streams)
        .http2_max_header_list_size(HEADERS_MOST)
        .max_frame_size(FRAME_MOST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MOST))
        .http2_max_local_error_reset_streams(Some(ERRORS_MOST))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_finds_a_port_taken_is_told_how_to_find_by_whom() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = bind_tcp(holder.local_addr().unwrap()).await.unwrap_err();
        assert!(refused.to_string().ends_with("`ss -ltnp` shows who listens there"), "{refused}");
        // An address of nobody's (RFC 5737).
        let refused = bind_tcp("192.0.2.7:0".parse().unwrap()).await.unwrap_err();
        assert!(refused.to_string().contains("an address of this node"), "{refused}");
    }
}
