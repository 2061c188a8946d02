//! Stores with flipped bits, with parts that were zeroed, cut off or exchanged, older copies and records of another
//! version: a store opens with every record right, or is refused with the commands that help.
//!
//! GROWD_ROUNDS says how many stores are damaged; GROWD_SEED damages the same places of the same files again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod store;

#[path = "support/seed.rs"]
mod seed;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use growd::model::{Job, JobId, JobState};
use growd::store::{Store, offline};
use seed::{Random, rounds};
use store::{Home, KEEP_ALL, job, write_other_format};
use tokio::runtime::Runtime;

const THREADS: u64 = 4;

/// A store that is right, and what is known of it.
struct Original {
    name: &'static str,
    home: Home,
    /// An older copy of the database, without its mark.
    older: PathBuf,
    /// Every version of every job that was committed, oldest first.
    versions: BTreeMap<JobId, Vec<Job>>,
    /// How many versions of each job the mark vouches for; damage to later ones may go unnoticed.
    vouched: BTreeMap<JobId, usize>,
}

/// Copies a directory tree without starting a process: at its fork it would take over the lock of a store that another
/// thread looks at.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}

fn next(job: &Job) -> Job {
    let state = if job.state == JobState::Queued { JobState::Running } else { JobState::Succeeded };
    Job { state, revision: job.revision + 1, ..job.clone() }
}

impl Original {
    /// Commits jobs and their changes, over some starts. `settled`: the last start changed nothing, so that all records
    /// are below sled's snapshot. `killed`: the last start was not closed.
    async fn make(name: &'static str, settled: bool, killed: bool) -> Self {
        let home = Home::new();
        let older = home.dir.path().join("older");
        let mut versions = BTreeMap::<JobId, Vec<Job>>::new();
        let mut vouched = BTreeMap::new();
        for start in 0..3 {
            vouched = versions.iter().map(|(id, all)| (*id, all.len())).collect();
            let (store, _) = store::open(&home.state(), KEEP_ALL).unwrap();
            let changed = versions.values().map(|all| next(all.last().unwrap()));
            let jobs: Vec<Job> = changed.chain((0..4).map(|_| job(JobState::Queued))).collect();
            for job in jobs {
                store.commit(vec![job.clone()]).await.unwrap();
                versions.entry(job.id).or_default().push(job);
            }
            if killed && start == 2 {
                copy(&home.state(), &home.dir.path().join("cut-off"));
            }
            store.close().await;
            if start == 1 {
                copy(&home.state().join("jobs"), &older);
            }
        }
        if killed {
            fs::remove_dir_all(home.state()).unwrap();
            fs::rename(home.dir.path().join("cut-off"), home.state()).unwrap();
        } else {
            vouched = versions.iter().map(|(id, all)| (*id, all.len())).collect();
        }
        if settled {
            home.store(&[]).await;
        }
        Self { name, home, older, versions, vouched }
    }

    /// Why a store does not give what was committed.
    fn difference(&self, store: &Store) -> Option<String> {
        let known = self.versions.iter().find_map(|(id, versions)| {
            let found = match store.get(*id) {
                Ok(found) => found,
                Err(error) => return Some(format!("job {id}: {error}")),
            };
            let vouched = self.vouched.get(id).copied().unwrap_or(0);
            let right = match &found {
                Some(found) => versions[vouched.saturating_sub(1)..].contains(found),
                None => vouched == 0,
            };
            (!right).then(|| format!("job {id}, with {vouched} versions of {versions:?}, is {found:?}"))
        });
        let more = || (store.kept() > self.versions.len()).then(|| format!("{} jobs", store.kept()));
        known.or_else(more)
    }
}

fn files(state: &Path) -> Vec<PathBuf> {
    let below = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let all = [below(state), below(&state.join("jobs"))].concat();
    let mut files: Vec<PathBuf> = all.into_iter().filter(|path| path.is_file() && !path.ends_with("lock")).collect();
    files.sort();
    files
}

/// Does one harm to a store. Returns what, and whether it must be noticed.
fn harm(state: &Path, original: &Original, random: &mut Random) -> (String, bool) {
    let files = files(state);
    // The database holds the records: it is what most harm is done to.
    let database = state.join("jobs/db");
    let file = if random.coin() { &database } else { &files[random.below(files.len())] };
    let name = file.strip_prefix(state).unwrap().display();
    let mut bytes = fs::read(file).unwrap();
    let length = bytes.len().max(1);
    let kind = random.below(100);
    let what = match kind {
        0..40 => {
            let flips = if random.coin() { 1 } else { 1 + random.below(64) };
            for _ in 0..flips {
                let (at, bit) = (random.below(length), random.below(8));
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            format!("{flips} bits flipped in {name}")
        }
        40..55 => {
            bytes.truncate(random.below(length));
            format!("{name} cut off at {}", bytes.len())
        }
        55..75 => {
            let (at, most) = (random.below(length), 1 + random.below(8192));
            bytes.iter_mut().skip(at).take(most).for_each(|byte| *byte = 0);
            format!("{most} bytes of {name} zeroed at {at}")
        }
        75..80 => {
            bytes.fill(0);
            format!("all of {name} zeroed")
        }
        80..86 => {
            // Two blocks of a file written to each other's place.
            let size = 512.min(length / 2);
            let (one, two) = (random.below(length - size), random.below(length - size));
            let part = bytes[one..one + size].to_vec();
            bytes.copy_within(two..two + size, one);
            bytes[two..two + size].copy_from_slice(&part);
            format!("{size} bytes of {name} exchanged at {one} and {two}")
        }
        86..92 => {
            let second = &files[random.below(files.len())];
            let taken = fs::read(second).unwrap();
            fs::write(second, &bytes).unwrap();
            bytes = taken;
            format!("{name} and {} exchanged", second.strip_prefix(state).unwrap().display())
        }
        92..96 => {
            fs::remove_file(file).unwrap();
            return (format!("{name} removed"), false);
        }
        96..98 => {
            write_other_format(&sled::open(state.join("jobs")).unwrap(), *original.versions.keys().next().unwrap());
            return ("a record of another version".to_owned(), true);
        }
        _ => {
            fs::remove_dir_all(state.join("jobs")).unwrap();
            copy(&original.older, &state.join("jobs"));
            return ("set back to an older copy".to_owned(), true);
        }
    };
    fs::write(file, bytes).unwrap();
    (what, false)
}

#[derive(Default)]
struct Tally {
    right: usize,
    refused: usize,
    wrong: Vec<String>,
}

/// Opens a damaged store and looks at it, as growd and `growd store verify` do.
fn judge(state: &Path, original: &Original, must_be_noticed: bool, runtime: &Runtime) -> Result<bool, String> {
    let mut unknown = None;
    let verified = offline::verify(state, |job| {
        // What can be exported of a damaged store may be old, but was committed once.
        if !original.versions.get(&job.id).is_some_and(|versions| versions.contains(job)) {
            unknown = Some(format!("a job is exported that never was: {job:?}"));
        }
    });
    if let Some(unknown) = unknown {
        return Err(unknown);
    }
    let complaint = match verified {
        Ok(verdict) => verdict.first_problem,
        Err(error) => Some(error.to_string()),
    };
    let _inside = runtime.enter();
    match store::open(state, KEEP_ALL) {
        Ok((store, unfinished)) => {
            let expected = store.kept() - unfinished.len();
            let difference = original.difference(&store);
            let ended = original.versions.keys().filter_map(|id| store.get(*id).ok().flatten());
            let ended = ended.filter(|job| job.state.is_ended()).count();
            runtime.block_on(store.close());
            if let Some(difference) = difference {
                return Err(format!("it opens, and {difference}"));
            }
            if ended != expected {
                return Err(format!("{expected} jobs are taken for ended, and {ended} are"));
            }
            if let Some(complaint) = complaint {
                return Err(format!("it opens, and verify says: {complaint}"));
            }
            if must_be_noticed { Err("it opens".to_owned()) } else { Ok(true) }
        }
        Err(error) => {
            let message = error.to_string();
            if complaint.is_none() {
                return Err(format!("verify finds nothing, and it is refused: {message}"));
            }
            if message.contains("growd store set-aside") {
                Ok(false)
            } else {
                Err(format!("it is refused, and no command is named: {error:?}"))
            }
        }
    }
}

fn damage(seed: u64, originals: &[Original], runtime: &Runtime, tally: &mut Tally) {
    let mut random = Random::of(seed);
    let original = &originals[random.below(originals.len())];
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&original.home.state(), &state);
    let (what, must_be_noticed) = harm(&state, original, &mut random);
    let judged = catch_unwind(AssertUnwindSafe(|| judge(&state, original, must_be_noticed, runtime)));
    match judged.unwrap_or_else(|_| Err("it panics".to_owned())) {
        Ok(true) => tally.right += 1,
        Ok(false) => tally.refused += 1,
        Err(problem) => tally.wrong.push(format!("{} ({seed}), {what}: {problem}", original.name)),
    }
}

#[test]
fn a_damaged_store_is_right_or_refused() {
    let seed = Random::from_environment().number() >> 1;
    let count = u64::try_from(rounds(500)).unwrap();
    let runtime = Runtime::new().unwrap();
    let originals = [
        ("settled", true, false),
        ("written since its last start", false, false),
        ("killed", false, true),
        ("killed, and started since", true, true),
    ]
    .map(|(name, settled, killed)| runtime.block_on(Original::make(name, settled, killed)));
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let (originals, runtime) = (&originals, &runtime);
        let part = move |first: u64| {
            let mut tally = Tally::default();
            let numbers = (first..count).step_by(THREADS as usize);
            numbers.for_each(|number| damage(seed + number, originals, runtime, &mut tally));
            tally
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || part(first))).collect();
        for thread in threads {
            let tally = thread.join().unwrap();
            all.right += tally.right;
            all.refused += tally.refused;
            all.wrong.extend(tally.wrong);
        }
    });
    println!("{} opened with every record right, {} refused, {} wrong", all.right, all.refused, all.wrong.len());
    assert!(all.wrong.is_empty(), "{:#?}", all.wrong);
    assert!(all.right > 0 && all.refused > 0, "harm without both outcomes shows nothing");
}
