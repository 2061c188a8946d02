//! Type, space and writability of a file system: fstatfs(2).
//!
//! Below a directory with a project quota, XFS and ext4 answer with the quota's limit and use instead of the file
//! system's. Whoever wants the file system itself asks at the root of its mount.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, Statfs, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::FsFlags;

use super::{fsxattr, mountinfo};
use crate::model::Bytes;

/// A type of file system that has project quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Xfs,
    /// ext2 and ext3 have the same magic number, and are mounted by the same code.
    Ext4,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }

    fn of(magic: FsType) -> Option<Self> {
        if magic == XFS_SUPER_MAGIC {
            Some(Self::Xfs)
        } else if magic == EXT4_SUPER_MAGIC {
            Some(Self::Ext4)
        } else {
            None
        }
    }
}

/// The type of the file system that holds an open file, `None` for one without project quotas.
///
/// # Errors
/// Those of fstatfs(2).
pub fn kind(fd: BorrowedFd<'_>) -> Result<Option<Kind>, Errno> {
    Ok(Kind::of(fstatfs(fd)?.filesystem_type()))
}

/// Whether nothing can be changed through an open file: its mount or the whole file system is read-only.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_read_only(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.flags().contains(FsFlags::ST_RDONLY))
}

/// Space of a whole file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub kind: Option<Kind>,
    pub total: Bytes,
    /// What processes without privileges can still write: `f_bavail`.
    pub free: Bytes,
}

/// Space of the file system that holds an open file; asked at the root of its mount where the file itself may show that of a
/// project.
///
/// # Errors
/// Those of fstatfs(2). A mount that cannot be found or opened is none: the file itself is asked then.
pub fn capacity(fd: BorrowedFd<'_>) -> Result<Capacity, Errno> {
    let statfs = match fsxattr::get(fd) {
        // Without a project to inherit, a directory shows the file system as it is, and no mount need be looked up.
        Ok(attributes) if !attributes.inherits => fstatfs(fd)?,
        _ => at_root(fd)?,
    };
    let block = u64::try_from(statfs.block_size()).unwrap_or(0);
    Ok(Capacity {
        kind: Kind::of(statfs.filesystem_type()),
        total: Bytes::new(statfs.blocks().saturating_mul(block)),
        free: Bytes::new(statfs.blocks_available().saturating_mul(block)),
    })
}

fn at_root(fd: BorrowedFd<'_>) -> Result<Statfs, Errno> {
    let device = fstat(fd)?.st_dev;
    let root = mountinfo::read().and_then(|mounts| {
        open(
            &mountinfo::of_fd(&mounts, fd)?.mount_point,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    });
    // Another mount may lie on top of the mount point.
    let root = root.ok().filter(|root| fstat(root).is_ok_and(|status| status.st_dev == device));
    match &root {
        Some(root) => fstatfs(root.as_fd()),
        None => fstatfs(fd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn measures_the_file_system_of_a_file() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(kind(proc.as_fd()), Ok(None));
        let here = File::open("src").unwrap();
        let capacity = capacity(here.as_fd()).unwrap();
        assert!(capacity.free < capacity.total);
    }
}
