//! The files of the state directory: the database, the mark beside it, the lock, and copies made for safety.
//!
//! `jobs/` is sled's. `jobs.mark` holds a commit number that is on disk for certain, so that a database which was set
//! back to an older copy is noticed. sled writes when it opens, so there are copies: `jobs.original-BOOT/` while a start
//! checks the database, `jobs.looked-at/` to be looked at or to be removed, and `jobs.compacted/` while the database is
//! copied into a smaller one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::open_error::OpenError;

#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
}

/// Held by the one process that may use the store.
pub struct Lock {
    _file: File,
}

/// A file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn jobs(&self) -> PathBuf {
        self.dir.join("jobs")
    }

    pub fn mark(&self) -> PathBuf {
        self.dir.join("jobs.mark")
    }

    /// Which file the database is in now: one that was removed takes writes and keeps none of them.
    ///
    /// # Errors
    /// When there is none.
    pub fn identity(&self) -> io::Result<Identity> {
        let file = fs::metadata(self.jobs().join("db"))?;
        Ok(Identity { device: file.dev(), inode: file.ino() })
    }

    pub fn looked_at(&self) -> PathBuf {
        self.dir.join("jobs.looked-at")
    }

    pub fn compacted(&self) -> PathBuf {
        self.dir.join("jobs.compacted")
    }

    /// There is no database, and a mark says that there was.
    pub fn gone(&self, mark: u64) -> OpenError {
        let problem = format!("{} is gone; it held {mark} commits", self.jobs().display());
        OpenError::Damaged { dir: self.dir.clone(), problem }
    }

    pub fn no_copy(&self, source: io::Error) -> OpenError {
        OpenError::io("cannot make a copy for a look at the job store in", &self.jobs(), source)
    }

    /// Takes the lock of the state directory, which must exist.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it.
    pub fn lock(&self) -> Result<Lock, OpenError> {
        let path = self.dir.join("lock");
        let failed = |source| OpenError::io("cannot lock", &path, source);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The process id is for the message only.
                let _ = file.read_to_string(&mut pid);
                return Err(OpenError::InUse { dir: self.dir.clone(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Lock { _file: file })
    }

    /// A commit number that was on disk when the mark was written.
    ///
    /// # Errors
    /// When the mark exists and cannot be read.
    pub fn read_mark(&self) -> Result<Option<u64>, OpenError> {
        let path = self.mark();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::io("cannot read", &path, source)),
        };
        let text = String::from_utf8_lossy(&bytes);
        match parse_mark(&text) {
            Some(commit) => Ok(Some(commit)),
            None => {
                Err(OpenError::Damaged { dir: self.dir.clone(), problem: format!("{} holds {text:?}", path.display()) })
            }
        }
    }

    /// Replaces the mark durably: a reader finds the old one or the new one.
    pub fn write_mark(&self, commit: u64) -> io::Result<()> {
        let new = self.dir.join("jobs.new");
        let mut written = File::create(&new)?;
        written.write_all(mark_text(commit).as_bytes())?;
        written.sync_all()?;
        fs::rename(&new, self.mark())?;
        sync_dir(&self.dir)
    }
}

fn mark_text(commit: u64) -> String {
    format!("commit {commit}\n")
}

fn parse_mark(text: &str) -> Option<u64> {
    text.strip_suffix('\n')?.strip_prefix("commit ")?.parse().ok()
}

/// Makes the names in a directory durable: a new file can otherwise vanish with a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a directory tree that an earlier run may have left.
pub fn remove_tree(path: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io("cannot remove", path, error)),
        _ => Ok(()),
    }
}

/// Writes every file of a directory tree over with what it reads as, durably.
///
/// When a write-back fails, the kernel tells of it once and then takes the page in memory for clean (fsync(2), "EIO"):
/// the file reads right until that memory is given up, and no later fsync brings it to the disk. Writing it again does.
pub fn write_over(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            write_over(&entry.path())?;
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(entry.path())?;
        let (mut chunk, mut at) = (vec![0; 1 << 20], 0);
        loop {
            let length = file.read_at(&mut chunk, at)?;
            if length == 0 {
                break;
            }
            file.write_all_at(&chunk[..length], at)?;
            at += length as u64;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Makes every file of a directory tree durable.
pub fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Copies a directory tree. Not durable: the copy is for this process alone.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Removes from a database the snapshots by which sled finds what is in its log; it makes new ones.
pub fn remove_snapshots(database: &Path) -> io::Result<()> {
    for entry in fs::read_dir(database)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"snap.") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_reads_back_and_nothing_else_is_taken_for_one() {
        for commit in [0, u64::MAX] {
            assert_eq!(parse_mark(&mark_text(commit)), Some(commit));
        }
        for text in ["", "commit 1", "commit x\n", "commit 1 2\n", "commit -1\n", "mark 1\n", "commit 1\n\n"] {
            assert_eq!(parse_mark(text), None, "{text:?}");
        }
    }
}
