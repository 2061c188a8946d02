//! Finds the directories of a pool's shares, and opens them without following anything that a tenant could put there.
//!
//! The pool's directory is opened again at each call, since it may be mounted or unmounted between two.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::open;
use nix::libc::dev_t;
use nix::sys::stat::{Mode, fstat, major, minor};

use super::system;
use crate::driver::path_template::PathTemplate;
use crate::driver::{DriverError, SpaceId};
use crate::model::{PoolName, Refusal, ShareId};
use crate::sys::open_beneath::{DIRECTORY, open_beneath, open_without_links};
use crate::sys::quotactl::{self, Route};

/// Where the shares of a pool are.
pub(super) struct Places {
    pool: PoolName,
    template: PathTemplate,
    explicit: BTreeMap<ShareId, PathBuf>,
}

/// The pool's directory, open.
pub(super) struct Pool {
    pub fd: OwnedFd,
    pub path: PathBuf,
    pub device: dev_t,
}

impl Pool {
    pub fn space_id(&self) -> SpaceId {
        SpaceId(format!("dev {}:{}", major(self.device), minor(self.device)))
    }
}

impl Places {
    pub fn new(pool: PoolName, template: PathTemplate, explicit: Vec<(ShareId, PathBuf)>) -> Self {
        Self { pool, template, explicit: explicit.into_iter().collect() }
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
        let device = fstat(&fd).map_err(system("stat", path))?.st_dev;
        Ok(Pool { fd, path: path.to_owned(), device })
    }

    /// Opens a share's directory.
    ///
    /// # Errors
    /// When nothing is there: [`Refusal::NotMounted`] if it may be because the pool is not mounted, else
    /// [`Refusal::ShareNotFound`]. [`Refusal::Unsupported`] for a symbolic link, another mount or no directory.
    pub fn open_share(&self, pool: &Pool, share: ShareId) -> Result<OwnedFd, DriverError> {
        let path = self.path_of(share);
        let unsupported = |what: &str| {
            let what = format!("{what} in the place of share {share} ({})", path.display());
            DriverError::from(Refusal::Unsupported { what })
        };
        match self.try_open(pool, share) {
            Ok(directory) => Ok(directory),
            Err(Errno::ENOENT) => {
                self.check_mounted(pool)?;
                Err(Refusal::ShareNotFound { share }.into())
            }
            Err(Errno::ELOOP) => Err(unsupported("a symbolic link")),
            Err(Errno::EXDEV) => Err(unsupported("another mount or file system")),
            Err(Errno::ENOTDIR) => Err(unsupported("something other than a directory")),
            Err(errno) => Err(system("open", &path)(errno)),
        }
    }

    /// As [`Self::open_share`], with the bare error.
    pub fn try_open(&self, pool: &Pool, share: ShareId) -> Result<OwnedFd, Errno> {
        let Some(path) = self.explicit.get(&share) else {
            return open_beneath(pool.fd.as_fd(), &self.template.relative_of(share));
        };
        // It may be a mount point: only root can mount, and the device tells whether it is still the same file system.
        let directory = open_without_links(path)?;
        if fstat(&directory)?.st_dev == pool.device { Ok(directory) } else { Err(Errno::EXDEV) }
    }

    /// Refuses when the directory is on a file system that counts no projects: it is then most likely the empty
    /// directory that the pool's file system should be mounted on.
    pub fn check_mounted(&self, pool: &Pool) -> Result<(), DriverError> {
        let state = quotactl::state(pool.fd.as_fd(), Route::Best);
        if state.map_err(system("read the quota state of", &pool.path))?.accounting {
            Ok(())
        } else {
            Err(self.not_mounted().into())
        }
    }

    pub fn not_mounted(&self) -> Refusal {
        let directory = self.template.directory().display();
        let problem = format!("no file system with project quotas is mounted at {directory}");
        Refusal::NotMounted { pool: self.pool.clone(), problem }
    }

    pub fn read_only(&self) -> Refusal {
        let problem = "its file system is mounted read-only for growd".to_owned();
        Refusal::NotMounted { pool: self.pool.clone(), problem }
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
