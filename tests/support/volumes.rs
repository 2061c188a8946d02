//! Volume groups on disks of the lab, made, measured and checked with LVM's and the file systems' own tools.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tonic::Status;

use super::daemon::{Clients, MIB, assert_refused, share};
use super::support::size_by_tool::size_by_tool;
use super::support::writer::Writer;
use super::support::{Disk, fill, lab, unmount};

/// Size of the extents of all groups here.
pub const EXTENT: u64 = 4 * MIB;

pub fn shell(script: &str) -> String {
    lab::run("/bin/sh", &["-ec", script])
}

/// A volume group that ends with the test, and all that is mounted from it.
pub struct Group {
    pub name: String,
    disks: Vec<Disk>,
    dir: tempfile::TempDir,
}

impl Group {
    pub fn on(name: &str, disks: &[&str]) -> Self {
        let disks: Vec<Disk> = disks.iter().map(|disk| Disk::take(disk)).collect();
        let paths: Vec<String> = disks.iter().map(|disk| disk.path().display().to_string()).collect();
        shell(&format!("vgcreate -q -y -s 4m {name} {}", paths.join(" ")));
        let dir = tempfile::Builder::new().prefix("growd-lvm-").tempdir_in("/run").unwrap();
        Self { name: name.to_owned(), disks, dir }
    }

    /// Where a daemon of the test may keep its state.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A pool of this group, with more lines of configuration.
    pub fn pool(&self, more: &str) -> String {
        format!(
            "[[pool]]\nname = \"{0}\"\ndriver = \"lvm\"\nvolume_group = \"{0}\"\nvolume = \"share-{{share_id}}\"\n{more}\n",
            self.name
        )
    }

    /// Makes the volume of [`share`] `n` with options of lvcreate such as `-L 400m`.
    pub fn create(&self, n: u32, options: &str) -> Volume {
        self.create_named(&format!("share-{}", share(n)), options)
    }

    pub fn create_named(&self, name: &str, options: &str) -> Volume {
        self.lvcreate(name, &format!("-W y {options} {}", self.name))
    }

    /// Makes the volume of [`share`] `n` as a snapshot of another, with options such as `-L 40m`.
    pub fn snapshot(&self, n: u32, origin: &Volume, options: &str) -> Volume {
        self.lvcreate(&format!("share-{}", share(n)), &format!("-s {options} {}", origin.full_name()))
    }

    fn lvcreate(&self, name: &str, options: &str) -> Volume {
        shell(&format!("lvcreate -q -y -n {name} {options}"));
        Volume { group: self.name.clone(), name: name.to_owned(), mount_point: None }
    }

    /// Makes a thin pool named `thin`.
    pub fn create_thin_pool(&self, options: &str) {
        shell(&format!("lvcreate -q -y --type thin-pool -n thin {options} {}", self.name));
    }

    pub fn free(&self) -> u64 {
        let text = shell(&format!("vgs --noheadings --units b --nosuffix -o vg_free {}", self.name));
        text.trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let disks = self.disks.iter().map(|disk| disk.path().display().to_string()).collect::<Vec<_>>();
        // What a failed test may have made of the group: it has another name, is exported or lacks a disk.
        let find = format!(
            "vg=$(pvs --noheadings -o vg_name {} | tr -d ' ')
             vgimport -q $vg; vgreduce -q --removemissing --force $vg; vgrename -q $vg {}",
            disks[0], self.name
        );
        // A snapshot or a thin pool is removed with its group; what a failed test left mounted must go before. A device
        // goes on when those below it have.
        let script = format!(
            "for d in $(dmsetup info -c --noheadings --separator ' ' -o name,suspended | sed -n 's/ Suspended$//p'); do
                 dmsetup resume --noudevsync $d &
             done
             wait
             for m in $(findmnt -rn -o TARGET | grep '^/mnt/lv-' | tac); do umount $m; done
             dmsetup ls | grep -q '^holder' && dmsetup remove --noudevsync holder
             {}
             vgchange -q -ay {1}; vgremove -q -ff -y {1} && pvremove -q -ff -y {2} && {{ {3}; }}",
            if failed { &find } else { "" },
            self.name,
            disks.join(" "),
            // Nor does the next test find its loop devices taken.
            if failed { "losetup -D; rm -f /run/disk*" } else { ":" }
        );
        let mut problem = String::new();
        // A command of a killed daemon may hold the group a moment longer.
        for _ in 0..20 {
            let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            if output.status.success() {
                return;
            }
            problem = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::sleep(Duration::from_millis(250));
        }
        // A second panic would abort and hide the first; the next test on these disks fails at vgcreate.
        assert!(failed, "cannot remove {}: {problem}", self.name);
        eprintln!("{} is still there: {problem}", self.name);
    }
}

pub struct Volume {
    pub group: String,
    pub name: String,
    mount_point: Option<PathBuf>,
}

impl Volume {
    /// As LVM names it: `group/volume`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.group).join(&self.name)
    }

    /// Makes a file system with a command such as `mkfs.xfs -q`, and mounts it.
    pub fn formatted(mut self, mkfs: &str) -> Self {
        shell(&format!("{mkfs} {}", self.node().display()));
        self.mount();
        self
    }

    pub fn mount(&mut self) {
        let place = tempfile::Builder::new().prefix("lv-").tempdir_in("/mnt").unwrap().keep();
        shell(&format!("mount {} {}", self.node().display(), place.display()));
        self.mount_point = Some(place);
    }

    pub fn unmount(&mut self) {
        unmount(&self.mount_point.take().unwrap()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.mount_point.as_deref().unwrap()
    }

    /// Bytes of the block device.
    pub fn size(&self) -> u64 {
        lab::run("blockdev", &["--getsize64", self.node().to_str().unwrap()]).trim().parse().unwrap()
    }

    /// Bytes of it by LVM's metadata, also while it has no device.
    pub fn recorded(&self) -> u64 {
        let report = format!("lvs --noheadings --units b --nosuffix -o lv_size {}", self.full_name());
        shell(&report).trim().parse().unwrap()
    }

    /// Bytes of the file system as its own tools tell.
    pub fn filesystem_size(&self) -> u64 {
        let kind = lab::run("findmnt", &["-n", "-o", "FSTYPE", self.path().to_str().unwrap()]);
        size_by_tool(kind.trim(), &self.node(), self.path())
    }

    /// Something that writes to it all the time.
    pub fn writer(&self) -> Writer {
        Writer::start(&self.path().join("log"))
    }

    /// What users have of it: of a volume without a file system, the volume.
    pub fn usable(&self) -> u64 {
        if self.mount_point.is_some() { self.filesystem_size() } else { self.size() }
    }

    /// Writes until it is full. Panics when it does not get full, or if a write right behind succeeds.
    pub fn fill(&self) {
        if self.mount_point.is_none() {
            return assert_eq!(self.write_at(self.size()), Err(ErrorKind::StorageFull));
        }
        let file = self.path().join("fill");
        assert!(fill(&file, 2 * self.size()).unwrap() < self.size());
        assert!(fill(&file, MIB).unwrap() < MIB, "{} is full", self.name);
    }

    /// Writes where there was no room before the growth from `before`.
    pub fn write_beyond(&self, before: u64, bytes: u64) {
        if self.mount_point.is_none() {
            return assert_eq!(self.write_at(before + bytes - MIB), Ok(()));
        }
        assert_eq!(fill(&self.path().join("more"), bytes).unwrap(), bytes, "{} has room", self.name);
    }

    fn write_at(&self, at: u64) -> Result<(), ErrorKind> {
        let file = File::options().write(true).open(self.node()).unwrap();
        let written = file.write_all_at(&vec![7; 1 << 20], at).and_then(|()| file.sync_all());
        written.map_err(|error| error.kind())
    }
}

/// An extend is refused for this reason, and the volume has its size. The same is a finding with a remedy.
pub async fn refused(clients: &Clients, n: u32, volume: &Volume, reason: &str) -> Status {
    let size = volume.recorded();
    let status = clients.extend(&share(n), 900 * MIB).await.unwrap_err();
    assert_refused(&status, reason);
    assert_eq!(volume.recorded(), size);
    let findings = clients.share(&share(n)).await.findings;
    let finding = findings.iter().find(|finding| finding.kind == reason);
    assert!(finding.is_some_and(|finding| !finding.remedy.is_empty()), "{reason}: {findings:?}");
    status
}

/// An extend succeeds, and nothing was wrong before it.
pub async fn accepted(clients: &Clients, n: u32, volume: &Volume, size: u64) {
    assert_eq!(clients.share(&share(n)).await.findings, []);
    clients.extended(n, size).await;
    assert!(volume.usable() >= size);
}

/// An `lvm` that stands first in the daemon's PATH. It gives everything to the real one, except `lvextend`, for which
/// it runs what the test has told it: shell commands that may call `real` to have the work done and `gate` to wait for
/// [`FakeLvm::go`]. `lvs` hangs while the file `questions-hang` is beside it. Behind the next `pvck` it runs what
/// [`FakeLvm::after_pvck`] has told it, before it answers.
pub struct FakeLvm(tempfile::TempDir);

impl FakeLvm {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("fake-lvm-").tempdir_in("/run").unwrap();
        let script = format!(
            "#!/bin/bash
             dir={}
             exec 3> >(exec /usr/sbin/lvm)
             lvm=$!
             real() {{ echo \"$line\" >&3; }}
             # Not for ever when a test has failed, and its folder is gone.
             gate() {{ while [ -e $dir ] && [ ! -e $dir/go ]; do sleep 0.1; done; }}
             while read -r line; do
                 case $line in
                     lvextend*) echo \"$line\" >>$dir/asked; . $dir/lvextend ;;
                     lvs* | vgs* | pvck*)
                         while [ -e $dir/questions-hang ]; do sleep 0.1; done
                         if [[ $line == pvck* && -e $dir/after-pvck ]]; then
                             /usr/sbin/lvm $line; . $dir/after-pvck; rm $dir/after-pvck
                         else
                             real
                         fi ;;
                     *) real ;;
                 esac
             done",
            dir.path().display()
        );
        fs::write(dir.path().join("lvm"), script).unwrap();
        fs::set_permissions(dir.path().join("lvm"), fs::Permissions::from_mode(0o755)).unwrap();
        let fake = Self(dir);
        fake.lvextend("real");
        fake
    }

    /// What it does when it is asked for `lvextend`, in bash.
    pub fn lvextend(&self, script: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, script).unwrap();
        fs::rename(next, self.0.path().join("lvextend")).unwrap();
    }

    /// What it does once behind a `pvck`, in bash: growd then believes what was true before.
    pub fn after_pvck(&self, script: &str) {
        fs::write(self.dir().join("after-pvck"), script).unwrap();
    }

    /// Whether it has done that.
    pub fn is_after_pvck(&self) -> bool {
        !self.dir().join("after-pvck").exists()
    }

    /// Lets what waits at the gate go on, for good.
    pub fn go(&self) {
        fs::write(self.dir().join("go"), "").unwrap();
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// The PATH of the daemon.
    pub fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap())
    }

    /// How often it was asked for `lvextend`.
    pub fn asked(&self) -> usize {
        fs::read_to_string(self.0.path().join("asked")).unwrap_or_default().lines().count()
    }
}
