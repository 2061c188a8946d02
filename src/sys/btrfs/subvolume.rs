//! Which subvolume a directory is the top of, and so which quota group counts it.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;

use super::{FIRST_FREE_OBJECTID, MAGIC, QgroupId};

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArguments {
    tree: u64,
    objectid: u64,
    name: [u8; 4080],
}

// The size is part of the ioctl's number, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<LookupArguments>() == 4096);

mod raw {
    nix::ioctl_readwrite!(ino_lookup, super::MAGIC, 18, super::LookupArguments);
}

/// The quota group of the subvolume whose top directory this is; `None` for any other directory.
///
/// # Errors
/// Those of fstat(2) and of the ioctl.
pub fn qgroup_of(directory: BorrowedFd<'_>) -> Result<Option<QgroupId>, Errno> {
    if fstat(directory)?.st_ino != FIRST_FREE_OBJECTID {
        return Ok(None);
    }
    let mut arguments = LookupArguments { tree: 0, objectid: FIRST_FREE_OBJECTID, name: [0; 4080] };
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a structure of this very layout.
    unsafe { raw::ino_lookup(directory.as_raw_fd(), &raw mut arguments) }?;
    Ok(Some(QgroupId::of_subvolume(arguments.tree)))
}

/// As [`qgroup_of`], of what has a name in `directory`, which need not be opened for it. `None` also for a mount point, and
/// before Linux 6.10, which does not tell: STATX_SUBVOL of statx(2).
///
/// # Errors
/// Those of statx(2): `ENOENT`.
pub fn qgroup_in(directory: BorrowedFd<'_>, name: &Path) -> Result<Option<QgroupId>, Errno> {
    let wanted = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_SUBVOL;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: all its fields are numbers, for which zero is a value.
    let mut status: libc::statx = unsafe { mem::zeroed() };
    let done = name.with_nix_path(|name| {
        // SAFETY: the descriptor is open for the time of the call, the name ends in zero, and the kernel fills a structure
        // of this very layout.
        unsafe { libc::statx(directory.as_raw_fd(), name.as_ptr(), flags, wanted, &raw mut status) }
    })?;
    Errno::result(done)?;
    let mount_root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    let is_on_this_mount = status.stx_attributes_mask & !status.stx_attributes & mount_root != 0;
    let is_directory = u32::from(status.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
    let is_top = status.stx_mask & wanted == wanted && is_directory && status.stx_ino == FIRST_FREE_OBJECTID;
    Ok((is_top && is_on_this_mount).then(|| QgroupId::of_subvolume(status.stx_subvol)))
}
