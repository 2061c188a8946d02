//! What growd counts of its work, for whoever graphs it. Names and units follow the practice of Prometheus.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Error, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::model::{Job, JobKind, Reason};

/// Seconds, from a system call to a command that is stuck.
const TIMES: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

pub struct Meters {
    ended: IntCounterVec,
    extends_refused: IntCounterVec,
    shrinks_refused: IntCounterVec,
    turned_away: IntCounterVec,
    queue_wait: Histogram,
    steps: HistogramVec,
    commit_jobs: Histogram,
    flush: Histogram,
}

impl Meters {
    /// # Errors
    /// Never, as long as the names below are well formed and differ.
    pub fn new() -> Result<Self, Error> {
        let times = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(TIMES.to_vec());
        Ok(Self {
            ended: IntCounterVec::new(
                Opts::new("growd_jobs_ended_total", "Jobs that have ended since growd was started."),
                &["kind", "driver", "state", "reason"],
            )?,
            extends_refused: IntCounterVec::new(
                Opts::new("growd_extends_refused_total", "Requests to extend a share that were not accepted."),
                &["reason"],
            )?,
            shrinks_refused: IntCounterVec::new(
                Opts::new("growd_shrinks_refused_total", "Requests to shrink a share that were not accepted."),
                &["reason"],
            )?,
            turned_away: IntCounterVec::new(
                Opts::new("growd_callers_turned_away_total", "Calls and handshakes of callers who may not."),
                &["reason"],
            )?,
            queue_wait: Histogram::with_opts(times("growd_job_queue_wait_seconds", "From QUEUED to RUNNING."))?,
            steps: HistogramVec::new(
                times("growd_step_duration_seconds", "Time that the steps of jobs took."),
                &["driver", "step"],
            )?,
            commit_jobs: Histogram::with_opts(
                HistogramOpts::new("growd_store_commit_jobs", "Jobs that one flush of the job store made durable.")
                    .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
            )?,
            flush: Histogram::with_opts(times(
                "growd_store_commit_duration_seconds",
                "Time that a group of jobs took to the disk.",
            ))?,
        })
    }

    pub fn collectors(&self) -> [Box<dyn Collector>; 8] {
        [
            Box::new(self.ended.clone()),
            Box::new(self.extends_refused.clone()),
            Box::new(self.shrinks_refused.clone()),
            Box::new(self.turned_away.clone()),
            Box::new(self.queue_wait.clone()),
            Box::new(self.steps.clone()),
            Box::new(self.commit_jobs.clone()),
            Box::new(self.flush.clone()),
        ]
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

    pub fn committed(&self, jobs: usize, took: Duration) {
        self.commit_jobs.observe(jobs as f64);
        self.flush.observe(took.as_secs_f64());
    }
}
