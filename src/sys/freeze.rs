//! Freezing a file system for a moment, which brings all that is in its log to its place: ioctls FIFREEZE and FITHAW of
//! `linux/fs.h`. They need CAP_SYS_ADMIN.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{_exit, SYS_close_range, c_int, syscall};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};

mod raw {
    use nix::libc::c_int;

    nix::ioctl_readwrite!(fifreeze, b'X', 119, c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, c_int);
}

/// Freezes the file system and thaws it, in a process of its own: whatever kills growd in between, it is thawed. Whoever
/// writes to it waits for that moment. That process keeps nothing else open, since it may wait for a disk longer than growd
/// lives, and the next growd needs the locks and the sockets of this one.
///
/// # Errors
/// Those of close_range(2) and of the ioctls, and `EINTR` when somebody has killed that process. Nothing when the file
/// system is frozen already, for then all is at its place.
pub fn for_a_moment(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let fd = fd.as_raw_fd();
    // SAFETY: until its end the child calls setsid(2), close_range(2), ioctl(2) and _exit(2) alone, which are
    // async-signal-safe.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            // What is sent to growd's session and group does not reach it.
            let _ = setsid();
            let frozen = close_all_but(fd).and_then(|()| freeze(fd));
            let code = frozen.and_then(|()| thaw(fd)).map_or_else(|errno| errno as c_int, |()| 0);
            // SAFETY: it ends the process, and runs nothing of growd's at its end.
            unsafe { _exit(code) }
        }
        ForkResult::Parent { child } => child,
    };
    match end_of(child)? {
        WaitStatus::Exited(_, code) => match Errno::from_raw(code) {
            Errno::UnknownErrno | Errno::EBUSY => Ok(()),
            errno => Err(errno),
        },
        _ => {
            // It is not frozen if the child had not come to that.
            let _ = thaw(fd);
            Err(Errno::EINTR)
        }
    }
}

fn end_of(child: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            end => return end,
        }
    }
}

fn close_all_but(kept: RawFd) -> Result<(), Errno> {
    for (first, last) in [(0, kept - 1), (kept + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: nothing here uses what is closed, and the process ends without dropping anything.
            Errno::result(unsafe { syscall(SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

fn freeze(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the kernel does not use the argument.
    unsafe { raw::fifreeze(fd, &mut 0) }.map(drop)
}

fn thaw(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { raw::fithaw(fd, &mut 0) }.map(drop)
}
