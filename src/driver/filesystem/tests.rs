//! Predictions of growth, over made-up superblocks; `tests/lab_filesystem.rs` holds them against the kernel.

use proptest::prelude::*;

use super::ext4::Ext4;
use super::geometry::{Geometry, XFS_MOST_GROUPS};
use crate::model::Bytes;
use crate::sys::growfs::XfsGeometry;

const KIB: u64 = 1024;

fn xfs(group_blocks: u32, blocks: u64) -> Geometry {
    Geometry::Xfs(XfsGeometry { block_size: 4096, group_blocks, blocks, inode_percent: 25 })
}

/// The fields that matter, features as the bits that they are.
#[derive(Clone, Debug)]
struct Superblock {
    log_block_size: u32,
    blocks: u32,
    group_blocks: u32,
    group_inodes: u32,
    reserved: u16,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    log_cluster: u32,
    descriptor_size: u16,
    first_meta_group: u32,
}

impl Superblock {
    /// As mkfs.ext4 makes it for 1 GiB.
    fn usual() -> Self {
        Self {
            log_block_size: 2,
            blocks: 1 << 18,
            group_blocks: 32768,
            group_inodes: 8192,
            reserved: 127,
            compat: 0x10,
            incompat: 0x80,
            ro_compat: 1,
            log_cluster: 0,
            descriptor_size: 64,
            first_meta_group: 1,
        }
    }

    fn bytes(&self) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x4, self.blocks);
        put(0x14, u32::from(self.log_block_size == 0));
        put(0x18, self.log_block_size);
        put(0x1c, self.log_block_size + self.log_cluster);
        put(0x20, self.group_blocks);
        put(0x28, self.group_inodes);
        put(0x38, 0xef53);
        put(0x4c, 1);
        put(0x58, 256);
        put(0x5c, self.compat);
        put(0x60, self.incompat);
        put(0x64, self.ro_compat);
        put(0xcc, u32::from(self.reserved) << 16);
        put(0xfc, u32::from(self.descriptor_size) << 16);
        put(0x104, self.first_meta_group);
        bytes
    }

    fn geometry(&self) -> Geometry {
        Geometry::Ext4(Ext4::read(&self.bytes()).unwrap())
    }
}

#[test]
fn ext4_leaves_out_a_group_that_is_too_small() {
    let ext4 = Superblock::usual().geometry();
    assert_eq!(ext4.size(), Bytes::gib(1));
    // Group 8 has no copy of the superblock: two bitmaps, 512 blocks of inodes, one more.
    let tail = |blocks: u64| ext4.size_on(Bytes::new((1 << 30) + blocks * 4 * KIB)).get() / (4 * KIB) - (1 << 18);
    assert_eq!((tail(1), tail(515), tail(516), tail(600)), (0, 0, 516, 600));
    assert_eq!(ext4.least_volume_for(Bytes::new((1 << 30) + 1)), Bytes::new((1 << 30) + 516 * 4 * KIB));
}

#[test]
fn ext4_has_room_for_what_was_reserved() {
    let ext4 = Superblock::usual().geometry();
    // One block of descriptors holds 64 groups of 128 MiB, and 127 more are reserved.
    assert_eq!(ext4.crossed_on(Bytes::gib(1024)), None);
    let crossed = ext4.crossed_on(Bytes::gib(1025)).unwrap();
    assert_eq!((crossed.what, crossed.needed, crossed.most), ("blocks of group descriptors", 129, 128));
    let narrow = Superblock { incompat: 0x10, ..Superblock::usual() }.geometry();
    assert_eq!(narrow.crossed_on(Bytes::gib(16 << 10)).unwrap().what, "blocks");
    assert_eq!(narrow.crossed_on(Bytes::gib((16 << 10) - 1)), None);
}

#[test]
fn ext4_that_the_kernel_would_take_for_damaged_is_told() {
    let obstacle = |superblock: Superblock| Ext4::read(&superblock.bytes()).unwrap().obstacle;
    assert_eq!(obstacle(Superblock::usual()), None);
    assert_eq!(obstacle(Superblock { compat: 0, reserved: 0, ..Superblock::usual() }), None);
    let told = obstacle(Superblock { compat: 0, ..Superblock::usual() }).unwrap();
    assert!(told.what.contains("no resize_inode") && told.check.is_some(), "{told:?}");
}

#[test]
fn xfs_leaves_out_a_group_below_64_blocks_and_gets_no_more_than_is_good() {
    let xfs = xfs(4096, 16384);
    let tail = |blocks: u64| xfs.size_on(Bytes::new((16384 + blocks) * 4 * KIB)).get() / (4 * KIB) - 16384;
    assert_eq!((tail(1), tail(63), tail(64), tail(4096 + 63), tail(4096 + 64)), (0, 0, 64, 4096, 4096 + 64));
    let most = 4096 * 4 * KIB * XFS_MOST_GROUPS;
    assert_eq!(xfs.crossed_on(Bytes::new(most + 63 * 4 * KIB)), None);
    assert_eq!(xfs.crossed_on(Bytes::new(most + 64 * 4 * KIB)).unwrap().needed, XFS_MOST_GROUPS + 1);
}

#[test]
fn nonsense_is_no_superblock() {
    assert_eq!(Ext4::read(&[0; 1024]), None);
    for broken in [
        Superblock { group_blocks: 0, ..Superblock::usual() },
        Superblock { group_inodes: 0, ..Superblock::usual() },
        Superblock { log_block_size: 40, ..Superblock::usual() },
        Superblock { blocks: 0, ..Superblock::usual() },
        Superblock { descriptor_size: 0, ..Superblock::usual() },
        Superblock { descriptor_size: 31, ..Superblock::usual() },
        Superblock { incompat: 0x90, first_meta_group: 2, ..Superblock::usual() },
    ] {
        assert_eq!(Ext4::read(&broken.bytes()), None, "{broken:?}");
    }
}

fn any_ext4() -> impl Strategy<Value = Geometry> {
    let features = (prop_oneof![Just(0_u32), Just(0x10)], any::<[bool; 3]>(), 0_u32..5);
    let numbers = (0_u32..=2, 32_u32..5000, 1_u32..512, 0_u16..40, 1_u32..2_000_000);
    (features, numbers).prop_map(
        |((compat, [meta, wide, sparse], log_cluster), (log, group, inodes, reserved, blocks))| {
            // The kernel refuses to mount both at once.
            let meta = meta && compat & 0x10 == 0;
            let ro_compat = u32::from(sparse) | if log_cluster > 0 { 0x200 } else { 0 };
            Superblock {
                log_block_size: log,
                blocks: blocks + 2,
                group_blocks: group * 8,
                group_inodes: inodes * 8,
                reserved,
                compat,
                incompat: if meta { 0x10 } else { 0 } | if wide { 0x80 } else { 0 },
                ro_compat,
                log_cluster,
                ..Superblock::usual()
            }
            .geometry()
        },
    )
}

fn any_geometry() -> impl Strategy<Value = Geometry> {
    let any_xfs = (512_u32..1 << 20, 1_u64..1 << 32).prop_map(|(group, blocks)| xfs(group, blocks));
    let any_btrfs = (1_u64..1 << 30).prop_map(|sectors| Geometry::Btrfs {
        device_id: 1,
        sector_size: 4096,
        size: Bytes::new(sectors * 4096),
    });
    prop_oneof![2 => any_xfs, 1 => any_btrfs, 5 => any_ext4()]
}

/// Bytes of a superblock that are not what they were, spread over all that is read of it.
fn any_damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0_usize..0x154, prop_oneof![Just(0), Just(u8::MAX), any::<u8>()]), 0..40)
}

proptest! {
    #[test]
    fn a_larger_volume_never_gives_a_smaller_file_system(
        geometry in any_geometry(), volume in 0_u64..1 << 45, more in 0_u64..1 << 30,
    ) {
        let (on, on_more) = (geometry.size_on(Bytes::new(volume)), geometry.size_on(Bytes::new(volume + more)));
        prop_assert!(on >= geometry.size());
        prop_assert!(on <= Bytes::new(volume).max(geometry.size()), "{on} on {volume}");
        prop_assert!(on <= on_more, "{on} {on_more}");
    }

    #[test]
    fn least_volume_for_is_the_smallest_that_suffices(geometry in any_geometry(), more in 1_u64..1 << 40) {
        let target = geometry.size().saturating_add(Bytes::new(more));
        let volume = geometry.least_volume_for(target);
        prop_assume!(volume < Bytes::MAX_FILE);
        prop_assert!(geometry.size_on(volume) >= target);
        prop_assert!(geometry.size_on(volume.saturating_sub(Bytes::new(1))) < target);
        prop_assert_eq!(geometry.least_volume_for(geometry.size()), geometry.size());
    }

    /// What a backend can make: a device grows by whole units from the size that it has, as logical volumes do by their
    /// extents and stripes and images by their blocks.
    #[test]
    fn a_device_grows_to_the_least_size_that_is_enough(
        geometry in any_geometry(), spare in 0_u64..1 << 30, more in 0_u64..1 << 40, log_unit in 12_u32..34, stripes in 1_u64..5,
    ) {
        let unit = stripes << log_unit;
        // Half grown, as a crash leaves it, when there is something to spare.
        let before = geometry.size().saturating_add(Bytes::new(spare));
        let target = geometry.size().saturating_add(Bytes::new(more));
        let by_units = |size: Bytes| {
            let growth = size.saturating_sub(before).get().div_ceil(unit).saturating_mul(unit);
            before.saturating_add(Bytes::new(growth))
        };
        let device = by_units(geometry.least_volume_for(target));
        prop_assume!(device < Bytes::MAX_FILE);
        prop_assert!(device >= before, "never smaller");
        prop_assert!(geometry.size_on(device) >= target, "filling it reaches the target");
        prop_assert!(
            device == before || geometry.size_on(device.saturating_sub(Bytes::new(unit))) < target, "and less does not",
        );
        // Who names a size in sectors and lets the backend round up gets the same device.
        let in_sectors = |size: Bytes| Bytes::new(size.get().div_ceil(512).saturating_mul(512));
        prop_assert_eq!(by_units(in_sectors(geometry.least_volume_for(target))), device);
    }

    #[test]
    fn any_superblock_is_read_without_panic(damage in any_damage(), volume: u64) {
        let mut superblock = Superblock::usual().bytes();
        for (place, byte) in damage {
            superblock[place] = byte;
        }
        if let Some(ext4) = Ext4::read(&superblock) {
            let geometry = Geometry::Ext4(ext4);
            geometry.size_on(Bytes::new(volume));
            geometry.crossed_on(Bytes::new(volume));
        }
    }
}
