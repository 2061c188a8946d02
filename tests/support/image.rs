//! Images on loop devices, made, attached and measured with standard tools.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{lab, text, unmount_at_last};

/// The file system in an image: its name and what makes it.
pub const KINDS: [(&str, &str); 3] =
    [("xfs", "mkfs.xfs -q -f"), ("ext4", "mkfs.ext4 -q -F"), ("btrfs", "mkfs.btrfs -q -f")];

/// A file, detached and removed when dropped.
pub struct Image {
    pub path: PathBuf,
    mount_point: PathBuf,
}

impl Image {
    /// A file without a file system.
    pub fn blank(directory: &Path, share: &str, size: u64, preallocated: bool) -> Self {
        let path = directory.join(format!("{share}.img"));
        if preallocated {
            lab::run("fallocate", &["-l", &size.to_string(), text(&path)]);
        } else {
            fs::File::create_new(&path).unwrap().set_len(size).unwrap();
        }
        let mount_point = tempfile::Builder::new().prefix("image-").tempdir_in("/mnt").unwrap().keep();
        Self { path, mount_point }
    }

    /// A file with a file system that is mounted through a loop device.
    pub fn mounted(directory: &Path, share: &str, size: u64, preallocated: bool, mkfs: &str) -> Self {
        let image = Self::blank(directory, share, size, preallocated);
        image.format(mkfs);
        image.mount("loop");
        image
    }

    pub fn format(&self, mkfs: &str) {
        let words = mkfs.split(' ').collect::<Vec<_>>();
        // What it discards would be holes.
        let keep: &[&str] = if words[0] == "mkfs.ext4" { &["-E", "nodiscard"] } else { &["-K"] };
        lab::run(words[0], &[&words[1..], keep, &[text(&self.path)]].concat());
    }

    pub fn mount(&self, options: &str) {
        lab::run("mount", &["-o", options, text(&self.path), text(&self.mount_point)]);
    }

    pub fn unmount(&self) {
        unmount_at_last(&self.mount_point);
        let _ = fs::create_dir(&self.mount_point);
    }

    /// Attaches it with options of losetup and returns the device.
    pub fn attach(&self, options: &[&str]) -> String {
        lab::run("losetup", &[&["-f", "--show"], options, &[text(&self.path)]].concat()).trim().to_owned()
    }

    /// The devices that it is attached to.
    pub fn devices(&self) -> Vec<String> {
        let list = lab::run("losetup", &["-n", "-O", "NAME", "-j", text(&self.path)]);
        list.split_whitespace().map(str::to_owned).collect()
    }

    pub fn detach(&self) {
        for device in self.devices() {
            lab::run("losetup", &["-d", &device]);
        }
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    pub fn size(&self) -> u64 {
        fs::metadata(&self.path).unwrap().len()
    }

    pub fn allocated(&self) -> u64 {
        fs::metadata(&self.path).unwrap().blocks() * 512
    }

    /// Whether it has its blocks, but for some that a file system in it has made holes of.
    pub fn is_preallocated(&self) -> bool {
        self.allocated() * 10 >= self.size() * 9
    }

    pub fn device_size(&self) -> u64 {
        lab::run("blockdev", &["--getsize64", &self.devices()[0]]).trim().parse().unwrap()
    }

    /// While nothing is mounted.
    pub fn check(&self, kind: &str) {
        check(kind, &self.path);
    }
}

/// The file system's own checker, on a device or file that is not mounted.
pub fn check(kind: &str, device: &Path) {
    match kind {
        "xfs" => lab::run("xfs_repair", &["-n", text(device)]),
        "ext4" => lab::run("e2fsck", &["-fn", text(device)]),
        _ => lab::run("btrfs", &["check", "--readonly", text(device)]),
    };
}

impl Drop for Image {
    fn drop(&mut self) {
        unmount_at_last(&self.mount_point);
        for device in self.devices() {
            let _ = Command::new("losetup").args(["-d", &device]).status();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// A pool named "images" of the files in a directory, with more lines of configuration.
pub fn pool(directory: &Path, more: &str) -> String {
    let path = directory.display();
    format!("[[pool]]\nname = \"images\"\ndriver = \"image\"\npath = \"{path}/{{share_id}}.img\"\n{more}\n")
}
