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
