//! The devices of a mounted btrfs, and its online growth onto one that has become larger: ioctls of `linux/btrfs.h`, see
//! btrfs-ioctl(2). Each takes any open file or directory of the file system.
//!
//! Growing needs CAP_SYS_ADMIN and a mount that is not read-only, else it is `EPERM` or `EROFS`; it waits while the file
//! system is frozen.

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::model::Bytes;

/// `struct btrfs_ioctl_fs_info_args`
#[repr(C)]
struct InfoArguments {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    nodesize: u32,
    sectorsize: u32,
    rest: [u8; 984],
}

/// `struct btrfs_ioctl_dev_info_args`
#[repr(C)]
struct DeviceArguments {
    devid: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    total_bytes: u64,
    rest: [u8; 4056],
}

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct NameArguments {
    fd: i64,
    name: [u8; 4088],
}

// The sizes are part of the ioctls' numbers, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<InfoArguments>() == 1024);
const _: () = assert!(size_of::<DeviceArguments>() == 4096);
const _: () = assert!(size_of::<NameArguments>() == 4096);

mod raw {
    use super::super::MAGIC;

    nix::ioctl_write_ptr!(resize, MAGIC, 3, super::NameArguments);
    nix::ioctl_readwrite!(dev_info, MAGIC, 30, super::DeviceArguments);
    nix::ioctl_read!(fs_info, MAGIC, 31, super::InfoArguments);
}

/// A btrfs file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The same through all its mounts and subvolumes; what the directory below `/sys/fs/btrfs` is named after.
    pub id: [u8; 16],
    pub devices: u64,
    pub largest_device_id: u64,
    /// Unit of sizes, in bytes.
    pub sector_size: u32,
}

/// Asks btrfs what it is: BTRFS_IOC_FS_INFO.
///
/// # Errors
/// `ENOTTY` for another file system.
pub fn info(fd: BorrowedFd<'_>) -> Result<Info, Errno> {
    let mut info =
        InfoArguments { max_id: 0, num_devices: 0, fsid: [0; 16], nodesize: 0, sectorsize: 0, rest: [0; 984] };
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a structure of this very layout.
    unsafe { raw::fs_info(fd.as_raw_fd(), &raw mut info) }?;
    Ok(Info { id: info.fsid, devices: info.num_devices, largest_device_id: info.max_id, sector_size: info.sectorsize })
}

/// How much of one of its devices btrfs covers: BTRFS_IOC_DEV_INFO.
///
/// # Errors
/// `ENODEV` when it has no device of that id.
pub fn device_size(fd: BorrowedFd<'_>, device_id: u64) -> Result<Bytes, Errno> {
    let mut device =
        DeviceArguments { devid: device_id, uuid: [0; 16], bytes_used: 0, total_bytes: 0, rest: [0; 4056] };
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a structure of this very layout.
    unsafe { raw::dev_info(fd.as_raw_fd(), &raw mut device) }?;
    Ok(Bytes::new(device.total_bytes))
}

/// Makes btrfs cover all of one of its devices: BTRFS_IOC_RESIZE. On a device that is smaller than it was, it shrinks.
/// The change is durable when the call returns.
///
/// # Errors
/// `EBUSY` while a balance or another such operation runs, `EINVAL` when the device is below 256 MiB, `EPERM` when it is not
/// writeable.
pub fn fill_device(fd: BorrowedFd<'_>, device_id: u64) -> Result<(), Errno> {
    let mut arguments = NameArguments { fd: 0, name: [0; 4088] };
    // The longest number is far shorter than the field, which stays ended by a NUL.
    write!(&mut arguments.name[..], "{device_id}:max").map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads a structure of this very layout.
    match unsafe { raw::resize(fd.as_raw_fd(), &raw const arguments) }? {
        0 => Ok(()),
        // BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS is a positive number.
        _ => Err(Errno::EBUSY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn another_file_system_is_told_from_this() {
        assert_eq!(info(File::open("/proc").unwrap().as_fd()), Err(Errno::ENOTTY));
    }
}
