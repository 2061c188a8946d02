//! Metrics in Prometheus' text format, on a listener of their own.
//!
//! A scrape answers from memory. What takes a look at the pools is looked at beside it, at a distance: a pool that hangs
//! makes its own figures old and holds up no scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use parking_lot::Mutex;
use prometheus::{Error, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::net::TcpListener;

use super::http;
use super::tls::Tls;
use crate::meters::{Meters, registered};
use crate::model::{PoolName, PoolReport, Reason};
use crate::service::Service;

const POOLS_EVERY: Duration = Duration::from_secs(30);
/// A look at every share.
const FINDINGS_EVERY: Duration = Duration::from_secs(300);

struct Metrics {
    service: Arc<Service>,
    registry: Registry,
    jobs: IntGaugeVec,
    stuck: IntGauge,
    kept: IntGauge,
    store_bytes: IntGauge,
    store_writable: IntGauge,
    draining: IntGauge,
    /// Where there is TLS.
    certificate: Option<(Arc<Tls>, IntGauge)>,
    pools: PoolGauges,
    findings: IntGaugeVec,
    findings_looked_at: IntGauge,
    /// One scrape at a time: the gauges are set and read.
    scrape: Mutex<()>,
}

type OfPool = fn(&PoolReport) -> u64;

/// Bytes of each pool, by what they are.
struct PoolGauges {
    bytes: Vec<(IntGaugeVec, OfPool)>,
    shares: IntGaugeVec,
    thin: GaugeVec,
    looked_at: IntGaugeVec,
}

/// Serves `/metrics` for as long as growd runs.
///
/// # Errors
/// Never, as long as the names below are well formed and differ.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    meters: &Meters,
    tls: Option<Arc<Tls>>,
) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::new(service, meters, tls)?);
    tokio::spawn(Arc::clone(&metrics).refresh_pools());
    tokio::spawn(Arc::clone(&metrics).refresh_findings());
    http::serve_scrapers(listener, Router::new().route("/metrics", get(scrape)).with_state(metrics)).await;
    Ok(())
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    metrics.answer()
}

impl Metrics {
    fn new(service: Arc<Service>, meters: &Meters, tls: Option<Arc<Tls>>) -> Result<Self, Error> {
        let registry = meters.registry.clone();
        let build = gauges(&registry, "growd_build_info", "The version of growd.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let bytes: [(&str, &str, OfPool); 6] = [
            ("size", "Size of what the pool's shares grow into.", |pool| pool.total.get()),
            ("free", "What of it is not in use.", |pool| pool.free.get()),
            ("promised", "What of it is promised to shares.", |pool| pool.promised.get()),
            ("queued", "What jobs that have not ended take, or are still to give back.", |pool| pool.queued.get()),
            ("reserve", "What of it is never promised, as configured.", |pool| pool.reserve.get()),
            ("available", "What extends may still ask for.", |pool| pool.available.get()),
        ];
        let pool = |name: &str, help: &str| gauges(&registry, name, help, &["pool", "driver"]);
        let certificate = tls.map(|tls| {
            let help = "When the first of growd's own certificates expires.";
            gauge(&registry, "growd_tls_certificate_expiry_timestamp_seconds", help).map(|gauge| (tls, gauge))
        });
        let bytes = bytes.map(|(name, help, of)| Ok((pool(&format!("growd_pool_{name}_bytes"), help)?, of)));
        Ok(Self {
            jobs: gauges(&registry, "growd_jobs", "Jobs that have not ended.", &["state"])?,
            stuck: gauge(&registry, "growd_stuck_jobs", "Jobs whose step has been at work for more than a minute.")?,
            kept: gauge(&registry, "growd_store_jobs", "Jobs in the job store.")?,
            store_bytes: gauge(&registry, "growd_store_size_bytes", "What the job store takes on disk.")?,
            store_writable: gauge(&registry, "growd_store_writable", "1 when the job store can be written.")?,
            draining: gauge(&registry, "growd_draining", "1 when growd takes no more requests.")?,
            certificate: certificate.transpose()?,
            pools: PoolGauges {
                bytes: bytes.into_iter().collect::<Result<_, Error>>()?,
                shares: pool("growd_pool_shares", "Shares that were found.")?,
                thin: {
                    let help = "How full a thin pool is, of 1.";
                    let thin = GaugeVec::new(Opts::new("growd_thin_pool_used_ratio", help), &["pool", "of"])?;
                    registered(&registry, thin)?
                },
                looked_at: pool(
                    "growd_pool_looked_at_timestamp_seconds",
                    "When the pool last answered, or was first asked.",
                )?,
            },
            findings: gauges(&registry, "growd_findings", "What growctl doctor finds.", &["pool", "kind"])?,
            findings_looked_at: {
                let help = "When a look for findings last ended, or the first one began.";
                let looked_at = gauge(&registry, "growd_findings_looked_at_timestamp_seconds", help)?;
                // From here on the silence of a look that never ends is counted, and not from 1970.
                looked_at.set(now());
                looked_at
            },
            scrape: Mutex::default(),
            service,
            registry,
        })
    }

    fn answer(&self) -> Response {
        let _one = self.scrape.lock();
        let node = self.service.node();
        for (state, count) in [("QUEUED", node.queued), ("RUNNING", node.running)] {
            self.jobs.with_label_values(&[state]).set(number(count));
        }
        self.stuck.set(number(self.service.stuck().len()));
        self.kept.set(number(node.kept_jobs));
        self.store_bytes.set(i64::try_from(node.store_bytes).unwrap_or(i64::MAX));
        self.store_writable.set(i64::from(!node.store_failed));
        self.draining.set(i64::from(node.draining));
        if let Some((tls, expiry)) = &self.certificate {
            expiry.set(i64::try_from(tls.expires()).unwrap_or(i64::MAX));
        }
        http::exposition(&self.registry)
    }

    async fn refresh_pools(self: Arc<Self>) {
        let mut answered = BTreeMap::new();
        loop {
            let begun = now();
            let pools = self.service.pools().await;
            // One that comes back under its name is a new one.
            answered.retain(|name, _| pools.iter().any(|pool| pool.pool == *name));
            for pool in &pools {
                // The silence of one that never answers is counted from the first look on.
                let time = answered.entry(pool.pool.clone()).or_insert(begun);
                if is_readable(pool) {
                    *time = now();
                }
            }
            {
                let _one = self.scrape.lock();
                self.pools.set(&pools, &answered);
            }
            tokio::time::sleep(POOLS_EVERY).await;
        }
    }

    async fn refresh_findings(self: Arc<Self>) {
        loop {
            let mut counts: BTreeMap<(String, Reason), i64> = BTreeMap::new();
            for finding in self.service.diagnose().await {
                *counts.entry((finding.pool.to_string(), finding.kind)).or_default() += 1;
            }
            {
                let _one = self.scrape.lock();
                // What was healed is gone.
                self.findings.reset();
                for ((pool, kind), count) in counts {
                    self.findings.with_label_values(&[pool.as_str(), kind.as_str()]).set(count);
                }
            }
            self.findings_looked_at.set(now());
            tokio::time::sleep(FINDINGS_EVERY).await;
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A pool that could not be read has no sizes.
fn is_readable(pool: &PoolReport) -> bool {
    pool.total.get() > 0
}

impl PoolGauges {
    /// Figures of the pools as they are now. Of one that could not be read there are none, for old ones would be a lie,
    /// and zeros an alarm of another kind; only when it last `answered` stays.
    fn set(&self, pools: &[PoolReport], answered: &BTreeMap<PoolName, i64>) {
        self.bytes.iter().for_each(|(gauge, _)| gauge.reset());
        self.thin.reset();
        self.shares.reset();
        self.looked_at.reset();
        for pool in pools {
            let labels = [pool.pool.as_str(), pool.driver.as_str()];
            if let Some(time) = answered.get(&pool.pool) {
                self.looked_at.with_label_values(&labels).set(*time);
            }
            if !is_readable(pool) {
                continue;
            }
            for (gauge, of) in &self.bytes {
                gauge.with_label_values(&labels).set(i64::try_from(of(pool)).unwrap_or(i64::MAX));
            }
            self.shares.with_label_values(&labels).set(number(pool.shares));
            if let Some(thin) = pool.thin {
                for (of, percent) in [("data", thin.data_percent), ("metadata", thin.metadata_percent)] {
                    self.thin.with_label_values(&[pool.pool.as_str(), of]).set(percent / 100.0);
                }
            }
        }
    }
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, Error> {
    registered(registry, IntGauge::new(name, help)?)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
