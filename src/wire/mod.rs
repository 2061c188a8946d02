//! gRPC: the contract's generated code, the handlers, and the one table from refusals to status codes.

pub mod client;
pub mod json;
pub mod proto;
