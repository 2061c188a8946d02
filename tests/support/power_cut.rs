//! Power cuts: a test on the host boots labs one after the other on the same disks, and kills each in the middle.
//!
//! What runs inside are the ignored tests of the same binary. They tell the host what it must know, and when to cut.
//! The kill takes the guest's memory with it, so what its kernel had not yet written is gone. Of what was written
//! nothing is lost, even if it was not flushed: these disks have no cache of their own.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const TOLD: &str = "told: ";
const CUT: &str = "cut the power now";

/// Disks that outlive the labs that are booted on them.
pub struct Disks(TempDir);

impl Disks {
    pub fn blank() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs an ignored test in a lab until it asks for the cut, which it gets at once. Returns what it told.
    pub fn run_until_cut(&self, part: &str, environment: &[(&str, &str)]) -> Vec<String> {
        let mut lab = self.boot(part, environment);
        let (told, cut) = listen(&mut lab);
        assert!(cut, "{part} ended before its power was cut");
        kill(Pid::from_raw(lab.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        lab.wait().unwrap();
        told
    }

    /// Runs an ignored test in a lab to its end, which must be a good one.
    pub fn run(&self, part: &str, environment: &[(&str, &str)]) {
        let mut lab = self.boot(part, environment);
        let (_, cut) = listen(&mut lab);
        assert!(lab.wait().unwrap().success() && !cut, "{part} failed");
    }

    fn boot(&self, part: &str, environment: &[(&str, &str)]) -> Child {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/run"))
            .arg("--lab")
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", part])
            .env("GROWD_LAB_DISKS", self.0.path())
            .env("GROWD_LAB_TIMEOUT", "900")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// What a lab tells until it asks for the cut or ends, and whether it asks.
fn listen(lab: &mut Child) -> (Vec<String>, bool) {
    let (mut told, mut begun) = (Vec::new(), false);
    for line in BufReader::new(lab.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        println!("{line}");
        begun |= line.contains("running 1 test");
        match line.split_once(TOLD) {
            Some((_, CUT)) => return (told, true),
            Some((_, text)) => told.push(text.to_owned()),
            None => {}
        }
    }
    // A name that no test has is an end as good as any to libtest.
    assert!(begun, "no test has run");
    (told, false)
}

/// Called in the lab: gives the host a line of text.
pub fn tell(text: &str) {
    println!("{TOLD}{text}");
}

/// Called in the lab: the last thing that happens there.
pub fn cut() -> ! {
    tell(CUT);
    loop {
        std::thread::park();
    }
}
