//! Online growth of mounted XFS and ext4, by ioctls; that of btrfs is in `btrfs/devices.rs`.
//!
//! Each takes any open file or directory of the file system. XFS and ext4 count in blocks of their own size; what the
//! kernel does with a tail that is too small is modelled in `driver/filesystem`. Growing needs CAP_SYS_ADMIN, ext4
//! CAP_SYS_RESOURCE, and a mount that is not read-only, else it is `EPERM` or `EROFS`; it waits while the file system is
//! frozen. Layouts are those of `xfs/xfs_fs.h` and the kernel's `fs/ext4/ext4.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::model::Bytes;

/// `struct xfs_fsop_geom_v4`: all that is needed, and every kernel knows it.
#[repr(C)]
#[derive(Default)]
struct RawXfsGeometry {
    blocksize: u32,
    rtextsize: u32,
    agblocks: u32,
    agcount: u32,
    logblocks: u32,
    sectsize: u32,
    inodesize: u32,
    imaxpct: u32,
    datablocks: u64,
    rtblocks: u64,
    rtextents: u64,
    logstart: u64,
    uuid: [u8; 16],
    sunit: u32,
    swidth: u32,
    version: i32,
    flags: u32,
    logsectsize: u32,
    rtsectsize: u32,
    dirblocksize: u32,
    logsunit: u32,
}

/// `struct xfs_growfs_data`
#[repr(C)]
struct RawXfsGrowth {
    newblocks: u64,
    imaxpct: u32,
    pad: u32,
}

// The sizes are part of the ioctls' numbers, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<RawXfsGeometry>() == 112);
const _: () = assert!(size_of::<RawXfsGrowth>() == 16);

mod raw {
    nix::ioctl_read!(xfs_ioc_fsgeometry_v4, b'X', 124, super::RawXfsGeometry);
    nix::ioctl_write_ptr!(xfs_ioc_fsgrowfsdata, b'X', 110, super::RawXfsGrowth);
    nix::ioctl_write_ptr!(ext4_ioc_resize_fs, b'f', 16, u64);
}

/// Size of an XFS file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XfsGeometry {
    /// In bytes.
    pub block_size: u32,
    /// Blocks of an allocation group; the last one may have fewer.
    pub group_blocks: u32,
    /// Blocks of the data section, which is all of the device.
    pub blocks: u64,
    /// Percentage of the space that inodes may take.
    pub inode_percent: u32,
}

/// The size that the superblock on a device tells of: `sb_blocksize` and `sb_dblocks` of `xfs_format.h`, big-endian.
pub fn xfs_size_on_device(superblock: &[u8; 4096]) -> Bytes {
    let number = |at: usize| superblock[at..].first_chunk().map_or(0, |bytes| u64::from(u32::from_be_bytes(*bytes)));
    let (block_size, blocks) = (number(4), number(8) << 32 | number(12));
    Bytes::new(blocks.saturating_mul(block_size))
}

/// Asks XFS for its size: XFS_IOC_FSGEOMETRY.
///
/// # Errors
/// `ENOTTY` for another file system.
pub fn xfs_geometry(fd: BorrowedFd<'_>) -> Result<XfsGeometry, Errno> {
    let mut geometry = RawXfsGeometry::default();
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a structure of this very layout.
    unsafe { raw::xfs_ioc_fsgeometry_v4(fd.as_raw_fd(), &raw mut geometry) }?;
    Ok(XfsGeometry {
        block_size: geometry.blocksize,
        group_blocks: geometry.agblocks,
        blocks: geometry.datablocks,
        inode_percent: geometry.imaxpct,
    })
}

/// Grows XFS to this number of blocks: XFS_IOC_FSGROWFSDATA. The growth is durable when the call returns.
///
/// It also sets the percentage of inodes, so that of [`xfs_geometry`] has to be given back. A smaller number of blocks
/// makes newer kernels shrink the file system.
///
/// # Errors
/// `EAGAIN` while somebody else grows it, `ENOSPC` or `EIO` when the device has not that many blocks.
pub fn xfs_grow(fd: BorrowedFd<'_>, blocks: u64, inode_percent: u32) -> Result<(), Errno> {
    let growth = RawXfsGrowth { newblocks: blocks, imaxpct: inode_percent, pad: 0 };
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads a structure of this very layout.
    unsafe { raw::xfs_ioc_fsgrowfsdata(fd.as_raw_fd(), &raw const growth) }.map(drop)
}

/// Grows ext4 to this number of blocks: EXT4_IOC_RESIZE_FS. It can end early without an error.
///
/// # Errors
/// `EBUSY` while somebody else grows it, `EINVAL` for fewer blocks than it has, `ENOSPC` when the device has not that
/// many, `EPERM` when the file system has recorded errors or is mounted by a backup superblock, `EOPNOTSUPP` when it has a
/// feature that prevents it.
pub fn ext4_grow(fd: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads 64 bits.
    unsafe { raw::ext4_ioc_resize_fs(fd.as_raw_fd(), &raw const blocks) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn the_superblock_tells_blocks_of_a_size() {
        let mut superblock = [0; 4096];
        superblock[..16].copy_from_slice(b"XFSB\0\0\x10\0\0\0\0\x01\0\0\0\x02");
        assert_eq!(xfs_size_on_device(&superblock), Bytes::new(((1 << 32) + 2) * 4096));
    }

    #[test]
    fn another_file_system_is_told_from_these() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(xfs_geometry(proc.as_fd()), Err(Errno::ENOTTY));
        assert_eq!(ext4_grow(proc.as_fd(), 1), Err(Errno::ENOTTY));
    }
}
