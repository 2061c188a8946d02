//! The listener on the unix socket, with health and reflection beside the services.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::handlers::Handlers;
use super::proto;
use super::proto::job_service_server::JobServiceServer;
use super::proto::node_service_server::NodeServiceServer;
use super::proto::share_service_server::ShareServiceServer;
use crate::service::Service;

/// The largest request that is read: the longest legal one has less than 2 KiB.
const MESSAGE_MOST: usize = 64 << 10;
/// Streams of one connection at once; HTTP/2 itself would allow any number.
const STREAMS_MOST: u32 = 1024;
/// Only root and the socket's group may connect.
const SOCKET_MODE: u32 = 0o660;

/// What the daemon tells the server while it serves.
#[derive(Clone)]
pub struct Control {
    service: Arc<OnceLock<Arc<Service>>>,
    health: HealthReporter,
}

impl Control {
    /// Requests are answered from now on.
    pub fn start(&self, service: Arc<Service>) {
        // Called once, by the daemon; a second service would not be taken.
        let _ = self.service.set(service);
    }

    /// What the health service says of growd as a whole and of each of its services.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        let services = ["", "growd.v1.ShareService", "growd.v1.JobService", "growd.v1.NodeService"];
        for service in services {
            self.health.set_service_status(service, status).await;
        }
    }
}

/// Why the server could not be started or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {path}")]
    Listen { path: String, source: io::Error },
    #[error(
        "systemd holds the socket {held}, but the configuration has listen = \"unix:{path}\"; make them the same with \
        `systemctl edit growd.socket`"
    )]
    OtherSocket { held: String, path: String },
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot serve the contract by reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
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

/// Serves until `shutdown`, then lets the requests at hand end. NOT_SERVING until the control says otherwise.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(Control, impl Future<Output = Result<(), ServeError>>), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let handlers = Handlers::default();
    let control = Control { service: Arc::clone(&handlers.service), health };
    control.set_serving(false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MOST)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(ShareServiceServer::new(handlers.clone()).max_decoding_message_size(MESSAGE_MOST))
        .add_service(JobServiceServer::new(handlers.clone()).max_decoding_message_size(MESSAGE_MOST))
        .add_service(NodeServiceServer::new(handlers).max_decoding_message_size(MESSAGE_MOST))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown);
    Ok((control, async { Ok(server.await?) }))
}
