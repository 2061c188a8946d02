//! A disk that answers with EIO, all of it or a part of it, for as long as a test wants.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::support::{Disk, lab};

const SECTOR: u64 = 512;

/// A device-mapper device over a whole disk of the lab.
pub struct FailingDisk {
    name: String,
    below: String,
    sectors: u64,
    // Held for its Drop, after the device was removed.
    _disk: Disk,
}

impl FailingDisk {
    pub fn over(disk: &str) -> Self {
        let disk = Disk::take(disk);
        let below = disk.path().display().to_string();
        let name = format!("failing-{}", below.rsplit('/').next().unwrap());
        let sectors = lab::run("blockdev", &["--getsz", &below]).trim().parse().unwrap();
        let table = format!("0 {sectors} linear {below} 0");
        lab::run("dmsetup", &["--noudevsync", "create", &name, "--table", &table]);
        lab::run("dmsetup", &["mknodes"]);
        Self { name, below, sectors, _disk: disk }
    }

    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
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

impl Drop for FailingDisk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            lab::run("dmsetup", &["--noudevsync", "remove", "--retry", &self.name]);
        }
    }
}

/// Where a file is on its device: first sector and number of sectors of each extent, from filefrag(8), which counts in
/// bytes here.
fn extents(file: &Path) -> Vec<(u64, u64)> {
    let path: PathBuf = file.to_owned();
    let report = lab::run("filefrag", &["-b1", "-v", path.to_str().unwrap()]);
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
