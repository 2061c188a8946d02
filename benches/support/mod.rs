//! What every benchmark measures and reports with: series of timed calls, rounds, and a report in Markdown.
//!
//! Whatever is compared runs in rounds, one beside the other, and is reported as a ratio: the machine's noise then hits
//! all alike, and a ratio means more than a figure of somebody else's machine.

// Every benchmark compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]
// A benchmark whose subject does not do what is measured has no figures: it panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

pub mod growd;

/// Whether `cargo bench` started this process. `cargo test --benches` starts benchmarks too, and they take minutes.
pub fn asked_for() -> bool {
    let asked = std::env::args().any(|argument| argument == "--bench");
    if !asked {
        println!("not measured: start it with cargo bench");
    }
    asked
}

/// Calls `run` with each contender once in a round. Each round begins with another contender, so that none always comes
/// after the same one.
pub fn rounds<C>(contenders: &mut [C], rounds: usize, mut run: impl FnMut(&mut C)) {
    let count = contenders.len();
    for round in 0..rounds {
        for place in 0..count {
            run(&mut contenders[(round + place) % count]);
        }
    }
}

/// How long each call of one contender took, round by round.
#[derive(Default)]
pub struct Series {
    rounds: Vec<Round>,
}

struct Round {
    took: Vec<Duration>,
    /// From the first call's begin to the last one's end.
    wall: Duration,
}

impl Series {
    /// Adds a round: what each call took, and the whole round.
    pub fn add(&mut self, took: Vec<Duration>, wall: Duration) {
        assert!(!took.is_empty(), "a round without a call");
        self.rounds.push(Round { took, wall });
    }

    /// The smallest duration that is at least as long as `percent` of all calls (nearest rank).
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut all: Vec<Duration> = self.rounds.iter().flat_map(|round| &round.took).copied().collect();
        all.sort_unstable();
        all[(all.len() * percent).div_ceil(100).clamp(1, all.len()) - 1]
    }

    pub fn calls(&self) -> usize {
        self.rounds.iter().map(|round| round.took.len()).sum()
    }

    /// Calls per second, the median of the rounds.
    pub fn throughput(&self) -> f64 {
        median(self.rounds.iter().map(Round::throughput).collect())
    }

    /// This throughput by that of another series, as the median of the rounds, each compared with the other's in the
    /// same round: a disturbance that lasts longer than a round then does not count.
    pub fn throughput_by(&self, other: &Self) -> f64 {
        assert_eq!(self.rounds.len(), other.rounds.len(), "series of different rounds");
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(pairs.map(|(mine, theirs)| mine.throughput() / theirs.throughput()).collect())
    }
}

impl Round {
    fn throughput(&self) -> f64 {
        self.took.len() as f64 / self.wall.as_secs_f64()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}

/// Milliseconds with three digits that mean something.
pub fn milliseconds(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    let digits = match ms {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{ms:.digits$} ms")
}

/// What a benchmark prints, and leaves in `target/bench/` as Markdown.
pub struct Report {
    name: &'static str,
    text: String,
}

impl Report {
    pub fn new(name: &'static str, title: &str) -> Self {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut report = Self { name, text: format!("## {title}\n") };
        report.note(&format!("{}, commit {}, {}", &date[..10], commit(), machine()));
        report
    }

    pub fn note(&mut self, text: &str) {
        writeln!(self.text, "\n{text}").unwrap();
    }

    /// Adds a table; its first row is the header, and every column but the first is of numbers.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        self.text.push('\n');
        for (index, row) in rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let text = if column == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
                self.text.push_str(&text);
            }
            self.text.push_str("|\n");
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let end = if column == 0 { '-' } else { ':' };
                    write!(self.text, "|{}{end}", "-".repeat(width + 1)).unwrap();
                }
                self.text.push_str("|\n");
            }
        }
    }

    pub fn publish(self) {
        println!("\n{}", self.text);
        // Cargo's folder for what tests and benchmarks write is target/tmp.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{}.md", self.name)), self.text).unwrap();
    }
}

/// The commit that is checked out; `+` when files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|text| !text.is_empty());
    if changed { commit + "+" } else { commit }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let lines = || info.lines().filter_map(|line| line.split_once(':'));
    let model = lines().find(|(key, _)| key.trim() == "model name").map_or("unknown", |(_, value)| value.trim());
    let cpus = lines().filter(|(key, _)| key.trim() == "processor").count();
    let kernel = nix::sys::utsname::uname().unwrap();
    format!("{cpus} CPU ({model}), Linux {}", kernel.release().to_string_lossy())
}
