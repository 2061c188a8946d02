//! Where shares are extended and looked at: on XFS in the lab, and on btrfs on this machine itself, whose kernel need not
//! have more than that. A system call in the lab costs a hundred times what it costs here, so what is mostly system calls
//! is measured in both places.

use std::path::Path;

use crate::growd::quota_pool;
use crate::lab_node::btrfs::Btrfs;
use crate::lab_node::{Filesystem, PRJQUOTA, lab};

/// A file system with quotas, and another place for the state of daemons.
pub enum Ground {
    Lab { shares: Filesystem, state: Filesystem },
    Here { shares: Btrfs, state: tempfile::TempDir },
}

impl Ground {
    /// The state is on a disk too, and not on a tmpfs, where a flush would cost nothing.
    pub fn lab() -> Self {
        Self::Lab { shares: Filesystem::xfs("ubda", PRJQUOTA), state: Filesystem::ext4_without_quota_feature("ubdd") }
    }

    /// `None` where nothing can be mounted.
    pub fn here() -> Option<Self> {
        let shares = Btrfs::here().inspect_err(|why| eprintln!("not measured on this machine itself: {why}")).ok()?;
        Some(Self::Here { shares, state: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() })
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
            Self::Here { shares, .. } => shares.path(),
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
            Self::Here { shares: filesystem, .. } => {
                shares.iter().for_each(|(name, _)| drop(filesystem.create_share(name, limit)));
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

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
