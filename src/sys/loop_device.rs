//! Loop devices: which of them show a file, and how they follow its size: ioctls of `linux/loop.h`.
//!
//! A device and its file are told by numbers, never by names: the name that the kernel keeps is what somebody once
//! typed, and the file may have been renamed since.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{dev_t, ioctl};
use nix::sys::stat::{fstat, major, stat};

use super::block_device::BlockDevice;
use super::errno;
use crate::model::Bytes;

/// `linux/major.h`
const LOOP_MAJOR: u64 = 7;

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

/// A file: its `st_dev` and `st_ino`.
type FileId = (u64, u64);

impl LoopDevice {
    /// Opens a loop device by its node, and tells which file it shows; `None` when it shows none, or is gone.
    fn open(node: &Path) -> Result<Option<(FileId, Self)>, Errno> {
        let found = stat(node).and_then(|status| Ok((status.st_rdev, BlockDevice::open(node, status.st_rdev)?)));
        let (device, opened) = match found {
            Err(Errno::ENXIO | Errno::ENOENT) => return Ok(None),
            found => found?,
        };
        if major(device) != LOOP_MAJOR {
            return Err(Errno::ENODEV);
        }
        // Detached as well, or the kernel could not ask its file, as on an NFS or a FUSE that is gone: this one has answered.
        let Ok(status) = status(&opened) else { return Ok(None) };
        let shows_part = status.lo_offset != 0 || status.lo_sizelimit != 0;
        let read_only = status.lo_flags & LO_FLAGS_READ_ONLY != 0;
        let device = Self { opened, node: node.to_owned(), device, shows_part, read_only };
        Ok(Some(((status.lo_device, status.lo_inode), device)))
    }

    /// Makes the device as large as its file is now, and tells how large that is: LOOP_SET_CAPACITY. It would also become
    /// smaller.
    ///
    /// # Errors
    /// Those of ioctl(2): `EPERM` without CAP_SYS_ADMIN, `ENXIO`.
    pub fn follow_file(&self) -> Result<Bytes, Errno> {
        // SAFETY: the descriptor is that of an open loop device, and this ioctl takes no argument.
        Errno::result(unsafe { ioctl(self.opened.as_fd().as_raw_fd(), LOOP_SET_CAPACITY, 0) })?;
        self.opened.size()
    }
}

/// The nodes of loop devices by the files that they show.
type Nodes = HashMap<FileId, Vec<PathBuf>>;

/// The loop devices of the node, at the moment when they are asked for first: all are read then, since a file does not tell
/// which it has.
#[derive(Default)]
pub struct LoopDevices {
    nodes: OnceCell<Result<Nodes, Errno>>,
    of_removed: OnceCell<HashMap<PathBuf, PathBuf>>,
}

impl LoopDevices {
    fn read() -> Result<Nodes, Errno> {
        let mut nodes = Nodes::new();
        for entry in fs::read_dir("/sys/block").map_err(errno)? {
            let entry = entry.map_err(errno)?;
            // Only a loop device that has a file has this directory.
            if entry.path().join("loop").is_dir()
                && let Some((file, device)) = LoopDevice::open(&Path::new("/dev").join(entry.file_name()))?
            {
                nodes.entry(file).or_default().push(device.node);
            }
        }
        Ok(nodes)
    }

    /// Those of an open file that still show it.
    ///
    /// # Errors
    /// Those of reading `/sys/block` and of opening a loop device that is there.
    pub fn of_file(&self, file: BorrowedFd<'_>) -> Result<Vec<LoopDevice>, Errno> {
        let nodes = self.nodes.get_or_init(Self::read).as_ref().map_err(|errno| *errno)?;
        let status = fstat(file)?;
        let file = (status.st_dev, status.st_ino);
        let mut devices = Vec::new();
        for node in nodes.get(&file).into_iter().flatten() {
            devices.extend(LoopDevice::open(node)?.filter(|(shown, _)| *shown == file).map(|(_, device)| device));
        }
        Ok(devices)
    }

    /// The node of one that shows a file which is no longer there, and was at this path when it was removed.
    pub fn of_removed(&self, path: &Path) -> Option<&Path> {
        self.of_removed.get_or_init(Self::read_removed).get(path).map(PathBuf::as_path)
    }

    fn read_removed() -> HashMap<PathBuf, PathBuf> {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let of_removed = devices.filter_map(|device| {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
            Some((file.strip_suffix(" (deleted)\n")?.into(), Path::new("/dev").join(device.file_name())))
        });
        of_removed.collect()
    }
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
    // SAFETY: the descriptor is that of an open loop device, and the kernel fills a structure of this very layout.
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
        assert!(LoopDevices::default().of_file(file.as_fd()).unwrap().is_empty());
        assert!(LoopDevice::open(Path::new("/dev/missing")).unwrap().is_none());
        assert_eq!(LoopDevice::open(Path::new("/dev/null")).unwrap_err(), Errno::ENODEV);
    }
}
