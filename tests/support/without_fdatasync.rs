//! The control of tests that take the power away: the flush that growd does not leave to sled.

use std::path::{Path, PathBuf};

use super::support::lab;

/// A library that answers fdatasync with what sled would do by itself.
pub fn without_fdatasync(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("sync.c"), dir.join("sync.so"));
    let text = "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
        int fdatasync(int fd) { return syscall(SYS_sync_file_range, fd, 0L, 0L, SYNC_FILE_RANGE_WAIT_BEFORE |\n\
        SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER); }\n";
    std::fs::write(&source, text).unwrap();
    lab::run("gcc", &["-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
    library
}
