//! A job: one accepted request to extend or to shrink a share, from its acceptance to its end.

use std::time::SystemTime;

use super::{Bytes, DriverKind, JobId, PoolName, ProjectLabel, RequestId, ShareId, TraceParent};

words! {
    /// What a job does to the size of its share.
    pub enum JobKind {
        Extend = "extend",
        /// Only a quota is ever lowered, no volume or file system.
        Shrink = "shrink",
    }
}

words! {
    pub enum JobState {
        /// Accepted and on disk, waiting for its turn.
        Queued = "QUEUED",
        Running = "RUNNING",
        Succeeded = "SUCCEEDED",
        Failed = "FAILED",
        Cancelled = "CANCELLED",
    }
}

impl JobState {
    /// Whether the job has come to its end: it never changes again.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A step of the work.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// Text, for a kept job may name a step that this version does not know.
    pub name: String,
    pub started_at: SystemTime,
    /// `None` while it is at work.
    pub finished_at: Option<SystemTime>,
    pub detail: String,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobError {
    /// A [`super::Reason`] as text: a kept job may carry one that this version does not know.
    pub reason: String,
    pub message: String,
    pub retryable: bool,
}

/// One accepted request to extend or to shrink a share.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub kind: JobKind,
    pub share: ShareId,
    pub pool: PoolName,
    pub driver: DriverKind,
    pub state: JobState,
    pub size_before: Bytes,
    pub requested_size: Bytes,
    /// What the job may still take of the pool's space: the growth of an extend, or what a shrink may have to take back.
    /// Zero once it has ended.
    pub promised: Bytes,
    /// What the caller expected the size to be; kept to tell a repeated request from another one.
    pub expected_size: Option<Bytes>,
    pub size_after: Option<Bytes>,
    pub steps: Vec<StepRecord>,
    pub error: Option<JobError>,
    /// 1 for the first run; each restart that finds the job unfinished adds one.
    pub attempt: u32,
    /// Rises with each change.
    pub revision: u64,
    pub requested_by: String,
    pub project: ProjectLabel,
    pub request_id: Option<RequestId>,
    /// The span that asked for it, which what is done for it follows.
    pub trace: Option<TraceParent>,
    pub created_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
}
