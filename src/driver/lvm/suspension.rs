//! Whether a device is suspended: whatever reads or writes it waits then. The kernel tells that at any time.
//!
//! A suspension is nothing to tell of unless it lasts. Each lvextend suspends its volume and all that this lies on until
//! LVM's metadata have the new size, and so a whole thin pool for every volume in it.

use std::cell::Cell;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::volume::mapper;

/// Much longer than LVM takes to write the metadata of a group.
const MOMENT: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long one question waits for devices that are suspended, all in all: a list must not wait once for each share of a
/// pool that stays so.
pub struct Patience(Cell<Duration>);

impl Default for Patience {
    fn default() -> Self {
        Self(Cell::new(MOMENT))
    }
}

impl Patience {
    /// Whether a device stays suspended for as long as that. One that is not there is not suspended.
    pub fn is_outlasted_by(&self, node: &Path) -> bool {
        let (begun, left) = (Instant::now(), self.0.get());
        let lasts = loop {
            if !mapper(node).is_ok_and(|mapper| mapper.is_suspended) {
                break false;
            }
            if begun.elapsed() >= left {
                break true;
            }
            sleep(LOOK_EVERY);
        };
        self.0.set(left.saturating_sub(begun.elapsed()));
        lasts
    }
}
