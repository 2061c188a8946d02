//! Quotas that are off: the pool says so itself, as `growd check-config` does before the first start, each with the command
//! that turns them on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::path::Path;
use std::process::Command;

use daemon::{Clients, Daemon, MIB, btrfs_pool, pool, share};
use growd::wire::proto::Finding;
use support::btrfs::Btrfs;
use support::{Filesystem, PRJQUOTA, lab};

/// Whether `growd check-config` is content, and what it says against it.
fn check_config(dir: &Path) -> (bool, String) {
    let growd = Command::new(env!("CARGO_BIN_EXE_growd"))
        .args(["check-config", "--config"])
        .arg(dir.join("growd.toml"))
        .output()
        .unwrap();
    (growd.status.success(), String::from_utf8(growd.stderr).unwrap())
}

async fn findings(clients: &Clients) -> Vec<Finding> {
    clients.pool("home").await.findings
}

/// The one finding of a pool that has share 1, which growctl doctor does not repeat for the share. Its remedy heals it.
async fn is_told_and_healed(dir: &Path, clients: &Clients) {
    let found = findings(clients).await;
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((finding.kind.as_str(), finding.share_id.as_str()), ("QUOTA_NOT_ENFORCED", ""));
    assert!(clients.pool("home").await.total_bytes > 0);
    let known = clients.diagnose().await.findings;
    let told = known.iter().filter(|finding| finding.kind == "QUOTA_NOT_ENFORCED").count();
    assert_eq!(told, 1, "{known:?}");
    let (content, said) = check_config(dir);
    assert!(!content && said.contains(&finding.message) && said.contains(&finding.remedy), "{said}");

    lab::run("sh", &["-c", finding.remedy.split(", and").next().unwrap()]);
    assert_eq!(findings(clients).await, []);
    assert_eq!(check_config(dir), (true, String::new()));
}

/// What an empty pool says: its file system may also be one that is not mounted yet.
async fn may_be_another_file_system(dir: &Path, clients: &Clients, remedy: &str) {
    let found = findings(clients).await;
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.kind, "NOT_MOUNTED");
    assert!(finding.message.contains(remedy), "{}", finding.message);
    let (content, said) = check_config(dir);
    assert!(!content && said.contains(remedy), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn project_quotas_that_are_off_are_a_finding_of_the_pool() {
    lab::require();
    let cases = [
        (Filesystem::xfs("ubda", "noquota"), "prjquota\" /dev/ubda"),
        (Filesystem::ext4_without_quota_feature("ubdb"), "tune2fs -O project,quota -Q prjquota /dev/ubdb"),
    ];
    for (fs, remedy) in cases {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
        let clients = daemon.clients().await;
        may_be_another_file_system(dir.path(), &clients, remedy).await;
        std::fs::create_dir(fs.path().join(share(1))).unwrap();
        assert!(findings(&clients).await[0].remedy.contains(remedy));
        is_told_and_healed(dir.path(), &clients).await;
    }
}

/// The options of a mount, without those that say something of quotas.
fn options(place: &Path) -> Vec<String> {
    let told = lab::run("findmnt", &["-n", "-o", "OPTIONS", "-M", place.to_str().unwrap()]);
    told.trim().split(',').filter(|option| !option.contains("quota")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_turns_project_quotas_on_has_the_mounts_of_before() {
    lab::require();
    let cases = [Filesystem::xfs("ubda", ""), Filesystem::ext4_without_quota_feature("ubdb")];
    for fs in cases {
        fs.mount_again("noatime,nosuid,nodev");
        let before = options(fs.path());
        assert!(["noatime", "nosuid", "nodev"].iter().all(|option| before.iter().any(|it| it == option)), "{before:?}");
        let export = tempfile::tempdir_in("/mnt").unwrap();
        let share = fs.path().join(share(1));
        std::fs::create_dir(&share).unwrap();
        let (share, export) = (share.to_str().unwrap(), export.path().to_str().unwrap());
        let bind = || lab::run("mount", &["--bind", share, export]);
        bind();
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
        let clients = daemon.clients().await;
        let remedy = findings(&clients).await[0].remedy.clone();
        let (commands, then) = remedy.split_once(", mount it again at ").unwrap();
        assert_eq!(then, format!("{export}, and put prjquota among its options in /etc/fstab"));
        lab::run("sh", &["-c", commands]);
        bind();
        assert_eq!(findings(&clients).await, []);
        assert_eq!(options(fs.path()), before);
        lab::run("umount", &[export]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn project_quotas_that_do_not_hold_are_a_finding_of_the_pool() {
    lab::require();
    let cases = [(Filesystem::xfs("ubda", PRJQUOTA), "pqnoenforce"), (Filesystem::ext4("ubdb", PRJQUOTA), "defaults")];
    for (fs, options) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs.create_share(&share(1), 42, MIB);
        let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
        let clients = daemon.clients().await;
        assert_eq!(findings(&clients).await, []);
        fs.mount_again(options);
        is_told_and_healed(dir.path(), &clients).await;
        // ext4 has its quotas off as long as nothing can be written.
        fs.remount("ro");
        let kinds: Vec<String> = findings(&clients).await.into_iter().map(|finding| finding.kind).collect();
        assert!(!kinds.iter().any(|kind| kind == "QUOTA_NOT_ENFORCED"), "{kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_quotas_that_are_off_are_a_finding_of_the_pool() {
    lab::require();
    let fs = Btrfs::new("ubdc");
    let place = fs.create_share(&share(1), MIB);
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &btrfs_pool(&fs)).await;
    let clients = daemon.clients().await;
    assert_eq!(findings(&clients).await, []);
    fs.btrfs(&["quota", "disable"], fs.path());
    // The sum of before is still told.
    assert_eq!(clients.pool("home").await.promised_bytes, MIB);
    is_told_and_healed(dir.path(), &clients).await;

    fs.btrfs(&["quota", "disable"], fs.path());
    fs.btrfs(&["subvolume", "delete"], &place);
    let enable = format!("btrfs quota enable {}", fs.path().display());
    may_be_another_file_system(dir.path(), &clients, &enable).await;
}
