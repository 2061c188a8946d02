//! The words that every layer speaks: ids, sizes, jobs, shares, refusals. Data only, checked where it is made.
//!
//! Knows nothing of gRPC, sled or the kernel.

mod access;
mod bytes;
mod ids;
mod job;
mod refusal;
mod share;
mod trace;

pub use access::{Credentials, Grantee, Identity, Role, Roles};
pub use bytes::{Bytes, ParseBytesError};
pub use ids::{InvalidName, JobId, PoolName, ProjectLabel, RequestId, ShareId, shortened};
pub use job::{Job, JobError, JobKind, JobState, StepRecord};
pub use refusal::{Reason, Refusal};
pub use share::{CommandRecord, DriverKind, Finding, PoolReport, ShareReport, ShareStatus, ThinPool, ThinUse};
pub use trace::TraceParent;
