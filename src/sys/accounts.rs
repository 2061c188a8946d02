//! Users and groups: their numbers, and those of the process at the other end of a unix socket.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{self, gid_t, socklen_t};
use nix::unistd::{Group, User};

/// The number of a user, `None` when there is no such user.
///
/// # Errors
/// Those of getpwnam_r(3).
pub fn user_id(name: &str) -> Result<Option<u32>, Errno> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// The number of a group, `None` when there is no such group.
///
/// # Errors
/// Those of getgrnam_r(3).
pub fn group_id(name: &str) -> Result<Option<u32>, Errno> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// `SO_PEERGROUPS` of `asm-generic/socket.h`, since Linux 4.13; the libc crate does not have it.
const SO_PEERGROUPS: libc::c_int = 59;

/// The kernel's own bound, NGROUPS_MAX of `linux/limits.h`.
const GROUPS_MOST: usize = 65_536;

/// The supplementary groups that the peer of a unix socket had when it connected: socket(7).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut groups: Vec<gid_t> = vec![0; 32];
    loop {
        let mut length = socklen_t::try_from(groups.len() * size_of::<gid_t>()).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the descriptor is an open socket; the kernel fills at most `length` bytes of the array, which are all
        // initialized, and writes the length that it has or needs.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<gid_t>();
        match Errno::result(answer) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It has said how many there are.
            Err(Errno::ERANGE) if count > groups.len() && count <= GROUPS_MOST => groups.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn root_is_0_and_nobody_is_not_made_up() {
        assert_eq!((user_id("root"), group_id("root")), (Ok(Some(0)), Ok(Some(0))));
        assert_eq!((user_id("no-such-user"), group_id("no-such-group")), (Ok(None), Ok(None)));
    }

    #[test]
    fn the_peer_of_a_pair_has_the_groups_of_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        let mut peer = peer_groups(one.as_fd()).unwrap();
        own.sort_unstable();
        peer.sort_unstable();
        assert_eq!(peer, own);
    }
}
