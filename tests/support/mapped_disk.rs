//! A disk that hangs or fails, all of it or a part of it, for as long as a test wants.
//!
//! One that hangs lets reads and writes wait, as with a broken path to a storage array. Unlike a frozen file system it lets
//! everything pass that the kernel has in memory: limits are read and set, and only what must reach the disk waits. So a
//! job of growd begins and does not end. One that fails answers with EIO.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Disk, lab};

const SECTOR: u64 = 512;

/// A device-mapper device over a whole disk of the lab.
pub struct MappedDisk {
    name: String,
    below: String,
    sectors: u64,
    // Held for its Drop, after the device was removed.
    _disk: Disk,
}

impl MappedDisk {
    pub fn over(disk: &str) -> Self {
        let disk = Disk::take(disk);
        let below = disk.path().display().to_string();
        let name = format!("mapped-{}", below.rsplit('/').next().unwrap());
        let sectors = lab::run("blockdev", &["--getsz", &below]).trim().parse().unwrap();
        let table = format!("0 {sectors} linear {below} 0");
        lab::run("dmsetup", &["--noudevsync", "create", &name, "--table", &table]);
        lab::run("dmsetup", &["mknodes"]);
        Self { name, below, sectors, _disk: disk }
    }

    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Lets the disk hang for as long as the answer lives. A process that waits for it cannot even be killed, so it must
    /// answer again before a daemon goes, also when the test fails.
    pub fn hang(&self) -> Hang<'_> {
        lab::run("dmsetup", &["--noudevsync", "suspend", "--nolockfs", "--noflush", &self.name]);
        Hang(self)
    }

    /// Every read and write fails.
    pub fn fail(&self) {
        self.replace_table(&format!("0 {} error\n", self.sectors));
    }

    /// Reads and writes fail where a file of ext4 has its blocks, and nowhere else.
    pub fn fail_blocks_of(&self, file: &Path) {
        let mut extents = extents(file);
        extents.sort_unstable();
        let (mut table, mut at) = (String::new(), 0);
        for (begin, length) in extents {
            if begin > at {
                table += &format!("{at} {} linear {} {at}\n", begin - at, self.below);
            }
            table += &format!("{begin} {length} error\n");
            at = begin + length;
        }
        table += &format!("{at} {} linear {} {at}\n", self.sectors - at, self.below);
        self.replace_table(&table);
    }

    pub fn mend(&self) {
        self.replace_table(&format!("0 {} linear {} 0\n", self.sectors, self.below));
    }

    fn replace_table(&self, table: &str) {
        let mut load = Command::new("dmsetup").args(["load", &self.name]).stdin(Stdio::piped()).spawn().unwrap();
        load.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(load.wait().unwrap().success(), "dmsetup does not take the table:\n{table}");
        lab::run("dmsetup", &["--noudevsync", "suspend", "--nolockfs", &self.name]);
        lab::run("dmsetup", &["--noudevsync", "resume", &self.name]);
    }
}

impl Drop for MappedDisk {
    fn drop(&mut self) {
        remove_device(&self.name);
    }
}

/// Removes a device of device-mapper, however the test ended: others have the disk below it next.
pub fn remove_device(name: &str) {
    let removed = Command::new("dmsetup").args(["--noudevsync", "remove", "--retry", name]).status();
    // A second panic would abort and hide the first.
    assert!(removed.is_ok_and(|status| status.success()) || std::thread::panicking(), "{name} is still in use");
}

pub struct Hang<'a>(&'a MappedDisk);

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        lab::run("dmsetup", &["--noudevsync", "resume", &self.0.name]);
    }
}

/// Where a file is on its device: first sector and number of sectors of each extent, from filefrag(8), which counts in
/// bytes here.
fn extents(file: &Path) -> Vec<(u64, u64)> {
    let report = lab::run("filefrag", &["-b1", "-v", file.to_str().unwrap()]);
    // `ext: logical..: physical..: length: expected: flags`
    let extent = |line: &str| {
        let columns: Vec<&str> = line.split(':').collect();
        let _: u64 = columns.first()?.trim().parse().ok()?;
        let begin: u64 = columns.get(2)?.split("..").next()?.trim().parse().ok()?;
        let length: u64 = columns.get(3)?.trim().parse().ok()?;
        Some((begin / SECTOR, length / SECTOR))
    };
    let extents: Vec<(u64, u64)> = report.lines().filter_map(extent).collect();
    assert!(!extents.is_empty(), "no extents in\n{report}");
    extents
}
