//! Series of timed calls, what follows from them, and the report.
//!
//! Whatever is compared runs in rounds, one beside the other, and is reported as a ratio: the machine's noise then hits
//! all alike, and a ratio means more than a figure of somebody else's machine.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::chart::{self, Point};

/// Calls that must have taken longer than a percentile that is shown.
const BEYOND: f64 = 10.0;

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
    /// Sorted.
    took: Vec<Duration>,
    /// From the first call's begin to the last one's end.
    wall: Duration,
}

impl Series {
    /// Adds a round: what each call took, and the whole round.
    pub fn add(&mut self, mut took: Vec<Duration>, wall: Duration) {
        assert!(!took.is_empty(), "a round without a call");
        took.sort_unstable();
        self.rounds.push(Round { took, wall });
    }

    /// The smallest duration that is at least as long as `percent` of all calls (nearest rank).
    pub fn percentile(&self, percent: f64) -> Duration {
        let mut all: Vec<Duration> = self.rounds.iter().flat_map(|round| &round.took).copied().collect();
        all.sort_unstable();
        nearest_rank(&all, percent)
    }

    /// Whether enough calls took longer than that for it to be no accident of a few.
    fn tells(&self, percent: f64) -> bool {
        self.calls() as f64 * (100.0 - percent) / 100.0 >= BEYOND
    }

    /// A percentile above the median for a table.
    pub fn tail(&self, percent: f64) -> String {
        if self.tells(percent) { milliseconds(self.percentile(percent)) } else { "-".to_owned() }
    }

    pub fn median(&self) -> Duration {
        self.percentile(50.0)
    }

    pub fn calls(&self) -> usize {
        self.rounds.iter().map(|round| round.took.len()).sum()
    }

    /// Calls per second, the median of the rounds.
    pub fn throughput(&self) -> f64 {
        Spread::of(self.rounds.iter().map(Round::throughput).collect()).median
    }

    /// This throughput by that of another series, each round by the other's same one: a disturbance that lasts longer than
    /// a round then does not count.
    pub fn throughput_by(&self, other: &Self) -> Spread {
        self.by(other, Round::throughput)
    }

    /// The median duration of a call by that of another series, each round by the other's same one.
    pub fn duration_by(&self, other: &Self) -> Spread {
        self.by(other, |round| nearest_rank(&round.took, 50.0).as_secs_f64())
    }

    fn by(&self, other: &Self, measure: impl Fn(&Round) -> f64) -> Spread {
        assert_eq!(self.rounds.len(), other.rounds.len(), "series of different rounds");
        let pairs = self.rounds.iter().zip(&other.rounds);
        Spread::of(pairs.map(|(mine, theirs)| measure(mine) / measure(theirs)).collect())
    }
}

impl Round {
    fn throughput(&self) -> f64 {
        self.took.len() as f64 / self.wall.as_secs_f64()
    }
}

fn nearest_rank(sorted: &[Duration], percent: f64) -> Duration {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// A median, and the quartiles on both sides of it.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (values.len() - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Self { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    /// What was measured once.
    pub fn single(value: f64) -> Self {
        Self { median: value, low: value, high: value }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Told because it explains another one.
    None,
}

/// One line of the table of ratios.
#[derive(Serialize, Deserialize)]
pub struct Row {
    /// What is measured, with how many clients or of what size.
    pub path: String,
    pub ours: String,
    /// What it is compared with, and that one's figure.
    pub baseline: String,
    /// The ratio; what has no baseline has its figure here.
    pub ratio: Spread,
    pub target: Target,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    rows: Vec<Row>,
    /// Sections with the tables behind the ratios, in Markdown.
    details: String,
    points: Vec<Point>,
}

impl Results {
    /// Adds a line to the table of ratios, and shows it.
    pub fn row(&mut self, row: Row) {
        eprintln!("{}", cells(&row).join(" | "));
        self.rows.push(row);
    }

    /// Adds what the picture shows: the percentiles of a series.
    pub fn latency(&mut self, line: &str, series: &Series) {
        for percent in chart::PERCENTILES.into_iter().filter(|percent| series.tells(*percent)) {
            let y = series.percentile(percent).as_secs_f64() * 1e3;
            self.points.push(Point { chart: chart::LATENCY, line: line.to_owned(), x: percent, y });
        }
    }

    /// Adds what the picture shows: the calls per second of so many clients.
    pub fn throughput(&mut self, line: &str, clients: usize, series: &Series) {
        let y = series.throughput();
        self.points.push(Point { chart: chart::THROUGHPUT, line: line.to_owned(), x: clients as f64, y });
    }

    /// Adds what the picture shows: what one call or start takes when there are so many of something.
    pub fn cost(&mut self, line: &str, size: usize, took: Duration) {
        let y = took.as_secs_f64() * 1e3;
        self.points.push(Point { chart: chart::COST, line: line.to_owned(), x: size as f64, y });
    }

    /// Begins a section of details.
    pub fn heading(&mut self, title: &str) {
        write!(self.details, "\n### {title}\n").unwrap();
    }

    pub fn note(&mut self, text: &str) {
        writeln!(self.details, "\n{text}").unwrap();
    }

    /// Adds a table; its first row is the header, and every column but the first is of numbers.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        self.details.push_str(&table(rows));
    }

    pub fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.details.push_str(&other.details);
        self.points.extend(other.points);
    }

    /// Prints the report and leaves it in a folder: speed.md and speed.svg.
    pub fn publish(self, folder: &Path) {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let header = ["path", "growd", "baseline", "ratio (quartiles)", "target", ""].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = std::iter::once(header).chain(self.rows.iter().map(cells)).collect();
        let text = format!(
            "## Speed\n\n{}, commit {}, {}\n{}{}",
            &date[..10],
            commit(),
            machine(),
            table(&rows),
            self.details
        );
        println!("\n{text}");
        std::fs::write(folder.join("speed.md"), text).unwrap();
        chart::draw(&folder.join("speed.svg"), &self.points);
    }
}

fn cells(row: &Row) -> Vec<String> {
    let (target, met) = match row.target {
        Target::AtLeast(least) => (format!("≥ {least}"), row.ratio.median >= least),
        Target::AtMost(most) => (format!("≤ {most}"), row.ratio.median <= most),
        Target::None => (String::new(), true),
    };
    let Spread { median, low, high } = row.ratio;
    let quartiles = if low < high { format!(" ({}–{})", figure(low), figure(high)) } else { String::new() };
    let missed = if met { "" } else { "missed" };
    let ratio = format!("{}{quartiles}", figure(median));
    vec![row.path.clone(), row.ours.clone(), row.baseline.clone(), ratio, target, missed.to_owned()]
}

/// Three digits that mean something.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

pub fn milliseconds(duration: Duration) -> String {
    format!("{} ms", figure(duration.as_secs_f64() * 1e3))
}

fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::from("\n");
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text.push_str(&if column == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") });
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let end = if column == 0 { '-' } else { ':' };
                write!(text, "|{}{end}", "-".repeat(width + 1)).unwrap();
            }
            text.push_str("|\n");
        }
    }
    text
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
