//! Takes the place of libc's sync_file_range(2) in this process, and does fdatasync(2).
//!
//! sled ends `flush()` in sync_file_range, which writes pages out but flushes neither the drive's cache nor the
//! metadata that is needed to find them: after a power cut, what was acknowledged may be gone (its manual page says so
//! under "Warning"). The linker binds sled's call to this definition. Whether it really did is to be checked at start:
//! [`redirected_calls`] must have grown after the first flush.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc::{c_int, c_uint, fdatasync, off64_t};

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often sync_file_range was called in this process and answered with fdatasync.
pub fn redirected_calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Writes all of a file's data to stable storage, whatever range was asked for.
///
/// Answers -1 with `errno` as fdatasync(2) does.
///
/// # Safety
/// As for sync_file_range(2): any arguments are allowed, a bad descriptor gives `EBADF`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: c_int, _offset: off64_t, _bytes: off64_t, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: fdatasync takes any number, and reports one that is no open descriptor.
    unsafe { fdatasync(fd) }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    #[test]
    fn reports_a_bad_descriptor() {
        // SAFETY: no descriptor has the number -1, so nothing happens to any file.
        let result = unsafe { nix::libc::sync_file_range(-1, 0, 0, 0) };
        assert_eq!(Errno::result(result), Err(Errno::EBADF));
    }
}
