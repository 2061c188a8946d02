//! What is said of places that are not as they should be.

use std::fmt::Display;
use std::path::Path;

use nix::errno::Errno;

use crate::driver::{DriverError, system};
use crate::model::{Refusal, ShareId};

/// Why growd cannot write through a mount.
pub const WHY_READ_ONLY: &str = "it is mounted so, an error has made it so, or the unit needs the drop-in that `growd \
                                 check-config --drop-in` prints";

/// What heals that: growd does not see the node's own mounts.
pub fn make_writable(mount_point: impl Display) -> String {
    format!(
        "mount -o remount,rw {mount_point}, and if that is refused, as after an error (dmesg), unmount the file system, check \
         it and mount it again; if it is read-only for growd alone, install the drop-in that `growd check-config --drop-in` \
         prints, and restart growd"
    )
}

/// Why it cannot be told whether quotas are on.
pub fn quotas_unread(pool: &Path) -> impl FnOnce(Errno) -> DriverError {
    move |errno| match errno {
        Errno::ENOSYS => {
            let what = "a project quota without quotactl_fd(2), which came with Linux 5.14,".to_owned();
            Refusal::Unsupported { what }.into()
        }
        errno => system("read the quota state of", pool)(errno),
    }
}

/// Something else is in the place of a share.
pub fn unsupported(share: ShareId, path: &Path, what: &str) -> Refusal {
    let what = format!("{what} in the place of share {share} ({})", path.display());
    Refusal::Unsupported { what }
}
