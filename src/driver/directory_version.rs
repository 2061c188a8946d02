//! Whether a directory has the entries that it had when it was read.

use std::time::{Duration, Instant, SystemTime};

use nix::libc::dev_t;
use nix::sys::stat::FileStat;

/// A directory that changed this short ago may change again without another timestamp: the kernel takes them from a clock
/// that ticks.
const SETTLED: Duration = Duration::from_secs(1);
/// The most that what was read may be old.
const TRUSTED: Duration = Duration::from_secs(60);

/// A state of a directory: which it is, how many directories it has, and when an entry was last made or removed (mtime).
/// Who may write there can set mtime back, so no version is trusted for ever. ctime cannot be set back, but flushing the
/// journal changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    device: dev_t,
    inode: u64,
    links: u64,
    modified: (i64, i64),
}

impl Version {
    pub const fn of(status: &FileStat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
            links: status.st_nlink,
            modified: (status.st_mtime, status.st_mtime_nsec),
        }
    }

    /// Whether another state would have another version; to be asked before the directory is read.
    fn is_settled(self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified;
        let modified = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        // A time ahead of the clock, which was set back since, differs from what a change gets now as well.
        now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|now| now.abs_diff(modified) > SETTLED)
    }
}

/// What was read of a directory; to be believed while the directory is the same, and for a minute at most.
pub(super) struct Seen<T> {
    begun: Instant,
    version: Version,
    /// Whether the directory's timestamp would tell a change since.
    settled: bool,
    pub content: T,
}

impl<T> Seen<T> {
    /// `version` as it was before anything was read.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(version: Version, read: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        let (begun, settled) = (Instant::now(), version.is_settled(SystemTime::now()));
        Ok(Self { begun, version, settled, content: read()? })
    }

    pub fn is_trusted(&self, now: Version) -> bool {
        self.settled && self.version == now && self.begun.elapsed() < TRUSTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(device: dev_t, nanoseconds: i64) -> Version {
        Version { device, inode: 2, links: 2, modified: (100, nanoseconds) }
    }

    #[test]
    fn is_settled_a_while_after_it_changed() {
        let version = version(1, 5);
        let at = |milliseconds| SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
        assert!(!version.is_settled(at(100_500)));
        assert!(!version.is_settled(at(99_500)));
        assert!(version.is_settled(at(101_500)));
        assert!(version.is_settled(at(50_000)), "the clock was set back since");
    }

    #[test]
    fn is_trusted_while_the_directory_is_the_same() {
        let directory = version(1, 5);
        let seen = |settled| Seen { begun: Instant::now(), version: directory, settled, content: () };
        assert!(seen(true).is_trusted(directory));
        assert!(!seen(false).is_trusted(directory));
        assert!(!seen(true).is_trusted(version(1, 6)));
        assert!(!seen(true).is_trusted(version(3, 5)));
    }
}
