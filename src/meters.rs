//! What growd counts of its work, for whoever graphs it. Names and units follow the practice of Prometheus.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Error, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use crate::model::{Job, JobKind, Reason};

/// Seconds, from a system call to a command that is stuck.
const TIMES: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

pub struct Meters {
    pub registry: Registry,
    ended: IntCounterVec,
    extends_refused: IntCounterVec,
    shrinks_refused: IntCounterVec,
    turned_away: IntCounterVec,
    queue_wait: Histogram,
    steps: HistogramVec,
    commit_jobs: Histogram,
    flush: Histogram,
    reloaded: IntGauge,
}

impl Meters {
    /// # Errors
    /// Never, as long as the names below are well formed and differ.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let refused = |name: &str, kind: JobKind| {
            counters(name, &format!("Requests to {kind} a share that were not accepted."), &["reason"])
        };
        let times = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(TIMES.to_vec());
        let histogram = |options| registered(&registry, Histogram::with_opts(options)?);
        let meters = Self {
            ended: counters(
                "growd_jobs_ended_total",
                "Jobs that have ended since growd was started.",
                &["kind", "driver", "state", "reason"],
            )?,
            extends_refused: refused("growd_extends_refused_total", JobKind::Extend)?,
            shrinks_refused: refused("growd_shrinks_refused_total", JobKind::Shrink)?,
            turned_away: counters(
                "growd_callers_turned_away_total",
                "Calls and handshakes of callers who may not.",
                &["reason"],
            )?,
            queue_wait: histogram(times("growd_job_queue_wait_seconds", "From QUEUED to RUNNING."))?,
            steps: {
                let options = times("growd_step_duration_seconds", "Time that the steps of jobs took.");
                registered(&registry, HistogramVec::new(options, &["driver", "step"])?)?
            },
            commit_jobs: histogram(
                HistogramOpts::new("growd_store_commit_jobs", "Jobs that one flush of the job store made durable.")
                    .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
            )?,
            flush: histogram(times(
                "growd_store_commit_duration_seconds",
                "Time that a group of jobs took to the disk.",
            ))?,
            reloaded: {
                let help = "0 when the last reload of the configuration was refused.";
                registered(&registry, IntGauge::new("growd_config_last_reload_successful", help)?)?
            },
            registry,
        };
        meters.reloaded(true);
        Ok(meters)
    }

    pub fn ended(&self, job: &Job) {
        let reason = job.error.as_ref().map_or("", |error| error.reason.as_str());
        let labels = [job.kind.as_str(), job.driver.as_str(), job.state.as_str(), reason];
        self.ended.with_label_values(&labels).inc();
    }

    pub fn refused(&self, kind: JobKind, reason: Reason) {
        let refused = match kind {
            JobKind::Extend => &self.extends_refused,
            JobKind::Shrink => &self.shrinks_refused,
        };
        refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// `reason` as in the answer, or why there is none.
    pub fn turned_away(&self, reason: &str) {
        self.turned_away.with_label_values(&[reason]).inc();
    }

    /// A job that goes from QUEUED to RUNNING. Nothing when the clock was set back meanwhile.
    pub fn started(&self, job: &Job) {
        if let Some(waited) = job.started_at.and_then(|started| started.duration_since(job.created_at).ok()) {
            self.queue_wait.observe(waited.as_secs_f64());
        }
    }

    /// The last step of a job has ended.
    pub fn step_ended(&self, job: &Job, took: Duration) {
        if let Some(step) = job.steps.last() {
            self.steps.with_label_values(&[job.driver.as_str(), &step.name]).observe(took.as_secs_f64());
        }
    }

    /// Whether the configuration could be followed when it was last read.
    pub fn reloaded(&self, followed: bool) {
        self.reloaded.set(followed.into());
    }

    pub fn committed(&self, jobs: usize, took: Duration) {
        self.commit_jobs.observe(jobs as f64);
        self.flush.observe(took.as_secs_f64());
    }
}

/// The collector, which `registry` tells of from then on.
///
/// # Errors
/// Never, as long as its name is well formed and no other has it.
pub fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
