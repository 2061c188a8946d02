//! Loop devices: which of them show a file, and how they follow its size: ioctls of `linux/loop.h`.
//!
//! A device and its file are told by numbers, never by names: the name that the kernel keeps is what somebody once
//! typed, and the file may have been renamed since.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{dev_t, ioctl};
use nix::sys::stat::{fstat, makedev};

use super::block_device::BlockDevice;
use super::errno;

const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LO_FLAGS_READ_ONLY: u32 = 1;

/// `struct loop_info64`
#[repr(C)]
struct RawStatus {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; 64],
    lo_crypt_name: [u8; 64],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

const _: () = assert!(size_of::<RawStatus>() == 232);

/// A loop device with a file. As long as this lives it keeps its file: `losetup -d` and the end of its mount detach it
/// afterwards.
#[derive(Debug)]
pub struct LoopDevice {
    opened: BlockDevice,
    pub node: PathBuf,
    pub device: dev_t,
    /// Whether it shows less than the whole file.
    pub shows_part: bool,
    pub read_only: bool,
}

impl LoopDevice {
    /// Makes the device as large as its file is now: LOOP_SET_CAPACITY. It would also become smaller.
    ///
    /// # Errors
    /// Those of ioctl(2): `EPERM` without CAP_SYS_ADMIN, `ENXIO`.
    pub fn follow_file(&self) -> Result<(), Errno> {
        // SAFETY: the descriptor is that of an open loop device, and this ioctl takes no argument.
        Errno::result(unsafe { ioctl(self.opened.as_fd().as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
    }
}

/// All loop devices of an open file.
///
/// # Errors
/// Those of reading `/sys/block` and of opening a loop device that is there.
pub fn of_file(file: BorrowedFd<'_>) -> Result<Vec<LoopDevice>, Errno> {
    let file = fstat(file)?;
    let mut devices = Vec::new();
    for entry in fs::read_dir("/sys/block").map_err(errno)? {
        let entry = entry.map_err(errno)?;
        // Only a loop device that has a file has this directory.
        if !entry.path().join("loop").is_dir() {
            continue;
        }
        let node = Path::new("/dev").join(entry.file_name());
        let opened = read_device(&entry.path().join("dev"));
        let opened = opened.and_then(|device| Ok((device, BlockDevice::open(&node, device)?)));
        let (device, opened) = match opened {
            // It was detached, or removed, at this moment.
            Err(Errno::ENXIO | Errno::ENOENT) => continue,
            opened => opened?,
        };
        // Detached as well, or the kernel could not ask its file, as on an NFS or a FUSE that is gone: this one has answered.
        let Ok(status) = status(&opened) else { continue };
        if (status.lo_device, status.lo_inode) == (file.st_dev, file.st_ino) {
            devices.push(LoopDevice {
                opened,
                node,
                device,
                shows_part: status.lo_offset != 0 || status.lo_sizelimit != 0,
                read_only: status.lo_flags & LO_FLAGS_READ_ONLY != 0,
            });
        }
    }
    Ok(devices)
}

/// The number in a file such as `/sys/block/loop0/dev`: `7:0`.
fn read_device(path: &Path) -> Result<dev_t, Errno> {
    let text = fs::read_to_string(path).map_err(|_| Errno::ENOENT)?;
    let number = |text: &str| text.parse().map_err(|_| Errno::EINVAL);
    let (major, minor) = text.trim_end().split_once(':').ok_or(Errno::EINVAL)?;
    Ok(makedev(number(major)?, number(minor)?))
}

fn status(opened: &BlockDevice) -> Result<RawStatus, Errno> {
    let mut status = RawStatus {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: 0,
        lo_file_name: [0; 64],
        lo_crypt_name: [0; 64],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    };
    // SAFETY: the descriptor is that of an open block device whose directory in /sys is a loop device's, and the kernel
    // fills a structure of this very layout.
    Errno::result(unsafe { ioctl(opened.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &raw mut status) })?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_file_of_nobody_has_no_device() {
        let file = File::open("Cargo.toml").unwrap();
        assert_eq!(of_file(file.as_fd()).unwrap().len(), 0);
        assert_eq!(read_device(Path::new("/sys/block/missing/dev")), Err(Errno::ENOENT));
    }
}
