//! A store that is not as it was left: refused with the commands that help, changed in nothing, told apart by
//! `growd store verify`, saved by `export` and replaced after `set-aside`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store;

#[path = "support/seed.rs"]
mod seed;

use std::collections::BTreeSet;
use std::path::Path;

use growd::model::{Job, JobState};
use seed::{Random, rounds};
use store::*;

/// A store whose records are below sled's snapshot, as they are after a restart.
async fn settled(home: &Home) -> Vec<Job> {
    let jobs: Vec<Job> =
        [JobState::Succeeded, JobState::Failed, JobState::Queued].into_iter().cycle().take(12).map(job).collect();
    home.store(&jobs).await;
    home.store(&[]).await;
    jobs
}

/// Runs growd on what a test has done to a store: it must refuse with this, name what helps, and change nothing.
fn assert_refused(home: &Home, expected: &str) {
    let before = home.files();
    for _ in 0..2 {
        let refused = home.growd(&["run"]);
        let message = err(&refused);
        assert_eq!(refused.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "expected {expected:?}: {message}");
        for help in ["growd store export", "growd store set-aside", "has deleted nothing"] {
            assert!(message.contains(help), "{help:?} is missing: {message}");
        }
        assert_unchanged(home, &before, "run");
    }
    let verified = home.growd(&["store", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    assert_unchanged(home, &before, "verify");
}

fn assert_unchanged(home: &Home, before: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>, after: &str) {
    let now = home.files();
    let names = |files: &std::collections::BTreeMap<_, _>| files.keys().cloned().collect::<Vec<std::path::PathBuf>>();
    assert_eq!(names(before), names(&now), "{after}");
    for (path, bytes) in before {
        assert!(now[path] == *bytes, "{after} changed {}", path.display());
    }
}

/// Writes into the database behind growd's back.
async fn with_database(home: &Home, change: impl FnOnce(&sled::Db)) {
    let db = sled::open(home.state().join("jobs")).unwrap();
    change(&db);
    db.flush().unwrap();
    drop(db);
    until_free(&home.state().join("jobs/db")).await;
}

fn key_of(job: &Job) -> Vec<u8> {
    [b"j", job.id.as_uuid().as_bytes().as_slice()].concat()
}

/// Where records lie in a log.
fn places(log: &[u8]) -> Vec<usize> {
    let parts = log.windows(CALLER.len()).enumerate();
    let found: Vec<usize> = parts.filter(|(_, part)| *part == CALLER.as_bytes()).map(|(at, _)| at).collect();
    assert!(!found.is_empty(), "no record is found in the log: this test shows nothing");
    found
}

/// The lines of an export, each of which must be JSON, as ids of jobs.
fn exported(text: &str) -> BTreeSet<String> {
    let id = |line: &str| {
        let job: serde_json::Value = serde_json::from_str(line).unwrap();
        job["job_id"].as_str().unwrap().to_owned()
    };
    text.lines().map(id).collect()
}

fn ids<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> BTreeSet<String> {
    jobs.into_iter().map(|job| job.id.to_string()).collect()
}

#[tokio::test]
async fn a_store_that_is_right_is_verified_and_exported_and_not_changed() {
    let home = Home::new();
    let jobs = settled(&home).await;
    let before = home.files();
    let verified = home.growd(&["store", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(out(&verified).starts_with("12 jobs, 4 of them unfinished; "), "{verified:?}");
    let export = home.growd(&["store", "export"]);
    assert!(export.status.success(), "{export:?}");
    assert_eq!(exported(&out(&export)), ids(&jobs));
    assert_unchanged(&home, &before, "a look");
}

#[tokio::test]
async fn a_record_with_a_flipped_bit_is_reported_and_the_others_are_exported() {
    let home = Home::new();
    let jobs = settled(&home).await;
    with_database(&home, |db| {
        let mut value = db.get(key_of(&jobs[4])).unwrap().unwrap().to_vec();
        value[40] ^= 1;
        db.insert(key_of(&jobs[4]), value).unwrap();
    })
    .await;
    assert_refused(&home, &format!("is damaged: the record of job {} is bad", jobs[4].id));
    let export = home.growd(&["store", "export"]);
    assert_eq!(export.status.code(), Some(1), "{export:?}");
    assert!(err(&export).contains("the export is not complete; 1 problems"), "{export:?}");
    let others = jobs.iter().enumerate().filter(|(n, _)| *n != 4).map(|(_, job)| job);
    assert_eq!(exported(&out(&export)), ids(others));
}

#[tokio::test]
async fn a_flipped_byte_in_the_file_is_refused() {
    let home = Home::new();
    settled(&home).await;
    let db = home.state().join("jobs/db");
    let mut bytes = std::fs::read(&db).unwrap();
    places(&bytes).into_iter().for_each(|at| bytes[at] ^= 0x20);
    std::fs::write(&db, bytes).unwrap();
    assert_refused(&home, "is damaged: the file db is damaged");
    // Nothing of it can be read, which must not look like an empty export.
    let export = home.growd(&["store", "export"]);
    assert_eq!(export.status.code(), Some(1), "{export:?}");
    for look in [home.growd(&["store", "verify"]), export] {
        assert!(err(&look).contains(": the file db is damaged"), "{}", err(&look));
    }
}

/// sled does not open a database whose log is damaged within what its snapshot covers, if that is in the last segment.
#[tokio::test]
async fn one_flipped_bit_leaves_jobs_to_export() {
    let home = Home::new();
    let before = settled(&home).await;
    let after: Vec<Job> = before.iter().map(|job| Job { revision: job.revision + 1, ..job.clone() }).collect();
    home.store(&after).await;
    home.store(&[]).await;
    let line = |job: &Job| growd::wire::json::to_json(&growd::wire::job_message(job.clone())).unwrap();
    let known: BTreeSet<String> = before.iter().chain(&after).map(line).collect();
    let path = home.state().join("jobs/db");
    let log = std::fs::read(&path).unwrap();
    // Behind the second record, since before the damage there must be something to read, and up to the last.
    let places = places(&log);
    let (first, behind) = (places[2], places[places.len() - 1]);
    let mut random = Random::from_environment();
    for _ in 0..rounds(10) {
        let (at, bit) = (first + random.below(behind - first), random.below(8));
        println!("bit {bit} at {at}");
        let mut damaged = log.clone();
        damaged[at] ^= 1 << bit;
        std::fs::write(&path, damaged).unwrap();
        assert_refused(&home, "is damaged: the file db is damaged");
        let [export, verified] = ["export", "verify"].map(|command| home.growd(&["store", command]));
        let exported: Vec<String> = out(&export).lines().map(str::to_owned).collect();
        assert!(!exported.is_empty() && exported.iter().all(|line| known.contains(line)), "{export:?}");
        assert!(out(&verified).starts_with(&format!("{} jobs, ", exported.len())), "{verified:?}");
        let told = format!("the file db is damaged; {} jobs were read all the same", exported.len());
        for look in [export, verified] {
            assert_eq!(look.status.code(), Some(1), "{look:?}");
            assert!(err(&look).contains(&told), "{told}: {look:?}");
        }
    }
}

/// What is behind it is there all the same, though sled comes to it only when it is asked for it.
#[tokio::test]
async fn a_page_that_is_lost_ends_neither_a_look_nor_a_start() {
    let home = Home::new();
    let mut jobs: Vec<Job> = (0..2000).map(|_| job(JobState::Succeeded)).collect();
    jobs.sort_unstable_by_key(|job| job.id);
    home.store_in_groups(100, &jobs).await;
    home.store(&[]).await;
    let path = home.state().join("jobs/db");
    let mut log = std::fs::read(&path).unwrap();
    let lost = jobs[1000].request_id.unwrap();
    let parts = log.windows(16).enumerate();
    let places: Vec<usize> = parts.filter(|(_, part)| part == lost.as_uuid().as_bytes()).map(|(at, _)| at).collect();
    places.iter().for_each(|at| log[*at] ^= 1);
    std::fs::write(&path, log).unwrap();

    assert_refused(&home, "is damaged: a part of the database cannot be read: the file db is damaged at offset ");
    let export = home.growd(&["store", "export"]);
    assert_eq!(export.status.code(), Some(1), "{}", err(&export));
    let there = exported(&out(&export));
    let missing: Vec<usize> = (0..jobs.len()).filter(|n| !there.contains(&jobs[*n].id.to_string())).collect();
    assert!(missing.contains(&1000) && missing.len() < 100, "{missing:?}: {}", err(&export));
    assert_eq!(
        missing[missing.len() - 1] - missing[0] + 1,
        missing.len(),
        "more than one page is missing: {missing:?}"
    );
}

#[tokio::test]
async fn a_store_that_is_gone_is_told_alike_by_a_start_and_by_a_look() {
    let home = Home::new();
    settled(&home).await;
    let jobs = home.state().join("jobs");
    std::fs::remove_dir_all(&jobs).unwrap();
    let gone = format!("is damaged: {} is gone; it held 1", jobs.display());
    assert_refused(&home, &gone);
    for command in ["verify", "export"] {
        let look = home.growd(&["store", command]);
        assert!(err(&look).contains(&gone) && err(&look).contains("growd store set-aside"), "{}", err(&look));
    }
    std::fs::remove_file(home.state().join("jobs.mark")).unwrap();
    for command in ["verify", "export"] {
        let look = home.growd(&["store", command]);
        assert_eq!(look.status.code(), Some(1), "{look:?}");
        assert!(err(&look).contains(&format!("there is no job store in {}", home.state().display())), "{look:?}");
    }
}

#[tokio::test]
async fn missing_and_shortened_files_are_refused() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 4] = [
        ("no database", |state| std::fs::remove_dir_all(state.join("jobs")).unwrap(), "is gone"),
        ("no log", |state| std::fs::remove_file(state.join("jobs/db")).unwrap(), "job store in"),
        ("a log that ends within its records", |state| cut(&state.join("jobs/db")), "job store in"),
        ("half a snapshot", |state| shorten(&snapshot(state)), "job store in"),
    ];
    for (name, harm, expected) in harms {
        println!("{name}");
        let home = Home::new();
        settled(&home).await;
        harm(&home.state());
        assert_refused(&home, expected);
    }
}

/// Cuts the log off in the middle of the records: what follows the last one is only room for more.
fn cut(log: &Path) {
    let found = places(&std::fs::read(log).unwrap());
    let length = u64::try_from(found[found.len() / 2]).unwrap();
    std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(length).unwrap();
}

fn shorten(file: &Path) {
    let length = std::fs::metadata(file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

fn snapshot(state: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(state.join("jobs")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).max().unwrap()
}

#[tokio::test]
async fn a_store_of_another_version_is_refused_as_such() {
    let home = Home::new();
    let jobs = settled(&home).await;
    with_database(&home, |db| write_other_format(db, jobs[0].id)).await;
    assert_refused(&home, "was written by another version of growd");
}

#[tokio::test]
async fn a_store_that_was_set_back_to_an_older_copy_is_refused() {
    let home = Home::new();
    settled(&home).await;
    let (jobs, older) = (home.state().join("jobs"), home.dir.path().join("older"));
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
        assert!(copied.success());
    };
    copy(&jobs, &older);
    home.store(&[job(JobState::Succeeded)]).await;
    std::fs::remove_dir_all(&jobs).unwrap();
    copy(&older, &jobs);
    assert_refused(&home, "went back in time");
    let verified = home.growd(&["store", "verify"]);
    assert!(err(&verified).contains("had been written"), "{verified:?}");
}

#[tokio::test]
async fn a_store_that_was_set_aside_is_kept_whole_and_an_empty_one_starts() {
    let home = Home::new();
    let jobs = settled(&home).await;
    std::fs::write(home.state().join("jobs.mark"), "rubbish").unwrap();
    assert_refused(&home, "is damaged");
    let export = home.growd(&["store", "export"]);
    assert_eq!((export.status.code(), exported(&out(&export))), (Some(1), ids(&jobs)));
    let before = home.files();
    let aside = home.growd(&["store", "set-aside"]);
    assert!(aside.status.success(), "{aside:?}");
    let text = out(&aside);
    let place = Path::new(text.strip_prefix("the store is in ").unwrap().strip_suffix(" now\n").unwrap());
    for (path, bytes) in &before {
        let moved = place.join(path.strip_prefix(home.state()).unwrap());
        assert!(moved.is_dir() || std::fs::read(&moved).unwrap() == *bytes, "{} was changed", moved.display());
    }
    let again = home.growd(&["store", "set-aside"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(err(&again).contains("there is no job store in"), "{again:?}");

    let (store, unfinished) = open(&home.state(), KEEP_ALL).unwrap();
    assert_eq!((store.kept(), unfinished.len()), (0, 0));
    let new = job(JobState::Succeeded);
    store.commit(vec![new.clone()]).await.unwrap();
    assert_eq!(store.get(new.id).unwrap(), Some(new));
    assert_eq!(store.get(jobs[0].id).unwrap(), None);
    store.close().await;
}
