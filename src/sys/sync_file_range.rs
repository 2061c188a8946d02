//! Takes the place of libc's sync_file_range(2) in this process, and does fdatasync(2).
//!
//! sled ends `flush()` in sync_file_range, which writes pages out but flushes neither the drive's cache nor the
//! metadata that is needed to find them: after a power cut, what was acknowledged may be gone (its manual page says so
//! under "Warning"). The linker binds sled's call to this definition. Whether it really did is to be checked at start:
//! [`redirected_calls`] must have grown after the first flush.
//!
//! The kernel tells of data that it could not write once to each opening of the file, see "Reporting errors" in the kernel's
//! Documentation/filesystems/vfs.rst. sled has a thread that now and then calls fsync(2) on its own and only logs what that
//! says: a flush after it would hear of nothing. So flushes go through an opening of their own, one at a time, and after
//! one has failed so do all others, until the file is opened anew.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::{c_int, c_uint, dev_t, ino_t, off64_t};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::fdatasync;
use parking_lot::Mutex;

static CALLS: AtomicU64 = AtomicU64::new(0);
static FLUSHED: Mutex<Option<Flushed>> = Mutex::new(None);

/// The file that was flushed last.
struct Flushed {
    identity: (dev_t, ino_t),
    /// Opened once more.
    own: OwnedFd,
    /// What a flush has failed with.
    failure: Option<Errno>,
}

impl Flushed {
    fn open(path: &Path) -> Result<Self, Errno> {
        let own = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { identity: identity(own.as_fd())?, own, failure: None })
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<(dev_t, ino_t), Errno> {
    let status = fstat(fd)?;
    Ok((status.st_dev, status.st_ino))
}

/// How often sync_file_range was called in this process and answered with fdatasync.
pub fn redirected_calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Writes all of a file's data to stable storage.
///
/// # Errors
/// Those of fdatasync(2), for any data that could not be written since [`begin`] or the first flush, and of open(2).
pub fn flush(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let identity = identity(fd)?;
    // Held meanwhile: of two flushes only one is told, and the other must not be answered before.
    let mut flushed = FLUSHED.lock();
    let file = match flushed.take_if(|flushed| flushed.identity == identity) {
        Some(same) => flushed.insert(same),
        // It may have lost its name.
        None => flushed.insert(Flushed::open(&PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())))?),
    };
    if file.failure.is_none() {
        file.failure = fdatasync(file.own.as_fd()).err();
    }
    file.failure.map_or(Ok(()), Err)
}

/// To be called before a file is opened: what it failed with before is over, and from now on failures are heard of.
pub fn begin(path: &Path) {
    // One that is not there yet begins with its first flush.
    *FLUSHED.lock() = Flushed::open(path).ok();
}

/// To be called when the file was closed: its file system may be unmounted.
pub fn end() {
    *FLUSHED.lock() = None;
}

/// Writes all of a file's data to stable storage, whatever range was asked for; see [`flush`].
///
/// Answers -1 with `errno` as fdatasync(2) does.
///
/// # Safety
/// As for sync_file_range(2): any arguments are allowed, a bad descriptor gives `EBADF`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _bytes: off64_t, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let flushed = if fd < 0 {
        Err(Errno::EBADF)
    } else {
        // SAFETY: not -1, and used in this call only. A number that is no open descriptor is reported by fstat.
        flush(unsafe { BorrowedFd::borrow_raw(fd) })
    };
    flushed.map_or_else(
        |errno| {
            errno.set();
            -1
        },
        |()| 0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_a_bad_descriptor() {
        for fd in [-1, c_int::MAX] {
            // SAFETY: no descriptor has the number, so nothing happens to any file.
            let result = unsafe { nix::libc::sync_file_range(fd, 0, 0, 0) };
            assert_eq!(Errno::result(result), Err(Errno::EBADF));
        }
    }
}
