//! The btrfs driver on a real btrfs: what it says and sets is checked with the btrfs command.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemon::{Daemon, reason, request};
use growd::driver::btrfs::Btrfs as Driven;
use growd::driver::promises::Promises;
use growd::driver::{Driver, Outcome, Step};
use growd::model::{Bytes, Reason, Refusal, ShareId};
use growd::wire::proto::JobState;
use support::btrfs::Btrfs;
use support::driver::{A, B, C, OfOneShare, id, problems, reasons, refused, set};
use support::{Filesystem, PRJQUOTA, fill, lab, text};

const MIB: u64 = 1 << 20;

fn driver(filesystem: &Btrfs) -> Driven {
    driver_with(filesystem, vec![])
}

fn driver_with(filesystem: &Btrfs, places: Vec<(ShareId, PathBuf)>) -> Driven {
    driver_of(filesystem.path(), places, &Arc::default())
}

fn driver_of(pool: &Path, places: Vec<(ShareId, PathBuf)>, promises: &Arc<Promises>) -> Driven {
    let template = format!("{}/{{share_id}}", pool.display()).parse().unwrap();
    Driven::new("pool".parse().unwrap(), template, places, Arc::clone(promises))
}

/// Runs the command of the first problem's remedy: what stands before further advice.
fn run_remedy(driver: &Driven, share: &str) {
    let problem = problems(driver, share).remove(0);
    println!("{}\n  {}", problem.message, problem.remedy);
    let command = problem.remedy.split(", and").next().unwrap().replace("SIZE", "4M");
    lab::run("sh", &["-c", &command]);
}

#[test]
fn a_limit_holds_and_grows_under_a_full_share() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, 8 * MIB);
    let driver = driver(&filesystem);
    let noise: Vec<u8> = (0..2 * MIB as u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    fs::write(share.join("kept"), &noise[..4 << 20]).unwrap();
    let first = fill(&share.join("data"), 20 * MIB).unwrap();
    assert!(first <= 4 * MIB, "the old limit did not hold: {first}");

    assert_eq!(set(&driver, A, 32 * MIB).unwrap().to_string(), "8MiB -> 32MiB");
    let second = fill(&share.join("more"), 12 * MIB).unwrap();
    assert_eq!(second, 12 * MIB);
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(32));
    assert_eq!(filesystem.limit(&share), Some(32 * MIB));

    let observed = driver.observe(id(A)).unwrap();
    assert_eq!((observed.problems, observed.location, observed.filesystem), (vec![], share.clone(), "btrfs"));
    assert_eq!(observed.used, Some(Bytes::new(filesystem.qgroup(&share).used)));
    assert!(observed.used >= Some(Bytes::mib(16)));
    assert_eq!(*driver.shares(None).unwrap(), [id(A)]);

    lab::run("umount", &[text(filesystem.path())]);
    filesystem.mount(filesystem.path(), "defaults");
    assert!(fs::read(share.join("kept")).unwrap() == noise[..4 << 20], "data that was there before has changed");
    assert_eq!(driver.observe(id(A)).unwrap().size(), Some(Bytes::mib(32)));
}

#[test]
fn grows_and_never_shrinks_nor_touches_another_limit() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, MIB);
    filesystem.btrfs(&["qgroup", "limit", "-e", "1G"], &share);
    let driver = driver(&filesystem);
    let grown = Outcome::Changed { from: Bytes::mib(1), to: Bytes::mib(4) };
    assert_eq!(set(&driver, A, 4 * MIB).unwrap(), grown);
    for size in [4 * MIB, 2 * MIB, 0] {
        assert_eq!(set(&driver, A, size).unwrap(), Outcome::AlreadyThere { size: Bytes::mib(4) });
        assert_eq!(filesystem.limit(&share), Some(4 * MIB));
    }
    // Limits are bytes, and are not rounded.
    for size in [5 * MIB + 1, 10 << 40, (1 << 63) - 1] {
        assert_eq!(
            set(&driver, A, size).unwrap().to_string().split(" -> ").nth(1),
            Some(&*Bytes::new(size).to_string())
        );
        let counts = filesystem.qgroup(&share);
        assert_eq!((counts.limit, counts.exclusive_limit), (Some(size), Some(1 << 30)));
    }
    // The kernel would take it for no limit at all.
    assert_eq!(refused(set(&driver, A, u64::MAX)).reason(), Reason::Unsupported);
    assert_eq!(filesystem.limit(&share), Some((1 << 63) - 1));
}

#[test]
fn a_limit_is_known_at_once_and_is_on_disk_after_verify() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, MIB);
    let driver = driver(&filesystem);
    let number = filesystem.subvolume_id(&share);
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(1));
    for size in [2 * MIB, 3 * MIB, 4 * MIB] {
        set(&driver, A, size).unwrap();
        assert_eq!(driver.observe(id(A)).unwrap().size(), Some(Bytes::new(size)));
        assert_eq!(filesystem.limit_on_disk(&number), size - MIB, "nothing to show: it was on disk without verify");
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::new(size));
        assert_eq!(filesystem.limit_on_disk(&number), size);
    }
    // With no transaction to commit, and on a share that is full.
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(4));
    fill(&share.join("data"), 8 * MIB).unwrap();
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(4));
}

#[test]
fn quotas_that_are_off_and_limits_that_are_none_are_refused_and_remedies_heal_them() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, MIB);
    let driver = driver(&filesystem);
    assert_eq!(reasons(&driver, A), []);
    filesystem.btrfs(&["quota", "disable"], filesystem.path());
    let refuses = |reason| {
        assert_eq!(reasons(&driver, A), [reason]);
        assert_eq!(driver.observe(id(A)).unwrap().size(), None);
        assert_eq!(refused(set(&driver, A, 2 * MIB)).reason(), reason);
        assert_eq!(refused(driver.verify(id(A))).reason(), reason);
    };
    refuses(Reason::QuotaNotEnforced);
    assert_eq!(driver.space().unwrap().promised, Bytes::ZERO);
    run_remedy(&driver, A);
    filesystem.btrfs(&["quota", "rescan", "-w"], filesystem.path());
    refuses(Reason::Unlimited);
    assert_eq!(filesystem.limit(&share), None);
    filesystem.btrfs(&["qgroup", "limit", "-e", "1M"], &share);
    refuses(Reason::Unlimited);
    filesystem.btrfs(&["qgroup", "limit", "-e", "none"], &share);
    run_remedy(&driver, A);
    assert_eq!(reasons(&driver, A), []);
    assert_eq!(filesystem.limit(&share), Some(4 * MIB));
    assert_eq!(set(&driver, A, 5 * MIB).unwrap().to_string(), "4MiB -> 5MiB");
}

#[test]
fn limits_that_bite_first_and_wrong_counts_are_findings_with_remedies() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, 8 * MIB);
    let group = format!("0/{}", filesystem.subvolume_id(&share));
    let driver = driver(&filesystem);
    let heals = |expected: Reason| {
        assert_eq!(reasons(&driver, A), [expected]);
        assert_eq!(problems(&driver, A)[0].refusal, None);
        run_remedy(&driver, A);
        assert_eq!(reasons(&driver, A), []);
    };
    filesystem.btrfs(&["qgroup", "limit", "-e", "1M"], &share);
    heals(Reason::SoftLimitFirst);
    assert_eq!(filesystem.limit(&share), Some(8 * MIB));
    filesystem.btrfs(&["qgroup", "limit", "-e", "9M"], &share);
    assert_eq!(reasons(&driver, A), []);

    // Not only of the next level.
    for group in ["1/7", "2/7"] {
        filesystem.btrfs(&["qgroup", "create", group], filesystem.path());
    }
    filesystem.btrfs(&["qgroup", "assign", &group, "1/7"], filesystem.path());
    filesystem.btrfs(&["qgroup", "assign", "1/7", "2/7"], filesystem.path());
    filesystem.btrfs(&["quota", "rescan", "-w"], filesystem.path());
    for (option, parent) in [("-c", "1/7"), ("-e", "1/7"), ("-c", "2/7")] {
        filesystem.btrfs(&["qgroup", "limit", option, "3M", parent], filesystem.path());
        heals(Reason::SoftLimitFirst);
    }

    fill(&share.join("data"), 2 * MIB).unwrap();
    filesystem.btrfs(&["subvolume", "snapshot", text(&share)], &filesystem.path().join("snapshot"));
    filesystem.btrfs(&["qgroup", "create", "1/8"], filesystem.path());
    // What a snapshot shares cannot be counted for a new parent without a rescan. The state is written at a commit.
    filesystem.btrfs(&["qgroup", "assign", "--no-rescan", &group, "1/8"], filesystem.path());
    filesystem.btrfs(&["filesystem", "sync"], filesystem.path());
    assert_eq!(set(&driver, A, 9 * MIB).unwrap().to_string(), "8MiB -> 9MiB");
    filesystem.btrfs(&["qgroup", "limit", "none", "1/7"], filesystem.path());
    filesystem.btrfs(&["qgroup", "limit", "-e", "none", "1/7"], filesystem.path());
    filesystem.btrfs(&["qgroup", "limit", "none", "2/7"], filesystem.path());
    heals(Reason::QuotaNotEnforced);
}

#[test]
fn what_is_read_only_is_read_but_not_changed() {
    let filesystem = Btrfs::new("ubda");
    filesystem.create_share(A, MIB);
    let driver = driver(&filesystem);
    // For one mount, as systemd does it, and for the whole file system.
    lab::run("mount", &["--bind", text(filesystem.path()), text(filesystem.path())]);
    lab::run("mount", &["-o", "remount,bind,ro", text(filesystem.path())]);
    let through_mount = (driver.observe(id(A)), set(&driver, A, 2 * MIB), driver.verify(id(A)), driver.space());
    lab::run("umount", &[text(filesystem.path())]);
    lab::run("mount", &["-o", "remount,ro", text(filesystem.path())]);
    let whole = (driver.observe(id(A)), set(&driver, A, 2 * MIB), driver.verify(id(A)), driver.space());
    for (observed, set, verified, space) in [through_mount, whole] {
        let observed = observed.unwrap();
        assert_eq!((observed.size(), observed.problems[0].kind), (Some(Bytes::mib(1)), Reason::NotMounted));
        assert_eq!(refused(set).reason(), Reason::NotMounted);
        let space = space.unwrap();
        assert_eq!((verified.unwrap(), space.promised), (Bytes::mib(1), Bytes::mib(1)));
        assert_eq!(space.problems, observed.problems, "it is told once");
    }
    run_remedy(&driver, A);
    assert_eq!(reasons(&driver, A), []);
    assert_eq!(set(&driver, A, 2 * MIB).unwrap().to_string(), "1MiB -> 2MiB");
}

#[test]
fn snapshots_leave_a_share_as_it_is() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, 8 * MIB);
    let driver = driver(&filesystem);
    fill(&share.join("data"), 4 * MIB).unwrap();
    driver.verify(id(A)).unwrap();
    let before = driver.observe(id(A)).unwrap();
    assert!(before.used >= Some(Bytes::mib(4)));
    let snapshot = filesystem.path().join(format!("{A}.snapshot"));
    filesystem.btrfs(&["subvolume", "snapshot", "-r", text(&share)], &snapshot);
    assert_eq!(driver.observe(id(A)).unwrap(), before);
    assert_eq!(*driver.shares(None).unwrap(), [id(A)]);
    fs::remove_file(share.join("data")).unwrap();
    filesystem.btrfs(&["filesystem", "sync"], filesystem.path());
    assert!(driver.observe(id(A)).unwrap().used < Some(Bytes::mib(1)), "what only a snapshot has is not the share's");

    // It begins with the limit of the share, but can never take more than it has.
    assert_eq!(filesystem.limit(&snapshot), Some(8 * MIB));
    let promised = driver.space().unwrap().promised;
    assert!(promised >= Bytes::mib(12) && promised < Bytes::mib(13), "{promised}");

    // One that can be written may be a share itself, with a limit of its own.
    filesystem.btrfs(&["subvolume", "snapshot", text(&share)], &filesystem.path().join(B));
    assert_eq!(set(&driver, B, 16 * MIB).unwrap().to_string(), "8MiB -> 16MiB");
    assert_eq!(filesystem.limit(&share), Some(8 * MIB));
    assert_eq!(driver_with(&filesystem, vec![]).space().unwrap().promised, promised.saturating_add(Bytes::mib(16)));
}

#[test]
fn other_things_in_the_place_of_a_share_are_not_followed() {
    let filesystem = Btrfs::new("ubda");
    let target = filesystem.create_share("target", MIB);
    let at = |share: &str| filesystem.path().join(share);
    let driver = driver(&filesystem);
    let says = |share: &str, what: &str| {
        let refusal = refused(driver.observe(id(share)));
        assert_eq!(refusal.reason(), Reason::Unsupported);
        let place = format!("in the place of share {share} ({})", at(share).display());
        assert_eq!(refusal.to_string(), format!("{what} {place} is not supported here"));
        assert_eq!(refused(set(&driver, share, 2 * MIB)), refusal);
    };
    fs::create_dir(at(A)).unwrap();
    says(A, "a directory that is no subvolume");
    symlink("target", at(B)).unwrap();
    says(B, "a symbolic link");
    fs::write(at(C), "").unwrap();
    says(C, "something other than a directory");
    fs::remove_file(at(C)).unwrap();
    filesystem.create_share(C, MIB);
    lab::run("mount", &["--bind", text(&target), text(&at(C))]);
    says(C, "another mount or file system");
    lab::run("umount", &[text(&at(C))]);
    assert_eq!(set(&driver, C, 2 * MIB).unwrap().to_string(), "1MiB -> 2MiB");
    assert_eq!(filesystem.limit(&target), Some(MIB));
}

#[test]
fn shares_may_have_places_of_their_own_on_the_same_file_system() {
    let filesystem = Btrfs::new("ubda");
    let legacy = filesystem.create_share("legacy", MIB);
    let elsewhere = tempfile::tempdir_in("/mnt").unwrap();
    filesystem.mount(elsewhere.path(), "subvol=legacy");
    let other = Btrfs::new("ubdb");
    let strange = other.create_share("strange", MIB);
    let places = vec![(id(A), elsewhere.path().to_owned()), (id(B), strange.clone()), (id(C), legacy.join("inner"))];
    let driver = driver_with(&filesystem, places);
    let grown = set(&driver, A, 2 * MIB);
    let (foreign, missing) = (refused(set(&driver, B, 2 * MIB)), refused(set(&driver, C, 2 * MIB)));
    let shares = driver.shares(None);
    lab::run("umount", &[text(elsewhere.path())]);
    assert_eq!(grown.unwrap().to_string(), "1MiB -> 2MiB");
    assert_eq!(filesystem.limit(&legacy), Some(2 * MIB));
    assert_eq!((foreign.reason(), missing.reason()), (Reason::NotMounted, Reason::ShareNotFound));
    assert_eq!(other.limit(&strange), Some(MIB));
    assert_eq!(*shares.unwrap(), [id(A), id(B), id(C)]);
}

#[test]
fn a_missing_share_is_told_from_a_missing_pool() {
    let filesystem = Btrfs::new("ubda");
    let driver = driver(&filesystem);
    assert_eq!(*driver.shares(None).unwrap(), []);
    filesystem.create_share(A, MIB);
    assert_eq!(refused(set(&driver, B, MIB)).reason(), Reason::ShareNotFound);
    lab::run("umount", &[text(filesystem.path())]);
    let is_not_mounted = || {
        let refusal = refused(driver.observe(id(A)));
        let problem = format!("no btrfs with quotas is mounted at {}", filesystem.path().display());
        assert_eq!(refusal, Refusal::NotMounted { pool: "pool".parse().unwrap(), problem });
        assert_eq!(refused(set(&driver, A, 2 * MIB)), refusal);
        assert_eq!(refused(driver.verify(id(A))), refusal);
        assert_eq!(refused(driver.shares(None)), refusal);
        assert_eq!(refused(driver.space()), refusal);
    };
    is_not_mounted();
    let ext4 = Filesystem::ext4("ubdb", PRJQUOTA);
    lab::run("mount", &["--bind", text(ext4.path()), text(filesystem.path())]);
    is_not_mounted();
    fs::create_dir(filesystem.path().join(A)).unwrap();
    let strange = refused(driver.observe(id(A)));
    lab::run("umount", &[text(filesystem.path())]);
    assert!(strange.to_string().starts_with("a share on a file system other than btrfs"), "{strange}");
    filesystem.mount(filesystem.path(), "defaults");
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(1));
}

#[test]
fn space_is_that_of_the_file_system_and_promises_are_the_limits_of_what_is_there() {
    let filesystem = Btrfs::new("ubda");
    filesystem.create_share(A, 2 * MIB);
    let space = driver(&filesystem).space().unwrap();
    let statvfs: Vec<u64> = lab::run("stat", &["-f", "-c", "%s %b %a", text(filesystem.path())])
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!((space.total.get(), space.free.get()), (statvfs[0] * statvfs[1], statvfs[0] * statvfs[2]));
    assert_eq!((space.promised, space.filesystem), (Bytes::mib(2), "btrfs"));
    let uuid = lab::run("findmnt", &["-n", "-o", "UUID", text(filesystem.path())]);
    assert_eq!(space.id.0, format!("btrfs {}", uuid.trim()));

    // More than one answer of the kernel holds, inside another subvolume; the groups of deleted ones stay behind.
    let many = filesystem.create_share("many", 3 * MIB);
    let script = "for n in $(seq 130); do btrfs subvolume create $n && btrfs qgroup limit 1M ./$n; done >/dev/null";
    lab::run("sh", &["-e", "-c", &format!("cd {} && {script}", many.display())]);
    let promised = || driver(&filesystem).space().unwrap().promised;
    assert_eq!(promised(), Bytes::mib(135));
    for n in 1..=5 {
        filesystem.btrfs(&["subvolume", "delete"], &many.join(n.to_string()));
    }
    assert_eq!(promised(), Bytes::mib(130));
    filesystem.btrfs(&["qgroup", "create", "1/7"], filesystem.path());
    filesystem.btrfs(&["qgroup", "limit", "1G", "1/7"], filesystem.path());
    assert_eq!(promised(), Bytes::mib(130), "a group of groups holds nothing itself");

    // A pool inside a subvolume is on the same file system. What another pool sets is known at once, what others set
    // within a minute.
    let promises = Arc::default();
    let (outer, inner) = (driver_of(filesystem.path(), vec![], &promises), driver_of(&many, vec![], &promises));
    let promised = || inner.space().unwrap().promised;
    assert_eq!((inner.space().unwrap().id, promised()), (space.id, Bytes::mib(130)));
    set(&outer, A, 4 * MIB).unwrap();
    assert_eq!(promised(), Bytes::mib(132));
    filesystem.btrfs(&["qgroup", "limit", "9M", text(&many)], filesystem.path());
    assert_eq!(promised(), Bytes::mib(132));
    outer.apply(id(A), Step::LowerLimit { from: Bytes::mib(4), to: Bytes::mib(3) }).unwrap();
    assert_eq!(promised(), Bytes::mib(131));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_grows_through_the_daemon_and_refusals_have_reasons() {
    lab::require();
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(A, 8 * MIB);
    filesystem.btrfs(&["subvolume", "create"], &filesystem.path().join(B));
    fs::create_dir(filesystem.path().join(C)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pool = format!(
        "[[pool]]\nname = \"sub\"\ndriver = \"btrfs\"\npath = \"{}/{{share_id}}\"\nreserve = \"1GiB\"\n",
        filesystem.path().display()
    );
    let daemon = Daemon::start(dir.path(), &pool).await;
    let clients = daemon.clients().await;
    let cases = [
        (request(A, 8 * MIB), "SIZE_NOT_GREATER"),
        (request(A, 1 << 50), "POOL_FULL"),
        (request(B, 9 * MIB), "UNLIMITED"),
        (request(C, 9 * MIB), "UNSUPPORTED"),
        (request("00000000-0000-4000-8000-000000000001", 9 * MIB), "SHARE_NOT_FOUND"),
    ];
    for (request, expected) in cases {
        let status = clients.ask(request.clone()).await.expect_err("it was accepted");
        assert_eq!(reason(&status), expected, "{request:?}: {status:?}");
    }
    assert_eq!(filesystem.limit(&share), Some(8 * MIB));

    let first = fill(&share.join("a"), 20 * MIB).unwrap();
    assert!(first <= 8 * MIB, "the old limit did not hold: {first}");
    let job = clients.extend(A, 16 * MIB).await.unwrap();
    assert_eq!((job.driver.as_str(), job.size_before_bytes), ("btrfs", 8 * MIB));
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((job.state(), job.size_after_bytes), (JobState::Succeeded, Some(16 * MIB)), "{job:?}");
    assert_eq!(filesystem.limit_on_disk(&filesystem.subvolume_id(&share)), 16 * MIB);
    assert!(fill(&share.join("b"), 20 * MIB).unwrap() >= 7 * MIB);

    filesystem.btrfs(&["quota", "disable"], filesystem.path());
    let status = clients.extend(A, 32 * MIB).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_NOT_ENFORCED", "{status:?}");
    drop(daemon);
}
