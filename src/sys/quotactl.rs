//! Project quotas: quotactl_fd(2), which came with Linux 5.14.
//!
//! Limits and use come out as [`Bytes`], in whatever blocks a command counts them. Layouts and numbers are those of
//! `linux/quota.h` and `linux/dqblk_xfs.h`. All but the state needs CAP_SYS_ADMIN.
//!
//! The kernel takes the generic commands for writing ones even where they read (`quotactl_cmd_write()` in its
//! fs/quota/quota.c), because to read a record may be to make it: they wait while the file system is frozen, and give
//! `EROFS` on a read-only mount. XFS makes no record for a reader, so it is read with its own commands, which do
//! neither. ext4 answers those too, but its readers do make records: under a freeze they would
//! start a transaction where none may be (`ext4_acquire_dquot()`, and the check in `ext4_journal_check_start()`). So
//! ext4 is read with the generic ones, and waits.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_uint};

use super::file_system::Kind;
use crate::model::Bytes;

/// Unit of limits in the generic commands: QIF_DQBLKSIZE.
pub const LIMIT_BLOCK: u64 = 1024;
/// Unit of limits and use in the commands of XFS: a basic block.
const BASIC_BLOCK: u64 = 512;

const PRJQUOTA: c_uint = 2;
const Q_GETQUOTA: c_uint = 0x80_0007;
const Q_SETQUOTA: c_uint = 0x80_0008;
const Q_GETNEXTQUOTA: c_uint = 0x80_0009;
const Q_XGETQUOTA: c_uint = xfs_command(3);
const Q_XGETQSTATV: c_uint = xfs_command(8);
const Q_XGETNEXTQUOTA: c_uint = xfs_command(9);
const FS_QSTATV_VERSION1: i8 = 1;
const FS_QUOTA_PDQ_ACCT: u16 = 1 << 4;
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
const QIF_BLIMITS: u32 = 1;
/// INVALID_PROJID: the only id that is none, and the greatest.
const NO_PROJECT: u32 = u32::MAX;

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

/// `struct fs_disk_quota`
#[repr(C)]
#[derive(Default)]
struct RawXfsQuota {
    version: i8,
    flags: i8,
    field_mask: u16,
    id: u32,
    hard_blocks: u64,
    soft_blocks: u64,
    inode_hard: u64,
    inode_soft: u64,
    current_blocks: u64,
    current_inodes: u64,
    inode_time: i32,
    block_time: i32,
    inode_warnings: u16,
    block_warnings: u16,
    times_high: [i8; 3],
    pad2: u8,
    realtime: [u64; 3],
    realtime_time: i32,
    realtime_warnings: u16,
    pad3: i16,
    pad4: [u8; 8],
}

const _: () = assert!(size_of::<RawXfsQuota>() == 112);

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
pub struct Quota {
    pub id: u32,
    /// 0 means no limit.
    pub hard: Bytes,
    /// 0 means no limit.
    pub soft: Bytes,
    pub used: Bytes,
    /// Soft and hard limit of the number of files; 0 means none.
    pub inodes: [u64; 2],
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
/// Those of the system call, `ENOSYS` where the kernel does not have it. A file system without any quotas is none: both are
/// off then.
pub fn state(fd: BorrowedFd<'_>) -> Result<QuotaState, Errno> {
    let mut state = RawState { version: FS_QSTATV_VERSION1, ..RawState::default() };
    // SAFETY: Q_XGETQSTATV version 1 fills a fs_quota_statv.
    match unsafe { call(fd.as_raw_fd(), Q_XGETQSTATV, 0, (&raw mut state).cast()) } {
        Ok(()) => Ok(QuotaState {
            accounting: state.flags & FS_QUOTA_PDQ_ACCT != 0,
            enforcement: state.flags & FS_QUOTA_PDQ_ENFD != 0,
        }),
        // The kernel's answer when no type of quota is on, or when the file system has none.
        Err(Errno::ENOSYS) if has_call() => Ok(QuotaState::default()),
        Err(errno) => Err(errno),
    }
}

/// Limits and use of a project; zeros when there is no record of it. `kind` is that of the open file's file system.
///
/// # Errors
/// [`QuotaError::Off`], and those of the system call: `EPERM`, on ext4 `EROFS`.
pub fn get(fd: BorrowedFd<'_>, kind: Kind, id: u32) -> Result<Quota, QuotaError> {
    match read(fd, kind, [Q_GETQUOTA, Q_XGETQUOTA], id) {
        // The generic answer has no id in it.
        Ok(quota) => Ok(Quota { id, ..quota }),
        // XFS knows no record; ext4 makes an empty one up.
        Err(Errno::ENOENT) => Ok(Quota { id, ..Quota::default() }),
        Err(errno) => Err(off_or(errno)),
    }
}

/// The quota of the first project with this id or a greater one that has a record; `None` when there is none.
///
/// # Errors
/// As [`get`].
pub fn get_next(fd: BorrowedFd<'_>, kind: Kind, id: u32) -> Result<Option<Quota>, QuotaError> {
    // Whoever goes on behind the last project must come to an end: the kernel takes this id for a mistake.
    if id == NO_PROJECT {
        return Ok(None);
    }
    match read(fd, kind, [Q_GETNEXTQUOTA, Q_XGETNEXTQUOTA], id) {
        Ok(quota) => Ok(Some(quota)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(off_or(errno)),
    }
}

/// Reads a record with the generic command or with that of XFS.
fn read(fd: BorrowedFd<'_>, kind: Kind, commands: [c_uint; 2], id: u32) -> Result<Quota, Errno> {
    let [generic, xfs] = commands;
    match kind {
        Kind::Xfs => {
            let mut quota = RawXfsQuota::default();
            // SAFETY: both commands of XFS fill a fs_disk_quota.
            unsafe { call(fd.as_raw_fd(), xfs, id, (&raw mut quota).cast()) }?;
            Ok(quota.into())
        }
        Kind::Ext4 => {
            let mut quota = RawQuota::default();
            // SAFETY: Q_GETNEXTQUOTA fills an if_nextdqblk, of which this is the layout; Q_GETQUOTA fills an if_dqblk,
            // which is no larger.
            unsafe { call(fd.as_raw_fd(), generic, id, (&raw mut quota).cast()) }?;
            Ok(quota.into())
        }
    }
}

/// Sets both limits of a project in one call, and nothing else of it. They are rounded up to [`LIMIT_BLOCK`].
///
/// XFS rounds on to its blocks, and ignores a hard limit below the soft one without an error: read back.
///
/// # Errors
/// As [`get`]; `ERANGE` for limits that the quota file cannot hold, `ENOSPC` or `EDQUOT` when it cannot grow.
pub fn set_limits(fd: BorrowedFd<'_>, id: u32, hard: Bytes, soft: Bytes) -> Result<(), QuotaError> {
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
    unsafe { call(fd.as_raw_fd(), Q_SETQUOTA, id, (&raw mut quota).cast()) }.map_err(off_or)
}

impl From<RawQuota> for Quota {
    fn from(raw: RawQuota) -> Self {
        let limit = |blocks| size_of_blocks(blocks, LIMIT_BLOCK);
        let (hard, soft) = (limit(raw.hard_blocks), limit(raw.soft_blocks));
        let (used, inodes) = (Bytes::new(raw.current_bytes), [raw.inode_soft, raw.inode_hard]);
        Self { id: raw.id, hard, soft, used, inodes }
    }
}

impl From<RawXfsQuota> for Quota {
    fn from(raw: RawXfsQuota) -> Self {
        let size = |blocks| size_of_blocks(blocks, BASIC_BLOCK);
        let (hard, soft, used) = (size(raw.hard_blocks), size(raw.soft_blocks), size(raw.current_blocks));
        Self { id: raw.id, hard, soft, used, inodes: [raw.inode_soft, raw.inode_hard] }
    }
}

fn size_of_blocks(blocks: u64, block: u64) -> Bytes {
    Bytes::new(blocks.saturating_mul(block))
}

fn off_or(errno: Errno) -> QuotaError {
    match errno {
        Errno::ESRCH | Errno::ENOSYS => QuotaError::Off,
        errno => QuotaError::System(errno),
    }
}

/// Whether the kernel has quotactl_fd, and lets growd use it: it then looks at the descriptor first, and says that this one
/// is bad.
fn has_call() -> bool {
    // SAFETY: the kernel touches no memory before it has found the file, and -1 is none.
    unsafe { call(-1, Q_XGETQSTATV, 0, ptr::null_mut()) != Err(Errno::ENOSYS) }
}

/// # Safety
/// `data` must point to the structure that the command reads or fills.
unsafe fn call(fd: c_int, command: c_uint, id: u32, data: *mut c_void) -> Result<(), Errno> {
    let command = project_command(command);
    // SAFETY: the arguments are those of quotactl_fd(2); the caller vouches for `data`.
    Errno::result(unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, id, data) }).map(drop)
}

/// XQM_CMD(number)
const fn xfs_command(number: c_uint) -> c_uint {
    ((b'X' as c_uint) << 8) + number
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
        assert_eq!(state(proc.as_fd()), Ok(QuotaState::default()));
        assert_eq!(get(proc.as_fd(), Kind::Xfs, 1), Err(QuotaError::Off));
    }

    #[test]
    fn a_limit_above_the_largest_size_never_reaches_the_kernel() {
        let proc = File::open("/proc").unwrap();
        let set = |hard| set_limits(proc.as_fd(), 1, hard, Bytes::ZERO);
        assert_eq!(set(Bytes::new(u64::MAX)), Err(QuotaError::System(Errno::ERANGE)));
        assert_eq!(set(Bytes::mib(1)), Err(QuotaError::Off));
    }

    #[test]
    fn each_command_counts_in_blocks_of_its_own() {
        let generic =
            RawQuota { hard_blocks: 3, soft_blocks: u64::MAX, current_bytes: 5, id: 7, ..RawQuota::default() };
        let (hard, soft) = (Bytes::new(3072), Bytes::new(u64::MAX));
        let expected = Quota { id: 7, hard, soft, used: Bytes::new(5), inodes: [0, 0] };
        assert_eq!(Quota::from(generic), expected);
        let xfs = RawXfsQuota { hard_blocks: 8, soft_blocks: 0, current_blocks: 16, id: 7, ..RawXfsQuota::default() };
        let (hard, used) = (Bytes::new(4096), Bytes::new(8192));
        assert_eq!(Quota::from(xfs), Quota { id: 7, hard, used, ..Quota::default() });
    }
}
