//! growd against the limits of disk and wire and against what else does its work, in one run.
//!
//! `cargo bench` measures everything, `cargo bench -- SECTION...` a part. What needs quotas and volumes runs in the lab,
//! which this program boots with itself in it; what needs none runs here first. The results are in target/bench.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing benchmark panics")]

mod accept;
mod at_rest;
mod baselines;
mod chart;
mod get_job;
mod ground;
mod growd;
mod http;
#[path = "../../tests/support/mod.rs"]
mod lab_node;
mod quota;
mod results;
mod scale;
mod shares;
mod start_up;
mod stored;
#[path = "../../tests/support/venv.rs"]
mod venv;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::Command;

use results::Results;

/// A part of the measurements, by its name.
type Section = (&'static str, fn(&mut Results));

const HERE: [Section; 9] = [
    ("get_job", get_job::run),
    ("watchers", scale::watchers),
    ("lists", scale::lists),
    ("start_up", start_up::run),
    ("disk", at_rest::disk),
    ("idle", at_rest::idle),
    ("binary", at_rest::binary),
    ("accept", accept::here),
    ("shares", shares::here),
];
const IN_LAB: [Section; 5] = [
    ("accept", accept::in_lab),
    ("quota", quota::run),
    ("volumes", volumes::run),
    ("shares", shares::in_lab),
    ("growapi", http::run),
];

/// The first argument of this program in the lab; where its results go follows, and then the sections.
const LAB_PART: &str = "lab-part";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [LAB_PART, file, ref sections @ ..] => {
            lab_node::lab::require();
            std::fs::write(file, serde_json::to_string(&measure(&IN_LAB, sections)).unwrap()).unwrap();
        }
        [baselines::SERVE, kind, dir] => baselines::serve(kind, Path::new(dir)),
        [start_up::READ, jobs] => start_up::read(Path::new(jobs)),
        // `cargo test --benches` starts benchmarks too, and they take minutes.
        _ if !words.contains(&"--bench") => println!("not measured: start it with cargo bench"),
        _ => {
            let sections: Vec<&str> = words.into_iter().filter(|word| !word.starts_with('-')).collect();
            for section in &sections {
                let known = HERE.iter().chain(&IN_LAB).any(|(name, _)| name == section);
                assert!(known, "{section} is not measured here");
            }
            let mut results = measure(&HERE, &sections);
            results.extend(in_lab(&sections));
            results.publish(&folder());
        }
    }
}

/// What was asked for of these, which is all when nothing was.
fn chosen<'a>(of: &'a [Section], sections: &'a [&str]) -> impl Iterator<Item = &'a Section> {
    of.iter().filter(move |(name, _)| sections.is_empty() || sections.contains(name))
}

fn measure(of: &[Section], sections: &[&str]) -> Results {
    let mut results = Results::default();
    for (name, run) in chosen(of, sections) {
        eprintln!("== {name}");
        run(&mut results);
    }
    results
}

/// Measures in the lab what belongs there.
fn in_lab(sections: &[&str]) -> Results {
    if chosen(&IN_LAB, sections).next().is_none() {
        return Results::default();
    }
    // A lab node, which has no network, finds it on the disk.
    drop(venv::program("python"));
    let file = folder().join("lab.json");
    let status = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/run"))
        .arg("--lab")
        .arg(std::env::current_exe().unwrap())
        .arg(LAB_PART)
        .arg(&file)
        .args(sections)
        .env("GROWD_LAB_TIMEOUT", "7200")
        .status()
        .unwrap();
    assert!(status.success(), "the part in the lab: {status}");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Where reports go: cargo's folder for what benchmarks write is target/tmp.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
