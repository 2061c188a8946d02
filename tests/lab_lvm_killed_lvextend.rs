//! Volumes that an lvextend has suspended. For a moment: that is nothing to tell of. For good, since it was killed half way:
//! nothing is extended, and nothing of what LVM does not know is used, until what growd advises has been done. That is done
//! here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daemon::{Clients, Daemon, MIB, PATIENCE, eventually, share};
use growd::sys::block_device;
use growd::wire::proto::{JobState, Share};
use tonic::Status;
use volumes::{FakeLvm, Group, Volume, accepted, refused, shell};

/// The number of sectors in a device's only segment, made another one.
fn resized(table: &str, sectors: u64) -> String {
    let words: Vec<&str> = table.split_whitespace().collect();
    format!("0 {sectors} {}", words[2..].join(" "))
}

/// Of a volume whose lvextend was killed: both tables are there, and the kernel waits to be told which.
fn suspend_between(volume: &Volume, live: &str, next: &str) {
    let node = volume.node();
    let load = |table: &str| shell(&format!("dmsetup load {} --table '{table}'", node.display()));
    load(live);
    shell(&format!("dmsetup suspend --noudevsync {0} && dmsetup resume --noudevsync {0}", node.display()));
    load(next);
    shell(&format!("dmsetup suspend --noudevsync {}", node.display()));
}

/// Somebody has the kernel go on with a table of which LVM's metadata do not know.
fn go_on_with(volume: &Volume, table: &str) {
    suspend_between(volume, &shell(&format!("dmsetup table {}", volume.node().display())), table);
    shell(&format!("dmsetup resume --noudevsync {}", volume.node().display()));
}

/// Does what the share's first finding advises.
async fn heal(clients: &Clients, n: u32) -> String {
    let remedy = clients.share(&share(n)).await.findings.remove(0).remedy;
    let command = remedy.split(" (").next().unwrap();
    // There is no udev here that dmsetup could wait for.
    shell(&format!("export DM_DISABLE_UDEV=1; {command}"));
    remedy
}

#[tokio::test]
async fn a_volume_whose_lvextend_was_killed() {
    let group = Group::on("vg", &["ubda"]);
    let daemon = Daemon::start(group.dir(), &group.pool("")).await;
    let clients = daemon.clients().await;
    let volume = group.create(1, "-L 320m").formatted("mkfs.ext4 -q");
    let table = || shell(&format!("dmsetup table {}", volume.node().display()));

    // Before LVM's metadata had the new size: they still have the old one, and so must the kernel.
    let (old, more) = (table(), resized(&table(), 400 * MIB / 512));
    suspend_between(&volume, &old, &more);
    assert!(clients.extend(&share(1), 900 * MIB).await.unwrap_err().message().contains("suspended"));
    heal(&clients, 1).await;
    assert_eq!((volume.size(), volume.recorded()), (320 * MIB, 320 * MIB));

    // Afterwards.
    shell(&format!("lvextend -q -L 360m {}", volume.full_name()));
    suspend_between(&volume, &old, &table());
    assert!(clients.extend(&share(1), 900 * MIB).await.unwrap_err().message().contains("suspended"));
    heal(&clients, 1).await;
    assert_eq!((volume.size(), volume.recorded()), (360 * MIB, 360 * MIB));

    // Somebody had it go on with what LVM does not know of.
    let go_on = || {
        go_on_with(&volume, &more);
        assert_eq!((volume.size(), volume.recorded()), (400 * MIB, 360 * MIB));
    };
    go_on();
    let status = refused(&clients, 1, &volume, "NOT_MOUNTED").await;
    assert!(status.message().contains("has 400MiB of logical volume"), "{status:?}");
    heal(&clients, 1).await;
    assert_eq!((volume.size(), volume.recorded()), (360 * MIB, 360 * MIB));
    // The same with a file system that was grown in it.
    go_on();
    shell(&format!("resize2fs {}", volume.node().display()));
    let told = clients.share(&share(1)).await.findings;
    assert!(told.len() == 1 && told[0].kind == "NOT_MOUNTED", "{told:?}");
    let remedy = heal(&clients, 1).await;
    assert!(remedy.starts_with("lvextend"), "{remedy}");
    assert_eq!((volume.recorded(), volume.usable()), (400 * MIB, 400 * MIB));
    assert_eq!(table().trim(), more, "it has the same blocks");
    accepted(&clients, 1, &volume, 440 * MIB).await;
}

/// The devices that are suspended.
fn suspended() -> String {
    shell("dmsetup info -c --noheadings -o name,suspended | grep Suspended || true")
}

/// An lvextend by 4 MiB.
fn extend(volume: &Volume) -> String {
    format!("lvextend -q -L +4m {}", volume.full_name())
}

/// Extends a volume and tells which of its ioctls is the last that has these words. The same once more has the same system
/// calls.
fn last_ioctl(volume: &Volume, words: [&str; 2]) -> usize {
    let log = "/run/lvextend.log";
    shell(&format!("strace -f -e trace=ioctl -o {log} {}", extend(volume)));
    let calls = fs::read_to_string(log).unwrap();
    let is_it = |call: &&str| words.iter().all(|word| call.contains(word));
    1 + calls.lines().collect::<Vec<_>>().iter().rposition(is_it).unwrap()
}

/// By which ioctl of an lvextend all that a volume lies on is suspended.
fn last_to_suspend(volume: &Volume) -> usize {
    last_ioctl(volume, ["DM_DEV_SUSPEND", "DM_SUSPEND_FLAG"])
}

/// An lvextend that is killed at one of its ioctls, which is not done.
fn killed_at(volume: &Volume, nth: usize) -> String {
    format!("strace -f -e trace=ioctl -e inject=ioctl:signal=KILL:when={nth} -o /dev/null {}", extend(volume))
}

/// An lvextend that is killed where it has suspended the volume and all that this lies on: before it has told LVM's metadata or
/// behind that.
fn kill_lvextend(volume: &Volume, is_recorded: bool) {
    let nth = last_to_suspend(volume) + usize::from(is_recorded);
    // Since Linux 6.12 or so raid has the size of a table that is not used yet.
    let table = || shell(&format!("dmsetup table {}", volume.node().display()));
    let before = (table(), volume.recorded());
    shell(&format!("! {}", killed_at(volume, nth)));
    let recorded = before.1 + if is_recorded { 4 * MIB } else { 0 };
    assert_eq!((table(), volume.recorded()), (before.0, recorded));
    assert!(suspended().lines().count() > 2, "{}", suspended());
}

/// lvextend suspends all that a volume lies on.
#[tokio::test]
async fn a_thin_volume_and_one_of_raid_whose_lvextend_was_killed() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    group.create_thin_pool("-L 100m");
    let thin = ("-V 40m --thinpool thin", "thin_pool = \"thin\"");
    let raid = ("-L 40m --type raid1 -m 1 --nosync", "");
    for (n, (options, pool)) in (1..).zip([thin, raid]) {
        let daemon = Daemon::start(group.dir(), &group.pool(pool)).await;
        let clients = daemon.clients().await;
        let volume = group.create(n, options).formatted("mkfs.ext4 -q");
        for is_recorded in [false, true] {
            kill_lvextend(&volume, is_recorded);
            let recorded = volume.recorded();
            assert!(refused(&clients, n, &volume, "NOT_MOUNTED").await.message().contains("suspended"));
            heal(&clients, n).await;
            assert_eq!(suspended(), "", "{options}");
            assert_eq!((volume.size(), volume.recorded()), (recorded, recorded), "{options}");
            // What is left is the file system.
            clients.extended(n, recorded).await;
            accepted(&clients, n, &volume, recorded + 4 * MIB).await;
        }
    }
}

/// Newer kernels (6.12; not yet 6.1) have raid at the new size as soon as its table is loaded, used or not.
#[tokio::test]
async fn an_lvextend_that_was_killed_behind_its_table_has_given_nothing() {
    let group = Group::on("vg", &["ubda", "ubdb"]);
    let volume = group.create(1, "-L 320m --type raid1 -m 1 --nosync").formatted("mkfs.btrfs -q");
    let fake = FakeLvm::new();
    fake.lvextend(&killed_at(&volume, last_ioctl(&volume, ["DM_TABLE_LOAD", ""]) + 1));
    let daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
    let clients = daemon.clients().await;
    let recorded = volume.recorded();
    clients.extended(1, recorded).await;
    let job = clients.extend(&share(1), recorded + 4 * MIB).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((volume.recorded(), volume.usable(), job.state()), (recorded, recorded, JobState::Failed), "{job:?}");
    if !clients.share(&share(1)).await.findings.is_empty() {
        heal(&clients, 1).await;
    }
    fake.lvextend("real");
    clients.extended(1, recorded + 4 * MIB).await;
    assert_eq!(volume.usable(), recorded + 4 * MIB);
}

/// Lvextends of a volume, one after the other, each of which keeps all that this lies on suspended for a while.
struct SlowLvextends {
    device: u64,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowLvextends {
    fn of(volume: &Volume) -> Self {
        let inject = format!("inject=ioctl:delay_exit=300000:when={}", last_to_suspend(volume));
        let command = format!("strace -f -e trace=ioctl -e {inject} -o /dev/null {}", extend(volume));
        let device = fs::metadata(volume.node()).unwrap().rdev();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                shell(&command);
            }
        });
        Self { device, done, thread: Some(thread) }
    }

    /// Asks while the volume is suspended, and the answer is as wanted. growd waits for a second: a machine that is held up may
    /// keep the volume suspended for longer, though not each time.
    async fn meanwhile<T: Debug>(&self, ask: impl AsyncFn() -> T, wanted: impl Fn(&T) -> bool) {
        let mut told = Vec::new();
        while told.len() < 3 {
            self.moment().await;
            let answer = ask().await;
            if wanted(&answer) {
                return;
            }
            told.push(answer);
        }
        panic!("{told:?}");
    }

    /// Waits until the volume is suspended, now or again.
    async fn moment(&self) {
        let begun = Instant::now();
        while !block_device::mapper(self.device).unwrap().is_suspended {
            assert!(begun.elapsed() < PATIENCE, "it is never suspended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for SlowLvextends {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "an lvextend has failed");
    }
}

#[tokio::test]
async fn what_an_lvextend_suspends_for_a_moment_is_nothing_to_tell_of() {
    for (options, pool) in [
        ("-V 40m --thinpool thin", "thin_pool = \"thin\"\novercommit = 100"),
        ("-L 40m --type raid1 -m 1 --nosync", ""),
    ] {
        let group = Group::on("vg", &["ubda", "ubdb"]);
        group.create_thin_pool("-L 100m");
        let daemon = Daemon::start(group.dir(), &group.pool(pool)).await;
        let clients = daemon.clients().await;
        let (one, other) = (group.create(1, options), group.create(2, options).formatted("mkfs.ext4 -q"));
        let size = other.usable();
        let slow = SlowLvextends::of(&one);
        let is_well = |told: &Share| told.size_bytes.is_some() && told.findings.is_empty();
        slow.meanwhile(async || clients.share(&share(2)).await, |told| is_well(told) && told.size_bytes == Some(size))
            .await;
        slow.meanwhile(async || clients.share(&share(1)).await, is_well).await;
        slow.meanwhile(async || clients.list_shares(10).await, |list| list.len() == 2 && list.iter().all(is_well))
            .await;
        slow.meanwhile(async || clients.pool("vg").await.findings, Vec::is_empty).await;
        slow.meanwhile(async || clients.diagnose().await.findings, Vec::is_empty).await;
        let extend = async || {
            let job = clients.extend(&share(2), 60 * MIB).await?;
            Ok::<_, Status>(clients.end_of(&job.job_id).await)
        };
        slow.meanwhile(extend, |ended| ended.as_ref().is_ok_and(|job| job.state() == JobState::Succeeded)).await;
        assert!(other.usable() >= 60 * MIB);
    }
}

#[tokio::test]
async fn a_thin_pool_that_is_suspended_holds_up_all_its_volumes() {
    let group = Group::on("vg", &["ubda"]);
    group.create_thin_pool("-L 100m");
    let daemon = Daemon::start(group.dir(), &group.pool("thin_pool = \"thin\"\novercommit = 100")).await;
    let clients = daemon.clients().await;
    let (killed, other) = (group.create(1, "-V 40m --thinpool thin"), group.create(2, "-V 40m --thinpool thin"));
    for n in 3..=12 {
        group.create(n, "-V 40m --thinpool thin");
    }
    kill_lvextend(&killed, true);
    let status = refused(&clients, 2, &other, "NOT_MOUNTED").await;
    assert!(status.message().contains("thin pool vg/thin is suspended"), "{status:?}");
    // It is said once, of the pool.
    let told = clients.diagnose().await.findings;
    assert_eq!(told.iter().filter(|finding| finding.message.contains("thin pool")).count(), 1, "{told:?}");
    // It is waited for once and not for each share, or a list of them would never have an answer in time.
    let is_told = |told: &Share| told.findings.iter().any(|finding| finding.message.contains("vg/thin is suspended"));
    eventually(|| clients.list_shares(100), |list| list.len() == 12 && list.iter().all(is_told)).await;
    heal(&clients, 2).await;
    accepted(&clients, 2, &other, 44 * MIB).await;
    assert!(refused(&clients, 1, &killed, "NOT_MOUNTED").await.message().contains("vg/share"));
    heal(&clients, 1).await;
    accepted(&clients, 1, &killed, 60 * MIB).await;
}

/// growd and lvextend are killed together, and somebody has the volume go on before growd is there again.
#[tokio::test]
async fn a_job_does_not_use_what_lvm_does_not_know() {
    let group = Group::on("vg", &["ubda"]);
    let formatted = group.create(1, "-L 320m").formatted("mkfs.ext4 -q");
    for (n, volume) in [(1, formatted), (2, group.create(2, "-L 320m"))] {
        let fake = FakeLvm::new();
        fake.lvextend("touch $dir/begun; gate");
        let mut daemon = Daemon::start_with(group.dir(), &group.pool(""), &[("PATH", &fake.path())]).await;
        let job = daemon.clients().await.extend(&share(n), 400 * MIB).await.unwrap();
        eventually(|| async { fake.dir().join("begun").exists() }, |begun| *begun).await;
        daemon.kill();
        fake.go();
        fake.lvextend("real");
        let table = shell(&format!("dmsetup table {}", volume.node().display()));
        go_on_with(&volume, &resized(&table, 400 * MIB / 512));
        daemon.start_again().await;
        let clients = daemon.clients().await;
        let job = clients.end_of(&job.job_id).await;
        let error = job.error.clone().unwrap_or_default();
        assert_eq!((job.state(), error.reason.as_str()), (JobState::Failed, "NOT_MOUNTED"), "{job:?}");
        assert!(error.message.contains("has 400MiB of logical volume"), "{job:?}");
        assert_eq!((volume.size(), volume.recorded()), (400 * MIB, 320 * MIB));
        if n == 1 {
            assert_eq!(volume.usable(), 320 * MIB);
        }
        heal(&clients, n).await;
        accepted(&clients, n, &volume, 440 * MIB).await;
    }
}
