//! Every way in which growd says no, with what it knows of the case.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bytes, JobId, JobState, PoolName, RequestId, Role, ShareId};

words! {
    /// Machine-readable reason of a refusal, of a failed job or of a finding: the code on the wire.
    pub enum Reason {
        InvalidShareId = "INVALID_SHARE_ID",
        InvalidSize = "INVALID_SIZE",
        /// Another field of the request is wrong; the field violation names it.
        InvalidRequest = "INVALID_REQUEST",
        SizeNotGreater = "SIZE_NOT_GREATER",
        SizeNotSmaller = "SIZE_NOT_SMALLER",
        /// The caller has no identity.
        Unauthenticated = "UNAUTHENTICATED",
        /// The caller has not the role that the call takes.
        Forbidden = "FORBIDDEN",
        ShareNotFound = "SHARE_NOT_FOUND",
        JobNotFound = "JOB_NOT_FOUND",
        ShareBusy = "SHARE_BUSY",
        RequestIdReused = "REQUEST_ID_REUSED",
        CurrentSizeMismatch = "CURRENT_SIZE_MISMATCH",
        NotMounted = "NOT_MOUNTED",
        QuotaNotEnforced = "QUOTA_NOT_ENFORCED",
        NoProjectId = "NO_PROJECT_ID",
        ProjectIdShared = "PROJECT_ID_SHARED",
        Unlimited = "UNLIMITED",
        /// More is in use than a shrink would leave.
        WouldLoseData = "WOULD_LOSE_DATA",
        ThinPoolCritical = "THIN_POOL_CRITICAL",
        HasSnapshot = "HAS_SNAPSHOT",
        GrowthTooLarge = "GROWTH_TOO_LARGE",
        PoolFull = "POOL_FULL",
        QueueFull = "QUEUE_FULL",
        /// The job can no longer be cancelled.
        JobNotQueued = "JOB_NOT_QUEUED",
        Draining = "DRAINING",
        StoreUnavailable = "STORE_UNAVAILABLE",
        Unsupported = "UNSUPPORTED",
        /// Finding only: a soft limit below the hard one stops writers once its grace time is over.
        SoftLimitFirst = "SOFT_LIMIT_FIRST",
        /// Finding only: the limits of the pool add up to more than it may promise.
        PoolOvercommitted = "POOL_OVERCOMMITTED",
        /// Finding only: the file system is smaller than its volume; an extend to the volume's size finishes it.
        HalfGrown = "HALF_GROWN",
        /// A pool, or the step of a job, has not answered for long.
        Stuck = "STUCK",
        Internal = "INTERNAL",
    }
}

impl Reason {
    /// Whether the same request can succeed later without a change by whoever asks.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::ShareBusy
                | Self::NotMounted
                | Self::ThinPoolCritical
                | Self::HasSnapshot
                | Self::PoolFull
                | Self::QueueFull
                | Self::Stuck
                | Self::Draining
                | Self::StoreUnavailable
                | Self::Internal
        )
    }
}

/// A refusal: what was wrong, in words for people and as data for programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Invalid input: share_id {given:?} is not a UUID")]
    InvalidShareId { given: String },
    #[error("Invalid input: {field} {given} {problem}")]
    InvalidSize { field: &'static str, given: u64, problem: &'static str },
    #[error("Invalid input: {field} {problem}")]
    InvalidRequest { field: &'static str, problem: String },
    #[error(
        "Invalid input: New size for extend must be greater than current size (current: {current}, new: {requested})"
    )]
    SizeNotGreater { share: ShareId, current: Bytes, requested: Bytes },
    #[error(
        "Invalid input: New size for shrink must be less than current size and greater than 0 (current: {current}, new: \
         {requested})"
    )]
    SizeNotSmaller { share: ShareId, current: Bytes, requested: Bytes },
    #[error("the caller is not known: this call takes the unix socket or a client certificate with a name")]
    Unauthenticated,
    #[error("{caller} may not call {rpc}, which takes the role {role}; roles are given in [access] of growd.toml")]
    Forbidden { caller: String, rpc: String, role: Role },
    #[error("share {share} is in no pool of this node")]
    ShareNotFound { share: ShareId },
    #[error("job {job} is not known; ended jobs are kept for the configured time and number")]
    JobNotFound { job: JobId },
    #[error("share {share} is busy with job {job}")]
    ShareBusy { share: ShareId, job: JobId },
    #[error("request_id {request_id} belongs to job {job}, which was asked with another {field}")]
    RequestIdReused { request_id: RequestId, job: JobId, field: &'static str },
    #[error("share {share} has {current} and not the expected {expected}")]
    CurrentSizeMismatch { share: ShareId, current: Bytes, expected: Bytes },
    #[error("pool {pool} is not ready: {problem}")]
    NotMounted { pool: PoolName, problem: String },
    #[error("share {share} of pool {pool} is not ready: {problem}")]
    ShareNotMounted { share: ShareId, pool: PoolName, problem: String },
    #[error("quota of {} is not enforced: {problem}", location.display())]
    QuotaNotEnforced { location: PathBuf, problem: String },
    #[error("{} has no project of its own: {problem}", location.display())]
    NoProjectId { location: PathBuf, problem: String },
    #[error("{} shares project id {project_id} with {}", location.display(), other.display())]
    ProjectIdShared { location: PathBuf, project_id: u32, other: PathBuf },
    /// `quota` names what has no limit: `project id 7`, `qgroup 0/257`.
    #[error("{} has no hard limit ({quota}): there is no size to change", location.display())]
    Unlimited { location: PathBuf, quota: String },
    #[error("share {share} cannot be made {requested}: {used} of it are in use")]
    WouldLoseData { share: ShareId, used: Bytes, requested: Bytes },
    #[error("thin pool {thin_pool} can promise nothing more: {problem}")]
    ThinPoolCritical {
        thin_pool: String,
        problem: String,
        // Strings that do not grow are smaller, and so is every refusal.
        data_percent: Box<str>,
        metadata_percent: Box<str>,
        max_data_percent: Box<str>,
        max_metadata_percent: Box<str>,
    },
    #[error("{} has thick snapshots, and LVM does not extend a volume under them", location.display())]
    HasSnapshot { location: PathBuf },
    #[error("{filesystem} on {} cannot grow to {to}: it would have {needed} {what}, more than {most}", location.display())]
    GrowthTooLarge {
        location: PathBuf,
        filesystem: &'static str,
        to: Bytes,
        what: &'static str,
        needed: u64,
        most: u64,
    },
    #[error("pool {pool} cannot give {asked}: {free} can still be promised, {reserved} of its space is reserved")]
    PoolFull { pool: PoolName, free: Bytes, reserved: Bytes, asked: Bytes },
    #[error("{active} jobs wait or are at work, and no more are taken; try again in {} s", retry_after.as_secs())]
    QueueFull { active: usize, retry_after: Duration },
    #[error(
        "job {job} is {state}; only a job that has not begun can be cancelled, and one that was accepted before growd's \
         last start may have"
    )]
    JobNotQueued { job: JobId, state: JobState },
    #[error("growd is shutting down; queued jobs go on when it starts again")]
    Draining,
    #[error("pool {pool} has not answered for {} s", waited.as_secs())]
    Stuck { pool: PoolName, waited: Duration },
    #[error("another request for share {share} has not been answered for {} s", waited.as_secs())]
    ShareStuck { share: ShareId, waited: Duration },
    #[error("{problem}")]
    StoreUnavailable { problem: String },
    #[error("{what} is not supported here")]
    Unsupported { what: String },
    /// Two pools, or two projects of one, have it: nothing tells which is meant.
    #[error("share {share} {one} and {other} as well is not supported here")]
    InTwoPlaces { share: ShareId, one: String, other: String },
    #[error("{problem}")]
    Internal { problem: String },
}

impl Refusal {
    pub const fn reason(&self) -> Reason {
        match self {
            Self::InvalidShareId { .. } => Reason::InvalidShareId,
            Self::InvalidSize { .. } => Reason::InvalidSize,
            Self::InvalidRequest { .. } => Reason::InvalidRequest,
            Self::SizeNotGreater { .. } => Reason::SizeNotGreater,
            Self::SizeNotSmaller { .. } => Reason::SizeNotSmaller,
            Self::Unauthenticated => Reason::Unauthenticated,
            Self::Forbidden { .. } => Reason::Forbidden,
            Self::ShareNotFound { .. } => Reason::ShareNotFound,
            Self::JobNotFound { .. } => Reason::JobNotFound,
            Self::ShareBusy { .. } => Reason::ShareBusy,
            Self::RequestIdReused { .. } => Reason::RequestIdReused,
            Self::CurrentSizeMismatch { .. } => Reason::CurrentSizeMismatch,
            Self::NotMounted { .. } | Self::ShareNotMounted { .. } => Reason::NotMounted,
            Self::QuotaNotEnforced { .. } => Reason::QuotaNotEnforced,
            Self::NoProjectId { .. } => Reason::NoProjectId,
            Self::ProjectIdShared { .. } => Reason::ProjectIdShared,
            Self::Unlimited { .. } => Reason::Unlimited,
            Self::WouldLoseData { .. } => Reason::WouldLoseData,
            Self::ThinPoolCritical { .. } => Reason::ThinPoolCritical,
            Self::HasSnapshot { .. } => Reason::HasSnapshot,
            Self::GrowthTooLarge { .. } => Reason::GrowthTooLarge,
            Self::PoolFull { .. } => Reason::PoolFull,
            Self::QueueFull { .. } => Reason::QueueFull,
            Self::JobNotQueued { .. } => Reason::JobNotQueued,
            Self::Draining => Reason::Draining,
            Self::Stuck { .. } | Self::ShareStuck { .. } => Reason::Stuck,
            Self::StoreUnavailable { .. } => Reason::StoreUnavailable,
            Self::Unsupported { .. } | Self::InTwoPlaces { .. } => Reason::Unsupported,
            Self::Internal { .. } => Reason::Internal,
        }
    }

    /// The sizes (in bytes) and ids of the case, for programs.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        let text = |key, value: &dyn Display| (key, value.to_string());
        let bytes = |key, size: &Bytes| (key, size.get().to_string());
        let place = |location: &Path| ("location", location.display().to_string());
        match self {
            Self::InvalidShareId { given } => vec![text("share_id", given)],
            Self::InvalidSize { field, given, .. } => vec![text(field, given)],
            Self::SizeNotGreater { share, current, requested } | Self::SizeNotSmaller { share, current, requested } => {
                vec![text("share_id", share), bytes("current_size_bytes", current), bytes("new_size_bytes", requested)]
            }
            Self::ShareNotFound { share } | Self::ShareStuck { share, .. } => vec![text("share_id", share)],
            Self::JobNotFound { job } => vec![text("job_id", job)],
            Self::ShareBusy { share, job } => vec![text("share_id", share), text("job_id", job)],
            Self::RequestIdReused { request_id, job, .. } => vec![text("request_id", request_id), text("job_id", job)],
            Self::CurrentSizeMismatch { share, current, expected } => vec![
                text("share_id", share),
                bytes("current_size_bytes", current),
                bytes("expected_current_size_bytes", expected),
            ],
            Self::NotMounted { pool, .. } | Self::ShareNotMounted { pool, .. } | Self::Stuck { pool, .. } => {
                vec![text("pool", pool)]
            }
            Self::QuotaNotEnforced { location, .. }
            | Self::NoProjectId { location, .. }
            | Self::HasSnapshot { location } => vec![place(location)],
            Self::ProjectIdShared { location, project_id, other } => {
                vec![place(location), text("quota_project_id", project_id), text("other_location", &other.display())]
            }
            Self::Unlimited { location, quota } => vec![place(location), text("quota", quota)],
            Self::WouldLoseData { share, used, requested } => {
                vec![text("share_id", share), bytes("used_bytes", used), bytes("requested_bytes", requested)]
            }
            Self::ThinPoolCritical {
                thin_pool,
                data_percent,
                metadata_percent,
                max_data_percent,
                max_metadata_percent,
                ..
            } => vec![
                text("thin_pool", thin_pool),
                text("data_percent", data_percent),
                text("metadata_percent", metadata_percent),
                text("max_data_percent", max_data_percent),
                text("max_metadata_percent", max_metadata_percent),
            ],
            Self::GrowthTooLarge { location, filesystem, to, what, needed, most } => vec![
                place(location),
                text("filesystem", filesystem),
                bytes("volume_size_bytes", to),
                text("limit", what),
                text("needed", needed),
                text("most", most),
            ],
            Self::PoolFull { pool, free, reserved, asked } => vec![
                text("pool", pool),
                bytes("free_bytes", free),
                bytes("reserved_bytes", reserved),
                bytes("asked_bytes", asked),
            ],
            Self::QueueFull { active, .. } => vec![text("active_jobs", active)],
            Self::JobNotQueued { job, state } => vec![text("job_id", job), text("state", state)],
            Self::Forbidden { rpc, role, .. } => vec![text("rpc", rpc), text("role", role)],
            Self::InTwoPlaces { share, one, other } => {
                vec![text("share_id", share), text("place", one), text("other_place", other)]
            }
            Self::InvalidRequest { .. }
            | Self::Unauthenticated
            | Self::Draining
            | Self::StoreUnavailable { .. }
            | Self::Unsupported { .. }
            | Self::Internal { .. } => Vec::new(),
        }
    }
}
