//! The file system on a volume: what it is, and its growth while it is mounted.
//!
//! All drivers whose shares are block devices share this room. It goes from the device to the mount and not the other
//! way round: names of devices and mount points are for people, and either may differ from what the configuration
//! says. Sizes are the kernel's own; no tool is asked. Nothing here makes a file system smaller or mounts it.

mod device;
pub(crate) mod ext4;
pub(crate) mod geometry;
mod mounts;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::syncfs;

pub use self::device::Device;
use self::ext4::{Ext4, Obstacle, SUPERBLOCK};
use self::geometry::Geometry;
pub use self::mounts::Mounts;
use super::shell::Quoted;
use super::{DriverError, Problem, nothing_blocks, system};
use crate::model::{Bytes, PoolName, Refusal, ShareId};
use crate::sys::block_device::{BlockDevice, FirstBlock};
use crate::sys::btrfs::{self, devices};
use crate::sys::{capabilities, freeze, growfs, journal};

/// A mounted file system that covers one volume. It keeps the mount and the device busy until it is dropped.
#[derive(Debug)]
pub struct Mounted {
    share: ShareId,
    pool: PoolName,
    node: PathBuf,
    device: BlockDevice,
    root: OwnedFd,
    /// Where it is mounted; one of several places.
    pub mount_point: PathBuf,
    /// As it was when it was observed.
    pub geometry: Geometry,
    /// What is in use, as df(1) counts it: without the file system's own overhead.
    pub used: Bytes,
}

/// For a file system that growd does not grow.
fn foreign(what: String) -> DriverError {
    let remedy = "move the share to XFS, ext4 or btrfs on a device of its own";
    DriverError::unusable(Refusal::Unsupported { what }, remedy.to_owned())
}

impl Mounted {
    /// Whether it should be grown to fill a volume of this size. Ask before the volume is grown.
    ///
    /// # Errors
    /// [`Refusal::GrowthTooLarge`], unless `allow_any`, when XFS would get more allocation groups than is good for it, or
    /// ext4 more groups or descriptors than it has room for.
    pub fn check_growth(&self, to: Bytes, allow_any: bool) -> Result<(), Refusal> {
        match self.geometry.crossed_on(to).filter(|_| !allow_any) {
            Some(crossed) => Err(Refusal::GrowthTooLarge {
                location: self.node.clone(),
                filesystem: self.geometry.name(),
                to,
                what: crossed.what,
                needed: crossed.needed,
                most: crossed.most,
            }),
            None => Ok(()),
        }
    }

    /// Grows it to fill the volume, as large as the device is now, and reads the new size back. Changes nothing when
    /// it already does, also when the volume is smaller.
    ///
    /// # Errors
    /// The failed system call. [`Refusal::Unsupported`] when this kernel cannot grow it, or not for this process.
    pub fn grow(&self) -> Result<Bytes, DriverError> {
        let mut now = self.measure()?;
        if let Geometry::Xfs(_) = now {
            // Meanwhile somebody else may grow it as well.
            self.settle(now.size())?;
            now = self.measure()?;
        }
        // The ioctls of XFS and btrfs would shrink it, too. So the size that they are told is the last thing that is measured.
        let volume = self.device.size().map_err(system("measure", &self.node))?;
        if now.size_on(volume) <= now.size() {
            return Ok(now.size());
        }
        nothing_blocks(self.obstacle(&self.node))?;
        let root = self.root.as_fd();
        let grown = match &now {
            Geometry::Xfs(xfs) => growfs::xfs_grow(root, volume.get() / u64::from(xfs.block_size), xfs.inode_percent),
            Geometry::Ext4(ext4) => growfs::ext4_grow(root, volume.get() / ext4.block_size),
            Geometry::Btrfs { device_id, .. } => devices::fill_device(root, *device_id),
        };
        match grown {
            Ok(()) => Ok(self.measure()?.size()),
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => {
                let what = format!("growing {} on {} while it is mounted", self.geometry.name(), self.node.display());
                Err(Refusal::Unsupported { what }.into())
            }
            Err(Errno::EPERM) if !matches!(now, Geometry::Xfs(_)) => {
                let why = match now {
                    Geometry::Ext4(_) => "which has recorded errors (see dmesg)",
                    _ => "which btrfs does not write to (see dmesg)",
                };
                let what = format!("growing {} on {}, {why},", self.geometry.name(), self.node.display());
                Err(Refusal::Unsupported { what }.into())
            }
            Err(Errno::EUCLEAN) if matches!(now, Geometry::Xfs(_)) => {
                let problem = format!(
                    "grow the file system on {}: EUCLEAN; if the power was cut during a growth, unmount it and mount it again \
                     first, otherwise it needs xfs_repair",
                    self.node.display()
                );
                Err(Refusal::Internal { problem }.into())
            }
            Err(errno) => Err(system("grow the file system on", &self.node)(errno)),
        }
    }

    /// Brings an earlier growth of XFS to its place, which stays in the log alone for half a minute or more. After a power
    /// cut XFS recovers one growth from its log and no second one: it does not mount then, "Structure needs cleaning". And
    /// when the one made its last allocation group larger, it cannot be grown again before it is mounted anew. Measured
    /// with Linux 6.1; that it recovers any came with the kernel's commit a798011c8fd4.
    fn settle(&self, size: Bytes) -> Result<(), DriverError> {
        let block = self.device.read_direct().map_err(system("read the superblock on", &self.node))?;
        if block.is_some_and(|FirstBlock(superblock)| growfs::xfs_size_on_device(&superblock) == size) {
            return Ok(());
        }
        let root = self.root.as_fd();
        // What tenants have written goes out while they still can write, so that the freeze has little to wait for.
        syncfs(root).map_err(system("flush", &self.mount_point))?;
        freeze::for_a_moment(root).map_err(system("freeze for a moment", &self.mount_point))
    }

    /// Makes the growth durable, so that a power cut cannot undo it.
    ///
    /// # Errors
    /// The failed system call.
    pub fn flush(&self) -> Result<(), DriverError> {
        let root = self.root.as_fd();
        let flushed = match &self.geometry {
            Geometry::Xfs(_) | Geometry::Ext4(_) => journal::force(root),
            // An fsync there writes a log of the file alone.
            Geometry::Btrfs { .. } => btrfs::commit(root),
        };
        flushed.map_err(system("flush", &self.mount_point))?;
        // As large as it is now, and not as it was observed.
        match &self.geometry {
            Geometry::Xfs(_) => self.settle(self.measure()?.size()),
            Geometry::Ext4(_) | Geometry::Btrfs { .. } => Ok(()),
        }
    }

    /// What keeps it from growing at all now, with what heals that: growd lacks a capability, the kernel does not grow such an
    /// ext4, or btrfs is at another work. `location` is what a check of the file system is run on.
    pub fn obstacle(&self, location: &Path) -> Option<Problem> {
        let (node, place) = (self.node.display(), Quoted(&self.mount_point));
        let capability = self.geometry.capability();
        if !capabilities::is_effective(capability) {
            let what = format!("growing {} on {node} without {capability}", self.geometry.name());
            let remedy =
                format!("allow growd {capability}: by CapabilityBoundingSet= of its unit, or in its container");
            return Some(Problem::blocking(Refusal::Unsupported { what }, remedy));
        }
        // Tenants can write all the same (Linux 6.1), but ext4 grows by a part and then fails.
        if self.device.is_read_only() == Ok(true) {
            let problem = format!("{node} is read-only, though it is mounted writable");
            let remedy = match self.node.starts_with("/dev/mapper") {
                true => format!("lvchange --permission rw {}", Quoted(location)),
                false => format!("blockdev --setrw {node}"),
            };
            let (share, pool) = (self.share, self.pool.clone());
            return Some(Problem::blocking(Refusal::ShareNotMounted { share, pool, problem }, remedy));
        }
        match &self.geometry {
            Geometry::Ext4(Ext4 { obstacle, .. }) => obstacle.map(|Obstacle { what, check }| {
                let (advice, remedy) = match check {
                    Some(check) => (
                        format!(" (unmount it and run {check})"),
                        format!("umount {place} && {check} {}, then mount it again", Quoted(location)),
                    ),
                    None => (String::new(), "move the share to a file system without it".to_owned()),
                };
                let what = format!("growing ext4 with {what}{advice}, as on {node},");
                Problem::blocking(Refusal::Unsupported { what }, remedy)
            }),
            Geometry::Btrfs { .. } => {
                let operation = btrfs::exclusive_operation(self.root.as_fd());
                let operation = match operation.map_err(system("see what is at work on", &self.node)) {
                    Ok(operation) => operation?,
                    Err(error) => {
                        return Some(Problem::blocking(error.into_refusal(), "journalctl -u growd, dmesg".to_owned()));
                    }
                };
                let remedy = match operation.as_str() {
                    "balance paused" => {
                        format!("btrfs balance resume {place} to its end, or btrfs balance cancel {place}")
                    }
                    _ => format!("wait until it has ended: btrfs balance status {place}, btrfs replace status {place}"),
                };
                let problem = format!("btrfs on {node} is not resized before this has ended: {operation}; {remedy}");
                let (share, pool) = (self.share, self.pool.clone());
                Some(Problem::blocking(Refusal::ShareNotMounted { share, pool, problem }, remedy))
            }
            Geometry::Xfs(_) => None,
        }
    }

    fn measure(&self) -> Result<Geometry, DriverError> {
        read_geometry(&self.device, self.root.as_fd(), &self.node)
    }
}

fn read_geometry(device: &BlockDevice, root: BorrowedFd<'_>, node: &Path) -> Result<Geometry, DriverError> {
    match growfs::xfs_geometry(root) {
        Ok(xfs) => return Ok(Geometry::Xfs(xfs)),
        Err(Errno::ENOTTY) => {}
        Err(errno) => return Err(system("measure the file system on", node)(errno)),
    }
    match devices::info(root) {
        Ok(info) if info.devices == 1 => {
            // The id of a device that was replaced or removed is not used again.
            let found = (1..=info.largest_device_id).rev().find_map(|device_id| {
                let size = devices::device_size(root, device_id).ok()?;
                Some(Geometry::Btrfs { device_id, sector_size: info.sector_size.into(), size })
            });
            return found.ok_or_else(|| system("measure the file system on", node)(Errno::ENODEV));
        }
        Ok(info) => return Err(foreign(format!("btrfs on {} devices, as on {},", info.devices, node.display()))),
        Err(Errno::ENOTTY) => {}
        Err(errno) => return Err(system("measure the file system on", node)(errno)),
    }
    let superblock = device.read(SUPERBLOCK).map_err(system("read the superblock on", node))?;
    superblock
        .and_then(|bytes| Ext4::read(&bytes))
        .map(Geometry::Ext4)
        .ok_or_else(|| foreign(format!("the file system on {}", node.display())))
}
