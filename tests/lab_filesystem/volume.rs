//! A volume that the tests of growing file systems make larger, and what others than growd say about it.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use growd::driver::DriverError;
use growd::driver::filesystem::{Device, Mounted, Mounts};
use growd::model::{Refusal, ShareId};

use crate::support::mapped_disk::remove_device;
use crate::support::{Disk, lab};

pub const MIB: u64 = 1 << 20;
pub const SECTOR: u64 = 512;

/// A device-mapper device on a disk of the lab, which can be made larger while it is in use.
pub struct Volume {
    pub name: String,
    disk: Disk,
    pub mounts: Vec<PathBuf>,
}

impl Volume {
    pub fn new(disk: &str, name: &str, size: u64) -> Self {
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

    pub fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    pub fn resize(&self, size: u64) {
        lab::run("dmsetup", &["load", &self.name, "--table", &self.table(size)]);
        lab::run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    /// Makes all reads and writes fail, without letting the file system write anything before.
    pub fn lose_power(&self, size: u64) {
        lab::run("dmsetup", &["suspend", "--noflush", "--nolockfs", &self.name]);
        lab::run("dmsetup", &["load", &self.name, "--table", &format!("0 {} error", size / SECTOR)]);
        lab::run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    /// Formats it with words such as `mkfs.xfs -q`.
    pub fn format(&self, mkfs: &str) {
        let words: Vec<&str> = mkfs.split(' ').collect();
        let node = self.node();
        lab::run(words[0], &[&words[1..], &[node.to_str().unwrap()]].concat());
    }

    pub fn mount(&mut self) -> PathBuf {
        self.mount_with("defaults")
    }

    pub fn mount_with(&mut self, options: &str) -> PathBuf {
        let node = self.node();
        self.mount_from(&["-o", options, node.to_str().unwrap()])
    }

    pub fn mount_from(&mut self, arguments: &[&str]) -> PathBuf {
        let place = tempfile::Builder::new().prefix("odd place-").tempdir_in("/mnt").unwrap().keep();
        lab::run("mount", &[arguments, &[place.to_str().unwrap()]].concat());
        self.mounts.push(place.clone());
        place
    }

    pub fn unmount(&mut self) {
        for place in self.mounts.drain(..).rev() {
            lab::run("umount", &[place.to_str().unwrap()]);
        }
    }

    pub fn observe(&self) -> Result<Option<Mounted>, DriverError> {
        observe_node(&self.node())
    }

    pub fn mounted(&self) -> Mounted {
        self.observe().unwrap().unwrap_or_else(|| panic!("{} has no file system", self.name))
    }

    /// Why what is mounted cannot grow at all, if so.
    pub fn obstacle(&self) -> Option<Refusal> {
        self.mounted().obstacle(&self.node()).map(|problem| problem.refusal.unwrap())
    }

    pub fn refusal(&self) -> Refusal {
        self.observe().unwrap_err().into_refusal()
    }

    /// What heals that.
    pub fn remedy(&self) -> String {
        let error = self.observe().unwrap_err();
        let DriverError::Unusable { remedy, .. } = error else { panic!("{error}") };
        remedy
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        for place in self.mounts.drain(..).rev() {
            let _ = Command::new("umount").arg(place).output();
        }
        remove_device(&self.name);
    }
}

/// As the device of some share.
pub fn look(device: u64, node: &Path) -> Result<Device, DriverError> {
    let (share, pool) = (ShareId::from_uuid(uuid::Uuid::nil()), "vols".parse().unwrap());
    Device::look(share, &pool, device, node, node, &Mounts::default())
}

pub fn observe_node(node: &Path) -> Result<Option<Mounted>, DriverError> {
    Ok(look(fs::metadata(node).unwrap().rdev(), node)?.mounted)
}
