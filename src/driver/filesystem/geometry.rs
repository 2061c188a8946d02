//! Sizes of file systems, and what they become on a larger device. Pure: numbers in, numbers out.

use super::ext4::{Crossed, Ext4};
use crate::model::Bytes;
use crate::sys::capabilities::Capability;
use crate::sys::growfs::XfsGeometry;

/// XFS_MIN_AG_BLOCKS: the kernel leaves out a last allocation group with fewer blocks.
const XFS_LEAST_GROUP_BLOCKS: u64 = 64;

/// Allocation groups never change their size, so a file system that was made small gets ever more of them, and each
/// costs memory, mount time and a scan for free space. This is 1024 times the four groups that mkfs.xfs makes, and as
/// far as ext4 reserves room for its descriptors.
pub(super) const XFS_MOST_GROUPS: u64 = 4096;

/// The kernel does not resize btrfs to less.
const BTRFS_LEAST: u64 = 256 << 20;

/// The numbers that growth depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Geometry {
    Xfs(XfsGeometry),
    Ext4(Ext4),
    Btrfs { device_id: u64, sector_size: u64, size: Bytes },
}

impl Geometry {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Xfs(_) => "xfs",
            Self::Ext4(_) => "ext4",
            Self::Btrfs { .. } => "btrfs",
        }
    }

    /// What the kernel asks of whoever grows it: `xfs_growfs_data()`, `ext4_resize_begin()`, `btrfs_ioctl_resize()`.
    pub fn capability(&self) -> Capability {
        match self {
            Self::Ext4(_) => Capability::SysResource,
            Self::Xfs(_) | Self::Btrfs { .. } => Capability::SysAdmin,
        }
    }

    /// How much of the device it covers. Unlike the size in statfs(2) it includes the file system's own overhead, so that it
    /// can be compared with the size of the volume.
    pub fn size(&self) -> Bytes {
        match self {
            Self::Xfs(xfs) => in_bytes(xfs.blocks, xfs.block_size.into()),
            Self::Ext4(ext4) => in_bytes(ext4.blocks, ext4.block_size),
            Self::Btrfs { size, .. } => *size,
        }
    }

    /// The size after growing to fill a volume: less than the volume where the tail is too small for an allocation group, a
    /// block group or a block; the present one if that leaves nothing to grow into. It counts on [`Self::crossed_on`] having
    /// nothing to say.
    pub fn size_on(&self, volume: Bytes) -> Bytes {
        let volume = volume.get();
        let grown = match self {
            Self::Xfs(xfs) => {
                let (blocks, group) = (volume / u64::from(xfs.block_size), u64::from(xfs.group_blocks));
                let tail = blocks % group;
                let usable = if tail < XFS_LEAST_GROUP_BLOCKS { blocks - tail } else { blocks };
                in_bytes(usable, xfs.block_size.into())
            }
            Self::Ext4(ext4) => in_bytes(ext4.grown_to(volume / ext4.block_size), ext4.block_size),
            Self::Btrfs { .. } if volume < BTRFS_LEAST => Bytes::ZERO,
            Self::Btrfs { sector_size, .. } => Bytes::new(volume - volume % sector_size),
        };
        grown.max(self.size())
    }

    /// The smallest volume on which [`Self::size_on`] reaches the target; [`Bytes::MAX_FILE`] when none does.
    pub fn least_volume_for(&self, target: Bytes) -> Bytes {
        if target <= self.size() {
            return self.size();
        }
        // A larger volume never gives a smaller file system, and no file system is larger than its volume.
        let (mut least, mut most) = (target.get(), Bytes::MAX_FILE.get());
        while least < most {
            let middle = least + (most - least) / 2;
            if self.size_on(Bytes::new(middle)) >= target {
                most = middle;
            } else {
                least = middle + 1;
            }
        }
        Bytes::new(least)
    }

    /// The limit that filling a volume would cross.
    pub fn crossed_on(&self, volume: Bytes) -> Option<Crossed> {
        match self {
            Self::Xfs(xfs) => {
                let blocks = self.size_on(volume).get() / u64::from(xfs.block_size);
                let needed = blocks.div_ceil(xfs.group_blocks.into());
                (needed > XFS_MOST_GROUPS).then_some(Crossed {
                    what: "allocation groups",
                    needed,
                    most: XFS_MOST_GROUPS,
                })
            }
            Self::Ext4(ext4) => ext4.crossed_at(volume.get() / ext4.block_size),
            Self::Btrfs { .. } => None,
        }
    }
}

fn in_bytes(blocks: u64, block_size: u64) -> Bytes {
    Bytes::new(blocks.saturating_mul(block_size))
}
