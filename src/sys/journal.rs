//! Makes metadata of a file system durable without writing out its data.
//!
//! A quota limit lives in a quota file that nobody can open and fsync, and syncfs(2) would first write the gigabytes
//! that tenants have in the page cache. But both file systems keep their metadata in one journal, in order: XFS
//! collects transactions in its committed item list and writes them as one checkpoint, ext4 in one jbd2 transaction.
//! An fsync that needs a new transaction on disk takes all older ones there with it. ext4's `fast_commit` would write a
//! file's own changes alone, but not a directory's: for that, `ext4_sync_file()` commits all. Only an ext4 without a
//! journal keeps no order, and promises nothing.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::unistd::{fsync, syncfs};

/// Brings every metadata change that was made before the call to stable storage: on the file system of the directory.
///
/// The new transaction is the directory's access time. It needs no space, no inode and no quota, so it works when all
/// of them have run out, and it changes neither a name nor the modification time. What is set explicitly is logged at
/// once, also where `noatime` or `lazytime` keep the kernel's own updates of it from the disk.
///
/// Nobody may set the times of a directory that is immutable or append-only (chattr +i, +a), or whose mount is read-only
/// though the file system is not. There syncfs(2) is left, and its price is paid: at its end `xfs_fs_sync_fs()` and
/// `ext4_sync_fs()` force all of the log or journal, whatever is in it. But of an ext4 that is shut down it tells nothing, and
/// the fsync does.
///
/// # Errors
/// Those of syncfs(2) and fsync(2), as `EIO`; `EROFS` when an error has stopped the journal.
pub fn force(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    match futimens(directory, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_OMIT) {
        Ok(()) => check_begins(directory)?,
        Err(_) => syncfs(directory)?,
    }
    fsync(directory)
}

/// Whether a transaction can be begun. Where an error has stopped the journal, ext4 of Linux 6.1.176 lets times and limits be
/// set in memory alone and an fsync succeed, since `ext4_dirty_inode()` and `do_set_dqblk()` tell nobody that they failed. To
/// remove an attribute that is not there changes nothing, but begins one.
///
/// # Errors
/// `EROFS` when an error has stopped the journal, `EIO` when the file system is shut down.
pub fn check_begins(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the time of the call, and the name ends in zero.
    let removed = unsafe { libc::fremovexattr(directory.as_raw_fd(), c"trusted.growd.none".as_ptr()) };
    match Errno::result(removed) {
        Err(errno @ (Errno::EROFS | Errno::EIO)) => Err(errno),
        _ => Ok(()),
    }
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
        force(directory.as_fd()).unwrap();
        assert_eq!(directory.metadata().unwrap().modified().unwrap(), modified);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}
