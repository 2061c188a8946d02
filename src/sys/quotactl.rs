//! Project quotas: quotactl_fd(2), or quotactl(2) on the block device where the kernel is older than 5.14.
//!
//! Uses the generic commands, which XFS and ext4 understand alike. Limits count blocks of 1 KiB, use counts bytes;
//! both come out as [`Bytes`] here. Layouts and numbers are those of `linux/quota.h` and `linux/dqblk_xfs.h`. All but
//! the state needs CAP_SYS_ADMIN, and the kernel takes even the reading commands for writing ones: through
//! quotactl_fd they give `EROFS` on a mount that is read-only for this process, and all of them wait while the file
//! system is frozen.

use std::ffi::{CString, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_uint};
use nix::sys::stat::stat;

use super::mountinfo;
use crate::model::Bytes;

/// Unit of limits: QIF_DQBLKSIZE.
pub const LIMIT_BLOCK: u64 = 1024;

const PRJQUOTA: c_uint = 2;
const Q_GETQUOTA: c_uint = 0x80_0007;
const Q_SETQUOTA: c_uint = 0x80_0008;
const Q_GETNEXTQUOTA: c_uint = 0x80_0009;
/// XQM_CMD(8)
const Q_XGETQSTATV: c_uint = ((b'X' as c_uint) << 8) + 8;
const FS_QSTATV_VERSION1: i8 = 1;
const FS_QUOTA_PDQ_ACCT: u16 = 1 << 4;
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
const QIF_BLIMITS: u32 = 1;

/// `struct if_nextdqblk`; `struct if_dqblk` is the same with padding in the place of `id`.
#[repr(C)]
#[derive(Default)]
struct RawQuota {
    hard_blocks: u64,
    soft_blocks: u64,
    current_bytes: u64,
    inode_hard: u64,
    inode_soft: u64,
    current_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
    id: u32,
}

const _: () = assert!(size_of::<RawQuota>() == 72);

/// `struct fs_qfilestatv`
#[repr(C)]
#[derive(Default)]
struct RawQuotaFile {
    inode: u64,
    blocks: u64,
    extents: u32,
    pad: u32,
}

const _: () = assert!(size_of::<RawQuotaFile>() == 24);

/// `struct fs_quota_statv`
#[repr(C)]
#[derive(Default)]
struct RawState {
    version: i8,
    pad1: u8,
    flags: u16,
    in_core: u32,
    user: RawQuotaFile,
    group: RawQuotaFile,
    project: RawQuotaFile,
    time_limits: [i32; 3],
    warning_limits: [u16; 3],
    pad3: u16,
    pad4: u32,
    pad2: [u64; 7],
}

const _: () = assert!(size_of::<RawState>() == 160);

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// quotactl_fd(2), and quotactl(2) once the kernel turned out not to have it.
    #[default]
    Best,
    /// quotactl_fd(2) on the open file.
    Descriptor,
    /// quotactl(2) on the device that mountinfo names.
    Device,
}

/// Set when the kernel does not have quotactl_fd.
static NO_DESCRIPTOR_CALL: AtomicBool = AtomicBool::new(false);

/// Whether project quotas of a file system are at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaState {
    /// Use is counted.
    pub accounting: bool,
    /// Limits are kept.
    pub enforcement: bool,
}

/// Limits and use of one project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectQuota {
    pub id: u32,
    /// 0 means no limit.
    pub hard: Bytes,
    /// 0 means no limit.
    pub soft: Bytes,
    pub used: Bytes,
}

/// Why a quota could not be read or set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The file system counts no project's use (`ESRCH`, `ENOSYS`).
    #[error("project quota is off")]
    Off,
    #[error(transparent)]
    System(#[from] Errno),
}

/// Whether project quotas are counted and enforced on the file system of an open file.
///
/// # Errors
/// Those of the system call. A file system without any quotas is none: both are off then.
pub fn state(fd: BorrowedFd<'_>, route: Route) -> Result<QuotaState, Errno> {
    let mut state = RawState { version: FS_QSTATV_VERSION1, ..RawState::default() };
    // SAFETY: Q_XGETQSTATV version 1 fills a fs_quota_statv.
    match unsafe { call(fd, route, Q_XGETQSTATV, 0, (&raw mut state).cast()) } {
        Ok(()) => Ok(QuotaState {
            accounting: state.flags & FS_QUOTA_PDQ_ACCT != 0,
            enforcement: state.flags & FS_QUOTA_PDQ_ENFD != 0,
        }),
        // The kernel's answer when no type of quota is on, or when the file system has none.
        Err(Errno::ENOSYS) => Ok(QuotaState::default()),
        Err(errno) => Err(errno),
    }
}

/// Limits and use of a project; zeros when there is no record of it.
///
/// # Errors
/// [`QuotaError::Off`], and those of the system call: `EPERM`, `EROFS`.
pub fn get(fd: BorrowedFd<'_>, route: Route, id: u32) -> Result<ProjectQuota, QuotaError> {
    let mut quota = RawQuota::default();
    // SAFETY: Q_GETQUOTA fills an if_dqblk, which is no larger than this.
    match unsafe { call(fd, route, Q_GETQUOTA, id, (&raw mut quota).cast()) } {
        Ok(()) => Ok(quota.with_id(id)),
        // XFS knows no record; ext4 makes an empty one up.
        Err(Errno::ENOENT) => Ok(ProjectQuota { id, ..ProjectQuota::default() }),
        Err(errno) => Err(off_or(errno)),
    }
}

/// The quota of the first project with this id or a greater one that has a record; `None` when there is none.
///
/// # Errors
/// As [`get`].
pub fn get_next(fd: BorrowedFd<'_>, route: Route, id: u32) -> Result<Option<ProjectQuota>, QuotaError> {
    let mut quota = RawQuota::default();
    // SAFETY: Q_GETNEXTQUOTA fills an if_nextdqblk, of which this is the layout.
    match unsafe { call(fd, route, Q_GETNEXTQUOTA, id, (&raw mut quota).cast()) } {
        Ok(()) => Ok(Some(quota.with_id(quota.id))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(off_or(errno)),
    }
}

/// Sets both limits of a project in one call, and nothing else of it. They are rounded up to [`LIMIT_BLOCK`].
///
/// XFS rounds on to its blocks, and ignores a hard limit below the soft one without an error: read back.
///
/// # Errors
/// As [`get`]; `ERANGE` for limits that the quota file cannot hold, `ENOSPC` or `EDQUOT` when it cannot grow.
pub fn set_limits(fd: BorrowedFd<'_>, route: Route, id: u32, hard: Bytes, soft: Bytes) -> Result<(), QuotaError> {
    // XFS computes with what it is given: the greatest number of blocks overflows there and sets 0, which is no limit.
    if hard.max(soft) > Bytes::MAX_FILE {
        return Err(Errno::ERANGE.into());
    }
    let mut quota = RawQuota {
        hard_blocks: hard.get().div_ceil(LIMIT_BLOCK),
        soft_blocks: soft.get().div_ceil(LIMIT_BLOCK),
        valid: QIF_BLIMITS,
        ..RawQuota::default()
    };
    // SAFETY: Q_SETQUOTA reads an if_dqblk, which is no larger than this.
    unsafe { call(fd, route, Q_SETQUOTA, id, (&raw mut quota).cast()) }.map_err(off_or)
}

impl RawQuota {
    fn with_id(&self, id: u32) -> ProjectQuota {
        let limit = |blocks: u64| Bytes::new(blocks.saturating_mul(LIMIT_BLOCK));
        ProjectQuota {
            id,
            hard: limit(self.hard_blocks),
            soft: limit(self.soft_blocks),
            used: Bytes::new(self.current_bytes),
        }
    }
}

fn off_or(errno: Errno) -> QuotaError {
    match errno {
        Errno::ESRCH | Errno::ENOSYS => QuotaError::Off,
        errno => QuotaError::System(errno),
    }
}

/// # Safety
/// `data` must point to the structure that the command reads or fills.
unsafe fn call(fd: BorrowedFd<'_>, route: Route, command: c_uint, id: u32, data: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the caller vouches for `data`.
    let by_descriptor = || unsafe { by_descriptor(fd.as_raw_fd(), command, id, data) };
    // SAFETY: the caller vouches for `data`.
    let by_device = || unsafe { by_device(fd, command, id, data) };
    match route {
        Route::Descriptor => by_descriptor(),
        Route::Device => by_device(),
        Route::Best if NO_DESCRIPTOR_CALL.load(Ordering::Relaxed) => by_device(),
        Route::Best => match by_descriptor() {
            // A file system without quotas says ENOSYS as well.
            Err(Errno::ENOSYS) if !kernel_has_descriptor_call() => {
                NO_DESCRIPTOR_CALL.store(true, Ordering::Relaxed);
                by_device()
            }
            result => result,
        },
    }
}

/// A kernel that has the call looks at the descriptor first, and says that this one is bad.
fn kernel_has_descriptor_call() -> bool {
    // SAFETY: the kernel touches no memory before it has found the file, and -1 is none.
    unsafe { by_descriptor(-1, Q_XGETQSTATV, 0, ptr::null_mut()) != Err(Errno::ENOSYS) }
}

/// # Safety
/// As [`call`].
unsafe fn by_descriptor(fd: c_int, command: c_uint, id: u32, data: *mut c_void) -> Result<(), Errno> {
    let command = project_command(command);
    // SAFETY: the arguments are those of quotactl_fd(2); the caller vouches for `data`.
    Errno::result(unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, id, data) }).map(drop)
}

/// # Safety
/// As [`call`].
unsafe fn by_device(fd: BorrowedFd<'_>, command: c_uint, id: u32, data: *mut c_void) -> Result<(), Errno> {
    // ENOENT is the kernel's word for a project without a record, so a device that is not there must not say it.
    let no_device = |errno| if errno == Errno::ENOENT { Errno::ENODEV } else { errno };
    let source = mountinfo::of_fd(fd).map_err(no_device)?.source;
    stat(&source).map_err(no_device)?;
    let source = CString::new(source.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // Both are 32 bits to the kernel, with the sign only in glibc's declaration.
    let (command, id) = (project_command(command).cast_signed(), id.cast_signed());
    // SAFETY: the path ends in a NUL and lives through the call; the caller vouches for `data`.
    Errno::result(unsafe { libc::quotactl(command, source.as_ptr(), id, data.cast::<c_char>()) }).map(drop)
}

/// QCMD(command, PRJQUOTA)
const fn project_command(command: c_uint) -> c_uint {
    (command << 8) | PRJQUOTA
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_system_without_quotas_has_them_off() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(state(proc.as_fd(), Route::Best), Ok(QuotaState::default()));
        assert_eq!(get(proc.as_fd(), Route::Best, 1), Err(QuotaError::Off));
    }

    #[test]
    fn a_missing_device_is_not_a_missing_record() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(get(proc.as_fd(), Route::Device, 1), Err(QuotaError::System(Errno::ENODEV)));
    }

    #[test]
    fn a_limit_above_the_largest_size_never_reaches_the_kernel() {
        let proc = File::open("/proc").unwrap();
        let set = |hard| set_limits(proc.as_fd(), Route::Descriptor, 1, hard, Bytes::ZERO);
        assert_eq!(set(Bytes::new(u64::MAX)), Err(QuotaError::System(Errno::ERANGE)));
        assert_eq!(set(Bytes::mib(1)), Err(QuotaError::Off));
    }

    #[test]
    fn limits_count_blocks_and_use_counts_bytes() {
        let quota = RawQuota { hard_blocks: 3, soft_blocks: u64::MAX, current_bytes: 5, ..RawQuota::default() };
        let quota = quota.with_id(7);
        assert_eq!((quota.id, quota.hard, quota.used), (7, Bytes::new(3072), Bytes::new(5)));
        assert_eq!(quota.soft, Bytes::new(u64::MAX));
    }
}
