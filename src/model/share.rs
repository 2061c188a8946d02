//! What shares and pools are: kinds of drivers, thin pools; and what is known of them at one moment, with their troubles and
//! the commands that were given to the host for them.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Bytes, JobId, PoolName, ProjectLabel, Reason, ShareId};

words! {
    /// How the shares of a pool are bounded and grown.
    pub enum DriverKind {
        /// A directory with a project quota, on XFS or ext4.
        ProjectQuota = "project-quota",
        /// A logical volume, thick or thin, with or without a file system on it.
        Lvm = "lvm",
        /// A file on a loop device, with or without a file system on it.
        Image = "image",
        /// A subvolume of btrfs with a limit of its own.
        Btrfs = "btrfs",
    }
}

impl DriverKind {
    /// Whether a share's size is a limit, which can be lowered, and not that of a device or a file.
    pub const fn is_quota(self) -> bool {
        matches!(self, Self::ProjectQuota | Self::Btrfs)
    }
}

/// The thin pool that all volumes of a pool are in, and how full it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct ThinPool {
    pub name: String,
    /// Per cent of its data and of its metadata from which on nothing is extended.
    pub max_data: f64,
    pub max_metadata: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareStatus {
    Available,
    Extending,
    ExtendingError,
    Shrinking,
    ShrinkingError,
}

/// A share as the kernel reports it, with what the jobs say of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShareReport {
    pub share: ShareId,
    pub pool: PoolName,
    pub driver: DriverKind,
    pub location: PathBuf,
    /// The project that its place says; empty where it says none.
    pub project: ProjectLabel,
    /// Empty when the share could not be read.
    pub filesystem: String,
    pub size: Option<Bytes>,
    pub used: Option<Bytes>,
    pub status: ShareStatus,
    pub active_job: Option<JobId>,
    pub last_job: Option<JobId>,
    pub findings: Vec<Finding>,
}

/// A pool as the kernel reports it, with what the queued jobs have been promised.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolReport {
    pub pool: PoolName,
    pub driver: DriverKind,
    pub location: String,
    /// Empty, and the sizes zero, when the pool could not be read; findings say why.
    pub filesystem: String,
    pub total: Bytes,
    pub free: Bytes,
    pub promised: Bytes,
    pub queued: Bytes,
    pub available: Bytes,
    pub reserve: Bytes,
    pub overcommit: f64,
    pub shares: usize,
    pub thin: Option<ThinUse>,
    pub findings: Vec<Finding>,
}

/// How full a thin pool is. Both are zero while it is not active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThinUse {
    pub data_percent: f64,
    pub metadata_percent: f64,
}

/// Something that would make an extend fail, or a quota not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Reason,
    pub pool: PoolName,
    /// `None` for a finding about a whole pool.
    pub share: Option<ShareId>,
    pub message: String,
    /// What heals it: a command where there is one.
    pub remedy: String,
}

/// A command that was given to a tool of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    pub command: String,
    pub started_at: SystemTime,
    /// `None` while it runs.
    pub took: Option<Duration>,
    /// How it ended, in a few words.
    pub outcome: String,
    /// The end of what it printed.
    pub output: String,
}
