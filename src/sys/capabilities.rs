//! What the kernel permits this process beyond what it permits everybody: its capabilities, see capabilities(7).

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;

/// Those that growing a file system takes, with their numbers of `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    SysAdmin = 21,
    SysResource = 24,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
        })
    }
}

/// Inode of the first user namespace, below which others have capabilities over no more than what is their own:
/// `PROC_USER_INIT_INO` of `linux/proc_ns.h`.
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// `/proc/self/status`, read once, since growd changes neither its capabilities nor its user namespace. `None` in any
/// namespace but the first: capabilities there do not hold over the node.
static STATUS: LazyLock<Option<String>> = LazyLock::new(|| {
    let is_contained = fs::metadata("/proc/self/ns/user").is_ok_and(|user| user.ino() != FIRST_USER_NAMESPACE);
    (!is_contained).then(|| fs::read_to_string("/proc/self/status").unwrap_or_default())
});

/// Whether the process has it over the whole node, by its `CapEff` and its user namespace in `/proc`. Where these cannot be
/// read, it has: the system call that takes it then says otherwise.
pub fn is_effective(capability: Capability) -> bool {
    STATUS.as_ref().is_some_and(|status| is_in(status, capability))
}

fn is_in(status: &str, capability: Capability) -> bool {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.is_none_or(|set| set >> capability as u32 & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_tells() {
        let has = |set: &str| {
            let status = format!("CapPrm:\t000001ffffffffff\nCapEff:\t{set}\nCapBnd:\t000001ffffffffff\n");
            [Capability::SysAdmin, Capability::SysResource].map(|capability| is_in(&status, capability))
        };
        assert_eq!(has("000001ffffffffff"), [true, true]);
        assert_eq!(has("000001fffeffffff"), [true, false]);
        assert_eq!(has("000001ffffdfffff"), [false, true]);
        assert_eq!(has("0000000000000000"), [false, false]);
        assert!(is_in("", Capability::SysAdmin));
    }
}
