//! The way to a growd for its clients: an endpoint as text becomes a connected channel.
//!
//! `unix:/path` and `unix:///path` name a unix socket, `http://host:port` a TCP port. The channel connects again by
//! itself when a call finds its connection lost.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

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
    #[error("cannot connect to {endpoint}")]
    Unreachable { endpoint: String, source: tonic::transport::Error },
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Unix(PathBuf),
    Http,
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
    match endpoint.strip_prefix("http://") {
        Some("") => Err(form("the host is missing: write http://host:port")),
        Some(_) => Ok(Target::Http),
        None => Err(form("write unix:/path or http://host:port")),
    }
}

/// Connects; fails when nobody answers there now.
pub async fn connect(endpoint: &str) -> Result<Channel, ConnectError> {
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
    }
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
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart_from_one_that_does_not_answer() {
        let forms = ["", "unix:", "unix:growd.sock", "unix:///", "/run/growd.sock", "https://a", "http://", "a:1"];
        for text in forms {
            assert!(matches!(target(text), Err(ConnectError::Form { .. })), "{text}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_told_with_its_endpoint() {
        let error = connect("unix:/nowhere/growd.sock").await.unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to unix:/nowhere/growd.sock");
        let error = connect("http://no host").await.unwrap_err();
        assert!(error.to_string().contains("not a URI"), "{error}");
    }
}
