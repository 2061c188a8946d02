//! A disk that can hang: its reads and writes then wait, as with a broken path to a storage array.
//!
//! Unlike a frozen file system it lets everything pass that the kernel has in memory: limits are read and set, and only
//! what must reach the disk waits. So a job of growd begins and does not end.

use std::path::PathBuf;

use super::{Disk, lab};

/// A device-mapper device over a whole disk of the lab.
pub struct HangingDisk {
    name: String,
    // Held for its Drop, after the device was removed.
    _disk: Disk,
}

impl HangingDisk {
    pub fn over(disk: &str) -> Self {
        let disk = Disk::take(disk);
        let path = disk.path().display().to_string();
        let name = format!("hanging-{}", path.rsplit('/').next().unwrap());
        let sectors = lab::run("blockdev", &["--getsz", &path]);
        let table = format!("0 {} linear {path} 0", sectors.trim());
        lab::run("dmsetup", &["--noudevsync", "create", &name, "--table", &table]);
        lab::run("dmsetup", &["mknodes"]);
        Self { name, _disk: disk }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/mapper/{}", self.name))
    }

    /// Lets the disk hang for as long as the answer lives. A process that waits for it cannot even be killed, so it must
    /// answer again before a daemon goes, also when the test fails.
    pub fn hang(&self) -> Hang<'_> {
        lab::run("dmsetup", &["--noudevsync", "suspend", "--nolockfs", "--noflush", &self.name]);
        Hang(self)
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            lab::run("dmsetup", &["--noudevsync", "remove", "--retry", &self.name]);
        }
    }
}

pub struct Hang<'a>(&'a HangingDisk);

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        lab::run("dmsetup", &["--noudevsync", "resume", &self.0.name]);
    }
}
