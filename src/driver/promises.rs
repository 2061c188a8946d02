//! How much the quotas of each file system promise in all.
//!
//! All limits count, also those of other pools and of nobody's shares: they can all be written up to. The sum is read from
//! the kernel at least every minute, and moved by what growd itself sets in between.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::SpaceId;
use crate::model::Bytes;

/// The most that a sum may be old.
const TRUSTED: Duration = Duration::from_secs(60);

/// Sums of limits by file system, for all pools of the daemon.
#[derive(Default)]
pub struct Promises {
    /// Each has a lock of its own, because a scan waits while an ext4 is frozen.
    by_space: Mutex<HashMap<SpaceId, Arc<Mutex<Option<Sum>>>>>,
}

struct Sum {
    /// From before the scan, so that its age is not taken for less than it is.
    begun: Instant,
    ended: Instant,
    promised: Bytes,
}

impl Promises {
    /// The sum of the limits of a file system, which `scan` reads when the last one is old.
    ///
    /// # Errors
    /// Those of `scan`.
    pub(super) fn sum<E>(&self, space: &SpaceId, scan: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let cell = self.cell(space);
        let mut last = cell.lock();
        if let Some(sum) = last.as_ref().filter(|sum| sum.begun.elapsed() < TRUSTED) {
            return Ok(sum.promised);
        }
        *last = None;
        let begun = Instant::now();
        let promised = scan()?;
        *last = Some(Sum { begun, ended: Instant::now(), promised });
        Ok(promised)
    }

    /// Counts a limit that was raised at some time since `begun`.
    pub(super) fn add(&self, space: &SpaceId, grown: Bytes, begun: Instant) {
        self.move_sum(space, begun, |promised| promised.saturating_add(grown));
    }

    /// Counts a limit that was lowered at some time since `begun`.
    pub(super) fn subtract(&self, space: &SpaceId, freed: Bytes, begun: Instant) {
        self.move_sum(space, begun, |promised| promised.saturating_sub(freed));
    }

    fn move_sum(&self, space: &SpaceId, begun: Instant, moved: impl FnOnce(Bytes) -> Bytes) {
        let cell = self.cell(space);
        let mut last = cell.lock();
        // A scan that ended later may have seen it or not.
        *last = last.take().filter(|sum| sum.ended < begun);
        if let Some(sum) = last.as_mut() {
            sum.promised = moved(sum.promised);
        }
    }

    /// Has the next sum read from the kernel: a limit was lowered and put back, and the last one may have seen either.
    pub(super) fn forget(&self, space: &SpaceId) {
        *self.cell(space).lock() = None;
    }

    fn cell(&self, space: &SpaceId) -> Arc<Mutex<Option<Sum>>> {
        let mut by_space = self.by_space.lock();
        if let Some(cell) = by_space.get(space) {
            return Arc::clone(cell);
        }
        Arc::clone(by_space.entry(space.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_a_sum_only_by_what_its_scan_cannot_have_seen() {
        let promises = Promises::default();
        let [ours, other] = ["dev 8:1", "dev 8:2"].map(|id| SpaceId(id.to_owned()));
        let before = Instant::now();
        let scanned = before + Duration::from_millis(1);
        let later = before + Duration::from_millis(2);
        let sum = || Sum { begun: scanned, ended: scanned, promised: Bytes::gib(1) };

        *promises.cell(&ours).lock() = Some(sum());
        promises.add(&ours, Bytes::gib(2), later);
        promises.add(&other, Bytes::gib(2), later);
        assert_eq!(promises.cell(&ours).lock().as_ref().map(|sum| sum.promised), Some(Bytes::gib(3)));
        promises.subtract(&ours, Bytes::gib(2), later);
        assert_eq!(promises.sum(&ours, || Err("the sum is known")), Ok(Bytes::gib(1)));
        promises.forget(&ours);
        assert_eq!(promises.sum(&ours, || Err("unknown")), Err("unknown"));

        *promises.cell(&ours).lock() = Some(sum());
        promises.add(&ours, Bytes::gib(2), before);
        assert!(promises.cell(&ours).lock().is_none());
    }
}
