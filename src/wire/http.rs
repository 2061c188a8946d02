//! HTTP/1.1 on a TCP port, and the end of it: requests at hand are answered before the listener goes.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TEXT_FORMAT, TextEncoder};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::limits::{ACCEPT_PAUSE, SCRAPE_LIMIT, SCRAPERS_MOST};

/// For growapi, which counts for itself and has its scrapers served from here.
pub use crate::meters::registered;

/// What of a connection is held in memory, each way: a head, or answers that the client has not taken yet.
const BUFFER_MOST: usize = 64 << 10;
/// For requests that are at hand at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// Serves metrics for as long as the program runs. Whoever is on the node may connect, but not so often that the files
/// which may be open run out.
pub async fn serve_scrapers(listener: TcpListener, router: Router) {
    serve(listener, router, SCRAPERS_MOST, SCRAPE_LIMIT, pending()).await;
}

/// What the registry has, in Prometheus' text format.
pub fn exposition(registry: &Registry) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut text) {
        Ok(()) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves until `stop`. There are `most` connections at once; more wait in the listener's queue. A client may take
/// `limit` for the head of a request, waiting for the next one included, and so long it may take nothing of an answer.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    limit: Duration,
    stop: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    // A client that closes its side has asked all the same: it is answered, and the log and the metrics tell of it.
    http.half_close(true).timer(TokioTimer::new()).header_read_timeout(limit).max_buf_size(BUFFER_MOST);
    let connections = Arc::new(Semaphore::new(most));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&connections).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small and are not to wait for more.
        let _ = stream.set_nodelay(true);
        // hyper waits for ever for a client that asks and takes no answers: its timer runs only while it reads.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limit));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // What clients do to their connections is theirs.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(LAST_ANSWERS, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests without an answer are given up");
    }
}
