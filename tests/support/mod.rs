//! Helpers for integration tests that run on a lab node (see `tests/lab/run`).
//!
//! Everything here is done and measured with standard tools (mkfs, mount, xfs_quota, setquota, repquota), never with
//! growd's own code: what growd says about a share is checked against what somebody else says. A helper that cannot do
//! its work panics with the tool's own words, because a lab test without its fixture proves nothing.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]
// A test's helper fails by panicking; the lints that forbid it are for the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use growd::sys::file_system::Kind;

pub mod btrfs;
pub mod driver;
pub mod image;
pub mod mapped_disk;
pub mod size_by_tool;
pub mod writer;

pub mod lab {
    use super::*;

    /// Panics unless the test runs on a lab node, where formatting `/dev/ubda` harms nobody.
    pub fn require() {
        let marked = std::env::var_os("GROWD_LAB").is_some_and(|value| value == "1");
        assert!(
            marked && is_user_mode_linux(),
            "this test formats disks and runs only on a lab node: start it with `cargo test`, whose runner boots one \
             for every test whose name starts with lab_, or with `tests/lab/run --lab COMMAND`"
        );
    }

    /// Whether the running kernel is User-mode Linux; unlike an environment variable, it cannot be set by accident.
    pub fn is_user_mode_linux() -> bool {
        std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
    }

    /// Runs a tool to its end and returns its standard output. Panics with both its outputs if it fails.
    pub fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}{stderr}", output.status);
        stdout
    }
}

/// A blank disk of the lab (`ubda` to `ubdd`) that this test has to itself. `ubdd` is meant for the daemon's own state.
///
/// The tests of one binary share one lab and may run in threads, so taking a disk waits until it is free. A test that
/// takes several must do so in alphabetical order, or two tests could wait for each other.
pub struct Disk {
    name: String,
}

static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static RETURNED: Condvar = Condvar::new();

impl Disk {
    pub fn take(name: &str) -> Self {
        lab::require();
        // The set is valid whatever panicked while it was locked.
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while !taken.insert(name.to_owned()) {
            taken = RETURNED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        Self { name: name.to_owned() }
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        RETURNED.notify_all();
    }
}

/// A fresh file system at a mount point of its own, unmounted when dropped.
pub struct Filesystem {
    kind: Kind,
    device: PathBuf,
    mount_point: PathBuf,
    // Held for its Drop, which gives the disk back: fields are dropped after the unmount in Filesystem's own Drop.
    _disk: Option<Disk>,
}

/// What enforces project quotas on both kinds. On XFS, `pqnoenforce` only accounts and `noquota` does neither; on ext4
/// with the quota feature, mounting without it only accounts.
pub const PRJQUOTA: &str = "prjquota";

/// The greatest id that a project can have. Users may give it to files of their own.
pub const LAST_PROJECT: u32 = u32::MAX - 1;

/// Runs a test on a file system of each kind, one after the other.
pub fn on_both(test: impl Fn(&Filesystem)) {
    test(&Filesystem::xfs("ubda", PRJQUOTA));
    test(&Filesystem::ext4("ubdb", PRJQUOTA));
}

impl Filesystem {
    /// Makes and mounts XFS on a disk of the lab (`ubda`) or on any other device (`/dev/vg0/volume`).
    pub fn xfs(disk: &str, mount_options: &str) -> Self {
        Self::make(Kind::Xfs, disk, mount_options)
    }

    /// Makes and mounts ext4 with the features that project quotas need.
    pub fn ext4(disk: &str, mount_options: &str) -> Self {
        Self::make(Kind::Ext4, disk, mount_options)
    }

    pub fn make(kind: Kind, disk: &str, mount_options: &str) -> Self {
        let mkfs: &[&str] = match kind {
            Kind::Xfs => &["mkfs.xfs", "-q", "-f"],
            Kind::Ext4 => &["mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"],
        };
        Self::make_with(kind, disk, mount_options, mkfs)
    }

    /// Makes and mounts ext4 as mkfs.ext4 does by default: it cannot have project quotas.
    pub fn ext4_without_quota_feature(disk: &str) -> Self {
        Self::make_with(Kind::Ext4, disk, "defaults", &["mkfs.ext4", "-q", "-F"])
    }

    /// Mounts what an earlier lab left on the same disk (see GROWD_LAB_DISKS in tests/lab/run).
    pub fn left_behind(kind: Kind, disk: &str, mount_options: &str) -> Self {
        Self::make_with(kind, disk, mount_options, &[])
    }

    /// Makes and mounts a small ext4, of a size such as `64M`, all of which root may fill; for growd's own state.
    pub fn small_ext4(disk: &str, size: &str) -> Self {
        let filesystem = Self::make_with(Kind::Ext4, disk, "defaults", &["mkfs.ext4", "-q", "-F"]);
        filesystem.unmount();
        lab::run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&filesystem.device), size]);
        filesystem.mount("defaults");
        filesystem
    }

    fn make_with(kind: Kind, disk: &str, mount_options: &str, mkfs: &[&str]) -> Self {
        lab::require();
        let taken = (!disk.starts_with('/')).then(|| Disk::take(disk));
        let device = taken.as_ref().map_or_else(|| PathBuf::from(disk), Disk::path);
        if let [program, arguments @ ..] = mkfs {
            lab::run(program, &[arguments, &[text(&device)]].concat());
        }
        let mount_point = tempfile::Builder::new().prefix("fs-").tempdir_in("/mnt").unwrap().keep();
        let filesystem = Self { kind, device, mount_point, _disk: taken };
        filesystem.mount(mount_options);
        filesystem
    }

    pub fn mount(&self, options: &str) {
        let options = if options.is_empty() { "defaults" } else { options };
        lab::run("mount", &["-o", options, text(&self.device), text(&self.mount_point)]);
    }

    /// Unmounts and mounts again with other options, as an administrator would to turn quotas on or off: XFS ignores
    /// quota options in a plain remount.
    pub fn mount_again(&self, options: &str) {
        self.unmount();
        self.mount(options);
    }

    /// Changes the options of the mount that is there.
    pub fn remount(&self, options: &str) {
        lab::run("mount", &["-o", &format!("remount,{options}"), text(&self.mount_point)]);
    }

    /// Covers the mount with one that is read-only while the file system is not, as systemd does for a service with
    /// ProtectSystem=strict. It lasts as long as what this returns.
    pub fn read_only_mount(&self) -> ReadOnlyMount {
        let mount_point = text(&self.mount_point);
        lab::run("mount", &["--bind", mount_point, mount_point]);
        lab::run("mount", &["-o", "remount,bind,ro", mount_point]);
        ReadOnlyMount(self.mount_point.clone())
    }

    /// Leaves an empty directory where the file system was, as after a boot with a broken fstab.
    pub fn unmount(&self) {
        unmount(&self.mount_point).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes a directory whose files count for a project, with a hard limit in bytes (a multiple of 1 KiB; 0 means no
    /// limit). Returns its path.
    pub fn create_share(&self, name: &str, project_id: u32, hard_limit_bytes: u64) -> PathBuf {
        let share = self.mount_point.join(name);
        std::fs::create_dir(&share).unwrap();
        self.set_project(&share, project_id);
        self.set_limits(project_id, 0, hard_limit_bytes);
        share
    }

    /// As [`Self::create_share`] for many at once on XFS.
    pub fn create_shares(&self, shares: &[(String, u32)], hard_limit_bytes: u64) {
        assert_eq!(self.kind, Kind::Xfs);
        // In one run of xfs_quota, each `project -p` would set up the directories of those before it as well.
        for some in shares.chunks(200) {
            let mut projects = Vec::new();
            let mut limits = Vec::new();
            for (name, id) in some {
                let share = self.mount_point.join(name);
                std::fs::create_dir(&share).unwrap();
                projects.extend([format!("open {}", share.display()), format!("chproj {id}"), "chattr +P".to_owned()]);
                projects.push("close".to_owned());
                limits.push(format!("limit -p bhard={hard_limit_bytes} {id}"));
            }
            let commands = projects.iter().flat_map(|command| ["-c", command]).collect::<Vec<_>>();
            assert_eq!(lab::run("xfs_io", &[&["-x"], &commands[..]].concat()), "");
            self.xfs_quota_all(&limits);
        }
    }

    /// Gives a directory and all below it to a project, and lets new files inherit it.
    pub fn set_project(&self, directory: &Path, project_id: u32) {
        let id = project_id.to_string();
        match self.kind {
            Kind::Xfs => self.xfs_quota(&format!("project -s -p {} {id}", directory.display())),
            Kind::Ext4 => lab::run("chattr", &["-R", "-p", &id, "+P", text(directory)]),
        };
    }

    /// Sets a project's block limits in bytes; both must be multiples of 1 KiB, and 0 means no limit.
    pub fn set_limits(&self, project_id: u32, soft_bytes: u64, hard_bytes: u64) {
        assert!(
            soft_bytes.is_multiple_of(1024) && hard_bytes.is_multiple_of(1024),
            "quota limits count blocks of 1 KiB"
        );
        let id = project_id.to_string();
        match self.kind {
            Kind::Xfs => self.xfs_quota(&format!("limit -p bsoft={soft_bytes} bhard={hard_bytes} {id}")),
            Kind::Ext4 => {
                let (soft, hard) = ((soft_bytes / 1024).to_string(), (hard_bytes / 1024).to_string());
                lab::run("setquota", &["-P", &id, &soft, &hard, "0", "0", text(&self.mount_point)])
            }
        };
    }

    /// A project's hard limit in bytes as the file system's own tools report it; 0 means no limit.
    pub fn hard_limit(&self, project_id: u32) -> u64 {
        self.blocks(project_id).hard
    }

    /// The hard limits in bytes of all projects of an XFS that have one.
    pub fn hard_limits(&self) -> BTreeMap<u32, u64> {
        assert_eq!(self.kind, Kind::Xfs);
        let report = self.xfs_quota("report -p -n -N -b");
        let rows = report.lines().filter_map(|line| {
            let id = line.split_whitespace().next()?.strip_prefix('#')?.parse().ok()?;
            let row = std::iter::once(line.split_whitespace().collect());
            Some((id, Blocks::find(row, &format!("#{id}"), 1).hard))
        });
        rows.filter(|(id, hard)| *id != 0 && *hard != 0).collect()
    }

    /// A project's soft limit in bytes; 0 means no limit.
    pub fn soft_limit(&self, project_id: u32) -> u64 {
        self.blocks(project_id).soft
    }

    /// What a project's files take, in bytes.
    pub fn used(&self, project_id: u32) -> u64 {
        self.blocks(project_id).used
    }

    fn blocks(&self, project_id: u32) -> Blocks {
        // Both reports have one line for each project that the quota file knows; another has neither limits nor files.
        let name = format!("#{project_id}");
        match self.kind {
            // `#42   used   soft   hard   warnings [grace]`
            Kind::Xfs => {
                let report = self.xfs_quota("report -p -n -N -b");
                Blocks::find(report.lines().map(|line| line.split_whitespace().collect()), &name, 1)
            }
            // `#42,ok,ok,used,soft,hard,grace,...`
            Kind::Ext4 => {
                let report = lab::run("repquota", &["-P", "-n", "-O", "csv", text(&self.mount_point)]);
                Blocks::find(report.lines().map(|line| line.split(',').collect()), &name, 3)
            }
        }
    }

    fn xfs_quota(&self, command: &str) -> String {
        self.xfs_quota_all(&[command.to_owned()])
    }

    fn xfs_quota_all(&self, commands: &[String]) -> String {
        // It exits with 0 when a command failed and explains itself on stderr, so that is what tells.
        let output = Command::new("xfs_quota")
            .arg("-x")
            .args(commands.iter().flat_map(|command| ["-c", command]))
            .arg(&self.mount_point)
            .env("LC_ALL", "C")
            .output()
            .expect("cannot start xfs_quota");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "xfs_quota {commands:?}: {}\n{stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Stops every change to the file system until [`thaw`](Self::thaw), as a snapshot or a stuck disk does.
    pub fn freeze(&self) {
        lab::run("fsfreeze", &["--freeze", text(&self.mount_point)]);
    }

    pub fn thaw(&self) {
        lab::run("fsfreeze", &["--unfreeze", text(&self.mount_point)]);
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        unmount_at_last(&self.mount_point);
    }
}

/// Ends a [`Filesystem::read_only_mount`] when dropped.
pub struct ReadOnlyMount(PathBuf);

impl Drop for ReadOnlyMount {
    fn drop(&mut self) {
        lab::run("umount", &[text(&self.0)]);
    }
}

/// Unmounts what is mounted at a place. A daemon looks at its pools every now and then, and at its start, and one that was
/// just killed closes its files a moment later: none keeps anything open for longer.
///
/// # Errors
/// What umount says, also when somebody still uses it after a while.
pub fn unmount(mount_point: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = Command::new("umount").arg(mount_point).env("LC_ALL", "C").output();
        let told = match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        if !told.contains("target is busy") || Instant::now() >= deadline {
            return Err(told);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Unmounts what a test is done with, however it ended, and removes the mount point.
fn unmount_at_last(mount_point: &Path) {
    let mounted = || Command::new("mountpoint").arg("-q").arg(mount_point).status().is_ok_and(|s| s.success());
    // A failed test may leave it frozen, and unmounting would then wait for ever. Fails when it is not frozen.
    let _ = Command::new("fsfreeze").arg("--unfreeze").arg(mount_point).output();
    while mounted() {
        if let Err(problem) = unmount(mount_point) {
            // A second panic would abort and hide the first; the next test on this disk fails at mkfs.
            assert!(std::thread::panicking(), "cannot unmount: {problem}");
            return eprintln!("still mounted: {problem}");
        }
    }
    let _ = std::fs::remove_dir(mount_point);
}

#[derive(Default)]
struct Blocks {
    used: u64,
    soft: u64,
    hard: u64,
}

impl Blocks {
    /// Finds the row that starts with `name`; its columns from `first` on are used, soft and hard in KiB.
    fn find<'a>(mut rows: impl Iterator<Item = Vec<&'a str>>, name: &str, first: usize) -> Self {
        rows.find(|row| row.first() == Some(&name)).map_or_else(Self::default, |row| {
            let bytes = |column: usize| row[column].parse::<u64>().expect("a number of KiB") * 1024;
            Self { used: bytes(first), soft: bytes(first + 1), hard: bytes(first + 2) }
        })
    }
}

/// Appends zeros to a file until `bytes` were written or the file system or quota is full, and returns how many were
/// written. Other errors are returned. Data is synced, because a delayed allocation may be refused only when it is
/// written back.
///
/// The writer has no CAP_SYS_RESOURCE: ext4 lets a process with it write past every quota (ignore_hardlimit() in the
/// kernel's fs/quota/dquot.c), so root would prove nothing. XFS makes no such exception.
pub fn fill(path: &Path, bytes: u64) -> io::Result<u64> {
    let file = File::options().create(true).append(true).open(path)?;
    let before = file.metadata()?.len();
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_resource", "dd", "if=/dev/zero", "bs=256K", "iflag=count_bytes", "oflag=append"])
        .args(["conv=notrunc".to_owned(), format!("count={bytes}"), format!("of={}", path.display())])
        .env("LC_ALL", "C")
        .output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    let full = ["No space left on device", "Disk quota exceeded"].iter().any(|text| message.contains(text));
    if !output.status.success() && !full {
        return Err(io::Error::other(message.into_owned()));
    }
    match file.sync_data() {
        Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Err(error),
        _ => Ok(file.metadata()?.len() - before),
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("lab paths are plain text")
}
