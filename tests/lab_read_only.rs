//! Quotas of file systems that are read-only, for growd or for everybody: what is told, what heals it, what goes on.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemon::Daemon;
use growd::driver::project_quota::ProjectQuota;
use growd::driver::{Driver, Outcome, Problem, Step};
use growd::model::{Bytes, Reason, Refusal, ShareId};
use support::driver::{A, B, OfOneShare, id, problems};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, Kind, PRJQUOTA, lab, on_both, text};

const MIB: u64 = 1 << 20;

fn driver(directory: &Path, places: Vec<(ShareId, PathBuf)>) -> ProjectQuota {
    let template = format!("{}/{{share_id}}", directory.display()).parse().unwrap();
    ProjectQuota::new("pool".parse().unwrap(), template, places, Arc::default(), Arc::default())
}

/// What is wrong with share A, and runs what heals it.
fn heal(driver: &ProjectQuota) -> Vec<Problem> {
    let problems = problems(driver, A);
    let command = problems[0].remedy.split(", and").next().unwrap();
    println!("{command}");
    lab::run("sh", &["-c", command]);
    problems
}

fn set(driver: &ProjectQuota, share: &str, bytes: u64) -> Result<Bytes, Refusal> {
    let outcome = driver.apply(id(share), Step::SetLimit { to: Bytes::new(bytes) });
    outcome.map(Outcome::size).map_err(|error| error.into_refusal())
}

#[test]
fn a_share_that_cannot_be_changed_is_still_observed() {
    on_both(|filesystem| {
        filesystem.create_share(A, 42, MIB);
        let driver = driver(filesystem.path(), vec![]);
        // ext4's quotas cannot be read through such a mount.
        let size = (filesystem.kind() == Kind::Xfs).then_some(Bytes::mib(1));
        let check = || {
            assert_eq!(driver.observe(id(A)).unwrap().size(), size);
            assert_eq!(set(&driver, A, 2 * MIB).unwrap_err().reason(), Reason::NotMounted);
            assert_eq!(driver.verify(id(A)).ok(), size);
            let space = driver.space();
            let told = heal(&driver);
            assert_eq!(told.iter().map(|problem| problem.kind).collect::<Vec<_>>(), [Reason::NotMounted]);
            // The pool says the same, so that it is told once, and also where there is no share yet.
            assert!(size.is_none() || space.unwrap().problems == told);
            assert_eq!((problems(&driver, A), driver.space().unwrap().problems), (vec![], vec![]));
        };
        let mount = filesystem.read_only_mount();
        check();
        drop(mount);
        filesystem.remount("ro");
        check();
        assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(1));

        // A frozen ext4 lets its readers wait: see lab_quotactl.
        if size.is_some() {
            filesystem.freeze();
            let (observed, space) = (driver.observe(id(A)), driver.space());
            filesystem.thaw();
            assert_eq!((observed.unwrap().problems, space.unwrap().promised), (vec![], Bytes::mib(1)));
        }
    });
}

#[test]
fn a_pool_whose_folder_is_read_only_is_healed_there_and_does_not_stop_a_share_elsewhere() {
    on_both(|filesystem| {
        let folder = filesystem.path().join("folder");
        fs::create_dir(&folder).unwrap();
        filesystem.create_share(&format!("folder/{A}"), 42, MIB);
        let legacy = filesystem.create_share("legacy", 44, MIB);
        lab::run("mount", &["--bind", text(&folder), text(&folder)]);
        lab::run("mount", &["-o", "remount,bind,ro", text(&folder)]);
        let driver = driver(&folder, vec![(id(B), legacy)]);
        let (grown, verified) = (set(&driver, B, 2 * MIB), driver.verify(id(B)));
        let refused = set(&driver, A, 2 * MIB).map_err(|refusal| refusal.reason());
        heal(&driver);
        let healed = set(&driver, A, 2 * MIB);
        lab::run("umount", &[text(&folder)]);
        assert_eq!((grown, verified.unwrap()), (Ok(Bytes::mib(2)), Bytes::mib(2)));
        assert_eq!((refused, healed), (Err(Reason::NotMounted), Ok(Bytes::mib(2))));
    });
}

/// Of the ext4 that the share is on.
fn stop_journal(disk: &MappedDisk, share: &Path) {
    lab::run("sync", &[]);
    let file = File::create(share.join("data")).unwrap();
    disk.fail();
    assert!(file.sync_all().is_err(), "the journal could be written");
    drop(file);
    disk.mend();
}

/// What the kernel takes from then on, it has in memory alone.
#[test]
fn an_ext4_whose_journal_an_error_has_stopped_makes_no_limit_durable_and_says_so() {
    let disk = MappedDisk::over("ubdb");
    let filesystem = Filesystem::ext4(&disk.path(), "prjquota,errors=remount-ro");
    let share = filesystem.create_share(A, 42, MIB);
    filesystem.create_share(B, 43, MIB);
    // The kernel has read no quota yet.
    filesystem.unmount();
    filesystem.mount("prjquota,errors=remount-ro");
    let driver = driver(filesystem.path(), vec![]);
    stop_journal(&disk, &share);
    let unread = [driver.observe(id(B)).err(), driver.space().err()];
    let told = set(&driver, A, 2 * MIB).and_then(|_| driver.verify(id(A)).map_err(|error| error.into_refusal()));
    filesystem.unmount();
    // It says 1 when it has mended something.
    lab::run("sh", &["-c", &format!("e2fsck -fy {} || test $? = 1", disk.path())]);
    filesystem.mount(PRJQUOTA);
    assert_eq!(filesystem.hard_limit(42), MIB);
    let told = told.expect_err("the limit is gone");
    for told in unread.map(|error| error.unwrap().into_refusal()).into_iter().chain([told]) {
        assert_eq!(told.reason(), Reason::NotMounted, "{told}");
        assert!(told.to_string().contains("an error has"), "{told}");
    }
    assert_eq!(set(&driver, A, 2 * MIB), Ok(Bytes::mib(2)));
    assert_eq!(driver.verify(id(A)).unwrap(), Bytes::mib(2));
}

/// No look shows it before somebody begins a change.
#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_whose_journal_an_error_has_stopped_is_a_finding_of_its_pool() {
    let disk = MappedDisk::over("ubdb");
    let filesystem = Filesystem::ext4(&disk.path(), PRJQUOTA);
    let share = filesystem.create_share(A, 42, MIB);
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &daemon::pool(&filesystem, "")).await;
    let clients = daemon.clients().await;
    assert_eq!(clients.diagnose().await.findings, []);
    stop_journal(&disk, &share);
    let found = clients.diagnose().await.findings;
    let kinds: Vec<(&str, &str)> = found.iter().map(|found| (found.kind.as_str(), found.share_id.as_str())).collect();
    filesystem.unmount();
    lab::run("sh", &["-c", &format!("e2fsck -fy {} || test $? = 1", disk.path())]);
    filesystem.mount(PRJQUOTA);
    assert_eq!(kinds, [("NOT_MOUNTED", "")], "{found:?}");
    assert_eq!(clients.diagnose().await.findings, []);
}

/// As it is told where the mount stays as it was: since Linux 6.12.
#[test]
fn what_heals_a_journal_that_has_stopped_is_told() {
    let disk = MappedDisk::over("ubdb");
    let filesystem = Filesystem::ext4(&disk.path(), PRJQUOTA);
    let share = filesystem.create_share(A, 42, MIB);
    let driver = driver(filesystem.path(), vec![]);
    assert_eq!(driver.refuses_changes().unwrap(), None);
    stop_journal(&disk, &share);
    let told = driver.refuses_changes().unwrap().unwrap();
    // It says 1 when it has mended something.
    let check = told.remedy.split(", then").next().unwrap().replace("-f", "-fy");
    lab::run("sh", &["-c", &format!("{check} || test $? = 1")]);
    filesystem.mount(PRJQUOTA);
    assert_eq!(driver.refuses_changes().unwrap(), None);
    assert_eq!(set(&driver, A, 2 * MIB), Ok(Bytes::mib(2)));
}
