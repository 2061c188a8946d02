//! How shares are bounded and grown: one driver for each kind of pool.
//!
//! A driver tells what the kernel says and applies one step at a time. It is synchronous and is called on blocking
//! threads. It knows nothing of jobs, of the store or of gRPC. The one step that makes anything smaller is
//! [`Step::LowerLimit`]; every other one leaves alone what is larger than it asks for.

pub mod btrfs;
mod directory_version;
pub mod filesystem;
pub mod flight_recorder;
pub mod image;
mod lowering;
pub mod lvm;
mod neighbours;
pub mod path_template;
mod places;
pub mod project_quota;
pub mod promises;
mod shell;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use uuid::Uuid;

use crate::model::{Bytes, DriverKind, ProjectLabel, Reason, Refusal, ShareId, ThinUse};

/// Ids of shares in their order, which may be many: whoever lists them need not copy them.
pub type Shares = Arc<[ShareId]>;

/// The backend of one pool.
pub trait Driver: Send + Sync {
    fn kind(&self) -> DriverKind;

    /// Template of the shares' places, as configured.
    fn location(&self) -> String;

    /// Ids of the shares of the pool that the convention finds, in their order: of all, or of those whose places say this
    /// project; with an empty one of those whose places say none.
    ///
    /// # Errors
    /// [`Refusal::NotMounted`] when the pool is not there.
    fn shares(&self, project: Option<&ProjectLabel>) -> Result<Shares, DriverError>;

    /// What the kernel says of shares now, in their order, with everything that is wrong with each.
    ///
    /// # Errors
    /// [`Refusal::ShareNotFound`], or [`Refusal::NotMounted`] when the pool is not there and the share might be on it.
    fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>>;

    /// All that decides on extends or shrinks of shares to their targets, at one moment each, in their order.
    ///
    /// # Errors
    /// As [`Driver::observe_all`] and [`Driver::space`].
    fn assess_all(&self, asked: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>>;

    /// The sizes alone, before and between the steps of a job.
    ///
    /// # Errors
    /// As [`Driver::observe_all`], and what [`Observed::extendable`] refuses.
    fn measure(&self, share: ShareId) -> Result<Sizes, DriverError>;

    /// The space that the pool's shares grow into; pools with the same id compete for it.
    ///
    /// # Errors
    /// [`Refusal::NotMounted`] when the pool is not there.
    fn space(&self) -> Result<Space, DriverError>;

    /// Whether the pool is there, which is asked again and again: it takes no longer where there are many shares.
    ///
    /// # Errors
    /// [`Refusal::NotMounted`] when it is not.
    fn check_mounted(&self) -> Result<(), DriverError>;

    /// What only a change tells of, and no look: begins one that changes nothing. Asked for findings, every few minutes.
    ///
    /// # Errors
    /// As [`Driver::space`].
    fn refuses_changes(&self) -> Result<Option<Problem>, DriverError> {
        Ok(None)
    }

    /// Does one step. Measures first: a step that finds its work done changes nothing, so it may be repeated. Whatever
    /// has come up since the extend was assessed and makes the step wrong is refused here.
    ///
    /// # Errors
    /// The refusal or the failed system call. The share is then at least as large as it was before; after
    /// [`Step::LowerLimit`] it may be smaller where the message says so.
    fn apply(&self, share: ShareId, step: Step) -> Result<Outcome, DriverError>;

    /// Makes what earlier steps changed durable, then reads the sizes of shares back, in their order.
    ///
    /// # Errors
    /// As [`Driver::observe_all`], and a failed flush.
    fn verify_all(&self, shares: &[ShareId]) -> Vec<Result<Bytes, DriverError>>;
}

/// What the kernel says of a share.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    pub location: PathBuf,
    /// The project that the place says; empty where it says none.
    pub project: ProjectLabel,
    /// Type of the file system: `xfs`, `ext4`, `btrfs`; empty for a volume without one.
    pub filesystem: &'static str,
    /// `None` when nothing bounds it or the kernel cannot tell; `problems` says why.
    pub sizes: Option<Sizes>,
    pub used: Option<Bytes>,
    /// What is wrong, the most telling first.
    pub problems: Vec<Problem>,
}

impl Observed {
    /// What its users can use.
    pub fn size(&self) -> Option<Bytes> {
        self.sizes.map(Sizes::usable)
    }

    /// The size, whatever else is wrong with the share.
    ///
    /// # Errors
    /// Why there is none: the first blocking problem.
    pub fn known_size(&self) -> Result<Bytes, Refusal> {
        self.size().map_or_else(|| self.extendable().map(Sizes::usable), Ok)
    }

    /// The limit and what of it is in use, unless something is wrong that a shrink must not build on: also a count that
    /// is not right.
    ///
    /// # Errors
    /// The first blocking problem, QUOTA_NOT_ENFORCED, or UNSUPPORTED for what no quota bounds.
    pub fn shrinkable(&self) -> Result<Bounds, Refusal> {
        let sizes = self.extendable()?;
        if let Some(problem) = self.problems.iter().find(|problem| problem.kind == Reason::QuotaNotEnforced) {
            let (location, problem) = (self.location.clone(), problem.message.clone());
            return Err(Refusal::QuotaNotEnforced { location, problem });
        }
        match (sizes, self.used) {
            (Sizes::Limit(limit), Some(used)) => Ok(Bounds { limit, used }),
            (Sizes::Limit(_), None) => {
                Err(Refusal::Internal { problem: format!("the use of {} could not be read", self.location.display()) })
            }
            (Sizes::Volume { .. }, _) => {
                let what = format!("making a volume smaller ({})", self.location.display());
                Err(Refusal::Unsupported { what })
            }
        }
    }

    /// The sizes, unless something is wrong that an extend must not build on.
    ///
    /// # Errors
    /// The first blocking problem.
    pub fn extendable(&self) -> Result<Sizes, Refusal> {
        match self.problems.iter().find_map(|problem| problem.refusal.clone()) {
            Some(refusal) => Err(refusal),
            None => self.sizes.ok_or_else(|| Refusal::Internal {
                problem: format!("the size of {} could not be read", self.location.display()),
            }),
        }
    }
}

/// What decides on a shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub limit: Bytes,
    pub used: Bytes,
}

/// What bounds a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// The hard limit of a quota.
    Limit(Bytes),
    Volume {
        /// The largest file system that the volume holds; of a volume without one, its size.
        room: Bytes,
        /// `None` for a volume without one.
        filesystem: Option<Bytes>,
    },
}

impl Sizes {
    /// What users can use.
    pub fn usable(self) -> Bytes {
        match self {
            Self::Limit(limit) => limit,
            Self::Volume { room, filesystem } => filesystem.map_or(room, |filesystem| filesystem.min(room)),
        }
    }
}

/// What decides on an extend or a shrink.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    pub observed: Observed,
    /// What an extend would take of the space, or why the backend cannot grow a share that far.
    pub growth: Result<Bytes, Refusal>,
    pub space: Space,
}

/// Something that is wrong with a share or a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: Reason,
    pub message: String,
    /// What heals it: a command where there is one.
    pub remedy: String,
    /// What an extend is refused with; `None` when the problem does not stop one.
    pub refusal: Option<Refusal>,
}

impl Problem {
    pub fn blocking(refusal: Refusal, remedy: String) -> Self {
        Self { kind: refusal.reason(), message: refusal.to_string(), remedy, refusal: Some(refusal) }
    }

    pub fn warning(kind: Reason, message: String, remedy: String) -> Self {
        Self { kind, message, remedy, refusal: None }
    }
}

/// # Errors
/// What an extend is refused with for a problem that stops it.
fn nothing_blocks(problem: Option<Problem>) -> Result<(), Refusal> {
    problem.and_then(|problem| problem.refusal).map_or(Ok(()), Err)
}

/// Identity of a space that shares grow into: a file system, a volume group, a thin pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub String);

impl SpaceId {
    /// Of a btrfs, by its id: each of its subvolumes has a device number of its own.
    fn of_btrfs(id: [u8; 16]) -> Self {
        Self(format!("btrfs {}", Uuid::from_bytes(id)))
    }
}

/// A space that shares grow into.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    pub id: SpaceId,
    /// Type of the file system, empty where it is none.
    pub filesystem: &'static str,
    pub total: Bytes,
    pub free: Bytes,
    /// Sum of all that cannot be promised again: the hard limits of a file system, the volumes of a group.
    pub promised: Bytes,
    /// How full it is, of a thin pool.
    pub thin: Option<ThinUse>,
    /// What is wrong with the space itself.
    pub problems: Vec<Problem>,
}

/// One change that brings a share to its target or nearer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Raise the hard limit of the quota to at least this.
    SetLimit { to: Bytes },
    /// Lower the hard limit of the quota from `from` or less to `to`, rounded up to blocks, unless more is in use. Of a limit
    /// that is lowered already and below what is in use, which a crash may leave, `from` is put back.
    LowerLimit { from: Bytes, to: Bytes },
    /// Grow the volume until it holds a file system of at least this size.
    GrowVolume { to: Bytes },
    /// Grow the file system to fill its volume, which gives at least this.
    GrowFilesystem { to: Bytes },
}

impl Step {
    pub const fn name(self) -> &'static str {
        match self {
            Self::SetLimit { .. } => "set_limit",
            Self::LowerLimit { .. } => "lower_limit",
            Self::GrowVolume { .. } => "grow_volume",
            Self::GrowFilesystem { .. } => "grow_filesystem",
        }
    }

    /// What a driver answers to a step that is none of its own.
    fn unknown_to(self, driver: DriverKind) -> DriverError {
        Refusal::Internal { problem: format!("driver {driver} knows no step {}", self.name()) }.into()
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Changed { from: Bytes, to: Bytes },
    AlreadyThere { size: Bytes },
}

impl Outcome {
    /// What there is now.
    pub const fn size(self) -> Bytes {
        let (Self::Changed { to: size, .. } | Self::AlreadyThere { size }) = self;
        size
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { from, to } => write!(f, "{from} -> {to}"),
            Self::AlreadyThere { size } => write!(f, "already {size}"),
        }
    }
}

/// Why a driver could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A refusal with what heals it, as a [`Problem`] has.
    #[error("{refusal}")]
    Unusable { refusal: Box<Refusal>, remedy: String },
    /// A system call failed in a way that has no reason of its own.
    #[error("{operation} {}", object.display())]
    System { operation: &'static str, object: PathBuf, source: Errno },
}

impl DriverError {
    fn unusable(refusal: Refusal, remedy: String) -> Self {
        Self::Unusable { refusal: Box::new(refusal), remedy }
    }

    /// What is wrong with the share, where that is all there is to the error.
    ///
    /// # Errors
    /// Any other error.
    fn into_problem(self) -> Result<Problem, Self> {
        match self {
            Self::Unusable { refusal, remedy } => Ok(Problem::blocking(*refusal, remedy)),
            error => Err(error),
        }
    }

    /// What a caller is told.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Unusable { refusal, .. } => *refusal,
            Self::System { source, .. } => Refusal::Internal { problem: format!("{self}: {source}") },
        }
    }
}

/// What `answer` makes of each that is asked for, and of what all have in common, or why that is not there.
fn answer_each<C, Q, T>(
    common: Result<C, DriverError>,
    asked: &[Q],
    answer: impl Fn(&C, &Q) -> Result<T, DriverError>,
) -> Vec<Result<T, DriverError>> {
    let answer = |question| common.as_ref().map_err(DriverError::clone).and_then(|common| answer(common, question));
    asked.iter().map(answer).collect()
}

fn system(operation: &'static str, object: &Path) -> impl FnOnce(Errno) -> DriverError {
    move |source| DriverError::System { operation, object: object.to_owned(), source }
}
