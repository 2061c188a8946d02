//! gRPC: the contract's generated code, the handlers, and the one table from refusals to status codes.

mod audit;
pub(crate) mod certificate;
pub mod client;
pub(crate) mod convert;
pub mod gate;
mod handlers;
pub mod json;
pub mod limits;
mod listeners;
pub mod metrics;
mod peer;
pub mod proto;
pub mod server;
pub(crate) mod status;
pub mod tls;
mod turned_away;

pub use convert::job as job_message;

/// The token by which ListShares goes on behind a share, whether or not an earlier page ended there.
pub fn page_behind(share: crate::model::ShareId, pool: &str, project: Option<&str>) -> String {
    convert::page_token(Some(share), &convert::shares_filter(pool, project))
}
