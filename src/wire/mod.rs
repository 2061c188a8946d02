//! gRPC: the contract's generated code, the handlers, and the one table from refusals to status codes.

pub mod client;
mod convert;
mod handlers;
pub mod json;
pub mod metrics;
pub mod proto;
pub mod server;
mod status;

pub use convert::job as job_message;

/// The token by which ListShares goes on behind a share, whether or not an earlier page ended there.
pub fn page_behind(share: crate::model::ShareId, pool: &str) -> String {
    convert::page_token(Some(share), pool)
}
