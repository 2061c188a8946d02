//! The words that every layer speaks: ids, sizes, jobs, shares, refusals. Data only, checked where it is made.
//!
//! Knows nothing of gRPC, sled or the kernel.

/// An enumeration each of whose variants has one word: on the wire, in files, in the log.
macro_rules! words {
    ($(#[$of_all:meta])* pub enum $name:ident { $($(#[$of_one:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$of_all])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$of_one])* $variant,)*
        }

        impl $name {
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// `None` for what only another growd says.
            pub fn named(word: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|known| known.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

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
