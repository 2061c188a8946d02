//! btrfs on a disk of the lab, or in a file of this machine, made, changed and measured with the btrfs command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Disk, lab, text, unmount_at_last};

/// A fresh btrfs with quotas at a mount point of its own, unmounted when dropped.
pub struct Btrfs {
    mount_point: PathBuf,
    ground: Ground,
}

/// What it is on.
enum Ground {
    Lab(Disk),
    Here(TempDir),
}

impl Ground {
    fn path(&self) -> PathBuf {
        match self {
            Self::Lab(disk) => disk.path(),
            Self::Here(dir) => dir.path().join("image"),
        }
    }
}

impl Btrfs {
    pub fn new(disk: &str) -> Self {
        Self::make(Ground::Lab(Disk::take(disk)))
    }

    /// On this machine itself, whose kernel may be another than the lab's, in a file on a loop device.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn here() -> Result<Self, &'static str> {
        if !nix::unistd::geteuid().is_root() {
            return Err("mounting takes root");
        }
        // Both are modules of most kernels, and a mount loads them as well.
        for module in ["loop", "btrfs"] {
            let _ = Command::new("modprobe").args(["-q", module]).status();
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("there are no loop devices");
        }
        if !std::fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.trim() == "btrfs") {
            return Err("the kernel has no btrfs");
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::File::create_new(dir.path().join("image")).unwrap().set_len(4 << 30).unwrap();
        Ok(Self::make(Ground::Here(dir)))
    }

    /// Mounts what an earlier lab left on the same disk (see GROWD_LAB_DISKS in tests/lab/run).
    pub fn left_behind(disk: &str) -> Self {
        Self::on(Ground::Lab(Disk::take(disk)))
    }

    fn make(ground: Ground) -> Self {
        lab::run("mkfs.btrfs", &["-q", "-f", text(&ground.path())]);
        let filesystem = Self::on(ground);
        filesystem.enable_quotas();
        filesystem
    }

    fn on(ground: Ground) -> Self {
        let parent = match &ground {
            Ground::Lab(_) => Path::new("/mnt"),
            Ground::Here(dir) => dir.path(),
        };
        let mount_point = tempfile::Builder::new().prefix("btrfs-").tempdir_in(parent).unwrap().keep();
        let filesystem = Self { mount_point, ground };
        // It commits only when it is told to.
        filesystem.mount(&filesystem.mount_point, "commit=3600");
        filesystem
    }

    /// Mounts it once more, or again. A file is put on a loop device by mount itself.
    pub fn mount(&self, mount_point: &Path, options: &str) {
        lab::run("mount", &["-o", options, text(&self.ground.path()), text(mount_point)]);
    }

    pub fn enable_quotas(&self) {
        self.btrfs(&["quota", "enable"], &self.mount_point);
        self.btrfs(&["quota", "rescan", "-w"], &self.mount_point);
    }

    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Runs the btrfs command on a path.
    pub fn btrfs(&self, arguments: &[&str], path: &Path) -> String {
        lab::run("btrfs", &[arguments, &[text(path)]].concat())
    }

    /// Makes a subvolume with a limit in bytes and returns its path.
    pub fn create_share(&self, name: &str, limit_bytes: u64) -> PathBuf {
        let share = self.mount_point.join(name);
        self.btrfs(&["subvolume", "create"], &share);
        self.btrfs(&["qgroup", "limit", &limit_bytes.to_string()], &share);
        share
    }

    pub fn subvolume_id(&self, share: &Path) -> String {
        self.btrfs(&["inspect-internal", "rootid"], share).trim().to_owned()
    }

    /// What the quota group of a subvolume counts and allows, as the command reports it. `None` is no limit. First
    /// everything is written out, since use counts only then.
    pub fn qgroup(&self, share: &Path) -> Counts {
        self.btrfs(&["filesystem", "sync"], share);
        self.counts(share)
    }

    fn counts(&self, share: &Path) -> Counts {
        let group = format!("0/{}", self.subvolume_id(share));
        let report = self.btrfs(&["qgroup", "show", "--raw", "-re"], share);
        let row =
            report.lines().find(|line| line.split_whitespace().next() == Some(&group)).expect("a row of the group");
        let number = |column| row.split_whitespace().nth(column).unwrap().parse().ok();
        Counts { used: number(1).unwrap(), limit: number(3), exclusive_limit: number(4) }
    }

    /// A limit is known as soon as it is set.
    pub fn limit(&self, share: &Path) -> Option<u64> {
        self.counts(share).limit
    }

    /// What the disk says: the limit that the group of a subvolume would have after a power cut now.
    pub fn limit_on_disk(&self, id: &str) -> u64 {
        let device = self.ground.path();
        // The command reads the device through the page cache, which knows nothing of what btrfs has written since.
        lab::run("blockdev", &["--flushbufs", text(&device)]);
        let dump = lab::run("btrfs", &["inspect-internal", "dump-tree", "-t", "quota", text(&device)]);
        let item = format!("(0 QGROUP_LIMIT 0/{id})");
        let mut words = dump.split_once(&item).expect("an item of the limit").1.split_whitespace();
        words.find(|word| *word == "max_referenced").unwrap();
        words.next().unwrap().parse().unwrap()
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        unmount_at_last(&self.mount_point);
    }
}

#[derive(Debug)]
pub struct Counts {
    pub used: u64,
    pub limit: Option<u64>,
    pub exclusive_limit: Option<u64>,
}

/// Leaves a balance paused on the file system that is mounted there.
pub fn pause_a_balance(place: &Path) {
    assert_eq!(super::fill(&place.join("data"), 300 << 20).unwrap(), 300 << 20);
    let balance = |words: &[&str]| {
        let words = [&["balance"], words, &[text(place)]].concat();
        String::from_utf8(Command::new("btrfs").args(words).output().unwrap().stdout).unwrap()
    };
    // One that has not begun cannot be paused, nor one that is done.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !balance(&["status"]).contains("is paused") {
        assert!(Instant::now() < deadline, "no balance was caught at work");
        balance(&["start", "--full-balance", "--bg"]);
        balance(&["pause"]);
    }
}
