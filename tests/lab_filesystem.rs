//! Online growth of real file systems on real device-mapper devices: what is found where, and what growing does.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use growd::driver::DriverError;
use growd::driver::filesystem::{Content, Mounted, observe};
use growd::model::{Bytes, PoolName, Reason, Refusal};
use support::{Disk, fill, lab};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A device-mapper device on a disk of the lab, which can be made larger while it is in use.
struct Volume {
    name: String,
    disk: Disk,
    mounts: Vec<PathBuf>,
}

impl Volume {
    fn new(disk: &str, name: &str, size: u64) -> Self {
        let disk = Disk::take(disk);
        let volume = Self { name: name.to_owned(), disk, mounts: Vec::new() };
        lab::run("dmsetup", &["create", "--noudevsync", name, "--table", &volume.table(size)]);
        lab::run("dmsetup", &["mknodes"]);
        // Signatures of the test before.
        lab::run("wipefs", &["-aq", volume.node().to_str().unwrap()]);
        volume
    }

    fn table(&self, size: u64) -> String {
        format!("0 {} linear {} 0", size / SECTOR, self.disk.path().display())
    }

    fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    fn resize(&self, size: u64) {
        lab::run("dmsetup", &["load", &self.name, "--table", &self.table(size)]);
        lab::run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    /// Formats it with words such as `mkfs.xfs -q`.
    fn format(&self, mkfs: &str) {
        let words: Vec<&str> = mkfs.split(' ').collect();
        let node = self.node();
        lab::run(words[0], &[&words[1..], &[node.to_str().unwrap()]].concat());
    }

    fn mount(&mut self) -> PathBuf {
        self.mount_with("defaults")
    }

    fn mount_with(&mut self, options: &str) -> PathBuf {
        let node = self.node();
        self.mount_from(&["-o", options, node.to_str().unwrap()])
    }

    fn mount_from(&mut self, arguments: &[&str]) -> PathBuf {
        let place = tempfile::Builder::new().prefix("odd place-").tempdir_in("/mnt").unwrap().keep();
        lab::run("mount", &[arguments, &[place.to_str().unwrap()]].concat());
        self.mounts.push(place.clone());
        place
    }

    fn unmount(&mut self) {
        for place in self.mounts.drain(..).rev() {
            lab::run("umount", &[place.to_str().unwrap()]);
        }
    }

    fn observe(&self) -> Result<Content, DriverError> {
        observe_node(&self.node())
    }

    fn mounted(&self) -> Mounted {
        match self.observe().unwrap() {
            Content::Filesystem(mounted) => mounted,
            Content::Block => panic!("{} has no file system", self.name),
        }
    }

    fn refusal(&self) -> Refusal {
        self.observe().unwrap_err().into_refusal()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        for place in self.mounts.drain(..).rev() {
            let _ = Command::new("umount").arg(place).output();
        }
        let removed = Command::new("dmsetup").args(["remove", "--retry", "--noudevsync", &self.name]).status();
        if !std::thread::panicking() {
            assert!(removed.unwrap().success(), "{} is still in use", self.name);
        }
    }
}

fn observe_node(node: &Path) -> Result<Content, DriverError> {
    let pool: PoolName = "vols".parse().unwrap();
    observe(&pool, fs::metadata(node).unwrap().rdev(), node)
}

/// The size that the superblock tells a tool of.
fn size_by_tool(kind: &str, node: &Path, mount_point: &Path) -> u64 {
    let (node, mount_point) = (node.to_str().unwrap(), mount_point.to_str().unwrap());
    let number = |text: &str, key: &str| -> u64 {
        let at = text.find(key).unwrap_or_else(|| panic!("no {key} in {text}")) + key.len();
        let digits: String = text[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    match kind {
        "xfs" => {
            let text = lab::run("xfs_io", &["-r", "-c", "statfs", mount_point]);
            number(&text, "geom.bsize =") * number(&text, "geom.datablocks =")
        }
        "ext4" => {
            let text = lab::run("dumpe2fs", &["-h", node]);
            number(&text, "Block size:") * number(&text, "Block count:")
        }
        _ => number(&lab::run("btrfs", &["filesystem", "show", "--raw", mount_point]), "size "),
    }
}

const KINDS: [(&str, &str); 3] =
    [("xfs", "mkfs.xfs -q -f"), ("ext4", "mkfs.ext4 -q -F"), ("btrfs", "mkfs.btrfs -q -f")];

#[test]
fn a_full_file_system_grows_under_its_writers() {
    for (kind, mkfs) in KINDS {
        // Hyphens are doubled in names of LVM's devices.
        let mut volume = Volume::new("ubda", "vg--a-share--6d0ad3f4--7c5e", 300 * MIB);
        volume.format(mkfs);
        let place = volume.mount();
        let data = place.join("data");
        let seed: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
        fs::write(place.join("before"), &seed).unwrap();
        let written = fill(&data, 1000 * MIB).unwrap();
        assert!(written > 100 * MIB && fill(&data, MIB).unwrap() < MIB, "{kind} is full");
        let sums = || lab::run("md5sum", &[place.join("before").to_str().unwrap(), data.to_str().unwrap()]);
        let before = sums();

        let done = AtomicBool::new(false);
        let grown = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut file = File::create(place.join("log")).unwrap();
                let mut written = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    // Full before the growth, and never anything else.
                    match file.write(&[7; 4096]) {
                        Ok(length) => written += length as u64,
                        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::StorageFull),
                    }
                    if written > 64 * MIB {
                        break;
                    }
                }
                file.sync_all().unwrap();
                written
            });
            // An odd number of sectors on purpose.
            let size = 1111 * MIB + 3 * SECTOR;
            volume.resize(size);
            let mounted = volume.mounted();
            assert_eq!((mounted.name(), mounted.size()), (kind, Bytes::mib(300)));
            assert!(mounted.used().get() > written && mounted.used() <= Bytes::mib(300));
            mounted.check_growth(Bytes::new(size)).unwrap();
            let grown = mounted.grow().unwrap();
            assert_eq!(grown, mounted.size_on(Bytes::new(size)));
            assert!(grown > Bytes::mib(1110));
            assert_eq!(mounted.grow().unwrap(), grown, "a repeat changes nothing");
            mounted.flush().unwrap();
            let written = fill(&data, 100 * MIB).unwrap();
            assert_eq!(written, 100 * MIB, "{kind} has room");
            done.store(true, Ordering::Relaxed);
            assert!(writer.join().unwrap() > 0);
            grown
        });
        assert_eq!(size_by_tool(kind, &volume.node(), &place), grown.get());
        assert_eq!(volume.mounted().size(), grown);

        // What was there before is at the start of the file still.
        File::options().write(true).open(&data).unwrap().set_len(written).unwrap();
        assert_eq!(sums(), before);
        volume.unmount();
        check(kind, &volume.node());
    }
}

/// The file system's own checker, on the unmounted device.
fn check(kind: &str, node: &Path) {
    let node = node.to_str().unwrap();
    match kind {
        "xfs" => lab::run("xfs_repair", &["-n", node]),
        "ext4" => lab::run("e2fsck", &["-fn", node]),
        _ => lab::run("btrfs", &["check", "--readonly", node]),
    };
}

#[test]
fn a_smaller_device_shrinks_nothing() {
    for (kind, mkfs) in KINDS {
        let mut volume = Volume::new("ubda", "vg0-smaller", 400 * MIB);
        volume.format(mkfs);
        let place = volume.mount();
        volume.resize(350 * MIB);
        let mounted = volume.mounted();
        assert_eq!(mounted.size_on(Bytes::mib(350)), Bytes::mib(400));
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
            mounted.mount_point().to_owned()
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
        assert_eq!(volume.refusal().reason(), Reason::NotMounted);
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
        let Content::Filesystem(mounted) = observe_node(&link).unwrap() else { panic!("{kind} was not found") };
        assert_eq!((mounted.name(), mounted.grow().unwrap()), (kind, Bytes::mib(400)));
    }
}

#[test]
fn what_cannot_be_grown_is_refused() {
    let mut volume = Volume::new("ubda", "vg0-refused", 400 * MIB);
    assert!(matches!(volume.observe(), Ok(Content::Block)), "a blank device");
    for (kind, mkfs) in KINDS {
        volume.format(mkfs);
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted);
        assert!(refusal.to_string().contains(&format!("/dev/mapper/vg0-refused holds {kind} that")), "{refusal}");

        volume.mount_with("ro");
        let refusal = volume.refusal();
        assert_eq!(refusal.reason(), Reason::NotMounted);
        assert!(refusal.to_string().contains(&format!("{kind} that is mounted read-only at /mnt/")), "{refusal}");
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

    let zero = observe(&"vols".parse().unwrap(), fs::metadata("/dev/zero").unwrap().rdev(), &node);
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
    let refusal = volume.mounted().check_growth(Bytes::gib(1024)).unwrap_err();
    assert_eq!(refusal.reason(), Reason::GrowthTooLarge);
    assert!(refusal.to_string().contains("13982 allocation groups, more than 4096"), "{refusal}");
    volume.unmount();

    volume.format("mkfs.ext4 -q -F -E resize=1g");
    volume.mount();
    let mounted = volume.mounted();
    mounted.check_growth(Bytes::gib(8)).unwrap();
    let refusal = mounted.check_growth(Bytes::gib(9)).unwrap_err();
    assert_eq!(refusal.reason(), Reason::GrowthTooLarge);
    assert!(refusal.to_string().contains("blocks of group descriptors"), "{refusal}");

    // A made-up error, as after a bad block; the kernel refuses to grow such a file system.
    let kernel_name = fs::canonicalize(volume.node()).unwrap();
    let device = fs::metadata(volume.node()).unwrap().rdev();
    let name = format!("dm-{}", nix::sys::stat::minor(device));
    assert!(kernel_name.starts_with("/dev"), "{kernel_name:?}");
    fs::write(Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error"), "made up").unwrap();
    let mounted = volume.mounted();
    assert_eq!(mounted.check_growth(Bytes::gib(1)).unwrap_err().reason(), Reason::Unsupported);
    volume.resize(400 * MIB);
    assert!(mounted.grow().is_err());
    assert_eq!(mounted.size(), Bytes::mib(300));
}
