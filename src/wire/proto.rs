//! Code generated from `proto/growd/v1/growd.proto`.

#![allow(clippy::doc_markdown, clippy::derive_partial_eq_without_eq, clippy::large_enum_variant)]

tonic::include_proto!("growd.v1");

/// The contract with its imports and comments, as an encoded `FileDescriptorSet`.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/growd_descriptor.bin"));
