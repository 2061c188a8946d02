//! The project that a directory belongs to: ioctl FS_IOC_FSGETXATTR of `linux/fs.h`.
//!
//! The kernel tells quotas by this id alone. Names in `/etc/projid` and paths in `/etc/projects` are for tools.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct RawAttributes {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

// The size is part of the ioctl's number, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<RawAttributes>() == 28);

/// FS_XFLAG_PROJINHERIT
const PROJECT_INHERIT: u32 = 0x200;

mod raw {
    nix::ioctl_read!(fs_ioc_fsgetxattr, b'X', 31, super::RawAttributes);
}

/// What a file's inode says of its project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// 0 is the project of all files that nobody gave to one.
    pub project_id: u32,
    /// Whether what is made in the directory gets its project.
    pub inherits: bool,
}

/// Reads the project of an open file or directory.
///
/// # Errors
/// `ENOTTY` where the file system has no such attributes.
pub fn get(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    let mut attributes = RawAttributes::default();
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a structure of this very layout.
    unsafe { raw::fs_ioc_fsgetxattr(fd.as_raw_fd(), &raw mut attributes) }?;
    Ok(Attributes { project_id: attributes.projid, inherits: attributes.xflags & PROJECT_INHERIT != 0 })
}
