//! Opening the store: everything is checked before anything is trusted, and nothing is deleted or replaced.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::committer::{Committer, Work};
use super::files::{Files, Mark, copy_tree, sync_dir};
use super::index::Index;
use super::{INBOX, Retention, Shared, Store, record};
use crate::model::Job;
use crate::sys::sync_file_range;

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 64 << 20;
/// sled never gives space back, and restarts leak it: above this ratio of disk to live bytes the store is copied.
const BLOAT_RATIO: u64 = 6;
/// Below this a bloated store is nobody's trouble.
const BLOAT_FLOOR: u64 = 64 << 20;
const TICK: Duration = Duration::from_secs(5);

const NEXT: &str = "Nothing was changed. `growd store verify` shows what is readable, `growd store export` saves it as \
    JSON lines, `growd store set-aside` moves the store away so that growd starts with an empty one: sizes are always \
    read from the kernel, only the history and the unfinished jobs go";

/// Why the store was not opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the job store in {} is in use by process {pid}", dir.display())]
    InUse { dir: PathBuf, pid: String },
    #[error("{operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the job store in {} is damaged: {problem}.{} {NEXT}", dir.display(), copy_note(copy))]
    Damaged { dir: PathBuf, problem: String, copy: Option<PathBuf> },
    #[error("the job store in {} was written by a newer growd: {problem}. {NEXT}", dir.display())]
    Newer { dir: PathBuf, problem: String },
    #[error(
        "the job store in {} went back in time: it ends with commit {found}, and commit {expected} had been written. \
         {NEXT}", dir.display()
    )]
    Older { dir: PathBuf, found: u64, expected: u64 },
    #[error("flushes of the job store do not reach the disk (sync_file_range is not answered by growd): {problem}")]
    NotDurable { problem: String },
}

fn copy_note(copy: &Option<PathBuf>) -> String {
    copy.as_ref().map(|copy| format!(" A copy from before it was opened is in {}.", copy.display())).unwrap_or_default()
}

impl OpenError {
    pub fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}

pub fn open(dir: &Path, retention: Retention) -> Result<(Store, Vec<Job>), OpenError> {
    fs::create_dir_all(dir).map_err(|source| OpenError::io("cannot create", dir, source))?;
    let files = Files::new(dir);
    let lock = files.lock()?;
    let damaged = |problem: String, copy| OpenError::Damaged { dir: dir.to_owned(), problem, copy };

    let mark = files.read_mark()?;
    let exists = files.jobs().exists();
    if let (false, Some(mark)) = (exists, mark) {
        return Err(damaged(format!("{} is gone; it held {} commits", files.jobs().display(), mark.commit), None));
    }
    remove_leftover(&files.compacted())?;

    // sled writes when it opens, so damage could spread into what was still readable.
    let mut copy = None;
    if exists && !mark.is_some_and(|mark| mark.clean) {
        let path = files.before_open();
        if !path.exists() {
            copy_tree(&files.jobs(), &path)
                .map_err(|source| OpenError::io("cannot copy the store to", &path, source))?;
        }
        copy = Some(path);
    }

    let mut db = database(&files.jobs()).map_err(|problem| damaged(problem, copy.clone()))?;
    let mut scan = Scan::of(&db, |_| {});
    if let Some((problem, newer)) = scan.first_problem {
        return Err(if newer { OpenError::Newer { dir: dir.to_owned(), problem } } else { damaged(problem, copy) });
    }
    if let Some(mark) = mark
        && scan.commit < mark.commit
    {
        return Err(OpenError::Older { dir: dir.to_owned(), found: scan.commit, expected: mark.commit });
    }
    // Another number than the last start's: sled writes nothing for a value that is there already.
    scan.commit += 1;
    check_flush(&db, scan.commit)?;
    for created in [files.jobs(), files.dir().to_owned()] {
        sync_dir(&created).map_err(|source| OpenError::io("cannot sync", &created, source))?;
    }
    // From here on the store counts as left open until it is closed in order.
    files
        .write_mark(Mark { commit: scan.commit, clean: false })
        .map_err(|source| OpenError::io("cannot write", &files.mark(), source))?;
    if let Some(copy) = copy {
        remove_leftover(&copy)?;
    }
    let on_disk = db.size_on_disk().unwrap_or(0);
    if on_disk > BLOAT_FLOOR && on_disk > BLOAT_RATIO * scan.live_bytes {
        db = compact(&files, db).map_err(|problem| damaged(problem, None))?;
        info!(before = on_disk, after = db.size_on_disk().unwrap_or(0), "compacted the job store");
    }

    let (failure, _) = watch::channel(None);
    let shared = Arc::new(Shared { db: RwLock::new(Some(db)), index: RwLock::new(scan.index), failure });
    let (inbox, outbox) = mpsc::channel(INBOX);
    let committer = Committer {
        shared: Arc::clone(&shared),
        files,
        retention,
        commit: scan.commit,
        marked: scan.commit,
        marked_at: Instant::now(),
        swept_at: None,
        unanswered: HashSet::new(),
    };
    let committer = std::thread::Builder::new()
        .name("committer".to_owned())
        .spawn(move || committer.run(outbox))
        .map_err(|source| OpenError::io("cannot start a thread for", dir, source))?;
    start_ticking(inbox.downgrade());
    let store = Store { shared, inbox, _lock: lock, committer: Mutex::new(Some(committer)) };
    Ok((store, scan.unfinished))
}

fn start_ticking(inbox: mpsc::WeakSender<Work>) {
    // A store that is opened outside a runtime, for a look at it, needs no upkeep.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(inbox) = inbox.upgrade() else { return };
            if inbox.send(Work::Tick).await.is_err() {
                return;
            }
        }
    });
}

/// Opens sled. It panics on some kinds of damage, which must become a refusal.
pub fn database(path: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(500));
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("opening the database panicked".to_owned()),
    }
}

/// Everything that one pass over the records tells.
#[derive(Default)]
pub struct Scan {
    pub index: Index,
    pub unfinished: Vec<Job>,
    /// The highest commit number found.
    pub commit: u64,
    /// Bytes of keys and values.
    pub live_bytes: u64,
    /// The first thing that is wrong, and whether it is only too new for this version.
    pub first_problem: Option<(String, bool)>,
    pub problems: usize,
}

impl Scan {
    /// Reads every record once; `each` sees every job that is right.
    pub fn of(db: &sled::Db, mut each: impl FnMut(&Job)) -> Self {
        let mut scan = Self::default();
        let pass = catch_unwind(AssertUnwindSafe(|| {
            for entry in db.iter() {
                match entry {
                    Ok((key, value)) => scan.take(&key, &value, &mut each),
                    Err(error) => scan.note(format!("the database stops with: {error}"), false),
                }
            }
        }));
        if pass.is_err() {
            scan.note("reading the database panicked".to_owned(), false);
        }
        scan
    }

    fn take(&mut self, key: &[u8], value: &[u8], each: &mut impl FnMut(&Job)) {
        self.live_bytes += (key.len() + value.len()) as u64;
        if key == record::MARK_KEY {
            match record::decode_mark(value) {
                Ok(commit) => self.commit = self.commit.max(commit),
                Err(error) => self.note(format!("the commit record is bad: {error}"), false),
            }
            return;
        }
        match record::decode(key, value) {
            Ok((job, commit)) => {
                self.commit = self.commit.max(commit);
                self.index.publish(&job);
                each(&job);
                if !job.state.is_ended() {
                    self.unfinished.push(job);
                }
            }
            Err(error) => {
                let newer = matches!(error, record::RecordError::Newer(_));
                let name = record::job_of_key(key).map_or_else(|_| format!("{key:02x?}"), |id| format!("of job {id}"));
                self.note(format!("the record {name} is bad: {error}"), newer);
            }
        }
    }

    fn note(&mut self, problem: String, newer: bool) {
        self.problems += 1;
        self.first_problem.get_or_insert((problem, newer));
    }
}

/// Writes the commit number, flushes, and sees whether that reached fdatasync; see `sys::sync_file_range`.
fn check_flush(db: &sled::Db, commit: u64) -> Result<(), OpenError> {
    let before = sync_file_range::redirected_calls();
    let write = || -> sled::Result<()> {
        db.insert(record::MARK_KEY, record::encode_mark(commit))?;
        db.flush()?;
        Ok(())
    };
    write().map_err(|error| OpenError::NotDurable { problem: error.to_string() })?;
    if sync_file_range::redirected_calls() == before {
        return Err(OpenError::NotDurable { problem: "a flush made no call".to_owned() });
    }
    Ok(())
}

/// Copies all records into a fresh database and puts it in the place of the bloated one, by one atomic exchange.
fn compact(files: &Files, db: sled::Db) -> Result<sled::Db, String> {
    let text = |error: &dyn std::fmt::Display| format!("compacting: {error}");
    let new = database(&files.compacted())?;
    for entry in db.iter() {
        let (key, value) = entry.map_err(|error| text(&error))?;
        new.insert(key, value).map_err(|error| text(&error))?;
    }
    new.flush().map_err(|error| text(&error))?;
    // Both are closed before their directories change names.
    drop((new, db));
    sync_dir(&files.compacted()).map_err(|error| text(&error))?;
    renameat2(AT_FDCWD, &files.compacted(), AT_FDCWD, &files.jobs(), RenameFlags::RENAME_EXCHANGE)
        .map_err(|error| text(&error))?;
    sync_dir(files.dir()).map_err(|error| text(&error))?;
    // What now has the name of the copy is the old database. A crash before this is mended at the next start.
    if let Err(error) = fs::remove_dir_all(files.compacted()) {
        warn!(%error, "cannot remove {}", files.compacted().display());
    }
    database(&files.jobs())
}

fn remove_leftover(path: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io("cannot remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobState;
    use crate::store::record::tests::any_job;

    #[test]
    fn compaction_keeps_every_record_and_leaves_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let db = database(&files.jobs()).unwrap();
        let jobs: Vec<Job> = (1..200).map(|n| any_job(n, JobState::Succeeded)).collect();
        for (commit, job) in jobs.iter().enumerate() {
            db.insert(record::key(job.id), record::encode(job, commit as u64)).unwrap();
        }
        let db = compact(&files, db).unwrap();
        let mut kept = Vec::new();
        let scan = Scan::of(&db, |job| kept.push(job.clone()));
        assert_eq!((kept, scan.first_problem), (jobs, None));
        assert!(!files.compacted().exists());
    }
}
