//! A share that is a block device: how large it is, what is on it, and how the two fit together.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::dev_t;
use nix::sys::statvfs::fstatvfs;

use super::ext4::{BY_COPY, Ext4, SUPERBLOCK};
use super::geometry::Geometry;
use super::mounts::Found;
use super::{Mounted, Mounts, foreign, read_geometry};
use crate::driver::shell::Quoted;
use crate::driver::{DriverError, Outcome, Problem, Sizes, system};
use crate::model::{Bytes, PoolName, Reason, Refusal, ShareId};
use crate::sys::block_device::{self, BlockDevice};

/// A block device at one moment.
#[derive(Debug)]
pub struct Device {
    pub size: Bytes,
    /// `None` for a block share, whose content is the tenant's own.
    pub mounted: Option<Mounted>,
}

impl Device {
    /// By the kernel alone; `node` is its name in `/dev`, and `location` what a check of the file system is run on.
    ///
    /// # Errors
    /// [`DriverError::Unusable`] with [`Refusal::ShareNotMounted`] when it holds XFS, ext4 or btrfs that is not mounted here, or
    /// only read-only; with [`Refusal::Unsupported`] when another device is built on it, or for another kind of file system.
    pub fn look(
        share: ShareId,
        pool: &PoolName,
        device: dev_t,
        node: &Path,
        location: &Path,
        mounts: &Mounts,
    ) -> Result<Self, DriverError> {
        let opened = BlockDevice::open(node, device).map_err(system("open", node))?;
        let size = opened.size().map_err(system("measure", node))?;
        let shown = node.display();
        let holders = block_device::holders(device).map_err(system("list the holders of", node))?;
        if !holders.is_empty() {
            let what = format!("growing {shown} below {}, which is built on it,", holders.join(", "));
            return Err(DriverError::unusable(
                Refusal::Unsupported { what },
                format!("lsblk {shown} shows what holds it"),
            ));
        }
        let not_mounted = |problem: String, remedy| {
            Err(DriverError::unusable(Refusal::ShareNotMounted { share, pool: pool.clone(), problem }, remedy))
        };
        let (root, mount) = match mounts.find(device, node, location).map_err(system("find the mount of", node))? {
            Found::Writable { root, mount } => (root, mount),
            Found::Unusable { filesystem, problem, remedy } => {
                return not_mounted(format!("{shown} holds {filesystem} that {problem}"), remedy);
            }
            Found::Foreign { filesystem } => return Err(foreign(format!("growing {filesystem} on {shown}"))),
            Found::Nothing => match signature(&opened).map_err(system("read", node))? {
                Some(name) => {
                    let problem = format!("{shown} holds {name} that is mounted nowhere here");
                    // Another loop device or a guest may have it mounted, and ext4 is mounted a second time all the same.
                    let node = Quoted(node);
                    return not_mounted(
                        problem,
                        format!("mount {node}, if losetup -j {node} and fuser {node} show nothing"),
                    );
                }
                // Nothing is on it that growd knows.
                None => return Ok(Self { size, mounted: None }),
            },
        };
        let mut geometry = read_geometry(&opened, root.as_fd(), node)?;
        if let Geometry::Ext4(ext4) = &mut geometry
            && mount.by_copy
        {
            ext4.obstacle.get_or_insert(BY_COPY);
        }
        let mount_point = mount.mount_point;
        let space = fstatvfs(&root).map_err(system("measure", &mount_point))?;
        let used = space.blocks().saturating_sub(space.blocks_free());
        let used = Bytes::new(used.saturating_mul(space.fragment_size()));
        let (pool, node) = (pool.clone(), node.to_owned());
        Ok(Self {
            size,
            mounted: Some(Mounted { share, pool, node, device: opened, root, mount_point, geometry, used }),
        })
    }

    pub fn sizes(&self) -> Sizes {
        Sizes::Volume {
            room: self.room(self.size),
            filesystem: self.mounted.as_ref().map(|mounted| mounted.geometry.size()),
        }
    }

    /// What users would have of a device of this size.
    pub fn room(&self, size: Bytes) -> Bytes {
        self.mounted.as_ref().map_or(size, |mounted| mounted.geometry.size_on(size))
    }

    /// Type of the file system, empty where there is none.
    pub fn filesystem(&self) -> &'static str {
        self.mounted.as_ref().map_or("", |mounted| mounted.geometry.name())
    }

    /// `None` where only the tenant knows.
    pub fn used(&self) -> Option<Bytes> {
        self.mounted.as_ref().map(|mounted| mounted.used)
    }

    /// The smallest device that gives users `target`. A larger one never gives them less.
    pub fn least_size_for(&self, target: Bytes) -> Bytes {
        self.mounted.as_ref().map_or(target, |mounted| mounted.geometry.least_volume_for(target))
    }

    /// As [`Mounted::obstacle`].
    pub fn obstacle(&self, location: &Path) -> Option<Problem> {
        self.mounted.as_ref().and_then(|mounted| mounted.obstacle(location))
    }

    /// Whether what is on it should grow with a device of this size.
    ///
    /// # Errors
    /// As [`Mounted::check_growth`].
    pub fn check_growth(&self, to: Bytes, allow_any: bool) -> Result<(), Refusal> {
        self.mounted.as_ref().map_or(Ok(()), |mounted| mounted.check_growth(to, allow_any))
    }

    /// Grows the file system to fill the device if it has less than `to`.
    ///
    /// # Errors
    /// As [`Mounted::grow`].
    pub fn grow_filesystem(&self, to: Bytes) -> Result<Outcome, DriverError> {
        let Some(mounted) = &self.mounted else { return Ok(Outcome::AlreadyThere { size: self.size }) };
        let before = mounted.geometry.size();
        if before >= to {
            return Ok(Outcome::AlreadyThere { size: before });
        }
        Ok(Outcome::Changed { from: before, to: mounted.grow()? })
    }

    /// Makes the growth of the file system durable.
    ///
    /// # Errors
    /// The failed system call.
    pub fn flush(&self) -> Result<(), DriverError> {
        self.mounted.as_ref().map_or(Ok(()), Mounted::flush)
    }

    /// A crash, or somebody's command, left the file system smaller than its device.
    pub fn half_grown(&self, location: &Path) -> Option<Problem> {
        let mounted = self.mounted.as_ref()?;
        let (filesystem, room) = (mounted.geometry.size(), self.room(self.size));
        (filesystem < room).then(|| {
            let place = location.display();
            let message = format!("the file system on {place} has {filesystem} where its volume holds one of {room}");
            let remedy = format!("growctl extend {} {}B --wait", mounted.share, room.get());
            Problem::warning(Reason::HalfGrown, message, remedy)
        })
    }
}

/// The file system that the device's first blocks tell of.
fn signature(device: &BlockDevice) -> Result<Option<&'static str>, Errno> {
    if device.read(0)? == Some(*b"XFSB") {
        return Ok(Some("xfs"));
    }
    if device.read(SUPERBLOCK)?.is_some_and(|bytes| Ext4::read(&bytes).is_some()) {
        return Ok(Some("ext4"));
    }
    Ok((device.read(0x1_0040)? == Some(*b"_BHRfS_M")).then_some("btrfs"))
}
