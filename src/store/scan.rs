//! One pass over all records: what is on disk, and whether all of it is as it was written.

use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use uuid::Uuid;

use super::calendar::Calendar;
use super::files::{Files, copy_tree, remove_tree};
use super::index::Entry;
use super::open::{OpenError, database};
use super::record::{self, RecordError};
use crate::model::{Job, JobId};

const PANICKED: &str = "reading the database panicked";

type Key = [u8; 17];

/// Scans a copy of the database; `each` sees every job that is right. For a look at a store that nobody opens.
///
/// # Errors
/// When the copy cannot be made or removed. What is wrong inside is in the scan.
pub fn scan_copy(files: &Files, mut each: impl FnMut(&Job)) -> Result<Scan, OpenError> {
    let copy = files.looked_at();
    remove_tree(&copy)?;
    let check = |key: &[u8], value: &[u8]| {
        let (job, commit) = record::decode(key, value)?;
        each(&job);
        Ok((Entry::from(&job), commit))
    };
    let copied = copy_tree(&files.jobs(), &copy).map_err(|source| OpenError::no_copy(files, source));
    let scan = copied.map(|()| match database(&copy) {
        Ok(db) => Scan::of(&db, .., check),
        Err(problem) => Scan::failed(problem),
    });
    remove_tree(&copy)?;
    scan
}

/// Everything that one pass over the records tells.
#[derive(Default)]
pub struct Scan {
    pub jobs: Vec<Entry>,
    pub unfinished: Vec<Job>,
    /// The highest commit number found.
    pub commit: u64,
    pub calendar: Calendar,
    /// Bytes of keys and values.
    pub live_bytes: u64,
    /// The first thing that is wrong, and whether it is only too new for this version.
    pub first_problem: Option<(String, bool)>,
    pub problems: usize,
}

impl Scan {
    /// Reads every record once: the older ones in one thread, the newer ones in another.
    pub fn of_all(db: &sled::Db) -> Self {
        let Ok(middle) = catch_unwind(AssertUnwindSafe(|| middle(db))) else {
            return Self::failed(PANICKED.to_owned());
        };
        std::thread::scope(|threads| {
            let older = threads.spawn(|| Self::of(db, ..middle, record::entry));
            let newer = Self::of(db, middle.., record::entry);
            let older = older.join().unwrap_or_else(|_| Self::failed(PANICKED.to_owned()));
            older.followed_by(newer)
        })
    }

    /// Reads the records of a range of keys, in order. sled panics on some kinds of damage, which is a problem as others are.
    fn of(
        db: &sled::Db,
        range: impl RangeBounds<Key>,
        mut check: impl FnMut(&[u8], &[u8]) -> Result<(Entry, u64), RecordError>,
    ) -> Self {
        let mut scan = Self::default();
        let pass = catch_unwind(AssertUnwindSafe(|| {
            for entry in db.range(range) {
                match entry {
                    Ok((key, value)) => scan.take(&key, &value, &mut check),
                    Err(error) => scan.note(format!("the database stops with: {error}"), false),
                }
            }
        }));
        if pass.is_err() {
            scan.note(PANICKED.to_owned(), false);
        }
        scan
    }

    fn failed(problem: String) -> Self {
        Self { first_problem: Some((problem, false)), problems: 1, ..Self::default() }
    }

    fn followed_by(mut self, newer: Self) -> Self {
        self.jobs.extend(newer.jobs);
        self.unfinished.extend(newer.unfinished);
        self.commit = self.commit.max(newer.commit);
        // Its record is behind all jobs.
        self.calendar = newer.calendar;
        self.live_bytes += newer.live_bytes;
        self.first_problem = self.first_problem.or(newer.first_problem);
        self.problems += newer.problems;
        self
    }

    fn take(
        &mut self,
        key: &[u8],
        value: &[u8],
        check: &mut impl FnMut(&[u8], &[u8]) -> Result<(Entry, u64), RecordError>,
    ) {
        self.live_bytes += (key.len() + value.len()) as u64;
        let newer = |error: &RecordError| matches!(error, RecordError::Newer(_));
        if key == record::MARK_KEY {
            match record::decode_mark(value) {
                Ok((commit, calendar)) => (self.commit, self.calendar) = (self.commit.max(commit), calendar),
                Err(error) => self.note(format!("the commit record is bad: {error}"), newer(&error)),
            }
            return;
        }
        let checked = check(key, value).and_then(|(entry, commit)| {
            let unfinished = if entry.state.is_ended() { None } else { Some(record::decode(key, value)?.0) };
            Ok((entry, commit, unfinished))
        });
        match checked {
            Ok((entry, commit, unfinished)) => {
                self.commit = self.commit.max(commit);
                self.jobs.push(entry);
                self.unfinished.extend(unfinished);
            }
            Err(error) => {
                let name = record::job_of_key(key).map_or_else(|_| format!("{key:02x?}"), |id| format!("of job {id}"));
                self.note(format!("the record {name} is bad: {error}"), newer(&error));
            }
        }
    }

    /// # Errors
    /// When anything is wrong, or the store ends before a commit number that is known to have been on disk.
    pub fn check(self, dir: &Path, mark: Option<u64>) -> Result<Self, OpenError> {
        let dir = dir.to_owned();
        if let Some((problem, newer)) = self.first_problem {
            return Err(if newer { OpenError::Newer { dir, problem } } else { OpenError::Damaged { dir, problem } });
        }
        match mark {
            Some(expected) if self.commit < expected => Err(OpenError::Older { dir, found: self.commit, expected }),
            _ => Ok(self),
        }
    }

    fn note(&mut self, problem: String, newer: bool) {
        self.problems += 1;
        self.first_problem.get_or_insert((problem, newer));
    }
}

/// The key that halves the time that the jobs are of.
fn middle(db: &sled::Db) -> Key {
    let jobs = || db.range::<Key, _>(..record::key(JobId::from_uuid(Uuid::max())));
    let id = |end: Option<sled::Result<(sled::IVec, sled::IVec)>>| {
        // What cannot be read is found by the pass that follows.
        let key = end.and_then(Result::ok).map(|(key, _)| record::job_of_key(&key));
        key.and_then(Result::ok).map_or(0, |id| id.as_uuid().as_u128())
    };
    let (first, last) = (id(jobs().next()), id(jobs().next_back()));
    record::key(JobId::from_uuid(Uuid::from_u128(first.midpoint(last))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobState;
    use crate::store::record::tests::any_job;

    #[test]
    fn two_threads_see_what_one_sees() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(dir.path()).unwrap();
        for many in [0, 1, 2, 3000_u128] {
            for n in 0..many {
                // Most of them are newer than the middle of the time.
                let job = any_job(n * n * n + 1, JobState::ALL[n as usize % JobState::ALL.len()]);
                db.insert(record::key(job.id), record::encode(&job, n as u64)).unwrap();
            }
            db.insert(record::MARK_KEY, record::encode_mark(7, &Calendar::default())).unwrap();
            let (one, two) = (Scan::of(&db, .., record::entry), Scan::of_all(&db));
            assert_eq!(one.first_problem, None);
            assert_eq!((one.jobs.len() as u128, &one.jobs), (many, &two.jobs));
            assert_eq!((&one.unfinished, one.commit), (&two.unfinished, two.commit));
            assert_eq!((one.live_bytes, one.calendar), (two.live_bytes, two.calendar));
        }
        db.insert([b'x'], &[0]).unwrap();
        assert_eq!(Scan::of_all(&db).problems, 1);
    }
}
