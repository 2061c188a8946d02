//! Online growth of real file systems on real device-mapper devices: what is found where, and what growing does.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;
#[path = "lab_filesystem/volume.rs"]
mod volume;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use growd::driver::DriverError;
use growd::model::{Bytes, Reason};
use growd::sys::freeze;
use support::btrfs::pause_a_balance;
use support::image::{KINDS, check};
use support::mapped_disk::MappedDisk;
use support::size_by_tool::size_by_tool;
use support::{Disk, Filesystem, fill, lab};
use volume::{MIB, SECTOR, Volume, look, observe_node};

#[test]
fn a_full_file_system_grows_under_its_writers() {
    for (kind, mkfs) in KINDS {
        // Hyphens are doubled in names of LVM's devices.
        let mut volume = Volume::new("ubda", "vg--a-share--6d0ad3f4--7c5e", 300 * MIB);
        volume.format(mkfs);
        let place = volume.mount();
        let data = place.join("data");
        // Made now, because a full file system has no room for another inode.
        let mut log = File::create(place.join("log")).unwrap();
        let seed: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
        fs::write(place.join("before"), &seed).unwrap();
        // What becomes free when all is written out may take some more.
        let (most, rest) = (fill(&data, 1000 * MIB).unwrap(), fill(&data, MIB).unwrap());
        assert!(most > 100 * MIB && rest < MIB, "{kind} is full");
        let written = most + rest;
        let sums = || lab::run("md5sum", &[place.join("before").to_str().unwrap(), data.to_str().unwrap()]);
        let before = sums();

        let done = AtomicBool::new(false);
        let grown = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                loop {
                    let is_last = done.load(Ordering::Relaxed);
                    match log.write_all(&[7; 64 << 10]).and_then(|()| log.sync_data()) {
                        Err(error) if error.kind() != ErrorKind::StorageFull => panic!("{kind}: {error}"),
                        result if is_last => return result.unwrap(),
                        // Full before the growth, and never anything else.
                        _ => {}
                    }
                }
            });
            // An odd number of sectors on purpose.
            let size = 1111 * MIB + 3 * SECTOR;
            volume.resize(size);
            let mounted = volume.mounted();
            assert_eq!((mounted.geometry.name(), mounted.geometry.size()), (kind, Bytes::mib(300)));
            assert!(mounted.used.get() > written && mounted.used <= Bytes::mib(300));
            mounted.check_growth(Bytes::new(size), false).unwrap();
            let grown = mounted.grow().unwrap();
            assert_eq!(grown, mounted.geometry.size_on(Bytes::new(size)));
            assert!(grown > Bytes::mib(1110));
            assert_eq!(mounted.grow().unwrap(), grown, "a repeat changes nothing");
            mounted.flush().unwrap();
            let written = fill(&data, 100 * MIB).unwrap();
            assert_eq!(written, 100 * MIB, "{kind} has room");
            done.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            grown
        });
        assert_eq!(size_by_tool(kind, &volume.node(), &place), grown.get());
        assert_eq!(volume.mounted().geometry.size(), grown);

        // What was there before is at the start of the file still.
        File::options().write(true).open(&data).unwrap().set_len(written).unwrap();
        assert_eq!(sums(), before);
        drop(log);
        volume.unmount();
        check(kind, &volume.node());
    }
}

#[test]
fn a_smaller_device_shrinks_nothing() {
    for (kind, mkfs) in KINDS {
        let mut volume = Volume::new("ubda", "vg0-smaller", 400 * MIB);
        volume.format(mkfs);
        let place = volume.mount();
        volume.resize(350 * MIB);
        let mounted = volume.mounted();
        assert_eq!(mounted.geometry.size_on(Bytes::mib(350)), Bytes::mib(400));
        assert_eq!(mounted.grow().unwrap(), Bytes::mib(400));
        volume.resize(400 * MIB);
        assert_eq!(mounted.grow().unwrap(), Bytes::mib(400));
        assert_eq!(size_by_tool(kind, &volume.node(), &place), 400 * MIB);
    }
}

#[test]
fn xfs_keeps_its_percentage_of_inodes() {
    let mut volume = Volume::new("ubda", "vg0-imaxpct", 300 * MIB);
    volume.format("mkfs.xfs -q -f -i maxpct=7");
    let place = volume.mount();
    volume.resize(600 * MIB);
    volume.mounted().grow().unwrap();
    assert!(lab::run("xfs_info", &[place.to_str().unwrap()]).contains("imaxpct=7"));
}

#[test]
fn any_writable_mount_will_do() {
    for (kind, mkfs) in KINDS {
        let mut volume = Volume::new("ubda", "vg0-places", 300 * MIB);
        volume.format(mkfs);
        let grow_to = |volume: &Volume, size: u64| {
            volume.resize(size * MIB);
            let mounted = volume.mounted();
            assert_eq!(mounted.grow().unwrap(), Bytes::mib(size), "{kind}");
            mounted.flush().unwrap();
            mounted.mount_point.clone()
        };
        let first = volume.mount();
        fs::create_dir(first.join("sub")).unwrap();
        let second = volume.mount();
        assert!([&first, &second].contains(&&grow_to(&volume, 400)));
        // A bind mount of a directory, through a node of another name and with the others gone.
        let sub = first.join("sub");
        let bind = volume.mount_from(&["--bind", sub.to_str().unwrap()]);
        for place in [&first, &second] {
            lab::run("umount", &[place.to_str().unwrap()]);
        }
        volume.mounts.retain(|place| *place == bind);
        assert_eq!(grow_to(&volume, 500), bind);
        // A read-only mount before a writable one.
        lab::run("mount", &["-o", "remount,bind,ro", bind.to_str().unwrap()]);
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted);
        // As systemd makes it for growd alone: on the node it is not.
        assert!(refusal.to_string().contains("read-only for growd"), "{kind}: {refusal}");
        assert!(volume.remedy().contains("check-config --drop-in"), "{kind}: {}", volume.remedy());
        let third = volume.mount();
        assert_eq!(grow_to(&volume, 600), third);
        // Covered by another mount at the same place.
        volume.mount_from(&["-t", "tmpfs", "tmpfs"]);
        lab::run("mount", &["-t", "tmpfs", "tmpfs", third.to_str().unwrap()]);
        volume.mounts.push(third.clone());
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted, "{refusal}");
    }
}

/// Of a btrfs nobody can tell: it is known by its id, which cannot be read then.
#[test]
fn a_mount_that_is_covered_is_told_with_what_covers_it() {
    for (kind, mkfs) in KINDS.into_iter().filter(|(kind, _)| *kind != "btrfs") {
        let mut volume = Volume::new("ubda", "vg0-covered", 300 * MIB);
        volume.format(mkfs);
        let above = volume.mount_from(&["-t", "tmpfs", "tmpfs"]);
        let place = above.join("in");
        fs::create_dir(&place).unwrap();
        lab::run("mount", &[volume.node().to_str().unwrap(), place.to_str().unwrap()]);
        volume.mounts.push(place.clone());
        for covered in [&place, &above] {
            lab::run("mount", &["-t", "tmpfs", "tmpfs", covered.to_str().unwrap()]);
            let refusal = volume.refusal();
            assert!(refusal.to_string().ends_with("/in, where another mount covers it"), "{kind}: {refusal}");
            assert_eq!(volume.remedy(), format!("umount '{}'", covered.display()));
            lab::run("sh", &["-c", &volume.remedy()]);
            assert_eq!(volume.mounted().mount_point, place);
        }
    }
}

#[test]
fn a_device_is_found_by_number_under_any_name() {
    for (kind, mkfs) in KINDS {
        let mut volume = Volume::new("ubda", "vg0-old", 300 * MIB);
        volume.format(mkfs);
        volume.mount();
        lab::run("dmsetup", &["rename", "--noudevsync", "vg0-old", "vg1-new"]);
        lab::run("dmsetup", &["mknodes"]);
        volume.name = "vg1-new".to_owned();
        let link = Path::new("/tmp").join(format!("share-{kind}"));
        std::os::unix::fs::symlink(volume.node(), &link).unwrap();
        volume.resize(400 * MIB);
        let Some(mounted) = observe_node(&link).unwrap() else { panic!("{kind} was not found") };
        assert_eq!((mounted.geometry.name(), mounted.grow().unwrap()), (kind, Bytes::mib(400)));
    }
}

#[test]
fn what_cannot_be_grown_is_refused() {
    let mut volume = Volume::new("ubda", "vg0-refused", 400 * MIB);
    assert!(matches!(volume.observe(), Ok(None)), "a blank device");
    for (kind, mkfs) in KINDS {
        volume.format(mkfs);
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted);
        assert!(refusal.to_string().contains(&format!("/dev/mapper/vg0-refused holds {kind} that")), "{refusal}");
        let node = "/dev/mapper/vg0-refused";
        assert_eq!(volume.remedy(), format!("mount {node}, if losetup -j {node} and fuser {node} show nothing"));

        volume.mount_with("ro");
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted);
        assert!(refusal.to_string().contains(&format!("{kind} that is mounted read-only at /mnt/")), "{refusal}");
        lab::run("sh", &["-c", volume.remedy().split(';').next().unwrap()]);
        assert_eq!(volume.mounted().geometry.name(), kind);
        volume.unmount();
        lab::run("wipefs", &["-aq", volume.node().to_str().unwrap()]);
    }

    let node = volume.node();
    let table = format!("0 1000 linear {} 0", node.display());
    lab::run("dmsetup", &["create", "--noudevsync", "tenant-crypt", "--table", &table]);
    let refusal = volume.refusal();
    lab::run("dmsetup", &["remove", "--retry", "--noudevsync", "tenant-crypt"]);
    assert_eq!(refusal.reason(), Reason::Unsupported);
    assert!(refusal.to_string().contains("tenant-crypt"), "{refusal}");

    let zero = look(fs::metadata("/dev/zero").unwrap().rdev(), &node);
    assert!(matches!(zero, Err(DriverError::System { .. })), "the node of another device");

    let other = Disk::take("ubdb");
    lab::run("mkfs.btrfs", &["-q", "-f", node.to_str().unwrap(), other.path().to_str().unwrap()]);
    volume.mount();
    let refusal = volume.refusal();
    assert_eq!(refusal.reason(), Reason::Unsupported);
    assert!(refusal.to_string().contains("2 devices"), "{refusal}");
    volume.unmount();
    lab::run("wipefs", &["-aq", other.path().to_str().unwrap()]);
}

#[test]
fn growth_beyond_what_is_good_is_refused_beforehand() {
    let mut volume = Volume::new("ubda", "vg0-large", 300 * MIB);
    volume.format("mkfs.xfs -q -f");
    volume.mount();
    let refusal = volume.mounted().check_growth(Bytes::gib(1024), false).unwrap_err();
    assert_eq!(refusal.reason(), Reason::GrowthTooLarge);
    assert!(refusal.to_string().contains("13982 allocation groups, more than 4096"), "{refusal}");
    volume.unmount();

    volume.format("mkfs.ext4 -q -F -E resize=1g");
    volume.mount();
    let mounted = volume.mounted();
    mounted.check_growth(Bytes::gib(1), false).unwrap();
    let refusal = mounted.check_growth(Bytes::gib(2), false).unwrap_err();
    assert_eq!(refusal.reason(), Reason::GrowthTooLarge);
    assert!(refusal.to_string().contains("blocks of group descriptors"), "{refusal}");
    drop(mounted);

    // A made-up error, as after a bad block; the kernel refuses to grow such a file system.
    let device = fs::metadata(volume.node()).unwrap().rdev();
    let name = format!("dm-{}", nix::sys::stat::minor(device));
    fs::write(Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error"), "made up").unwrap();
    // The kernel notes it in the superblock a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    let refusal = loop {
        match volume.obstacle() {
            Some(refusal) => break refusal,
            None => assert!(Instant::now() < deadline, "the error was not noted"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(refusal.reason(), Reason::Unsupported);
    volume.resize(400 * MIB);
    assert_eq!(volume.mounted().grow().unwrap_err().into_refusal(), refusal);
    assert_eq!(volume.mounted().geometry.size(), Bytes::mib(300));
    volume.unmount();

    volume.format("mkfs.ext4 -q -F -O sparse_super2,^resize_inode");
    volume.mount();
    let refusal = volume.obstacle().unwrap();
    assert!(refusal.to_string().contains("sparse_super2"), "{refusal}");
}

#[test]
fn ext4_that_is_mounted_by_a_backup_superblock_is_refused_beforehand() {
    let mut volume = Volume::new("ubda", "vg0-backup", 300 * MIB);
    volume.format("mkfs.ext4 -q -F -b 4096");
    volume.mount_with("sb=131072");
    let refusal = volume.obstacle().unwrap();
    assert_eq!(refusal.reason(), Reason::Unsupported);
    assert!(refusal.to_string().contains("backup superblock"), "{refusal}");
    volume.resize(400 * MIB);
    assert_eq!(volume.mounted().grow().unwrap_err().into_refusal(), refusal);
    assert_eq!(volume.mounted().geometry.size(), Bytes::mib(300));
    volume.unmount();
    lab::run("e2fsck", &["-fy", volume.node().to_str().unwrap()]);
    volume.mount();
    assert_eq!(volume.mounted().grow().unwrap(), Bytes::mib(400));
}

/// What tune2fs leaves behind until e2fsck was run. The kernel takes it for damage when it is told to grow it.
#[test]
fn ext4_that_would_become_read_only_is_refused_beforehand() {
    let mut volume = Volume::new("ubda", "vg0-reserved", 300 * MIB);
    let node = volume.node();
    volume.format("mkfs.ext4 -q -F -b 4096 -e remount-ro");
    lab::run("tune2fs", &["-O", "^resize_inode", node.to_str().unwrap()]);
    let place = volume.mount();
    volume.resize(400 * MIB);
    let refusal = volume.obstacle().unwrap();
    assert_eq!(refusal.reason(), Reason::Unsupported);
    assert!(refusal.to_string().contains("e2fsck -f"), "{refusal}");
    assert_eq!(volume.mounted().grow().unwrap_err().into_refusal(), refusal);
    fs::write(place.join("written"), "as before").unwrap();
    volume.unmount();
    // It says 1 when it has mended something.
    lab::run("/bin/sh", &["-c", &format!("e2fsck -fy {}; test $? = 1", node.display())]);
    volume.mount();
    assert_eq!(volume.obstacle(), None);
    assert_eq!(volume.mounted().grow().unwrap(), Bytes::mib(400));
}

#[test]
fn btrfs_is_refused_as_long_as_a_balance_is_not_done() {
    let mut volume = Volume::new("ubda", "vg0-busy", 1024 * MIB);
    volume.format("mkfs.btrfs -q -f");
    let place = volume.mount();
    pause_a_balance(&place);
    volume.resize(1100 * MIB);
    let refusal = volume.obstacle().unwrap();
    assert!(refusal.reason() == Reason::NotMounted && refusal.reason().is_retryable());
    assert!(refusal.to_string().contains("balance paused"), "{refusal}");
    assert_eq!(volume.mounted().grow().unwrap_err().into_refusal(), refusal);
    lab::run("btrfs", &["balance", "cancel", place.to_str().unwrap()]);
    assert_eq!(volume.obstacle(), None);
    assert_eq!(volume.mounted().grow().unwrap(), Bytes::mib(1100));
}

#[test]
fn growth_survives_a_power_cut() {
    for (kind, mkfs) in KINDS {
        let mut volume = Volume::new("ubda", "vg0-power", 300 * MIB);
        volume.format(mkfs);
        let place = volume.mount();
        fs::write(place.join("dirty"), vec![1; MIB as usize]).unwrap();
        volume.resize(500 * MIB);
        let mounted = volume.mounted();
        mounted.grow().unwrap();
        mounted.flush().unwrap();
        drop(mounted);
        // From here on nothing reaches the disk, not even what unmounting writes.
        volume.lose_power(500 * MIB);
        volume.unmount();
        volume.resize(500 * MIB);
        volume.mount();
        assert_eq!(volume.mounted().geometry.size(), Bytes::mib(500), "{kind}");
        volume.unmount();
        check(kind, &volume.node());
    }
}

/// What it kept, such as the lock of the store, the next growd could not have: a process that waits for a disk outlives its
/// parent and every kill.
#[test]
fn a_freeze_that_waits_for_its_disk_keeps_no_other_file_open() {
    let disk = MappedDisk::over("ubda");
    let filesystem = Filesystem::xfs(&disk.path(), "");
    let root = File::open(filesystem.path()).unwrap();
    fs::write(filesystem.path().join("dirty"), "").unwrap();
    std::thread::scope(|scope| {
        let hang = disk.hang();
        let freezing = scope.spawn(|| freeze::for_a_moment(root.as_fd()));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let open = files_of_the_child_with_a_session();
            if open == [filesystem.path()] {
                break;
            }
            assert!(!freezing.is_finished() && Instant::now() < deadline, "{open:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(hang);
        freezing.join().unwrap().unwrap();
    });
}

/// What the process that holds a freeze has open, once it is there. No other child of a test has a session of its own.
fn files_of_the_child_with_a_session() -> Vec<PathBuf> {
    let mine = |folder: &Path| {
        let text = fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let numbers: Vec<u32> = text.rsplit(')').next().unwrap().split(' ').flat_map(str::parse).collect();
        numbers.first() == Some(&std::process::id())
            && numbers.get(2).map(u32::to_string).as_deref() == folder.file_name().unwrap().to_str()
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let Some(child) = processes.into_iter().find(|folder| mine(folder)) else { return Vec::new() };
    let open = fs::read_dir(child.join("fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}
