//! A share that is a block device: how large it is, what is on it, and how the two fit together.

use std::path::Path;

use nix::libc::dev_t;

use super::{Mounted, Mounts, observe};
use crate::driver::{DriverError, Outcome, Problem, Sizes, system};
use crate::model::{Bytes, PoolName, Reason, Refusal, ShareId};
use crate::sys::block_device::BlockDevice;

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
    /// As [`observe`].
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
        Ok(Self { size, mounted: observe(share, pool, opened, device, node, location, mounts)? })
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

    /// The size of device that gives users `target`, among those that `round_up` gives.
    pub fn volume_for(&self, target: Bytes, round_up: impl Fn(Bytes) -> Bytes) -> Bytes {
        match &self.mounted {
            None => round_up(target),
            Some(mounted) => mounted.geometry.volume_for(target, round_up),
        }
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
}

/// A crash, or somebody's command, left the file system smaller than its device.
pub fn half_grown(share: ShareId, location: &Path, sizes: Sizes) -> Option<Problem> {
    let Sizes::Volume { room, filesystem: Some(filesystem) } = sizes else { return None };
    (filesystem < room).then(|| {
        let message =
            format!("the file system on {} has {filesystem} where its volume holds one of {room}", location.display());
        Problem::warning(Reason::HalfGrown, message, format!("growctl extend {share} {}B --wait", room.get()))
    })
}
