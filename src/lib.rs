//! growd, the share host agent: extends file shares on a storage node and never loses a request it has accepted.
//!
//! One way down: `wire -> service -> engine -> driver -> sys` and `engine -> store`; all may use `model`. Nothing
//! imports upward; `tests/tidy.rs` holds the code to it. [`daemon`] is the only file that knows all rooms.

pub mod config;
pub mod daemon;
pub mod driver;
pub mod engine;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod logging;
pub mod meters;
pub mod model;
pub mod output;
pub mod pages;
pub mod service;
pub mod store;
pub mod sys;
pub mod wire;
