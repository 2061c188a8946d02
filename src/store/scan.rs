//! One pass over all records: what is on disk, and whether all of it is as it was written.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parking_lot::Mutex;
use uuid::Uuid;

use super::database::{database, told};
use super::files::{Files, copy_tree, remove_snapshots, remove_tree};
use super::index::Entry;
use super::kept_time::KeptTime;
use super::open_error::OpenError;
use super::record::{self, RecordError};
use crate::model::{Job, JobId};

const PANICKED: &str = "reading the database panicked";

type Key = [u8; 17];

/// No job has a lower key than the first, or a higher one than the last.
const FIRST: Key = [record::JOB_PREFIX, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LAST: Key = {
    let mut key = [u8::MAX; 17];
    key[0] = record::JOB_PREFIX;
    key
};

/// Scans a copy of the database; `each` sees every job that is right. For a look at a store that nobody opens.
///
/// sled does not open a database whose log is damaged where its snapshot counts on it. Without the snapshot it takes the
/// log for one that was cut off there, and has what was before: so that is read where nothing else can be, and told of as
/// a problem. It may be old, so it is nothing to start with.
///
/// # Errors
/// When the copy cannot be made or removed. What is wrong inside is in the scan.
pub fn scan_copy(files: &Files, mut each: impl FnMut(&Job)) -> Result<Scan, OpenError> {
    let copy = files.looked_at();
    let mut check = |key: &[u8], value: &[u8]| {
        let (job, commit) = record::decode(key, value)?;
        each(&job);
        Ok((Entry::from(&job), commit))
    };
    let mut look = |prepare: fn(&Path) -> io::Result<()>| {
        remove_tree(&copy)?;
        let copied = copy_tree(&files.jobs(), &copy).and_then(|()| prepare(&copy));
        copied.map_err(|source| files.no_copy(source))?;
        Ok(match database(&copy) {
            Ok(db) => Scan::of(&db, &[], &Mutex::new(Rest::ALL), &mut check),
            Err(error) => Scan::failed(told(&error)),
        })
    };
    let scan = look(|_| Ok(())).and_then(|scan| match scan.first_problem {
        Some((problem, _)) if scan.live_bytes == 0 => {
            look(remove_snapshots).map(|older| older.read_in_spite_of(problem))
        }
        _ => Ok(scan),
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
    /// `None` where no part that was read has it.
    pub kept_time: Option<KeptTime>,
    /// Bytes of keys and values.
    pub live_bytes: u64,
    /// The first thing that is wrong, and whether it is only of another version of growd.
    pub first_problem: Option<(String, bool)>,
    pub problems: usize,
}

impl Scan {
    /// Reads every record once, in two threads: whichever has nothing left takes a half of what the other has.
    pub fn of_all(db: &sled::Db) -> Self {
        let rests = [Mutex::new(Rest::ALL), Mutex::new(Rest::NOTHING)];
        let read = &|mine: usize, mut from: Vec<u8>| {
            let (mine, others) = (&rests[mine], &rests[1 - mine]);
            let mut parts = Vec::new();
            loop {
                let part = Self::of(db, &from, mine, record::entry);
                parts.push((from, part));
                let Some(half) = others.lock().halve() else { return parts };
                from = half.from.to_vec();
                *mine.lock() = half;
            }
        };
        // Two new threads: malloc spreads them over its arenas, and two that share one wait for each other.
        let mut parts = std::thread::scope(|threads| {
            // What is below the first job's key is no job's, and is told of.
            let readers = [(0, Vec::new()), (1, FIRST.to_vec())];
            let readers = readers.map(|(mine, from)| threads.spawn(move || read(mine, from)));
            let lost = |_| vec![(Vec::new(), Self::failed(PANICKED.to_owned()))];
            let read = readers.map(|reader| reader.join().unwrap_or_else(lost));
            read.into_iter().flatten().collect::<Vec<_>>()
        });
        parts.sort_by(|(one, _), (other, _)| one.cmp(other));
        parts.into_iter().map(|(_, part)| part).reduce(Self::followed_by).unwrap_or_default()
    }

    /// Reads the records from a key on as long as the part goes, in order, and goes on behind those that are lost. sled
    /// panics on some kinds of damage, which is a problem as others are.
    fn of(
        db: &sled::Db,
        from: &[u8],
        rest: &Mutex<Rest>,
        mut check: impl FnMut(&[u8], &[u8]) -> Result<(Entry, u64), RecordError>,
    ) -> Self {
        let mut scan = Self::default();
        let pass = catch_unwind(AssertUnwindSafe(|| {
            let mut entries = db.range(from..);
            while let Some(entry) = entries.next() {
                match entry {
                    Ok((key, _)) if !rest.lock().reach(&key) => break,
                    Ok((key, value)) => scan.take(&key, &value, &mut check),
                    Err(error) => {
                        scan.note(format!("a part of the database cannot be read: {}", told(&error)), false);
                        // The same iterator would say the same for ever.
                        let Some(next) = behind_damage(db, rest.lock().from) else { break };
                        entries = db.range(next..);
                    }
                }
            }
        }));
        *rest.lock() = Rest::NOTHING;
        if pass.is_err() {
            scan.note(PANICKED.to_owned(), false);
        }
        scan
    }

    /// What was read only after the snapshots had been removed because of a problem.
    fn read_in_spite_of(self, problem: String) -> Self {
        let jobs = self.jobs.len();
        let older = match jobs {
            0 => String::new(),
            _ => format!(
                "; {jobs} jobs were read all the same, from its log alone: some may be in an older state than their last, or \
                 have been removed since"
            ),
        };
        Self::failed(problem + &older).followed_by(self)
    }

    fn failed(problem: String) -> Self {
        Self { first_problem: Some((problem, false)), problems: 1, ..Self::default() }
    }

    fn followed_by(mut self, newer: Self) -> Self {
        self.jobs.extend(newer.jobs);
        self.unfinished.extend(newer.unfinished);
        self.commit = self.commit.max(newer.commit);
        self.kept_time = newer.kept_time.or(self.kept_time);
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
        let of_other = |error: &RecordError| matches!(error, RecordError::OtherFormat(_));
        if key == record::MARK_KEY {
            match record::decode_mark(value) {
                Ok((commit, kept_time)) => (self.commit, self.kept_time) = (self.commit.max(commit), Some(kept_time)),
                Err(error) => self.note(format!("the commit record is bad: {error}"), of_other(&error)),
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
                self.note(format!("the record {name} is bad: {error}"), of_other(&error));
            }
        }
    }

    /// # Errors
    /// When anything is wrong, or the store ends before a commit number that is known to have been on disk.
    pub fn check(self, dir: &Path, mark: Option<u64>) -> Result<Self, OpenError> {
        let dir = dir.to_owned();
        match self.first_problem {
            Some((problem, true)) => return Err(OpenError::OtherVersion { dir, problem }),
            Some((problem, false)) => return Err(OpenError::Damaged { dir, problem }),
            None => {}
        }
        match mark {
            Some(expected) if self.commit < expected => Err(OpenError::Older { dir, found: self.commit, expected }),
            _ => Ok(self),
        }
    }

    fn note(&mut self, problem: String, of_other: bool) {
        self.problems += 1;
        self.first_problem.get_or_insert((problem, of_other));
    }
}

/// Where the database can be read again behind a key from which on it cannot: what is lost is a page of it, the keys
/// between two others. `None` where it cannot up to its end.
fn behind_damage(db: &sled::Db, from: Key) -> Option<Key> {
    let is_readable = |id| !matches!(db.range(key_of(id)..).next(), Some(Err(_)));
    let (mut lost, first) = (id_of(from), id_of(from));
    // In ever larger steps first, since ids are times, and those of a page lie close together.
    let mut found = (0..u128::BITS).map_while(|power| first.checked_add(1 << power)).find(|id| {
        let found = is_readable(*id);
        lost = if found { lost } else { *id };
        found
    })?;
    while found - lost > 1 {
        let middle = lost.midpoint(found);
        *(if is_readable(middle) { &mut found } else { &mut lost }) = middle;
    }
    Some(key_of(found))
}

fn id_of(key: Key) -> u128 {
    u128::from_be_bytes(*key.last_chunk().unwrap_or(&[0; 16]))
}

fn key_of(id: u128) -> Key {
    record::key(JobId::from_uuid(Uuid::from_u128(id)))
}

/// What a thread has still to read: the keys from one on, up to another or to the last. Other threads may take the second
/// half of it at any time.
struct Rest {
    from: Key,
    end: Option<Key>,
}

impl Rest {
    const ALL: Self = Self { from: FIRST, end: None };
    const NOTHING: Self = Self { from: FIRST, end: Some(FIRST) };

    /// Whether a key that was reached is to be read; then what is left begins behind it.
    fn reach(&mut self, key: &[u8]) -> bool {
        let is_left = self.end.is_none_or(|end| key < end.as_slice());
        match key.try_into() {
            // What is behind all jobs is read once, by whoever has come to it.
            _ if is_left && key > LAST.as_slice() => self.from = LAST,
            Ok(key) if is_left => self.from = self.from.max(key),
            _ => {}
        }
        is_left
    }

    /// Gives away the half that lies behind, of the ids that there could be: of those that there are it may be all or none,
    /// which whoever took it finds out.
    fn halve(&mut self) -> Option<Self> {
        let (from, end) = (id_of(self.from), self.end.map_or(u128::MAX, id_of));
        if end.saturating_sub(from) < 2 {
            return None;
        }
        let middle = key_of(from.midpoint(end));
        Some(Self { from: middle, end: self.end.replace(middle) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobState;
    use crate::store::record::tests::any_job;
    use std::time::Duration;

    #[test]
    fn two_threads_see_what_one_sees() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(dir.path()).unwrap();
        for many in [0, 1, 2, 3000_u128] {
            for n in 0..many {
                // Most of them follow each other, and the rest is far away.
                let id = if n < 2900 { n + (1 << 120) } else { n << 100 };
                let job = any_job(id, JobState::ALL[n as usize % JobState::ALL.len()]);
                db.insert(record::key(job.id), record::encode(&job, n as u64)).unwrap();
            }
            let mut kept_time = KeptTime::default();
            kept_time.advance(Duration::from_secs(7), None, Duration::MAX);
            db.insert(record::MARK_KEY, record::encode_mark(7, &kept_time)).unwrap();
            let one = Scan::of(&db, &[], &Mutex::new(Rest::ALL), record::entry);
            let two = Scan::of_all(&db);
            assert_eq!(one.first_problem, None);
            assert_eq!((one.jobs.len() as u128, &one.jobs), (many, &two.jobs));
            assert_eq!((&one.unfinished, one.commit), (&two.unfinished, two.commit));
            assert_eq!((one.live_bytes, &one.kept_time), (two.live_bytes, &two.kept_time));
            assert_eq!(one.kept_time, Some(kept_time));
        }
        for (strange, problems) in [(vec![b'x'], 1), (vec![b'a'; 17], 2), ([&FIRST[..], &[7]].concat(), 3)] {
            db.insert(strange, &[0]).unwrap();
            assert_eq!(Scan::of_all(&db).problems, problems);
        }
    }

    #[test]
    fn what_is_left_is_halved_until_nothing_is() {
        let mut rest = Rest::ALL;
        let mut given = rest.halve().unwrap();
        assert_eq!(given.end, None);
        for _ in 0..200 {
            let Some(next) = rest.halve() else { break };
            assert_eq!(next.end, Some(given.from));
            given = next;
        }
        assert_eq!((rest.from, rest.end), (FIRST, Some(key_of(1))));
        assert!(rest.reach(&FIRST) && !rest.reach(&given.from));

        let mut rest = Rest::ALL;
        assert!(rest.reach(record::MARK_KEY) && rest.halve().is_none());
    }
}
