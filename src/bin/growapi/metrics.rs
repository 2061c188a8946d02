//! Metrics in Prometheus' text format, on a listener of their own: clients of the API do not see them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use growd::wire::http::{self, registered};
use parking_lot::Mutex;
use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::net::TcpListener;

use crate::api::Current;

/// Seconds, from an answer without a node to one after several attempts.
const TIMES: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// What is counted as it happens, and what is looked up when somebody asks.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    node_up: IntGaugeVec,
    places: IntGauge,
    reloaded: IntGauge,
    /// One scrape at a time: the gauges are set and read.
    scrape: Mutex<()>,
}

impl Metrics {
    /// # Errors
    /// Never, as long as the names below are well formed and differ.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let requests = Opts::new("growapi_requests_total", "Requests that were answered.");
        let seconds =
            HistogramOpts::new("growapi_request_duration_seconds", "Time from a request's head to its answer.");
        let seconds = seconds.buckets(TIMES.to_vec());
        let up = Opts::new("growapi_node_up", "1 when the node answered when it was last asked.");
        let gauge = |name, help| registered(&registry, IntGauge::new(name, help)?);
        let metrics = Self {
            requests: registered(&registry, IntCounterVec::new(requests, &["method", "route", "status"])?)?,
            seconds: registered(&registry, HistogramVec::new(seconds, &["method", "route"])?)?,
            node_up: registered(&registry, IntGaugeVec::new(up, &["node"])?)?,
            places: gauge("growapi_known_shares", "Shares of which it is known which node has them.")?,
            reloaded: gauge(
                "growapi_config_last_reload_successful",
                "0 when the last reload of the configuration was refused.",
            )?,
            scrape: Mutex::default(),
            registry,
        };
        metrics.reloaded(true);
        Ok(metrics)
    }

    /// `route` is one of ours, not what the client made up: each makes series of its own.
    pub fn answered(&self, method: &str, route: &str, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[method, route, status.as_str()]).inc();
        self.seconds.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    /// Whether the configuration could be followed when it was last read.
    pub fn reloaded(&self, followed: bool) {
        self.reloaded.set(followed.into());
    }

    fn answer(&self, current: &Current) -> Response {
        let api = current.get();
        let _one = self.scrape.lock();
        // Nodes that are gone since the configuration was read again.
        self.node_up.reset();
        for node in api.nodes.iter() {
            self.node_up.with_label_values(&[&node.name]).set((!node.is_down()).into());
        }
        self.places.set(i64::try_from(api.nodes.places_known()).unwrap_or(i64::MAX));
        http::exposition(&self.registry)
    }
}

/// Serves `/metrics` for as long as growapi runs.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, current: Current) {
    http::serve_scrapers(listener, Router::new().route("/metrics", get(scrape)).with_state((metrics, current))).await;
}

async fn scrape(State((metrics, current)): State<(Arc<Metrics>, Current)>) -> Response {
    metrics.answer(&current)
}
