//! The way to a growd for its clients: an endpoint as text becomes a connected channel, and a change of a size a call.
//!
//! `unix:/path` and `unix:///path` name a unix socket, `https://host:port` a TCP port where both sides show certificates,
//! `http://host:port` one without any protection. The channel connects again by itself when a call finds its connection
//! lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

use super::convert;
use super::proto::share_service_client::ShareServiceClient;
use super::proto::{ExtendShareRequest, Job, ShrinkShareRequest};
pub use crate::model::Credentials;
use crate::model::{JobKind, ShareId, TraceParent};

/// Where growd listens unless its configuration says otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:/run/growd/growd.sock";

/// A stream that waits for a change of a job is silent for as long as the job is; pings tell a peer that is gone from
/// one that has nothing to say.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{endpoint:?} is not an endpoint: {problem}")]
    Form { endpoint: String, problem: &'static str },
    #[error("{endpoint} needs an authority, a certificate and its key")]
    NoCredentials { endpoint: String },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the certificate, its key or the authority is not usable PEM")]
    Credentials { source: tonic::transport::Error },
    #[error("cannot connect to {endpoint}")]
    Unreachable { endpoint: String, source: tonic::transport::Error },
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Unix(PathBuf),
    Http,
    Https,
}

fn target(endpoint: &str) -> Result<Target, ConnectError> {
    let form = |problem| ConnectError::Form { endpoint: endpoint.to_owned(), problem };
    if let Some(rest) = endpoint.strip_prefix("unix:") {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        return match path.strip_prefix('/') {
            Some("") | None => Err(form("a unix socket needs an absolute path, such as unix:/run/growd/growd.sock")),
            Some(_) => Ok(Target::Unix(PathBuf::from(path))),
        };
    }
    match endpoint.split_once("://") {
        Some(("http" | "https", "")) => Err(form("the host is missing: write https://host:port")),
        Some(("http", _)) => Ok(Target::Http),
        Some(("https", _)) => Ok(Target::Https),
        _ => Err(form("write unix:/path or https://host:port")),
    }
}

/// Asks for an extend or a shrink, whose requests have the same fields; as part of a trace where there is one.
///
/// # Errors
/// What growd answers, or the transport makes up.
pub async fn resize(
    channel: Channel,
    kind: JobKind,
    request: ExtendShareRequest,
    caller: Option<TraceParent>,
) -> Result<Response<Job>, Status> {
    let mut shares = ShareServiceClient::new(channel);
    match kind {
        JobKind::Extend => shares.extend_share(called_from(request, caller)).await,
        JobKind::Shrink => {
            let request = ShrinkShareRequest {
                share_id: request.share_id,
                new_size_bytes: request.new_size_bytes,
                expected_current_size_bytes: request.expected_current_size_bytes,
                request_id: request.request_id,
                project_id: request.project_id,
                validate_only: request.validate_only,
            };
            shares.shrink_share(called_from(request, caller)).await
        }
    }
}

/// The token by which ListShares goes on behind a share, whether or not an earlier page ended there.
pub fn page_behind(share: ShareId, pool: &str, project: Option<&str>) -> String {
    convert::page_token(Some(share), &convert::shares_filter(pool, project))
}

fn called_from<T>(message: T, caller: Option<TraceParent>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(caller) = caller.and_then(|caller| caller.to_string().parse().ok()) {
        request.metadata_mut().insert(TraceParent::HEADER, caller);
    }
    request
}

/// Connects; fails when nobody answers there now. `https` needs the credentials, the others take no notice of them.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(endpoint: &str, credentials: Option<&Credentials>) -> Result<Channel, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { endpoint: endpoint.to_owned(), source };
    let form = |_| ConnectError::Form { endpoint: endpoint.to_owned(), problem: "it is not a URI" };
    let kept_alive = |to: Endpoint| to.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
    match target(endpoint)? {
        Target::Unix(path) => {
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // HTTP/2 wants an authority; on a unix socket it is only a name.
            let to = kept_alive(Endpoint::from_static("http://growd"));
            to.connect_with_connector(connector).await.map_err(unreachable)
        }
        Target::Http => {
            let to = kept_alive(Endpoint::from_shared(endpoint.to_owned()).map_err(form)?);
            to.connect().await.map_err(unreachable)
        }
        Target::Https => {
            let none = || ConnectError::NoCredentials { endpoint: endpoint.to_owned() };
            let to = Endpoint::from_shared(endpoint.to_owned()).map_err(form)?;
            let to = to.tls_config(tls(credentials.ok_or_else(none)?)?);
            let to = kept_alive(to.map_err(|source| ConnectError::Credentials { source })?);
            to.connect().await.map_err(unreachable)
        }
    }
}

/// Whether the files are there and fit for TLS.
///
/// # Errors
/// [`ConnectError::Read`], [`ConnectError::Credentials`].
pub fn check(credentials: &Credentials) -> Result<(), ConnectError> {
    let to = Endpoint::from_static("https://growd").tls_config(tls(credentials)?);
    to.map(drop).map_err(|source| ConnectError::Credentials { source })
}

fn tls(credentials: &Credentials) -> Result<ClientTlsConfig, ConnectError> {
    let read = |path: &Path| fs::read(path).map_err(|source| ConnectError::Read { path: path.to_owned(), source });
    let identity = Identity::from_pem(read(&credentials.certificate)?, read(&credentials.key)?);
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&credentials.ca)?)).identity(identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_unix_socket_are_one() {
        for text in ["unix:/run/growd/growd.sock", "unix:///run/growd/growd.sock"] {
            assert_eq!(target(text).unwrap(), Target::Unix("/run/growd/growd.sock".into()), "{text}");
        }
        assert_eq!(target(DEFAULT_ENDPOINT).unwrap(), Target::Unix("/run/growd/growd.sock".into()));
        assert_eq!(target("http://[::1]:7070").unwrap(), Target::Http);
        assert_eq!(target("https://n1.example:7070").unwrap(), Target::Https);
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart_from_one_that_does_not_answer() {
        let forms =
            ["", "unix:", "unix:growd.sock", "unix:///", "/run/growd.sock", "ftp://a", "https://", "http://", "a:1"];
        for text in forms {
            assert!(matches!(target(text), Err(ConnectError::Form { .. })), "{text}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_told_with_its_endpoint() {
        let error = connect("unix:/nowhere/growd.sock", None).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to unix:/nowhere/growd.sock");
        let error = connect("http://no host", None).await.unwrap_err();
        assert!(error.to_string().contains("not a URI"), "{error}");
    }

    #[tokio::test]
    async fn without_credentials_no_secure_endpoint_is_called() {
        let error = connect("https://[::1]:1", None).await.unwrap_err();
        assert_eq!(error.to_string(), "https://[::1]:1 needs an authority, a certificate and its key");
        let missing = PathBuf::from("/nowhere/ca.pem");
        let credentials = Credentials { ca: missing.clone(), certificate: missing.clone(), key: missing };
        let error = connect("https://[::1]:1", Some(&credentials)).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/ca.pem");
    }
}
