//! The files of the state directory: the database, the mark beside it, the lock, and copies made for safety.
//!
//! `jobs/` is sled's. `jobs.mark` holds a commit number that is on disk for certain, so that a database which was set
//! back to an older copy is noticed, and whether growd was stopped in order. `jobs.before-open/` is a copy of a database
//! that was not closed in order, made since sled writes when it opens: it goes as soon as the opening has succeeded.
//! `jobs.compacted/` exists only while the database is copied into a smaller one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::open::OpenError;

pub struct Files {
    dir: PathBuf,
}

/// What `jobs.mark` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// A commit number that was on disk when the mark was written.
    pub commit: u64,
    /// Whether the store was closed in order after that.
    pub clean: bool,
}

/// Held by the one process that may use the store.
pub struct Lock {
    _file: File,
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

    pub fn before_open(&self) -> PathBuf {
        self.dir.join("jobs.before-open")
    }

    pub fn compacted(&self) -> PathBuf {
        self.dir.join("jobs.compacted")
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

    /// # Errors
    /// When it exists and cannot be read.
    pub fn read_mark(&self) -> Result<Option<Mark>, OpenError> {
        let path = self.mark();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::io("cannot read", &path, source)),
        };
        match Mark::parse(&text) {
            Some(mark) => Ok(Some(mark)),
            None => Err(OpenError::Damaged {
                dir: self.dir.clone(),
                problem: format!("{} holds {text:?}", path.display()),
                copy: None,
            }),
        }
    }

    /// Replaces the mark, durably: a reader finds the old one or the new one.
    pub fn write_mark(&self, mark: Mark) -> io::Result<()> {
        let new = self.dir.join("jobs.mark.new");
        let mut file = File::create(&new)?;
        file.write_all(mark.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.mark())?;
        sync_dir(&self.dir)
    }
}

impl Mark {
    fn text(self) -> String {
        format!("commit {} {}\n", self.commit, if self.clean { "closed" } else { "open" })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let (Some("commit"), Some(commit), Some(state), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        let clean = match state {
            "closed" => true,
            "open" => false,
            _ => return None,
        };
        Some(Self { commit: commit.parse().ok()?, clean })
    }
}

/// Makes the names in a directory durable: a new file can otherwise vanish with a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Copies a directory tree, durably.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    sync_dir(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_reads_back_and_nothing_else_is_taken_for_one() {
        for mark in [Mark { commit: 0, clean: true }, Mark { commit: u64::MAX, clean: false }] {
            assert_eq!(Mark::parse(&mark.text()), Some(mark));
        }
        for text in ["", "commit 1 closed", "commit 1\n", "commit x open\n", "commit 1 open more\n", "mark 1 open\n"] {
            assert_eq!(Mark::parse(text), None, "{text:?}");
        }
    }
}
