//! The project-quota driver on real file systems: what it says and sets is checked with xfs_quota and repquota.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use growd::driver::project_quota::ProjectQuota;
use growd::driver::promises::Promises;
use growd::driver::{Driver, Outcome, Sizes, SpaceId};
use growd::model::{Bytes, Reason, Refusal, ShareId};
use growd::sys::{file_system, fsxattr, journal};
use support::driver::{A, B, C, OfOneShare, id, problems, reasons, refused, set};
use support::{Filesystem, Kind, LAST_PROJECT, PRJQUOTA, fill, lab, on_both, text};

const MIB: u64 = 1 << 20;

fn driver(filesystem: &Filesystem) -> ProjectQuota {
    driver_with(filesystem, vec![])
}

fn driver_with(filesystem: &Filesystem, places: Vec<(ShareId, PathBuf)>) -> ProjectQuota {
    let template = format!("{}/{{share_id}}", filesystem.path().display());
    ProjectQuota::new("pool".parse().unwrap(), template.parse().unwrap(), places, Arc::default(), Arc::default())
}

fn remedy(driver: &ProjectQuota, share: &str) -> String {
    problems(driver, share)[0].remedy.clone()
}

#[test]
fn observes_what_the_tools_report() {
    on_both(|filesystem| {
        let share = filesystem.create_share(A, 42, 8 * MIB);
        fill(&share.join("data"), 2 * MIB).unwrap();
        let driver = driver(filesystem);
        let observed = driver.observe(id(A)).unwrap();
        assert_eq!(observed.problems, vec![]);
        assert_eq!(observed.location, share);
        assert_eq!(observed.size(), Some(Bytes::mib(8)));
        assert_eq!(observed.used, Some(Bytes::new(filesystem.used(42))));
        assert!(observed.used >= Some(Bytes::mib(2)));
        assert_eq!(observed.filesystem, if filesystem.kind() == Kind::Xfs { "xfs" } else { "ext4" });
        assert_eq!(observed.extendable(), Ok(Sizes::Limit(Bytes::mib(8))));
        assert_eq!(*driver.shares(None).unwrap(), [id(A)]);
    });
}

#[test]
fn grows_and_never_shrinks() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, MIB);
        let driver = driver(filesystem);
        let grown = Outcome::Changed { from: Bytes::mib(1), to: Bytes::mib(4) };
        assert_eq!(set(&driver, A, 4 * MIB).unwrap(), grown);
        assert_eq!(filesystem.hard_limit(42), 4 * MIB);
        for size in [4 * MIB, 2 * MIB, 0] {
            assert_eq!(set(&driver, A, size).unwrap(), Outcome::AlreadyThere { size: Bytes::mib(4) });
            assert_eq!(filesystem.hard_limit(42), 4 * MIB);
        }
        // Odd sizes are rounded up: to 1 KiB by growd, and by XFS on to its blocks.
        let Outcome::Changed { to, .. } = set(&driver, A, 5 * MIB + 1).unwrap() else { panic!("did not grow") };
        assert_eq!(to.get(), filesystem.hard_limit(42));
        let block = if filesystem.kind() == Kind::Xfs { 4096 } else { 1024 };
        assert_eq!(to.get(), 5 * MIB + block);
        assert_eq!(driver.verify(id(A)).unwrap(), to);
    });
}

#[test]
fn large_limits_are_kept_exactly() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, MIB);
        let driver = driver(filesystem);
        let size = 10 << 40;
        set(&driver, A, size).unwrap();
        assert_eq!(filesystem.hard_limit(42), size);
        // XFS would take it for no limit at all.
        assert_eq!(refused(set(&driver, A, u64::MAX)).reason(), Reason::Unsupported);
        assert_eq!(filesystem.hard_limit(42), size);
        let largest = (1 << 63) - (1 << 20);
        assert_eq!(set(&driver, A, largest).unwrap().to_string(), format!("10TiB -> {}", Bytes::new(largest)));
        assert_eq!(filesystem.hard_limit(42), largest);
    });
}

#[test]
fn a_soft_limit_moves_only_when_it_was_the_hard_one() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, 0);
        let driver = driver(filesystem);
        filesystem.set_limits(42, MIB, MIB);
        assert_eq!(reasons(&driver, A), []);
        set(&driver, A, 2 * MIB).unwrap();
        assert_eq!((filesystem.soft_limit(42), filesystem.hard_limit(42)), (2 * MIB, 2 * MIB));

        filesystem.set_limits(42, MIB, 2 * MIB);
        assert_eq!(reasons(&driver, A), [Reason::SoftLimitFirst]);
        println!("{}", remedy(&driver, A));
        set(&driver, A, 3 * MIB).unwrap();
        assert_eq!((filesystem.soft_limit(42), filesystem.hard_limit(42)), (MIB, 3 * MIB));

        filesystem.set_limits(42, 0, 3 * MIB);
        set(&driver, A, 4 * MIB).unwrap();
        assert_eq!((filesystem.soft_limit(42), filesystem.hard_limit(42)), (0, 4 * MIB));
    });
}

#[test]
fn limits_of_inodes_stay() {
    let filesystem = Filesystem::ext4("ubdb", PRJQUOTA);
    filesystem.create_share(A, 42, MIB);
    let mount_point = filesystem.path().to_str().unwrap();
    lab::run("setquota", &["-P", "42", "0", "1024", "7", "9", mount_point]);
    set(&driver(&filesystem), A, 2 * MIB).unwrap();
    let report = lab::run("repquota", &["-P", "-n", "-O", "csv", mount_point]);
    let row: Vec<&str> = report.lines().find(|line| line.starts_with("#42,")).unwrap().split(',').collect();
    assert!(row.windows(2).any(|pair| pair == ["7", "9"]), "{report}");
    assert_eq!(filesystem.hard_limit(42), 2 * MIB);
}

#[test]
fn whoever_heals_a_soft_limit_keeps_those_of_inodes() {
    let filesystem = Filesystem::ext4("ubdb", PRJQUOTA);
    filesystem.create_share(A, 42, MIB);
    let mount_point = filesystem.path().to_str().unwrap();
    lab::run("setquota", &["-P", "42", "512", "1024", "7", "9", mount_point]);
    let driver = driver(&filesystem);
    assert_eq!(reasons(&driver, A), [Reason::SoftLimitFirst]);
    run_remedy(&driver, A);
    assert_eq!((reasons(&driver, A), filesystem.hard_limit(42)), (vec![], MIB));
    let report = lab::run("repquota", &["-P", "-n", "-O", "csv", mount_point]);
    assert!(report.contains(",7,9,"), "{report}");
}

#[test]
fn quota_that_does_not_hold_is_a_problem_and_its_remedy_heals_it() {
    for (filesystem, off) in
        [(Filesystem::xfs("ubda", PRJQUOTA), "pqnoenforce"), (Filesystem::ext4("ubdb", PRJQUOTA), "")]
    {
        filesystem.create_share(A, 42, MIB);
        let driver = driver(&filesystem);
        assert_eq!(reasons(&driver, A), []);
        filesystem.mount_again(off);
        assert_eq!(reasons(&driver, A), [Reason::QuotaNotEnforced]);
        assert_eq!(driver.observe(id(A)).unwrap().size(), None);
        assert_eq!(refused(set(&driver, A, 2 * MIB)).reason(), Reason::QuotaNotEnforced);
        assert_eq!(refused(driver.verify(id(A))).reason(), Reason::QuotaNotEnforced);
        assert_eq!(filesystem.hard_limit(42), MIB);
        // Tenants go on with their work.
        let _in_use = File::open(filesystem.path().join(A)).unwrap();
        run_remedy(&driver, A);
        assert_eq!(reasons(&driver, A), []);
    }
}

/// Runs the command of the first problem's remedy: what stands before the advice about fstab.
fn run_remedy(driver: &ProjectQuota, share: &str) {
    let remedy = remedy(driver, share);
    let command = remedy.split(", and").next().unwrap();
    println!("{command}");
    lab::run("sh", &["-c", command]);
}

#[test]
fn quota_that_is_off_is_a_problem_of_a_share_that_is_there() {
    for filesystem in [Filesystem::xfs("ubda", "noquota"), Filesystem::ext4_without_quota_feature("ubdb")] {
        let driver = driver(&filesystem);
        assert_eq!(refused(driver.observe(id(A))).reason(), Reason::NotMounted);
        assert_eq!(refused(driver.shares(None)).reason(), Reason::NotMounted);
        assert_eq!(refused(driver.space()).reason(), Reason::NotMounted);
        fs::create_dir(filesystem.path().join(A)).unwrap();
        assert_eq!(reasons(&driver, A), [Reason::QuotaNotEnforced, Reason::NoProjectId]);
        assert_eq!(*driver.shares(None).unwrap(), [id(A)]);
        assert_eq!(driver.space().unwrap().promised, Bytes::ZERO);
        run_remedy(&driver, A);
        assert_eq!(reasons(&driver, A), [Reason::NoProjectId]);
    }
}

#[test]
fn a_share_without_a_project_of_its_own_is_a_problem() {
    on_both(|filesystem| {
        let driver = driver(filesystem);
        let share = filesystem.path().join(A);
        fs::create_dir(&share).unwrap();
        assert_eq!(reasons(&driver, A), [Reason::NoProjectId]);
        assert!(remedy(&driver, A).contains("UNUSED_ID"));
        lab::run("sh", &["-c", &remedy(&driver, A).replace("UNUSED_ID", "42")]);
        assert_eq!(reasons(&driver, A), [Reason::Unlimited]);

        filesystem.set_limits(42, 0, MIB);
        lab::run("chattr", &["-P", share.to_str().unwrap()]);
        assert!(!fsxattr::get(File::open(&share).unwrap().as_fd()).unwrap().inherits);
        assert_eq!(reasons(&driver, A), [Reason::NoProjectId]);
        assert_eq!(driver.observe(id(A)).unwrap().size(), None);
        lab::run("sh", &["-c", &remedy(&driver, A)]);
        assert_eq!(reasons(&driver, A), []);
    });
}

#[test]
fn a_project_that_a_share_has_from_its_pool_is_not_its_own() {
    on_both(|filesystem| {
        let inner = filesystem.create_share("inner", 78, 3 * MIB);
        let share = inner.join(A);
        fs::create_dir(&share).unwrap();
        let template = format!("{}/{{share_id}}", inner.display()).parse().unwrap();
        let driver = ProjectQuota::new("pool".parse().unwrap(), template, vec![], Arc::default(), Arc::default());
        let Refusal::ProjectIdShared { other, .. } = refused(set(&driver, A, 4 * MIB)) else {
            panic!("another refusal")
        };
        assert_eq!((other, filesystem.hard_limit(78)), (inner, 3 * MIB));
        filesystem.set_project(&share, 42);
        filesystem.set_limits(42, 0, MIB);
        assert_eq!(set(&driver, A, 4 * MIB).unwrap().size(), Bytes::mib(4));
    });
}

#[test]
fn a_share_without_a_limit_cannot_be_extended() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, 0);
        let driver = driver(filesystem);
        assert_eq!(reasons(&driver, A), [Reason::Unlimited]);
        assert_eq!(driver.observe(id(A)).unwrap().size(), None);
        assert_eq!(refused(set(&driver, A, MIB)).reason(), Reason::Unlimited);
        assert_eq!(filesystem.hard_limit(42), 0);
        let remedy = remedy(&driver, A).replace("KIB", "2048");
        lab::run("sh", &["-c", remedy.split(" (").next().unwrap()]);
        assert_eq!(filesystem.hard_limit(42), 2 * MIB);
    });
}

#[test]
fn shares_with_one_project_are_a_problem_until_one_moves() {
    on_both(|filesystem| {
        let elsewhere = filesystem.path().join("legacy");
        filesystem.create_share(A, 42, MIB);
        let driver = driver_with(filesystem, vec![(id(C), elsewhere.clone())]);
        assert_eq!(reasons(&driver, A), []);
        let b = filesystem.create_share(B, 42, MIB);
        assert_eq!(reasons(&driver, A), [Reason::ProjectIdShared]);
        let Refusal::ProjectIdShared { other, project_id, .. } = refused(set(&driver, B, 2 * MIB)) else {
            panic!("another refusal")
        };
        assert_eq!((other, project_id), (filesystem.path().join(A), 42));
        assert_eq!(filesystem.hard_limit(42), MIB);

        filesystem.set_project(&b, 43);
        assert_eq!(reasons(&driver, A), [], "the other is read again before it is accused");

        fs::create_dir(&elsewhere).unwrap();
        filesystem.set_project(&elsewhere, 42);
        assert_eq!(reasons(&driver, A), [Reason::ProjectIdShared], "a share with a place of its own counts too");
    });
}

#[test]
fn shares_may_have_places_of_their_own() {
    on_both(|filesystem| {
        let legacy = filesystem.create_share("legacy", 44, 2 * MIB);
        let strange = tempfile::tempdir_in("/mnt").unwrap();
        let driver = driver_with(filesystem, vec![(id(C), legacy.clone()), (id(B), strange.path().to_owned())]);
        assert_eq!(driver.observe(id(C)).unwrap().location, legacy);
        assert_eq!(set(&driver, C, 3 * MIB).unwrap().to_string(), "2MiB -> 3MiB");
        assert_eq!(filesystem.hard_limit(44), 3 * MIB);
        assert_eq!(refused(driver.observe(id(B))).reason(), Reason::NotMounted);
        assert_eq!(*driver.shares(None).unwrap(), [id(B), id(C)]);

        let link = filesystem.path().join("link");
        symlink("legacy", &link).unwrap();
        for place in [link.clone(), link.join("deep")] {
            let driver = driver_with(filesystem, vec![(id(C), place)]);
            assert_eq!(refused(driver.observe(id(C))).reason(), Reason::Unsupported);
        }
    });
}

#[test]
fn links_mounts_and_files_are_not_followed() {
    on_both(|filesystem| {
        filesystem.create_share("target", 42, MIB);
        symlink("target", filesystem.path().join(A)).unwrap();
        fs::write(filesystem.path().join(B), "").unwrap();
        let mounted = filesystem.create_share(C, 45, MIB);
        lab::run("mount", &["--bind", filesystem.path().join("target").to_str().unwrap(), mounted.to_str().unwrap()]);
        let driver = driver(filesystem);
        let messages: Vec<String> = [A, B, C].map(|share| refused(driver.observe(id(share))).to_string()).into();
        lab::run("umount", &[mounted.to_str().unwrap()]);
        let place = |share| format!("in the place of share {share} ({}/{share})", filesystem.path().display());
        assert_eq!(messages[0], format!("a symbolic link {} is not supported here", place(A)));
        assert_eq!(messages[1], format!("something other than a directory {} is not supported here", place(B)));
        assert_eq!(messages[2], format!("another mount or file system {} is not supported here", place(C)));
        assert_eq!(refused(set(&driver, A, 2 * MIB)).reason(), Reason::Unsupported);
        assert_eq!(filesystem.hard_limit(42), MIB);
    });
}

#[test]
fn a_missing_share_is_told_from_a_missing_pool() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, MIB);
        let driver = driver(filesystem);
        assert_eq!(refused(driver.observe(id(B))).reason(), Reason::ShareNotFound);
        assert_eq!(refused(set(&driver, B, MIB)).reason(), Reason::ShareNotFound);
        filesystem.unmount();
        assert_eq!(refused(driver.observe(id(A))).reason(), Reason::NotMounted);
        assert_eq!(refused(driver.shares(None)).reason(), Reason::NotMounted);
        assert_eq!(refused(driver.space()).reason(), Reason::NotMounted);
        assert_eq!(refused(driver.verify(id(A))).reason(), Reason::NotMounted);
        fs::remove_dir(filesystem.path()).unwrap();
        let missing = refused(driver.observe(id(A)));
        fs::create_dir(filesystem.path()).unwrap();
        assert!(missing.to_string().ends_with("does not exist"), "{missing}");
        lab::run("mount", &["-o", PRJQUOTA, text(filesystem.device()), text(filesystem.path())]);
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(1));
    });
}

#[test]
fn a_pool_may_be_seen_through_a_bind_mount() {
    on_both(|filesystem| {
        // systemd makes such a mount for each of a service's ReadWritePaths=.
        let inner = filesystem.create_share("inner", 78, 3 * MIB);
        let share = inner.join(A);
        fs::create_dir(&share).unwrap();
        filesystem.set_project(&share, 42);
        filesystem.set_limits(42, 0, MIB);
        let legacy = filesystem.create_share("legacy", 44, MIB);
        for directory in [&inner, &legacy] {
            lab::run("mount", &["--bind", text(directory), text(directory)]);
        }
        let template = format!("{}/{{share_id}}", inner.display()).parse().unwrap();
        let places = vec![(id(C), legacy.clone())];
        let driver = ProjectQuota::new("pool".parse().unwrap(), template, places, Arc::default(), Arc::default());
        let (observed, total) = (driver.observe(id(A)), driver.space().unwrap().total);
        let (grown, grown_legacy) = (set(&driver, A, 2 * MIB), set(&driver, C, 2 * MIB));
        let verified = driver.verify(id(A));
        for directory in [&inner, &legacy] {
            lab::run("umount", &[text(directory)]);
        }
        assert_eq!(observed.unwrap().problems, []);
        assert!(total > Bytes::mib(100), "{total} is the size of a quota");
        assert_eq!(grown.unwrap(), grown_legacy.unwrap());
        assert_eq!((filesystem.hard_limit(42), filesystem.hard_limit(44)), (2 * MIB, 2 * MIB));
        assert_eq!(verified.unwrap(), Bytes::mib(2));
    });
}

#[test]
fn space_is_that_of_the_file_system_and_promises_are_all_limits() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, 2 * MIB);
        filesystem.create_share("stranger", LAST_PROJECT, 5 * MIB);
        // The pool's own directory has a quota, which must not be taken for the file system's size.
        let inner = filesystem.create_share("inner", 78, 3 * MIB);
        let promises = Arc::new(Promises::default());
        let pool = |directory: &Path| {
            let template = format!("{}/{{share_id}}", directory.display()).parse().unwrap();
            ProjectQuota::new("pool".parse().unwrap(), template, vec![], Arc::clone(&promises), Arc::default())
        };
        let (outer, inner) = (pool(filesystem.path()), pool(&inner));
        let space = inner.space().unwrap();
        let statvfs: Vec<u64> = lab::run("stat", &["-f", "-c", "%s %b %a", text(filesystem.path())])
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        assert_eq!(space.total.get(), statvfs[0] * statvfs[1]);
        assert_eq!(space.free.get(), statvfs[0] * statvfs[2]);
        assert_eq!(space.promised, Bytes::mib(10));
        let numbers = lab::run("mountpoint", &["-d", text(filesystem.path())]);
        assert_eq!(space.id, SpaceId(format!("dev {}", numbers.trim())));
        assert_eq!(outer.space().unwrap().id, space.id);

        // What another pool sets is known at once, what others set within a minute.
        set(&outer, A, 4 * MIB).unwrap();
        assert_eq!(inner.space().unwrap().promised, Bytes::mib(12));
        filesystem.set_limits(LAST_PROJECT, 0, 6 * MIB);
        assert_eq!(outer.space().unwrap().promised, Bytes::mib(12));
    });
}

#[test]
fn verify_works_with_a_full_share_and_a_full_file_system() {
    on_both(|filesystem| {
        let share = filesystem.create_share(A, 42, 2 * MIB);
        let driver = driver(filesystem);
        fill(&share.join("data"), 4 * MIB).unwrap();
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(2));
        set(&driver, A, 3 * MIB).unwrap();
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(3));

        File::create(filesystem.path().join("rest")).unwrap();
        // A pool directory whose own project is full leaves no room for a file.
        let full = filesystem.create_share("full", 50, 4 * 1024);
        assert_eq!(File::create(full.join("data")).is_err(), filesystem.kind() == Kind::Xfs);
        journal::force(File::open(&full).unwrap().as_fd()).unwrap();

        let room = file_system::capacity(File::open(filesystem.path()).unwrap().as_fd()).unwrap().free;
        lab::run(
            "fallocate",
            &["-l", &(room.get() - room.get() / 50).to_string(), text(&filesystem.path().join("big"))],
        );
        fill(&filesystem.path().join("rest"), room.get()).unwrap();
        set(&driver, A, 4 * MIB).unwrap();
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(4));
    });
}
