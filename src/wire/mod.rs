//! gRPC: the contract's generated code, the handlers, and the one table from refusals to status codes. And HTTP, for
//! metrics and for growapi.

mod audit;
pub(crate) mod certificate;
pub mod client;
pub(crate) mod convert;
pub mod gate;
mod handlers;
pub mod http;
pub mod json;
pub mod limits;
mod listeners;
mod log_limit;
pub mod metrics;
mod peer;
pub mod proto;
mod request_deadline;
pub mod server;
pub(crate) mod status;
pub mod tls;

pub use convert::job as job_message;
