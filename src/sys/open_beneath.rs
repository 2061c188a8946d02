//! Opens directories and files below another directory without leaving it: openat2(2).
//!
//! Tenants own what is in their shares, and may own the directories above them. A symbolic link or a mount that
//! somebody puts into the way must not lead growd to another directory.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// How a directory is opened.
pub const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// How a file is opened that may be something else, and shall then not keep anybody waiting.
pub const FILE: OFlag = OFlag::O_RDWR.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// As [`FILE`], for whoever changes nothing: so also on a mount that is read-only, and where the file may not be changed.
pub const FILE_TO_READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Opens what is below a directory, on the same mount, in a way such as [`DIRECTORY`] or [`FILE`].
///
/// # Errors
/// `ELOOP` for a symbolic link on the way or at its end, `EXDEV` for another mount or for a way out of `directory`,
/// `ENOTDIR` for anything but a directory, or `EISDIR` for one, `ENOENT`.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, way: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(directory, path, OpenHow::new().flags(way).resolve(resolve))
}

/// Opens what has an absolute path, on whatever mount, if no part of the path is a symbolic link.
///
/// # Errors
/// As [`open_beneath`], without `EXDEV`.
pub fn open_without_links(path: &Path, way: OFlag) -> Result<OwnedFd, Errno> {
    let root = open("/", DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, path, OpenHow::new().flags(way).resolve(resolve))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn opens_only_directories_that_are_really_there() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("pool/share/deep")).unwrap();
        fs::create_dir(path.join("outside")).unwrap();
        fs::write(path.join("pool/file"), "").unwrap();
        symlink("share", path.join("pool/link")).unwrap();
        symlink("../outside", path.join("pool/out")).unwrap();
        let pool = File::open(path.join("pool")).unwrap();
        let error = |name: &str| open_beneath(pool.as_fd(), Path::new(name), DIRECTORY).err();
        assert_eq!(error("share"), None);
        assert_eq!(error("share/deep"), None);
        assert_eq!(error("link"), Some(Errno::ELOOP));
        assert_eq!(error("link/deep"), Some(Errno::ELOOP));
        assert_eq!(error("out"), Some(Errno::ELOOP));
        assert_eq!(error("../outside"), Some(Errno::EXDEV));
        assert_eq!(error("file"), Some(Errno::ENOTDIR));
        assert_eq!(error("missing"), Some(Errno::ENOENT));

        assert!(open_without_links(&path.join("pool/share"), DIRECTORY).is_ok());
        assert_eq!(open_without_links(&path.join("pool/link/deep"), DIRECTORY).err(), Some(Errno::ELOOP));
        assert!(open_without_links(Path::new("/proc/self"), DIRECTORY).is_err());

        let error = |name: &str| open_beneath(pool.as_fd(), Path::new(name), FILE).err();
        symlink("file", path.join("pool/to-file")).unwrap();
        assert_eq!(error("file"), None);
        assert_eq!(error("to-file"), Some(Errno::ELOOP));
        assert_eq!(error("share"), Some(Errno::EISDIR));
    }

    #[test]
    fn never_crosses_into_another_mount() {
        let root = File::open("/").unwrap();
        assert_eq!(open_beneath(root.as_fd(), Path::new("proc"), DIRECTORY).err(), Some(Errno::EXDEV));
        assert!(open_without_links(Path::new("/proc"), DIRECTORY).is_ok());
    }
}
