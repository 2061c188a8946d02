//! How much the quotas of each file system promise in all.
//!
//! All projects count, also those of other pools and of nobody's: they can all write. The sum is read from the kernel
//! at least every minute, and moved by what growd itself sets in between.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc::dev_t;

use crate::model::Bytes;
use crate::sys::quotactl::{self, QuotaError, Route};

/// The most that a sum may be old.
const TRUSTED: Duration = Duration::from_secs(60);

/// Sums of hard limits by file system, for all pools of the daemon.
#[derive(Default)]
pub struct Promises {
    /// Each has a lock of its own, because a scan waits while an ext4 is frozen.
    by_device: Mutex<HashMap<dev_t, Arc<Mutex<Option<Sum>>>>>,
}

struct Sum {
    /// From before the scan, so that its age is not taken for less than it is.
    begun: Instant,
    ended: Instant,
    promised: Bytes,
}

impl Promises {
    /// The sum of the hard limits of all projects of a file system but 0, which holds the defaults.
    ///
    /// # Errors
    /// [`QuotaError::Off`], and those of the system call.
    pub(super) fn sum(&self, fd: BorrowedFd<'_>, device: dev_t) -> Result<Bytes, QuotaError> {
        let cell = self.cell(device);
        let mut last = lock(&cell);
        if let Some(sum) = last.as_ref().filter(|sum| sum.begun.elapsed() < TRUSTED) {
            return Ok(sum.promised);
        }
        *last = None;
        let begun = Instant::now();
        let promised = scan(fd)?;
        *last = Some(Sum { begun, ended: Instant::now(), promised });
        Ok(promised)
    }

    /// Counts a limit that was raised at some time since `begun`.
    pub(super) fn add(&self, device: dev_t, grown: Bytes, begun: Instant) {
        self.move_sum(device, begun, |promised| promised.saturating_add(grown));
    }

    /// Counts a limit that was lowered at some time since `begun`.
    pub(super) fn take(&self, device: dev_t, freed: Bytes, begun: Instant) {
        self.move_sum(device, begun, |promised| promised.saturating_sub(freed));
    }

    fn move_sum(&self, device: dev_t, begun: Instant, moved: impl FnOnce(Bytes) -> Bytes) {
        let cell = self.cell(device);
        let mut last = lock(&cell);
        // A scan that ended later may have seen it or not.
        *last = last.take().filter(|sum| sum.ended < begun);
        if let Some(sum) = last.as_mut() {
            sum.promised = moved(sum.promised);
        }
    }

    fn cell(&self, device: dev_t) -> Arc<Mutex<Option<Sum>>> {
        Arc::clone(lock(&self.by_device).entry(device).or_default())
    }
}

/// A panic while it was locked left a whole value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scan(fd: BorrowedFd<'_>) -> Result<Bytes, QuotaError> {
    let mut promised = Bytes::ZERO;
    let mut next = Some(1);
    while let Some(id) = next {
        let Some(quota) = quotactl::get_next(fd, Route::Best, id)? else { break };
        promised = promised.saturating_add(quota.hard);
        // An id that does not grow would never end.
        next = quota.id.max(id).checked_add(1);
    }
    Ok(promised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_a_sum_only_by_what_its_scan_cannot_have_seen() {
        let promises = Promises::default();
        let before = Instant::now();
        let scanned = before + Duration::from_millis(1);
        let later = before + Duration::from_millis(2);
        let sum = || Sum { begun: scanned, ended: scanned, promised: Bytes::gib(1) };

        *lock(&promises.cell(7)) = Some(sum());
        promises.add(7, Bytes::gib(2), later);
        promises.add(8, Bytes::gib(2), later);
        assert_eq!(lock(&promises.cell(7)).as_ref().map(|sum| sum.promised), Some(Bytes::gib(3)));
        promises.take(7, Bytes::gib(2), later);
        assert_eq!(lock(&promises.cell(7)).as_ref().map(|sum| sum.promised), Some(Bytes::gib(1)));

        promises.add(7, Bytes::gib(2), before);
        assert!(lock(&promises.cell(7)).is_none());
    }
}
