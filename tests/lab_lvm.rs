//! Shares on logical volumes, through the daemon: grown while they are mounted, refused with a reason, finished after a
//! crash.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::path::Path;

use daemon::Daemon;
use growd::wire::proto::JobState;
use support::lab;

const SHARE: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
const MIB: u64 = 1 << 20;

fn shell(script: &str) -> String {
    lab::run("/bin/sh", &["-ec", script])
}

#[tokio::test]
async fn a_thick_volume_with_xfs_grows_in_two_steps() {
    lab::require();
    let volume = format!("share-{SHARE}");
    shell(&format!("vgcreate -q vg0 /dev/ubda && lvcreate -qy -L 400m -n {volume} vg0"));
    shell(&format!("mkfs.xfs -q /dev/vg0/{volume} && mkdir -p /mnt/a && mount /dev/vg0/{volume} /mnt/a"));
    let pool = "[[pool]]\nname = \"vols\"\ndriver = \"lvm\"\nvolume_group = \"vg0\"\nvolume = \"share-{share_id}\"\n";
    fs::create_dir_all("/run/growd-lvm").unwrap();
    let daemon = Daemon::start(Path::new("/run/growd-lvm"), pool).await;
    let clients = daemon.clients().await;
    for size in [900, 901, 1500] {
        let job = clients.extend(SHARE, size * MIB).await.unwrap();
        let job = clients.end_of(&job.job_id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        assert!(job.size_after_bytes() >= size * MIB);
        let steps: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(steps, ["grow_volume", "grow_filesystem", "verify"]);
    }
}
