//! sled as growd opens it, and what its errors say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::sys::sync_file_range;

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 54 << 20;
/// sled collects the garbage of its log in a thread that also flushes, at most half of this time at once. What growd
/// acknowledges it flushes itself, so this is only how far the collection may lag; each time wakes threads and the disk.
const CLEAN_EVERY_MS: u64 = 5000;

/// Opens sled. It panics on some kinds of damage, which must become a refusal.
///
/// # Errors
/// sled's.
pub fn database(path: &Path) -> sled::Result<sled::Db> {
    sync_file_range::begin(&path.join("db"));
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(CLEAN_EVERY_MS));
    catch_unwind(AssertUnwindSafe(|| config.open()))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("opening the database panicked".to_owned())))
}

/// sled's error for people: of damage it tells in its own terms.
pub fn told(error: &sled::Error) -> String {
    match error {
        sled::Error::Corruption { at: Some(place), .. } => format!("the file db is damaged at offset {}", place.lid()),
        sled::Error::Corruption { at: None, .. } => "the file db is damaged".to_owned(),
        other => other.to_string(),
    }
}
