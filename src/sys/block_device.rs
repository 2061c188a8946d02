//! Block devices: their size, their first blocks, and what else is built on them.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::dev_t;
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::sys::uio::pread;

use super::errno;
use crate::model::Bytes;

mod raw {
    // The header says size_t, and the kernel fills 64 bits on every platform (linux/fs.h, block/ioctl.c).
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), nix::libc::c_int);
}

/// A block device, open for reading.
#[derive(Debug)]
pub struct BlockDevice {
    fd: OwnedFd,
}

/// As large and as well aligned as direct reads of any device must be.
#[repr(align(4096))]
pub struct FirstBlock(pub [u8; 4096]);

impl BlockDevice {
    /// Opens the device by its node, which may be a symbolic link as those of LVM are.
    ///
    /// # Errors
    /// Those of open(2), and `ENODEV` when the node is not that of the device.
    pub fn open(node: &Path, device: dev_t) -> Result<Self, Errno> {
        let fd = open(node, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
        let status = fstat(&fd)?;
        let is_block = status.st_mode & nix::libc::S_IFMT == nix::libc::S_IFBLK;
        if is_block && status.st_rdev == device { Ok(Self { fd }) } else { Err(Errno::ENODEV) }
    }

    /// How large the device is now: ioctl BLKGETSIZE64 of `linux/fs.h`.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn size(&self) -> Result<Bytes, Errno> {
        let mut size = 0;
        // SAFETY: the descriptor is that of an open block device, and the kernel fills 64 bits.
        unsafe { raw::blkgetsize64(self.fd.as_raw_fd(), &raw mut size) }?;
        Ok(Bytes::new(size))
    }

    /// Whether the kernel has it read-only, whatever it is mounted as: ioctl BLKROGET of `linux/fs.h`.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn is_read_only(&self) -> Result<bool, Errno> {
        let mut read_only = 0;
        // SAFETY: the descriptor is that of an open block device, and the kernel fills an int.
        unsafe { raw::blkroget(self.fd.as_raw_fd(), &raw mut read_only) }?;
        Ok(read_only != 0)
    }

    /// Reads what is on the device now, past its page cache, where XFS keeps nothing of its own. `None` behind the end.
    ///
    /// # Errors
    /// Those of open(2) and pread(2).
    pub fn read_direct(&self) -> Result<Option<FirstBlock>, Errno> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut block = FirstBlock([0; 4096]);
        let read = pread(&fd, &mut block.0, 0)?;
        Ok((read == block.0.len()).then_some(block))
    }

    /// Reads through the device's page cache, which a mounted ext4 keeps its superblock in. `None` behind the end.
    ///
    /// # Errors
    /// Those of pread(2), as `EIO`.
    pub fn read<const LENGTH: usize>(&self, offset: u32) -> Result<Option<[u8; LENGTH]>, Errno> {
        let mut bytes = [0; LENGTH];
        let read = pread(&self.fd, &mut bytes, offset.into())?;
        Ok((read == LENGTH).then_some(bytes))
    }
}

impl AsFd for BlockDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Names of the devices that are built on this one: its holders, as device-mapper, md and bcache are, and its partitions.
/// A file system does not count. From `/sys/dev/block/MAJ:MIN`.
///
/// # Errors
/// `ENOENT` when there is no such device.
pub fn holders(device: dev_t) -> Result<Vec<String>, Errno> {
    let directory = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let mut names = Vec::new();
    for entry in fs::read_dir(format!("{directory}/holders")).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let kernel_name = entry.file_name().to_string_lossy().into_owned();
        let mapper_name = fs::read_to_string(entry.path().join("dm/name")).ok();
        names.push(mapper_name.map_or(kernel_name, |name| name.trim_end().to_owned()));
    }
    for entry in fs::read_dir(directory).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.path().join("partition").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What device-mapper says of a device of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Mapper {
    pub uuid: String,
    pub is_suspended: bool,
}

/// `/sys/dev/block/MAJ:MIN/dm`, by the kernel's `Documentation/ABI/testing/sysfs-block-dm`.
///
/// # Errors
/// `ENOENT` when there is no such device, or it is not device-mapper's.
pub fn mapper(device: dev_t) -> Result<Mapper, Errno> {
    let directory = format!("/sys/dev/block/{}:{}/dm", major(device), minor(device));
    let text = |file: &str| fs::read_to_string(format!("{directory}/{file}")).map_err(errno);
    let read = |file: &str| text(file).map(|text| text.trim_end().to_owned());
    Ok(Mapper { uuid: read("uuid")?, is_suspended: read("suspended")? != "0" })
}

/// Whether the device is there and all that it lies on, down to the disks: what was built on a disk stays when that is gone.
/// From `slaves` in `/sys/dev/block/MAJ:MIN`, by `Documentation/ABI/testing/sysfs-block`.
pub fn is_whole(device: dev_t) -> bool {
    is_whole_in_sysfs(Path::new(&format!("/sys/dev/block/{}:{}", major(device), minor(device))))
}

fn is_whole_in_sysfs(directory: &Path) -> bool {
    // A partition has none.
    let below = fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    // The link to one that is gone stays.
    directory.join("dev").exists() && below.map(|entry| entry.path()).all(|path| is_whole_in_sysfs(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{makedev, stat};

    #[test]
    fn opens_nothing_but_the_device_itself() {
        let zero = stat("/dev/zero").unwrap().st_rdev;
        let error = |node: &str, device| BlockDevice::open(Path::new(node), device).unwrap_err();
        assert_eq!(error("/dev/zero", zero), Errno::ENODEV);
        assert_eq!(error("src", zero), Errno::ENODEV);
        assert_eq!(error("/dev/missing", zero), Errno::ENOENT);
        assert_eq!(holders(makedev(0xfff, 0xf_ffff)), Err(Errno::ENOENT));
        assert_eq!(mapper(makedev(0xfff, 0xf_ffff)), Err(Errno::ENOENT));
        assert!(!is_whole(makedev(0xfff, 0xf_ffff)));
    }

    /// As sysfs has them: a device on a partition and on another disk.
    #[test]
    fn a_device_is_whole_with_all_that_it_lies_on() {
        let sys = tempfile::tempdir().unwrap();
        for device in ["dm-1", "sda/sda1", "sdb"] {
            let slaves = if device.starts_with("sda") { "holders" } else { "slaves" };
            fs::create_dir_all(sys.path().join(device).join(slaves)).unwrap();
            fs::write(sys.path().join(device).join("dev"), "1:1").unwrap();
        }
        let volume = sys.path().join("dm-1");
        for disk in ["sda/sda1", "sdb"] {
            let link = volume.join("slaves").join(disk.trim_start_matches("sda/"));
            std::os::unix::fs::symlink(format!("../../{disk}"), link).unwrap();
        }
        assert!(is_whole_in_sysfs(&volume));
        fs::remove_dir_all(sys.path().join("sda")).unwrap();
        assert!(!is_whole_in_sysfs(&volume));
    }
}
