//! What the kernel makes of an ext4 file system on a larger device: `ext4_resize_fs()` of `fs/ext4/resize.c`, over the
//! numbers of its superblock.
//!
//! Two things make the answer less than the device. A last group that could not hold all metadata that a group may
//! have is left out. And a descriptor table that has outgrown its reserved blocks is continued in the groups
//! themselves (`meta_bg`), which changes the overhead of the groups behind.

const COMPAT_RESIZE_INODE: u32 = 0x10;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const MAGIC: u16 = 0xef53;
const ERROR_FS: u16 = 2;
/// Extents count blocks in 48 bits.
const MOST_BLOCKS: u64 = 1 << 48;

/// Where the superblock is on the device, in bytes; it is as long.
pub(super) const SUPERBLOCK: u32 = 1024;

/// The fields of `struct ext4_super_block` that growth depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ext4 {
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
    /// Whether only groups 1 and powers of 3, 5 and 7 have a copy of the superblock, and not all.
    sparse_super: bool,
    is_64bit: bool,
    pub obstacle: Option<Obstacle>,
}

/// Why the kernel does not grow it at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub what: &'static str,
    /// The command that heals it while it is not mounted, where one does.
    pub check: Option<&'static str>,
}

/// Only the mount tells of it.
pub const BY_COPY: Obstacle = Obstacle { what: "a mount by its backup superblock", check: Some("e2fsck -f") };

/// A limit that a growth would cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossed {
    pub what: &'static str,
    pub needed: u64,
    pub most: u64,
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
            && (u64_at(0x14) + 1..=MOST_BLOCKS).contains(&blocks);
        if !is_sound {
            return None;
        }
        let ext4 = Self {
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
            sparse_super: ro_compat & RO_COMPAT_SPARSE_SUPER != 0,
            is_64bit,
            obstacle: if u16_at(0x3a) & ERROR_FS != 0 {
                Some(Obstacle { what: "recorded errors", check: Some("e2fsck -f") })
            } else if compat & COMPAT_SPARSE_SUPER2 != 0 {
                Some(Obstacle { what: "the feature sparse_super2", check: None })
            } else if compat & COMPAT_RESIZE_INODE == 0 && u16_at(0xce) != 0 {
                // The kernel takes it for damage, and handles it as the mount says: it may become read-only. Since Linux 5.19.
                Some(Obstacle { what: "reserved descriptor blocks but no resize_inode", check: Some("e2fsck -f") })
            } else {
                None
            },
        };
        // The kernel does not mount it otherwise.
        let is_in_table = ext4.first_meta_group.is_none_or(|first| first <= ext4.descriptor_blocks(ext4.groups()));
        is_in_table.then_some(ext4)
    }

    /// The number of blocks after the kernel was told to grow to `asked` of them, if it does: what it refuses is in
    /// [`Self::crossed_at`].
    pub fn grown_to(&self, asked: u64) -> u64 {
        // No tool makes such groups; the search for one that is large enough would have no end.
        if self.most_overhead() + self.least_rest() >= self.group_blocks {
            return self.blocks;
        }
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
            if now.start_of(last_group) + now.overhead(last_group) + now.least_rest() >= aim {
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
        let most_blocks = if self.is_64bit { MOST_BLOCKS } else { u64::from(u32::MAX) };
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

    /// What the last group must have room for besides its overhead: two bitmaps, inodes, a cluster.
    fn least_rest(&self) -> u64 {
        2 + self.inode_table_blocks + self.cluster_blocks
    }

    /// The overhead of any group, now and after any growth.
    fn most_overhead(&self) -> u64 {
        1 + self.most_descriptor_blocks()
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
        group <= 1 || !self.sparse_super || [3, 5, 7].into_iter().any(|base| is_power_of(base) == Some(group))
    }
}
