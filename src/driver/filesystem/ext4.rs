//! What the kernel makes of an ext4 file system on a larger device: `ext4_resize_fs()` of `fs/ext4/resize.c`, over the
//! numbers of its superblock.
//!
//! Two things make the answer less than the device. A last group that could not hold all metadata that a group may
//! have is left out. And a descriptor table that has outgrown its reserved blocks is continued in the groups
//! themselves (`meta_bg`), which changes the overhead of the groups behind.

use std::fmt;

const COMPAT_RESIZE_INODE: u32 = 0x10;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const MAGIC: u16 = 0xef53;
const ERROR_FS: u16 = 2;

/// Where the superblock is on the device, in bytes; it is as long.
pub(super) const SUPERBLOCK: u32 = 1024;

/// The fields of `struct ext4_super_block` that growth depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ext4 {
    /// In bytes.
    pub block_size: u64,
    pub blocks: u64,
    first_block: u64,
    group_blocks: u64,
    group_inodes: u64,
    /// Blocks of a group's inode table.
    inode_table_blocks: u64,
    /// Blocks of a cluster; 1 without bigalloc.
    cluster_blocks: u64,
    descriptors_per_block: u64,
    reserved_descriptor_blocks: u64,
    resize_inode: bool,
    /// First block of the descriptor table that is in the groups themselves, with `meta_bg`.
    first_meta_group: Option<u64>,
    backups: Backups,
    is_64bit: bool,
    /// Whether the kernel has recorded errors; it refuses to grow the file system then.
    pub has_errors: bool,
}

/// Which groups have a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backups {
    All,
    Sparse,
    Two([u64; 2]),
}

/// A limit that a growth would cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crossed {
    pub what: &'static str,
    pub needed: u64,
    pub most: u64,
}

impl fmt::Display for Crossed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, more than {}", self.needed, self.what, self.most)
    }
}

impl Ext4 {
    /// Reads the superblock; `None` when it is none or makes no sense.
    pub fn read(superblock: &[u8; 1024]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at));
        let (compat, incompat, ro_compat) = (u32_at(0x5c), u32_at(0x60), u32_at(0x64));
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let is_old_revision = u32_at(0x4c) == 0;
        let block_size = 1024_u64.checked_shl(u32_at(0x18)).filter(|size| (1024..=65536).contains(size))?;
        let inode_size = if is_old_revision { 128 } else { u64::from(u16_at(0x58)) };
        let descriptor_size = if is_64bit { u64::from(u16_at(0xfe)) } else { 32 };
        let (group_blocks, group_inodes) = (u64_at(0x20), u64_at(0x28));
        let cluster_shift = u32_at(0x1c).checked_sub(u32_at(0x18)).filter(|_| ro_compat & RO_COMPAT_BIGALLOC != 0);
        let cluster_blocks = 1_u64.checked_shl(cluster_shift.unwrap_or(0))?;
        let blocks = u64_at(0x4) | if is_64bit { u64_at(0x150) << 32 } else { 0 };
        let is_sound = u16_at(0x38) == MAGIC
            && (32..=block_size).contains(&descriptor_size)
            && group_inodes > 0
            && group_blocks > 0
            && blocks > u64_at(0x14);
        is_sound.then_some(Self {
            block_size,
            blocks,
            first_block: u64_at(0x14),
            group_blocks,
            group_inodes,
            inode_table_blocks: (group_inodes * inode_size).div_ceil(block_size),
            cluster_blocks,
            descriptors_per_block: block_size / descriptor_size,
            reserved_descriptor_blocks: u16_at(0xce).into(),
            resize_inode: compat & COMPAT_RESIZE_INODE != 0,
            first_meta_group: (incompat & INCOMPAT_META_BG != 0).then(|| u64_at(0x104)),
            backups: match (compat & COMPAT_SPARSE_SUPER2, ro_compat & RO_COMPAT_SPARSE_SUPER) {
                (0, 0) => Backups::All,
                (0, _) => Backups::Sparse,
                _ => Backups::Two([u64_at(0x24c), u64_at(0x250)]),
            },
            is_64bit,
            has_errors: u16_at(0x3a) & ERROR_FS != 0,
        })
    }

    /// The number of blocks after the kernel was told to grow to `asked` of them, if it does: what it refuses is in
    /// [`Self::crossed_at`].
    pub fn grown_to(&self, asked: u64) -> u64 {
        let mut now = self.clone();
        let mut aim = asked - asked % self.cluster_blocks;
        // What is left to do once the reserved descriptor blocks are used up.
        let mut later = None;
        while aim > now.blocks {
            let mut last_group = now.group_of(aim - 1);
            if now.resize_inode && now.descriptor_blocks(last_group + 1) > now.most_descriptor_blocks() {
                later = Some(aim);
                last_group = now.most_descriptor_blocks() * now.descriptors_per_block - 1;
                aim = now.start_of(last_group + 1);
            }
            if (!now.resize_inode && now.first_meta_group.is_none()) || aim == now.blocks {
                now.first_meta_group = Some(now.descriptor_blocks(now.groups()));
                now.resize_inode = false;
                if let Some(rest) = later.take() {
                    aim = rest;
                    continue;
                }
            }
            let least = now.overhead(last_group) + 2 + now.inode_table_blocks + now.cluster_blocks;
            if now.start_of(last_group) + least >= aim {
                aim = now.start_of(last_group);
                later = None;
                continue;
            }
            let before = now.descriptor_blocks(now.groups());
            now.blocks = aim;
            if now.resize_inode {
                now.reserved_descriptor_blocks -= now.descriptor_blocks(now.groups()) - before;
            }
            aim = later.take().unwrap_or(aim);
        }
        now.blocks
    }

    /// The limit that a file system of so many blocks would cross.
    pub fn crossed_at(&self, blocks: u64) -> Option<Crossed> {
        let groups = self.group_of(blocks.saturating_sub(1)) + 1;
        // Without 64bit block numbers have 32 bits; inode numbers always have.
        let most_blocks = if self.is_64bit { 1 << 48 } else { u64::from(u32::MAX) };
        let most_groups = u64::from(u32::MAX) / self.group_inodes;
        // The kernel would go on in another format, with no way back.
        let most_tables = if self.first_meta_group.is_some() { u64::MAX } else { self.most_descriptor_blocks() };
        [
            Crossed { what: "blocks", needed: blocks, most: most_blocks },
            Crossed { what: "block groups", needed: groups, most: most_groups },
            Crossed { what: "blocks of group descriptors", needed: self.descriptor_blocks(groups), most: most_tables },
        ]
        .into_iter()
        .find(|limit| limit.needed > limit.most)
    }

    fn groups(&self) -> u64 {
        self.group_of(self.blocks - 1) + 1
    }

    fn group_of(&self, block: u64) -> u64 {
        block.saturating_sub(self.first_block) / self.group_blocks
    }

    fn start_of(&self, group: u64) -> u64 {
        group * self.group_blocks + self.first_block
    }

    fn descriptor_blocks(&self, groups: u64) -> u64 {
        groups.div_ceil(self.descriptors_per_block)
    }

    fn most_descriptor_blocks(&self) -> u64 {
        self.descriptor_blocks(self.groups()) + self.reserved_descriptor_blocks
    }

    /// ext4_group_overhead_blocks(): the superblock and the descriptors that a group holds.
    fn overhead(&self, group: u64) -> u64 {
        let has_super = self.has_super(group);
        let meta_group = group / self.descriptors_per_block;
        let descriptors = match self.first_meta_group {
            Some(first) if meta_group >= first => {
                let place = group % self.descriptors_per_block;
                u64::from(place <= 1 || place == self.descriptors_per_block - 1)
            }
            Some(first) if has_super => first,
            None if has_super => self.descriptor_blocks(self.groups()),
            _ => 0,
        };
        descriptors + if has_super { 1 + self.reserved_descriptor_blocks } else { 0 }
    }

    fn has_super(&self, group: u64) -> bool {
        let is_power_of = |base: u64| std::iter::successors(Some(base), |n| n.checked_mul(base)).find(|n| *n >= group);
        match self.backups {
            _ if group == 0 => true,
            Backups::All => true,
            Backups::Two(groups) => groups.contains(&group),
            Backups::Sparse => group == 1 || [3, 5, 7].into_iter().any(|base| is_power_of(base) == Some(group)),
        }
    }
}
