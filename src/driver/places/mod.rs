//! Finds the directories or files of a pool's shares, and opens them without following anything that a tenant could put there.
//!
//! The pool's directory is opened again at each call, since it may be mounted or unmounted between two. Where places say
//! the project, a share is looked for in the folders of all projects, and in the one that had it first as long as it does.

#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::dev_t;
use nix::sys::stat::{FileStat, Mode, fstat, major, minor};
use parking_lot::Mutex;

pub(super) use self::words::{WHY_READ_ONLY, make_writable, quotas_unread, unsupported};
use super::directory_version::{Seen, Version};
use super::path_template::PathTemplate;
use super::shell::Quoted;
use super::{DriverError, Problem, Shares, SpaceId, system};
use crate::model::{Bytes, PoolName, ProjectLabel, Refusal, ShareId};
use crate::sys::file_system;
use crate::sys::mountinfo::path_of;
use crate::sys::open_beneath::{DIRECTORY, open_beneath, open_without_links};

/// Where the shares of a pool are.
pub(super) struct Places {
    ground: Ground,
    pool: PoolName,
    template: PathTemplate,
    explicit: BTreeMap<ShareId, PathBuf>,
    /// Where the pool's directory was when it was last looked for, by a path without symbolic links.
    real: Mutex<Option<PathBuf>>,
    /// In which project's folder a share was found. Only tells where to look first; never more than there are shares.
    known: Mutex<HashMap<ShareId, Arc<ProjectLabel>>>,
    /// The shares as they were when the directory of a pool without projects was last read.
    listed: Mutex<Option<Seen<Shares>>>,
}

/// A share that was found and opened.
pub(super) struct Opened {
    pub fd: OwnedFd,
    pub path: PathBuf,
    /// Empty where its place does not say it.
    pub project: ProjectLabel,
}

/// Why a share was not opened.
enum Closed {
    Nowhere,
    At(PathBuf, Errno),
    /// Two projects have a share of this id, and nothing tells whose it is.
    Twice(PathBuf, PathBuf),
}

/// What a kind of pool asks of the file system that it is on.
pub(super) struct Ground {
    /// How a share is opened: [`DIRECTORY`] or [`FILE`](crate::sys::open_beneath::FILE).
    pub way: OFlag,
    /// What should be mounted at the pool's directory.
    pub what: &'static str,
    /// Whether it is.
    pub is_there: fn(&PoolDirectory) -> Result<bool, Errno>,
    /// The command that would make the file system that is there the right one: its quotas are off.
    pub turn_on: fn(&PoolDirectory) -> Option<String>,
    /// Whether a share, maybe of another mount, is on the pool's file system.
    pub holds: fn(&PoolDirectory, BorrowedFd<'_>) -> Result<bool, Errno>,
}

/// The pool's directory, open.
pub(super) struct PoolDirectory {
    pub fd: OwnedFd,
    pub path: PathBuf,
    pub device: dev_t,
    /// Taken before anything in it was looked at.
    pub version: Version,
}

impl PoolDirectory {
    pub fn space_id(&self) -> SpaceId {
        SpaceId(format!("dev {}:{}", major(self.device), minor(self.device)))
    }
}

impl Places {
    pub fn new(ground: Ground, pool: PoolName, template: PathTemplate, explicit: Vec<(ShareId, PathBuf)>) -> Self {
        Self {
            ground,
            pool,
            template,
            explicit: explicit.into_iter().collect(),
            real: Mutex::default(),
            known: Mutex::default(),
            listed: Mutex::default(),
        }
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

    /// The name that the share has in the pool's directory; `None` when its place is elsewhere or further down, on a way
    /// that may lead through what tenants own.
    pub fn name_in_pool(&self, share: ShareId) -> Option<PathBuf> {
        let is_below = self.is_explicit(share) || self.template.has_projects();
        Some(self.template.relative_of(share)).filter(|name| !is_below && name.components().count() == 1)
    }

    /// Opens the pool's directory. Its path is the administrator's, who may have put symbolic links into it.
    pub fn open_pool(&self) -> Result<PoolDirectory, DriverError> {
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
        Ok(self.opened(fd, &status))
    }

    fn opened(&self, fd: OwnedFd, status: &FileStat) -> PoolDirectory {
        PoolDirectory {
            fd,
            path: self.template.directory().to_owned(),
            device: status.st_dev,
            version: Version::of(status),
        }
    }

    /// Notes where the pool's directory is, for [`Self::open_beside`].
    pub fn note_real_path(&self, pool: &PoolDirectory) -> Result<(), Errno> {
        *self.real.lock() = Some(path_of(pool.fd.as_fd())?);
        Ok(())
    }

    /// Where the pool's directory is: without symbolic links, as far as that is known.
    pub fn real_path(&self) -> PathBuf {
        self.real.lock().as_ref().map_or_else(|| self.template.directory().to_owned(), PathBuf::clone)
    }

    /// Opens the pool's directory for whoever has looked where [`Self::real_path`] leads, and stays on that way; `None`
    /// when nothing is there.
    pub fn open_beside(&self) -> Result<Option<PoolDirectory>, Errno> {
        match open_without_links(&self.real_path(), DIRECTORY) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno),
            Ok(fd) => fstat(&fd).map(|status| Some(self.opened(fd, &status))),
        }
    }

    /// Whether another pool is on the file system of this one.
    pub fn is_shared_with(&self, pool: &PoolDirectory, other: &PoolDirectory) -> Result<bool, Errno> {
        (self.ground.holds)(pool, other.fd.as_fd())
    }

    /// Opens a share's directory or file.
    ///
    /// # Errors
    /// When nothing is there: [`Refusal::NotMounted`] if it may be because the pool is not mounted, else
    /// [`Refusal::ShareNotFound`]. [`Refusal::ShareNotMounted`] for a place of its own that is not on the pool's file system:
    /// it may be a mount point. [`Refusal::Unsupported`] for a symbolic link, another mount, a directory instead of a
    /// file and the other way round, or a share that two projects have.
    pub fn open_share(&self, pool: &PoolDirectory, share: ShareId) -> Result<Opened, DriverError> {
        let (path, errno) = match self.find(pool, share, self.ground.way) {
            Ok(opened) => return Ok(opened),
            Err(Closed::Nowhere) => {
                self.check_mounted(pool)?;
                return Err(Refusal::ShareNotFound { share }.into());
            }
            Err(Closed::Twice(one, other)) => {
                let at = |path: PathBuf| format!("at {}", path.display());
                return Err(Refusal::InTwoPlaces { share, one: at(one), other: at(other) }.into());
            }
            Err(Closed::At(path, errno)) => (path, errno),
        };
        let unsupported = |what| Err(unsupported(share, &path, what).into());
        match errno {
            Errno::ELOOP => unsupported("a symbolic link"),
            Errno::EXDEV if self.is_explicit(share) => {
                let directory = self.template.directory().display();
                let problem =
                    format!("{} and {directory} are not on one file system: are both mounted?", path.display());
                Err(Refusal::ShareNotMounted { share, pool: self.pool.clone(), problem }.into())
            }
            Errno::EXDEV => unsupported("another mount or file system"),
            Errno::ENOTDIR => unsupported("something other than a directory"),
            Errno::EISDIR => unsupported("a directory"),
            Errno::EROFS => Err(self.read_only().into()),
            errno => Err(system("open", &path)(errno)),
        }
    }

    /// As [`Self::open_share`], in a way of one's own, for whoever need not know why not.
    ///
    /// # Errors
    /// Only for want of files or memory, which says nothing of the share. The error of a damaged share would stop all others.
    pub fn try_open(&self, pool: &PoolDirectory, share: ShareId, way: OFlag) -> Result<Option<Opened>, DriverError> {
        match self.find(pool, share, way) {
            Ok(opened) => Ok(Some(opened)),
            Err(Closed::At(path, errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))) => {
                Err(system("open", &path)(errno))
            }
            Err(_) => Ok(None),
        }
    }

    fn find(&self, pool: &PoolDirectory, share: ShareId, way: OFlag) -> Result<Opened, Closed> {
        if let Some(path) = self.explicit.get(&share) {
            let closed = |errno| if errno == Errno::ENOENT { Closed::Nowhere } else { Closed::At(path.clone(), errno) };
            // It may be a mount point. A tenant can mount there as well, a FUSE on a directory of his own, but not what
            // passes for the pool's file system.
            let fd = open_without_links(path, way).map_err(closed)?;
            return match (self.ground.holds)(pool, fd.as_fd()) {
                Ok(true) => Ok(Opened { fd, path: path.clone(), project: ProjectLabel::default() }),
                Ok(false) => Err(Closed::At(path.clone(), Errno::EXDEV)),
                Err(errno) => Err(closed(errno)),
            };
        }
        if !self.template.has_projects() {
            return self.open_in(pool.fd.as_fd(), Path::new(""), ProjectLabel::default(), share, way);
        }
        let known = self.known.lock().get(&share).map(|project| ProjectLabel::clone(project));
        if let Some(project) = known {
            let folder = self.template.folder_of(&project);
            if let Ok(opened) = self.open_in(pool.fd.as_fd(), &folder, project, share, way) {
                return Ok(opened);
            }
            self.known.lock().remove(&share);
        }
        self.search(pool, share, way)
    }

    /// Looks into the folders of all projects, since two may have the share: then it is neither's.
    fn search(&self, pool: &PoolDirectory, share: ShareId, way: OFlag) -> Result<Opened, Closed> {
        let mut found: Option<Opened> = None;
        let closed = |errno| Closed::At(pool.path.clone(), errno);
        for project in self.projects(pool).map_err(closed)? {
            let path = pool.path.join(self.template.folder_of(&project));
            let Some(folder) = self.open_folder(pool, &project).map_err(|errno| Closed::At(path, errno))? else {
                continue;
            };
            match (self.open_in(folder.as_fd(), Path::new(""), project, share, way), found.take()) {
                (Ok(other), Some(one)) => return Err(Closed::Twice(one.path, other.path)),
                (Ok(opened), None) => found = Some(opened),
                (Err(Closed::Nowhere), before) => found = before,
                (Err(why), _) => return Err(why),
            }
        }
        let opened = found.ok_or(Closed::Nowhere)?;
        self.known.lock().insert(share, Arc::new(opened.project.clone()));
        Ok(opened)
    }

    /// Opens a share below the folder of its project, or below a directory from which that can be reached.
    fn open_in(
        &self,
        from: BorrowedFd<'_>,
        folder: &Path,
        project: ProjectLabel,
        share: ShareId,
        way: OFlag,
    ) -> Result<Opened, Closed> {
        match open_beneath(from, &folder.join(self.template.relative_of(share)), way) {
            Ok(fd) => Ok(Opened { fd, path: self.template.path_of(&project, share), project }),
            Err(Errno::ENOENT) => Err(Closed::Nowhere),
            Err(errno) => Err(Closed::At(self.template.path_of(&project, share), errno)),
        }
    }

    /// The folder of a project; `None` where there is none, or what leads to it is a link, a file or another mount: those
    /// are not followed, so that nothing in them is a share of this pool.
    fn open_folder(&self, pool: &PoolDirectory, project: &ProjectLabel) -> Result<Option<OwnedFd>, Errno> {
        match open_beneath(pool.fd.as_fd(), &self.template.folder_of(project), DIRECTORY) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            folder => folder.map(Some),
        }
    }

    /// The projects that have a directory.
    fn projects(&self, pool: &PoolDirectory) -> Result<Vec<ProjectLabel>, Errno> {
        let mut projects = Vec::new();
        for entry in Dir::openat(pool.fd.as_fd(), ".", DIRECTORY, Mode::empty())?.iter() {
            let entry = entry?;
            if matches!(entry.file_type(), None | Some(Type::Directory)) {
                projects.extend(self.template.project_of(OsStr::from_bytes(entry.file_name().to_bytes())));
            }
        }
        Ok(projects)
    }

    /// Refuses when the directory is on a file system that such a pool cannot be on: it is then most likely the empty
    /// directory that the pool's own should be mounted on. One of the right type may also be the pool's own with quotas
    /// that are off, which nothing tells from what lies below a mount that is still to come.
    pub fn check_mounted(&self, pool: &PoolDirectory) -> Result<(), DriverError> {
        let is_there = (self.ground.is_there)(pool).map_err(quotas_unread(&pool.path))?;
        if is_there {
            return Ok(());
        }
        let Some(command) = (self.ground.turn_on)(pool) else { return Err(self.not_mounted().into()) };
        let problem = format!(
            "{}; if what is there is the file system of the pool, its quotas are off: {command}",
            self.nothing_there()
        );
        Err(Refusal::NotMounted { pool: self.pool.clone(), problem }.into())
    }

    pub fn not_mounted(&self) -> Refusal {
        Refusal::NotMounted { pool: self.pool.clone(), problem: self.nothing_there() }
    }

    fn nothing_there(&self) -> String {
        format!("no {} is mounted at {}", self.ground.what, self.template.directory().display())
    }

    pub fn read_only(&self) -> Refusal {
        Refusal::NotMounted {
            pool: self.pool.clone(),
            problem: format!("its file system is read-only for growd: {WHY_READ_ONLY}"),
        }
    }

    /// What is wrong with the pool, or with a share at a place of its own, when nothing can be changed through its mount.
    pub fn read_only_at(&self, place: &Path, fd: BorrowedFd<'_>) -> Result<Option<Problem>, DriverError> {
        let is_read_only = file_system::is_read_only(fd).map_err(system("statfs", place))?;
        Ok(is_read_only.then(|| {
            let mount_point = format!("\"$(findmnt -n -f -o TARGET -T {})\"", Quoted(place));
            Problem::blocking(self.read_only(), make_writable(mount_point))
        }))
    }

    /// What is said where the file system of an open file has no room for what was asked.
    pub fn full(&self, fd: BorrowedFd<'_>, asked: Bytes) -> Refusal {
        Refusal::PoolFull { pool: self.pool.clone(), free: free(fd), reserved: Bytes::ZERO, asked }
    }

    /// As [`Self::list`]. When the convention finds none, the pool may not be mounted, and is refused then.
    pub fn list_mounted(&self, pool: &PoolDirectory) -> Result<Shares, DriverError> {
        let shares = self.list(pool)?;
        if !shares.iter().any(|share| !self.is_explicit(*share)) {
            self.check_mounted(pool)?;
        }
        Ok(shares)
    }

    /// All shares that the pool's directory or the folders of its projects have, and those with a place of their own.
    pub fn list(&self, pool: &PoolDirectory) -> Result<Shares, DriverError> {
        let failed = system("list", &pool.path);
        if self.template.has_projects() {
            return self.list_projects(pool).map(in_order).map_err(failed);
        }
        if let Some(seen) = self.listed.lock().as_ref().filter(|seen| seen.is_trusted(pool.version)) {
            return Ok(Arc::clone(&seen.content));
        }
        let read = || Ok(in_order(self.explicit.keys().copied().chain(self.names(pool.fd.as_fd())?).collect()));
        let seen = Seen::read(pool.version, read).map_err(failed)?;
        let shares = Arc::clone(&seen.content);
        *self.listed.lock() = Some(seen);
        Ok(shares)
    }

    fn list_projects(&self, pool: &PoolDirectory) -> Result<BTreeSet<ShareId>, Errno> {
        let (mut known, mut twice) = (HashMap::new(), Vec::new());
        for project in self.projects(pool)?.into_iter().map(Arc::new) {
            let Some(folder) = self.open_folder(pool, &project)? else { continue };
            for share in self.names(folder.as_fd())? {
                twice.extend(known.insert(share, Arc::clone(&project)).map(|_| share));
            }
        }
        let shares = self.explicit.keys().chain(known.keys()).copied().collect();
        // Whose they are is not known, and whoever asks shall be told so.
        twice.iter().for_each(|share| drop(known.remove(share)));
        *self.known.lock() = known;
        Ok(shares)
    }

    /// All shares, or those whose places say this project, or none when it is empty. When the convention finds none, as
    /// [`Self::list_mounted`].
    pub fn list_of(&self, pool: &PoolDirectory, project: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
        let says_none = |project: &&ProjectLabel| project.is_empty() && !self.template.has_projects();
        let Some(project) = project.filter(|project| !says_none(project)) else { return self.list_mounted(pool) };
        let shares = if project.is_empty() {
            in_order(self.explicit.keys().copied().collect())
        } else if self.template.project_of(OsStr::new(project.as_str())).is_none() {
            // No place of this pool can say it.
            return Ok(Shares::from([]));
        } else {
            let read = || -> Result<BTreeSet<ShareId>, Errno> {
                let Some(folder) = self.open_folder(pool, project)? else { return Ok(BTreeSet::new()) };
                Ok(self.names(folder.as_fd())?.into_iter().collect())
            };
            in_order(read().map_err(system("list", &pool.path))?)
        };
        if !shares.iter().any(|share| !self.is_explicit(*share)) && self.check_mounted(pool).is_err() {
            // The shares of others show that it is, and only its quotas are off.
            self.list_mounted(pool)?;
        }
        Ok(shares)
    }

    fn names(&self, folder: BorrowedFd<'_>) -> Result<Vec<ShareId>, Errno> {
        let mut shares = Vec::new();
        for entry in Dir::openat(folder, ".", DIRECTORY, Mode::empty())?.iter() {
            shares.extend(self.template.share_of(OsStr::from_bytes(entry?.file_name().to_bytes())));
        }
        Ok(shares)
    }
}

fn in_order(shares: BTreeSet<ShareId>) -> Shares {
    shares.into_iter().collect()
}

/// What can be written on the file system of an open file; nothing when it cannot be measured.
pub(super) fn free(fd: BorrowedFd<'_>) -> Bytes {
    file_system::capacity(fd).map_or(Bytes::ZERO, |capacity| capacity.free)
}
