//! Makes metadata of a file system durable without writing out its data.
//!
//! A quota limit lives in a quota file that nobody can open and fsync, and syncfs(2) would first write the gigabytes
//! that tenants have in the page cache. But both file systems keep their metadata in one journal, in order: XFS
//! collects transactions in its committed item list and writes them as one checkpoint, ext4 in one jbd2 transaction.
//! An fsync that needs a new transaction on disk takes all older ones there with it. ext4's `fast_commit`, off by
//! default, is the exception: it may write the file's own changes alone.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::fsync;

/// Brings every metadata change that was made before the call to stable storage: on the file system of the directory.
///
/// The new transaction is a file without a name (O_TMPFILE). Where there is no space for one, it is the directory's
/// access time, which needs none.
///
/// # Errors
/// Those of open(2) with O_TMPFILE, as `EROFS`, and of fsync(2), as `EIO`.
pub fn force(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match openat(directory, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(file) => fsync(file),
        Err(Errno::ENOSPC | Errno::EDQUOT) => force_by_access_time(directory),
        Err(errno) => Err(errno),
    }
}

fn force_by_access_time(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    futimens(directory, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_OMIT)?;
    fsync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn leaves_nothing_behind() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = File::open(temporary.path()).unwrap();
        let modified = directory.metadata().unwrap().modified().unwrap();
        force_by_access_time(directory.as_fd()).unwrap();
        assert_eq!(directory.metadata().unwrap().modified().unwrap(), modified);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}
