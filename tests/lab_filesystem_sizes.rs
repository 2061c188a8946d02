//! What growd predicts of growing against what the kernel does, for many sizes of device.
//!
//! The kernel is asked through the bare ioctl, with the whole device as its aim, so that a prediction which is too low
//! shows as well as one which is too high.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;
#[path = "lab_filesystem/volume.rs"]
mod volume;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use growd::model::Bytes;
use growd::sys::btrfs::devices;
use growd::sys::growfs;
use support::image::check;
use support::size_by_tool::size_by_tool;
use volume::{MIB, SECTOR, Volume};

/// splitmix64: the same sizes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Grows the device to each size in turn, lets the kernel grow the file system, and compares.
fn compare(mkfs: &str, first: u64, sizes: impl Iterator<Item = u64>) {
    let mut volume = Volume::new("ubda", "vg0-sizes", first);
    volume.format(mkfs);
    let place = volume.mount();
    let root = File::open(&place).unwrap();
    let (mut kind, mut size, mut cut_off) = ("", first, 0);
    for device in sizes {
        volume.resize(device);
        let mounted = volume.mounted();
        kind = mounted.geometry.name();
        let before = mounted.geometry.size();
        let predicted = mounted.geometry.size_on(Bytes::new(device));
        let smallest = mounted.geometry.least_volume_for(predicted);
        assert!(smallest <= Bytes::new(device), "{mkfs}: {smallest} for {predicted} on {device}");
        let answer = match kind {
            "xfs" => {
                let geometry = growfs::xfs_geometry(root.as_fd()).unwrap();
                let blocks = device / u64::from(geometry.block_size);
                growfs::xfs_grow(root.as_fd(), blocks, geometry.inode_percent)
            }
            "ext4" => growfs::ext4_grow(root.as_fd(), device / block_size(&place)),
            _ => devices::fill_device(root.as_fd(), 1),
        };
        let after = volume.mounted();
        assert_eq!(after.geometry.size(), predicted, "{mkfs}: from {before} on {device}: {answer:?}");
        assert_eq!(after.grow().unwrap(), predicted, "{mkfs}: again on {device}");
        assert!(answer.is_ok() || after.geometry.size() == before, "{mkfs}: {answer:?}");
        cut_off += u32::from(after.geometry.size().get() + 4096 <= device);
        size = after.geometry.size().get();
    }
    eprintln!("{mkfs}: {first} -> {size}, {cut_off} times less than the device");
    assert_eq!(size_by_tool(kind, &volume.node(), &place), size, "{mkfs}");
    drop(root);
    volume.unmount();
    check(kind, &volume.node());
}

fn block_size(place: &Path) -> u64 {
    nix::sys::statvfs::statvfs(place).unwrap().block_size()
}

/// Sizes that rise by about `step`, half of them just behind a multiple of `group`, as far as the disk goes.
fn rising(first: u64, step: u64, group: u64, tail: u64, count: u64) -> impl Iterator<Item = u64> {
    let mut random = Random(first ^ step ^ group);
    let mut size = first;
    let next = move |n| {
        size += random.below(2 * step) / SECTOR * SECTOR;
        if n % 2 == 0 {
            size = size.next_multiple_of(group) + random.below(tail) / SECTOR * SECTOR;
        }
        size
    };
    (0..count).map(next).take_while(|size| *size < 4096 * MIB)
}

#[test]
fn xfs_on_every_tail_around_the_limit() {
    let group = 80 * MIB;
    let mkfs = "mkfs.xfs -q -f -d agsize=80m";
    compare(mkfs, 320 * MIB, (1..=70).map(|blocks| 320 * MIB + blocks * 4096));
    // The first tail behind each boundary, where no shorter one was tried before.
    compare(mkfs, 320 * MIB, (55..=75).map(|blocks| 320 * MIB + (blocks - 54) * group + blocks * 4096 + SECTOR));
}

#[test]
fn xfs_on_random_sizes() {
    compare("mkfs.xfs -q -f -d agsize=80m", 320 * MIB, rising(320 * MIB, 40 * MIB, 80 * MIB, MIB / 2, 60));
    compare("mkfs.xfs -q -f -b size=1024", 300 * MIB, rising(300 * MIB, 40 * MIB, 75 * MIB, MIB / 8, 40));
    compare("mkfs.xfs -q -f", 300 * MIB, rising(300 * MIB, 40 * MIB, 75 * MIB, MIB / 2, 40));
}

#[test]
fn btrfs_on_random_sizes() {
    compare("mkfs.btrfs -q -f", 300 * MIB, rising(300 * MIB, 40 * MIB, MIB, 8192, 40));
    compare("mkfs.btrfs -q -f", 120 * MIB, rising(120 * MIB, 20 * MIB, MIB, 8192, 20));
}

#[test]
fn ext4_on_random_sizes() {
    // The features, the bytes of a block and the blocks of a group.
    for (features, block, group) in [
        ("-b 4096 -O bigalloc -C 16384", 4096, 131072),
        // Descriptors for 512 MiB: the kernel goes on with meta_bg.
        ("-b 1024 -E resize=500000", 1024, 8192),
        ("-b 4096", 4096, 32768),
        ("-b 4096 -O ^64bit", 4096, 32768),
        ("-b 4096 -O ^resize_inode", 4096, 32768),
        ("-b 4096 -O ^flex_bg,^metadata_csum,^uninit_bg -g 8192", 4096, 8192),
        ("-b 4096 -g 4096 -N 20000 -I 128", 4096, 4096),
        ("-b 1024", 1024, 8192),
        ("-b 1024 -O ^resize_inode,^sparse_super,^64bit", 1024, 8192),
        ("-b 1024 -O ^resize_inode,meta_bg", 1024, 8192),
    ] {
        let sizes = rising(300 * MIB, 60 * MIB, block * group, 1200 * block, 20);
        compare(&format!("mkfs.ext4 -q -F {features}"), 300 * MIB, sizes);
    }
}

#[test]
fn ext4_on_every_tail_of_a_new_group() {
    for (features, block) in [("-b 4096 -i 16384", 4096), ("-b 1024 -i 8192", 1024)] {
        // Group 2 has no copy of the superblock, so the limit is among these tails.
        let first = 2 * 8 * block * block;
        let tails = (1..=700).filter(|blocks| *blocks < 10 || blocks % 23 == 0 || (500..530).contains(blocks));
        compare(&format!("mkfs.ext4 -q -F {features}"), first, tails.map(|blocks| first + (blocks + 1) * block));
    }
}
