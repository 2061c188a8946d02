//! What growd asks of the kernel directly. All unsafe code of the project is here.
//!
//! Each file wraps one interface and keeps its units and its errors; what they mean for a share is the drivers' matter.
//! Structures of the kernel are laid out as its headers have them, and their sizes are checked when this is compiled.

pub mod accounts;
pub mod block_device;
pub mod btrfs;
pub mod capabilities;
pub mod file_system;
pub mod freeze;
pub mod fsxattr;
pub mod growfs;
pub mod journal;
pub mod loop_device;
pub mod lvm_shell;
pub mod malloc;
pub mod mountinfo;
pub mod open_beneath;
pub mod open_files;
pub mod quotactl;
pub mod sync_file_range;
pub mod systemd;
pub mod timer_slack;

use std::io;

use nix::errno::Errno;

/// Why the standard library failed, as the kernel said it; `EIO` where it was none of the kernel's doing.
pub fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
