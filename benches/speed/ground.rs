//! Where shares are extended and looked at: on XFS in the lab, and on btrfs on this machine itself, whose kernel need not
//! have more than that. A system call in the lab costs a hundred times what it costs here, so what is mostly system calls
//! is measured in both places.

use std::path::{Path, PathBuf};

use crate::growd::quota_pool;
use crate::lab_node::{Filesystem, PRJQUOTA, lab};

/// A file system with quotas, and another place for the state of daemons.
pub enum Ground {
    Lab { shares: Filesystem, state: Filesystem },
    Here { shares: Loop, state: tempfile::TempDir },
}

/// A fresh btrfs with quotas in a file, mounted through a loop device; unmounted when dropped.
pub struct Loop {
    mount_point: PathBuf,
    _dir: tempfile::TempDir,
}

impl Ground {
    /// The state is on a disk too, and not on a tmpfs, where a flush would cost nothing.
    pub fn lab() -> Self {
        Self::Lab { shares: Filesystem::xfs("ubda", PRJQUOTA), state: Filesystem::ext4_without_quota_feature("ubdd") }
    }

    /// `None` where nothing can be mounted.
    pub fn here() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not measured on this machine itself: mounting takes root");
            return None;
        }
        Some(Self::Here { shares: Loop::new(), state: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() })
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lab { .. } => "XFS, lab",
            Self::Here { .. } => "btrfs, this machine",
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Lab { shares, .. } => shares.path(),
            Self::Here { shares, .. } => &shares.mount_point,
        }
    }

    pub fn state(&self) -> &Path {
        match self {
            Self::Lab { state, .. } => state.path(),
            Self::Here { state, .. } => state.path(),
        }
    }

    /// A pool of the shares in a directory of it.
    pub fn pool(&self, name: &str, directory: &Path) -> String {
        let pool = quota_pool(name, directory, "");
        match self {
            Self::Lab { .. } => pool,
            Self::Here { .. } => pool.replace("project-quota", "btrfs"),
        }
    }

    /// Makes shares, each with the project that has its number, where there are projects.
    pub fn create_shares(&self, shares: &[(String, u32)], limit: u64) {
        match self {
            Self::Lab { shares: filesystem, .. } => filesystem.create_shares(shares, limit),
            Self::Here { .. } => {
                for (name, _) in shares {
                    let share = self.path().join(name);
                    lab::run("btrfs", &["subvolume", "create", text(&share)]);
                    lab::run("btrfs", &["qgroup", "limit", &limit.to_string(), text(&share)]);
                }
            }
        }
    }

    /// The limit that a share has, as the file system's own tool tells it.
    pub fn limit(&self, (name, project): &(String, u32)) -> u64 {
        match self {
            Self::Lab { shares, .. } => shares.hard_limit(*project),
            Self::Here { .. } => {
                let share = self.path().join(name);
                let table = lab::run("btrfs", &["qgroup", "show", "--raw", "-rF", text(&share)]);
                table.lines().last().and_then(|row| row.split_whitespace().nth(3)?.parse().ok()).unwrap()
            }
        }
    }
}

impl Loop {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, mount_point) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::File::create_new(&image).unwrap().set_len(4 << 30).unwrap();
        std::fs::create_dir(&mount_point).unwrap();
        lab::run("mkfs.btrfs", &["-q", text(&image)]);
        lab::run("mount", &["-o", "loop", text(&image), text(&mount_point)]);
        let mounted = Self { mount_point, _dir: dir };
        lab::run("btrfs", &["quota", "enable", text(&mounted.mount_point)]);
        lab::run("btrfs", &["quota", "rescan", "-w", text(&mounted.mount_point)]);
        mounted
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        lab::run("umount", &[text(&self.mount_point)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
