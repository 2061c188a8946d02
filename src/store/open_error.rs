//! Why a store is not opened, for whoever reads the log of a start.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::database::told;

const REFUSED: &str = "growd does not start with it, and has deleted nothing";
const NEXT: &str = "`growd store verify` shows what is readable, `growd store export` saves it as JSON lines";
const SET_ASIDE: &str = "`growd store set-aside` moves the store away so that growd starts with an empty one: sizes are \
    always read from the kernel, only the history and the unfinished jobs go";

/// Why the store was not opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the job store in {} is in use by process {pid}, probably growd; stop it first", dir.display())]
    InUse { dir: PathBuf, pid: String },
    /// The unit lets growd make none but its own, which also keeps it out of the place of a disk that is not mounted.
    #[error("cannot create {}; under systemd a state_dir outside of /var/lib/growd must be there, on its disk", dir.display())]
    Create { dir: PathBuf, source: io::Error },
    #[error("{operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the job store in {} is damaged: {problem}. {REFUSED}. {NEXT}, {SET_ASIDE}", dir.display())]
    Damaged { dir: PathBuf, problem: String },
    #[error(
        "the job store in {} was written by another version of growd: {problem}. {REFUSED}. Only that version reads it: \
         go on with it, or save the jobs with its `growd store export` first. {SET_ASIDE}", dir.display()
    )]
    OtherVersion { dir: PathBuf, problem: String },
    #[error(
        "the job store in {} went back in time: it ends with commit {found}, and commit {expected} had been written. \
         {REFUSED}. {NEXT}, {SET_ASIDE}", dir.display()
    )]
    Older { dir: PathBuf, found: u64, expected: u64 },
    #[error("the job store in {} cannot be written: {problem}", dir.display())]
    NotWritable { dir: PathBuf, problem: String },
    #[error(
        "cannot open the job store in {}. Nothing is known to be wrong with it: make room on its disk, or have it take writes, \
         and start growd again", dir.display()
    )]
    Disk { dir: PathBuf, source: io::Error },
    #[error("flushes of the job store do not reach the disk: sync_file_range is not answered by growd")]
    NotDurable,
}

impl OpenError {
    /// Why sled did not open the store.
    pub fn of_sled(dir: &Path, error: sled::Error) -> Self {
        let dir = dir.to_owned();
        match error {
            sled::Error::Io(source) if is_of_disk(&source) => Self::Disk { dir, source },
            damage => Self::Damaged { dir, problem: told(&damage) },
        }
    }

    pub fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}

/// Whether the disk could not do what was asked of it. sled also tells of damage as of errors of files, of other kinds.
fn is_of_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // EIO has no kind that could be named.
    let fails = io::Error::from_raw_os_error(Errno::EIO as i32).kind();
    [StorageFull, QuotaExceeded, ReadOnlyFilesystem, PermissionDenied, fails].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_cannot_do_is_no_damage() {
        let of = |error| OpenError::of_sled(Path::new("/state"), error);
        let of_disk = |errno: Errno| {
            let error = io::Error::from(errno);
            // As sled passes on what it has remembered.
            let remembered = io::Error::new(error.kind(), format!("{error:?}"));
            [error, remembered].map(|error| matches!(of(sled::Error::Io(error)), OpenError::Disk { .. })) == [true; 2]
        };
        let disk = [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO, Errno::EACCES, Errno::EPERM];
        assert!(disk.into_iter().all(of_disk));
        // What reading something else than sled wrote leads to.
        let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData, io::ErrorKind::Other];
        let damage = kinds.map(|kind| sled::Error::Io(io::Error::new(kind, "corrupted")));
        let damage = damage.into_iter().chain([
            sled::Error::Io(Errno::EINVAL.into()),
            sled::Error::Corruption { at: None, bt: () },
            sled::Error::ReportableBug(String::new()),
        ]);
        assert!(damage.into_iter().all(|error| matches!(of(error), OpenError::Damaged { .. })));
        let told = of(sled::Error::Io(Errno::ENOSPC.into())).to_string();
        assert!(told.contains("start growd again") && !told.contains("set-aside"));
        let told = of(sled::Error::Corruption { at: None, bt: () }).to_string();
        let parts = ["is damaged: the file db is damaged. growd does not start with it", "`growd store verify` shows"];
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
}
