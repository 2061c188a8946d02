//! Finds the directories or files of a pool's shares, and opens them without following anything that a tenant could put there.
//!
//! The pool's directory is opened again at each call, since it may be mounted or unmounted between two.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::dev_t;
use nix::sys::stat::{Mode, fstat, major, minor};

use super::path_template::PathTemplate;
use super::{DriverError, SpaceId, system};
use crate::model::{PoolName, Refusal, ShareId};
use crate::sys::open_beneath::{DIRECTORY, open_beneath, open_without_links};

/// Where the shares of a pool are.
pub(super) struct Places {
    ground: Ground,
    pool: PoolName,
    template: PathTemplate,
    explicit: BTreeMap<ShareId, PathBuf>,
}

/// What a kind of pool asks of the file system that it is on.
pub(super) struct Ground {
    /// How a share is opened: [`DIRECTORY`] or [`FILE`](crate::sys::open_beneath::FILE).
    pub way: OFlag,
    /// What should be mounted at the pool's directory.
    pub what: &'static str,
    /// Whether it is.
    pub is_there: fn(&Pool) -> Result<bool, Errno>,
    /// Whether a share, maybe of another mount, is on the pool's file system.
    pub holds: fn(&Pool, BorrowedFd<'_>) -> Result<bool, Errno>,
}

/// The pool's directory, open.
pub(super) struct Pool {
    pub fd: OwnedFd,
    pub path: PathBuf,
    pub device: dev_t,
    /// When an entry was last made or removed: seconds and nanoseconds.
    pub modified: (i64, i64),
    pub inode: u64,
}

impl Pool {
    pub fn space_id(&self) -> SpaceId {
        SpaceId(format!("dev {}:{}", major(self.device), minor(self.device)))
    }
}

impl Places {
    pub fn new(ground: Ground, pool: PoolName, template: PathTemplate, explicit: Vec<(ShareId, PathBuf)>) -> Self {
        Self { ground, pool, template, explicit: explicit.into_iter().collect() }
    }

    pub fn pool(&self) -> &PoolName {
        &self.pool
    }

    pub fn template(&self) -> &PathTemplate {
        &self.template
    }

    pub fn is_explicit(&self, share: ShareId) -> bool {
        self.explicit.contains_key(&share)
    }

    pub fn path_of(&self, share: ShareId) -> PathBuf {
        self.explicit.get(&share).cloned().unwrap_or_else(|| self.template.path_of(share))
    }

    /// Opens the pool's directory. Its path is the administrator's, who may have put symbolic links into it.
    pub fn open_pool(&self) -> Result<Pool, DriverError> {
        let path = self.template.directory();
        let not_there = |problem: &str| {
            let problem = format!("{} {problem}", path.display());
            DriverError::from(Refusal::NotMounted { pool: self.pool.clone(), problem })
        };
        let fd = match open(path, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => return Err(not_there("does not exist")),
            Err(Errno::ENOTDIR) => return Err(not_there("is not a directory")),
            result => result.map_err(system("open", path))?,
        };
        let status = fstat(&fd).map_err(system("stat", path))?;
        let modified = (status.st_mtime, status.st_mtime_nsec);
        Ok(Pool { fd, path: path.to_owned(), device: status.st_dev, modified, inode: status.st_ino })
    }

    /// Opens a share's directory or file.
    ///
    /// # Errors
    /// When nothing is there: [`Refusal::NotMounted`] if it may be because the pool is not mounted, else
    /// [`Refusal::ShareNotFound`]. [`Refusal::Unsupported`] for a symbolic link, another mount, or a directory instead
    /// of a file and the other way round.
    pub fn open_share(&self, pool: &Pool, share: ShareId) -> Result<OwnedFd, DriverError> {
        let unsupported = |what| Err(self.unsupported(share, what).into());
        match self.try_open(pool, share) {
            Ok(directory) => Ok(directory),
            Err(Errno::ENOENT) => {
                self.check_mounted(pool)?;
                Err(Refusal::ShareNotFound { share }.into())
            }
            Err(Errno::ELOOP) => unsupported("a symbolic link"),
            Err(Errno::EXDEV) => unsupported("another mount or file system"),
            Err(Errno::ENOTDIR) => unsupported("something other than a directory"),
            Err(Errno::EISDIR) => unsupported("a directory"),
            Err(Errno::EROFS) => Err(self.read_only().into()),
            Err(errno) => Err(system("open", &self.path_of(share))(errno)),
        }
    }

    /// As [`Self::open_share`], with the bare error.
    pub fn try_open(&self, pool: &Pool, share: ShareId) -> Result<OwnedFd, Errno> {
        let Some(path) = self.explicit.get(&share) else {
            return open_beneath(pool.fd.as_fd(), &self.template.relative_of(share), self.ground.way);
        };
        // It may be a mount point: only root can mount, so it is enough that it is still the same file system.
        let share = open_without_links(path, self.ground.way)?;
        if (self.ground.holds)(pool, share.as_fd())? { Ok(share) } else { Err(Errno::EXDEV) }
    }

    /// What is said of something else in the place of a share.
    pub fn unsupported(&self, share: ShareId, what: &str) -> Refusal {
        let what = format!("{what} in the place of share {share} ({})", self.path_of(share).display());
        Refusal::Unsupported { what }
    }

    /// Refuses when the directory is on a file system that such a pool cannot be on: it is then most likely the empty
    /// directory that the pool's own should be mounted on.
    pub fn check_mounted(&self, pool: &Pool) -> Result<(), DriverError> {
        let is_there = (self.ground.is_there)(pool).map_err(system("read the quota state of", &pool.path))?;
        if is_there { Ok(()) } else { Err(self.not_mounted().into()) }
    }

    pub fn not_mounted(&self) -> Refusal {
        let problem = format!("no {} is mounted at {}", self.ground.what, self.template.directory().display());
        Refusal::NotMounted { pool: self.pool.clone(), problem }
    }

    pub fn read_only(&self) -> Refusal {
        let problem = "its file system is read-only for growd: it is mounted so, or the unit needs the drop-in that \
            `growd check-config --drop-in` prints";
        Refusal::NotMounted { pool: self.pool.clone(), problem: problem.to_owned() }
    }

    /// All shares whose names the pool's directory has, and those with a place of their own.
    pub fn list(&self, pool: &Pool) -> Result<BTreeSet<ShareId>, DriverError> {
        let read = || -> Result<BTreeSet<ShareId>, Errno> {
            let mut directory = Dir::openat(pool.fd.as_fd(), ".", DIRECTORY, Mode::empty())?;
            let mut shares: BTreeSet<ShareId> = self.explicit.keys().copied().collect();
            for entry in directory.iter() {
                let entry = entry?;
                shares.extend(self.template.share_of(OsStr::from_bytes(entry.file_name().to_bytes())));
            }
            Ok(shares)
        };
        read().map_err(system("list", &pool.path))
    }
}
