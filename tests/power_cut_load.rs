//! Power cuts at random moments of a load on all kinds of shares: XFS and ext4 with project quotas, XFS on a thick and
//! ext4 on a thin logical volume. After each boot everything that was acknowledged is there and ends, a job that was seen
//! to have SUCCEEDED still has its size before growd starts, and no share has shrunk.
//!
//! GROWD_ROUNDS says how often the power is cut, GROWD_SEED gives the same moments again. A control whose flushes end in
//! sync_file_range, as sled's own do, must lose jobs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/power_cut.rs"]
mod power_cut;

#[path = "support/seed.rs"]
mod seed;

#[path = "support/without_fdatasync.rs"]
mod without_fdatasync;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use daemon::{Clients, Daemon, MIB, assert_refused, project, share};
use futures_util::future::join_all;
use growd::wire::proto::JobState;
use power_cut::{Disks, cut, tell};
use seed::{Random, rounds};
use support::size_by_tool::size_by_tool;
use support::{Filesystem, Kind, PRJQUOTA, lab};
use without_fdatasync::without_fdatasync;

/// The shares by their numbers.
const XFS_QUOTA: u32 = 1;
const EXT4_QUOTA: u32 = 2;
const THICK_XFS: u32 = 3;
const THIN_EXT4: u32 = 4;
const SHARES: [u32; 4] = [XFS_QUOTA, EXT4_QUOTA, THICK_XFS, THIN_EXT4];
/// The extent of the group: a share on a volume grows by whole ones.
const STEP: u64 = 4 * MIB;
/// New stores that the control begins with, one of which must have lost a job. As a rule the first does: what is lost is
/// how far the file reaches, which is not on the disk before growd has written its first mark, 10 s after its start.
const CONTROLS: usize = 8;
/// A load is cut off so long after its first acknowledgement at most, in milliseconds.
const LOAD: u64 = 3000;

/// What the host was told of a job.
#[derive(Clone, Debug)]
struct Acknowledged {
    share: u32,
    requested: u64,
    succeeded: bool,
}

#[test]
fn what_was_acknowledged_survives_power_cuts_under_load() {
    assert_eq!(lost_in(rounds(4), false), None);
}

#[test]
fn the_control_without_fdatasync_loses_jobs_at_power_cuts() {
    let lost = (0..CONTROLS).find_map(|_| lost_in(1, true));
    println!("lost: {}", lost.expect("nothing is lost without fdatasync, so the other test shows nothing"));
}

/// Cuts the power so often, and looks after each cut. What was lost in the control, of which growd itself is not asked: it
/// may well refuse what is left of its store.
fn lost_in(rounds: usize, control: bool) -> Option<String> {
    let mut random = Random::from_environment();
    let disks = Disks::blank();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut acknowledged = BTreeMap::<String, Acknowledged>::new();
    let mut unfinished = 0;
    for round in 0..=rounds {
        let jobs: Vec<String> = acknowledged
            .iter()
            .map(|(id, job)| format!("{id} {} {} {}", job.share, job.requested, job.succeeded))
            .collect();
        // An environment has too little room for the jobs of many rounds.
        let file = folder.path().join("jobs");
        std::fs::write(&file, jobs.join("\n")).unwrap();
        let moment = random.below(usize::try_from(LOAD).unwrap()).to_string();
        let environment = [
            ("ROUND", round.to_string()),
            ("JOBS", file.display().to_string()),
            ("MOMENT", if round < rounds || control { moment } else { String::new() }),
            ("CONTROL", if control { "yes" } else { "" }.to_owned()),
        ];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        if round == rounds && !control {
            disks.run("in_the_lab_a_load", &environment);
            break;
        }
        let told = disks.run_until_cut("in_the_lab_a_load", &environment);
        // The round has seen all earlier ones end before its own load began.
        acknowledged.values_mut().for_each(|job| job.succeeded = true);
        for line in &told {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["accepted", id, share, requested] => {
                    let (share, requested) = (share.parse().unwrap(), requested.parse().unwrap());
                    acknowledged.insert(id.to_owned(), Acknowledged { share, requested, succeeded: false });
                }
                ["succeeded", id] => acknowledged.get_mut(id).expect("told before").succeeded = true,
                ["lost", id] => return Some(format!("job {id}, at cut {round}")),
                _ => panic!("told {line:?}"),
            }
        }
        let open = acknowledged.values().filter(|job| !job.succeeded).count();
        unfinished += open;
        println!("round {round}: {} acknowledged so far, {open} of them cut off", acknowledged.len());
    }
    println!("{rounds} power cuts, {} jobs acknowledged, {unfinished} unfinished at a cut, 0 lost", acknowledged.len());
    assert!(acknowledged.len() >= rounds, "the load was too little to show anything");
    None
}

fn expected() -> BTreeMap<String, Acknowledged> {
    let text = std::fs::read_to_string(std::env::var("JOBS").unwrap()).unwrap();
    let job = |line: &str| {
        let parts: Vec<&str> = line.split(' ').collect();
        let [share, requested] = [1, 2].map(|at| parts[at].parse::<u64>().unwrap());
        let share = u32::try_from(share).unwrap();
        (parts[0].to_owned(), Acknowledged { share, requested, succeeded: parts[3] == "true" })
    };
    text.lines().map(job).collect()
}

/// Looks at what the rounds before have left, then loads growd until its moment has come.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs on a lab node, which the other test boots"]
async fn in_the_lab_a_load() {
    lab::require();
    let first = std::env::var("ROUND").unwrap() == "0";
    let moment = std::env::var("MOMENT").unwrap();
    let expected = expected();
    let make = if first { Filesystem::make } else { Filesystem::left_behind };
    let xfs = make(Kind::Xfs, "ubda", PRJQUOTA);
    let ext4 = make(Kind::Ext4, "ubdb", PRJQUOTA);
    let state = make(Kind::Xfs, "ubdd", "defaults");
    if first {
        xfs.create_share(&share(XFS_QUOTA), project(XFS_QUOTA), STEP);
        ext4.create_share(&share(EXT4_QUOTA), project(EXT4_QUOTA), STEP);
    }
    volumes(first);
    if first {
        lab::run("sync", &[]);
    }
    let size = |n: u32| match n {
        XFS_QUOTA => xfs.hard_limit(project(n)),
        EXT4_QUOTA => ext4.hard_limit(project(n)),
        _ => size_of_volume(n),
    };
    // Once for all jobs: the tools that tell it take longer than growd does.
    let sizes = || BTreeMap::from(SHARES.map(|n| (n, size(n))));
    let before = sizes();
    for job in expected.values().filter(|job| job.succeeded) {
        assert!(before[&job.share] >= job.requested, "before growd starts, {job:?}: {before:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    let preload: String;
    let mut environment = Vec::new();
    if std::env::var("CONTROL").unwrap() == "yes" {
        let config = Daemon::configure(state.path(), &config(&xfs, &ext4));
        if !first && let Some(id) = lost(&config, &expected) {
            tell(&format!("lost {id}"));
            cut();
        }
        preload = without_fdatasync(dir.path()).display().to_string();
        environment.push(("LD_PRELOAD", preload.as_str()));
    }
    let daemon = Daemon::start_with(state.path(), &config(&xfs, &ext4), &environment).await;
    let clients = daemon.clients().await;
    let all = clients.all_jobs().await;
    for (id, then) in &expected {
        let found = all.get(id).unwrap_or_else(|| panic!("lost: {id} {then:?}"));
        assert_eq!((found.share_id.as_str(), found.requested_size_bytes), (&*share(then.share), then.requested));
        assert!(!then.succeeded || found.state() == JobState::Succeeded, "{found:?}");
    }
    // Among them may be one that was accepted and whose caller was not told any more.
    for job in all.values().filter(|job| job.state() != JobState::Succeeded) {
        let ended = clients.end_of(&job.job_id).await;
        assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
    }
    // Nothing was there to be extended at first, and the control's load has to begin soon after growd.
    let after = if first { before.clone() } else { sizes() };
    assert!(SHARES.iter().all(|n| after[n] >= before[n]), "one has shrunk: {before:?} {after:?}");
    for then in expected.values() {
        assert!(after[&then.share] >= then.requested, "{then:?}: {after:?}");
    }
    if let Ok(moment) = moment.parse() {
        let (acknowledged, first) = sync_channel(1);
        let moment = std::thread::spawn(move || {
            // From the first acknowledgement on: a busy machine needs its time to come so far.
            let _ = first.recv();
            std::thread::sleep(Duration::from_millis(moment));
            cut();
        });
        join_all(SHARES.map(|n| load(&clients, n, after[&n], acknowledged.clone()))).await;
        drop(acknowledged);
        moment.join().unwrap();
    }
}

/// A job that is not in the store any more. As a rule none is: that an export shows nothing tells so only when growd has
/// counted as many jobs, or says what is wrong with the store.
fn lost<'a>(config: &Path, expected: &'a BTreeMap<String, Acknowledged>) -> Option<&'a String> {
    let store = |command: &str| {
        let growd = Command::new(env!("CARGO_BIN_EXE_growd")).args(["store", command, "--config"]).arg(config).output();
        let output = growd.unwrap();
        (output.status.success(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()))
    };
    let (whole, [readable, problem]) = store("export");
    let (_, [counted, _]) = store("verify");
    let all_of_it = whole && counted.starts_with(&format!("{} jobs, ", readable.lines().count()));
    let broken = ["is damaged", "went back in time", "the export is not complete"];
    assert!(all_of_it || broken.iter().any(|what| problem.contains(what)), "{readable}{problem}{counted}");
    expected.keys().find(|id| !readable.contains(id.as_str()))
}

/// Extends a share again and again.
async fn load(clients: &Clients, n: u32, mut size: u64, acknowledged: SyncSender<()>) {
    loop {
        size = size.next_multiple_of(STEP) + STEP;
        let job = match clients.extend(&share(n), size).await {
            Ok(job) => job,
            // After many rounds a pool is used up; the shares of the others go on.
            Err(refusal) => return assert_refused(&refusal, "POOL_FULL"),
        };
        tell(&format!("accepted {} {n} {size}", job.job_id));
        let _ = acknowledged.try_send(());
        let ended = clients.end_of(&job.job_id).await;
        assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
        tell(&format!("succeeded {}", job.job_id));
        size = size.max(ended.size_after_bytes.unwrap());
    }
}

fn volume(n: u32) -> String {
    format!("{}-{}", if n == THICK_XFS { "thick" } else { "thin" }, share(n))
}

fn mount_point(n: u32) -> String {
    format!("/mnt/volume-{n}")
}

/// Makes the volumes, or finds them as the boot of a node does.
fn volumes(first: bool) {
    let sh = |script: String| lab::run("/bin/sh", &["-ec", &script]);
    let (thick, thin) = (volume(THICK_XFS), volume(THIN_EXT4));
    if first {
        sh(format!(
            "vgcreate -q -y -s 4m vg0 /dev/ubdc
             lvcreate -q -y -n {thick} -L 512m vg0 && mkfs.xfs -q /dev/vg0/{thick}
             lvcreate -q -y --type thin-pool -n thin -L 1g vg0
             lvcreate -q -y -n {thin} -V 512m --thinpool thin vg0 && mkfs.ext4 -q /dev/vg0/{thin}"
        ));
    } else {
        sh("vgchange -q -ay vg0".to_owned());
    }
    for n in [THICK_XFS, THIN_EXT4] {
        sh(format!("mkdir {0} && mount /dev/vg0/{1} {0}", mount_point(n), volume(n)));
    }
    if !first {
        // An XFS that has recovered a growth from its log may not grow further before it is mounted again: see docs/pools.md.
        sh(format!("umount {0} && mount /dev/vg0/{1} {0}", mount_point(THICK_XFS), volume(THICK_XFS)));
    }
}

/// What the users of a volume have, in bytes: the device or its file system, whichever is less.
fn size_of_volume(n: u32) -> u64 {
    let (node, place) = (format!("/dev/vg0/{}", volume(n)), mount_point(n));
    let device: u64 = lab::run("blockdev", &["--getsize64", &node]).trim().parse().unwrap();
    let kind = if n == THICK_XFS { "xfs" } else { "ext4" };
    device.min(size_by_tool(kind, Path::new(&node), Path::new(&place)))
}

fn config(xfs: &Filesystem, ext4: &Filesystem) -> String {
    let quota = |name: &str, filesystem: &Filesystem| {
        let path = filesystem.path().display();
        format!(
            "[[pool]]\nname = \"{name}\"\ndriver = \"project-quota\"\npath = \"{path}/{{share_id}}\"\novercommit = 1000\n"
        )
    };
    let lvm = |name: &str, more: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ndriver = \"lvm\"\nvolume_group = \"vg0\"\n{more}\n\
             volume = \"{name}-{{share_id}}\"\nallow_any_growth = true\n"
        )
    };
    [quota("xfs", xfs), quota("ext4", ext4), lvm("thick", ""), lvm("thin", "thin_pool = \"thin\"\novercommit = 4")]
        .concat()
}
