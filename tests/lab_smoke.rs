//! Proves that the lab is what the other lab tests take it for: a kernel of its own whose quotas bite.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{Filesystem, PRJQUOTA, fill, lab};

const MIB: u64 = 1 << 20;

#[test]
fn the_kernel_is_user_mode_linux_with_loop_and_device_mapper() {
    lab::require();
    for module in ["loop", "dm_mod"] {
        assert!(Path::new("/sys/module").join(module).exists(), "{module} is not loaded");
    }
    let targets = lab::run("dmsetup", &["targets"]);
    for target in ["linear", "thin-pool", "snapshot-origin", "flakey", "dust", "log-writes"] {
        assert!(targets.lines().any(|line| line.starts_with(target)), "no {target} in:\n{targets}");
    }
}

#[test]
fn xfs_project_quota_bites() {
    project_quota_bites(&Filesystem::xfs("ubda", PRJQUOTA));
}

#[test]
fn ext4_project_quota_bites() {
    project_quota_bites(&Filesystem::ext4("ubdb", PRJQUOTA));
}

fn project_quota_bites(filesystem: &Filesystem) {
    let share = filesystem.create_share("share", 42, 2 * MIB);
    assert_eq!(filesystem.hard_limit(42), 2 * MIB);
    assert_eq!(filesystem.hard_limit(43), 0, "a project that nobody set up");

    let written = fill(&share.join("data"), 8 * MIB).unwrap();
    // The directory itself takes a block of the project too.
    assert!((2 * MIB - 64 * 1024..=2 * MIB).contains(&written), "wrote {written} bytes");
    assert!(filesystem.used(42) >= written);

    filesystem.set_limits(42, 0, 4 * MIB);
    assert_eq!(filesystem.hard_limit(42), 4 * MIB);
    assert_eq!(fill(&share.join("data"), MIB).unwrap(), MIB, "there is room after the limit was raised");
}

#[test]
fn quota_that_only_accounts_does_not_bite() {
    for filesystem in [Filesystem::xfs("ubda", "pqnoenforce"), Filesystem::ext4("ubdb", "")] {
        let share = filesystem.create_share("share", 42, MIB);
        assert_eq!(filesystem.hard_limit(42), MIB);
        assert_eq!(fill(&share.join("data"), 2 * MIB).unwrap(), 2 * MIB);
        assert!(filesystem.used(42) >= 2 * MIB);
    }
}
