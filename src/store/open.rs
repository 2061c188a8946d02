//! Opening the store: everything is checked before anything is trusted, and nothing is deleted or replaced.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::calendar::Calendar;
use super::committer::{self, HANGS, Work};
use super::files::{Files, Lock, remove_tree, sync_dir};
use super::index::Index;
use super::original::Original;
use super::scan::Scan;
use super::{Retention, Shared, Store, record};
use crate::model::Job;
use crate::sys::sync_file_range;
use crate::sys::timer_slack::Lenient;

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 54 << 20;
/// sled collects the garbage of its log in a thread that also flushes, at most half of this time at once. What growd
/// acknowledges it flushes itself, so this is only how far the collection may lag; each time wakes threads and the disk.
const CLEAN_EVERY_MS: u64 = 5000;
/// sled never gives space back, and restarts leak it: above this ratio of disk to live bytes the store is copied.
const BLOAT_RATIO: u64 = 6;
/// Below this a bloated store is nobody's trouble.
const BLOAT_FLOOR: u64 = 64 << 20;
const TICK: Duration = Duration::from_secs(10);
/// sled has seven threads that look for work once a second, though they are woken when there is any.
const SLED_MAY_SLEEP_ON: Duration = Duration::from_secs(60);

const NEXT: &str = "growd does not start with it, and has deleted nothing. `growd store verify` shows what is readable, \
    `growd store export` saves it as JSON lines, `growd store set-aside` moves the store away so that growd starts with an \
    empty one: sizes are always read from the kernel, only the history and the unfinished jobs go";

/// Why the store was not opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the job store in {} is in use by process {pid}, probably growd; stop it first", dir.display())]
    InUse { dir: PathBuf, pid: String },
    #[error("{operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the job store in {} is damaged: {problem}. {NEXT}", dir.display())]
    Damaged { dir: PathBuf, problem: String },
    #[error("the job store in {} was written by a newer growd: {problem}. {NEXT}", dir.display())]
    Newer { dir: PathBuf, problem: String },
    #[error(
        "the job store in {} went back in time: it ends with commit {found}, and commit {expected} had been written. \
         {NEXT}", dir.display()
    )]
    Older { dir: PathBuf, found: u64, expected: u64 },
    #[error("the job store in {} cannot be written: {problem}", dir.display())]
    NotWritable { dir: PathBuf, problem: String },
    #[error(
        "cannot open the job store in {}. Nothing is known to be wrong with it: make room on its disk, or have it take writes, \
         and start growd again", dir.display()
    )]
    Disk { dir: PathBuf, source: io::Error },
    #[error("flushes of the job store do not reach the disk: sync_file_range is not answered by growd")]
    NotDurable,
}

impl OpenError {
    pub fn no_copy(files: &Files, source: io::Error) -> Self {
        Self::io("cannot make a copy for a look at the job store in", &files.jobs(), source)
    }

    /// There is no database, and a mark says that there was.
    pub fn gone(files: &Files, mark: u64) -> Self {
        let problem = format!("{} is gone; it held {mark} commits", files.jobs().display());
        Self::Damaged { dir: files.dir().to_owned(), problem }
    }

    /// Why sled did not open the store.
    fn of_sled(files: &Files, error: sled::Error) -> Self {
        let dir = files.dir().to_owned();
        match error {
            sled::Error::Io(source) if is_of_disk(&source) => Self::Disk { dir, source },
            damage => Self::Damaged { dir, problem: told(&damage) },
        }
    }

    pub fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }
}

/// sled's error for people: of damage it tells in its own terms.
pub fn told(error: &sled::Error) -> String {
    match error {
        sled::Error::Corruption { at: Some(place), .. } => format!("the file db is damaged at offset {}", place.lid()),
        sled::Error::Corruption { at: None, .. } => "the file db is damaged".to_owned(),
        other => other.to_string(),
    }
}

/// Whether the disk could not do what was asked of it. sled also tells of damage as of errors of files, of other kinds.
fn is_of_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // EIO has no kind that could be named.
    let fails = io::Error::from_raw_os_error(Errno::EIO as i32).kind();
    [StorageFull, QuotaExceeded, ReadOnlyFilesystem, PermissionDenied, fails].contains(&error.kind())
}

pub fn open(files: Files, lock: Lock, retention: Retention) -> Result<(Store, Vec<Job>), OpenError> {
    open_above(BLOAT_FLOOR, files, lock, retention)
}

fn open_above(
    bloat_floor: u64,
    files: Files,
    lock: Lock,
    retention: Retention,
) -> Result<(Store, Vec<Job>), OpenError> {
    // Its threads are started by the first flush, at the latest; without this they only wake more often.
    let _lenient = Lenient::by(SLED_MAY_SLEEP_ON);
    let (mut db, mut scan) = checked(&files)?;
    // Another number than the last start's: sled writes nothing for a value that is there already.
    scan.commit += 1;
    let calendar = scan.calendar.take().unwrap_or_default();
    note_start(&files, &db, scan.commit, &calendar)?;
    let mut on_disk = db.size_on_disk().unwrap_or(0);
    if on_disk > bloat_floor && on_disk > BLOAT_RATIO * scan.live_bytes {
        db = compact(&files, db)?;
        let before = std::mem::replace(&mut on_disk, db.size_on_disk().unwrap_or(0));
        info!(before, after = on_disk, "compacted the job store");
    }
    let shared = Arc::new(Shared {
        db: RwLock::new(Some(db)),
        index: RwLock::new(Index::from(scan.jobs.as_slice())),
        durable: AtomicU64::new(scan.commit),
        size: AtomicU64::new(on_disk),
        failure: watch::channel(None).0,
        at_work_since: Mutex::default(),
        meters: OnceLock::new(),
    });
    let noted = calendar.notes.last().map(|note| note.newest);
    let (inbox, committer) = committer::start(Arc::clone(&shared), files, retention, calendar)?;
    start_ticking(inbox.downgrade(), Arc::clone(&shared));
    let store = Store { shared, inbox, noted, _lock: lock, committer: Mutex::new(Some(committer)) };
    Ok((store, scan.unfinished))
}

/// The database, with all that is in it. When anything is wrong, the files are put back as they were.
fn checked(files: &Files) -> Result<(sled::Db, Scan), OpenError> {
    let dir = files.dir();
    let original = Original::keep(files)?;
    let (exists, mark) = (files.jobs().exists(), files.read_mark()?);
    if let (false, Some(mark)) = (exists, mark) {
        return Err(OpenError::gone(files, mark));
    }
    remove_tree(&files.compacted())?;
    let opened = database(&files.jobs()).map_err(|error| OpenError::of_sled(files, error)).and_then(|db| {
        let scan = if exists { Scan::of_all(&db) } else { Scan::default() };
        scan.check(dir, mark).map(|scan| (db, scan))
    });
    match opened {
        Ok(opened) => {
            // Before anything is committed: a later start that finds it takes the store for one that nobody has used since.
            original.retire()?;
            Ok(opened)
        }
        Err(error) => {
            // Only one of the two can be answered, and this one says what is to be seen to first.
            let is_as_before = original.put_back().inspect_err(|_| warn!("{error}"))?;
            if exists && !is_as_before && !matches!(error, OpenError::Disk { .. }) {
                warn!(
                    "after a stop in order growd keeps no copy: sled has opened this store and may have written to it"
                );
            }
            Err(error)
        }
    }
}

/// The first commit of this start, which is on disk for certain then, and the names of all files with it.
fn note_start(files: &Files, db: &sled::Db, commit: u64, calendar: &Calendar) -> Result<(), OpenError> {
    check_flush(files.dir(), db, commit, calendar, sync_file_range::redirected_calls)?;
    for created in [&files.jobs(), files.dir()] {
        sync_dir(created).map_err(|source| OpenError::io("cannot sync", created, source))?;
    }
    files.write_mark(commit).map_err(|source| OpenError::io("cannot write", &files.mark(), source))
}

/// Has the committer see to its upkeep, and says so when its disk keeps it from doing anything.
fn start_ticking(inbox: mpsc::WeakSender<Work>, shared: Arc<Shared>) {
    // A store that is opened outside a runtime, for a look at it, needs no upkeep.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(inbox) = inbox.upgrade() else { return };
            let at_work_since = shared.at_work_since.lock();
            if at_work_since.is_some_and(|since| since.elapsed() > TICK) {
                // Said under the lock: the committer takes it back as soon as the disk answers.
                let hangs = |failure: &mut Option<String>| {
                    let is_new = failure.is_none();
                    failure.get_or_insert_with(|| HANGS.to_owned());
                    is_new
                };
                if shared.failure.send_if_modified(hangs) {
                    error!(problem = HANGS, "the job store cannot be written; extends are refused until it can");
                }
            } else if let Err(TrySendError::Closed(_)) = inbox.try_send(Work::Tick) {
                return;
            }
        }
    });
}

/// Opens sled. It panics on some kinds of damage, which must become a refusal.
///
/// # Errors
/// sled's.
pub fn database(path: &Path) -> sled::Result<sled::Db> {
    sync_file_range::begin(&path.join("db"));
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(CLEAN_EVERY_MS));
    catch_unwind(AssertUnwindSafe(|| config.open()))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("opening the database panicked".to_owned())))
}

/// Writes the commit number, flushes, and sees whether that reached fdatasync; see `sys::sync_file_range`.
fn check_flush(
    dir: &Path,
    db: &sled::Db,
    commit: u64,
    calendar: &Calendar,
    redirected_calls: impl Fn() -> u64,
) -> Result<(), OpenError> {
    let before = redirected_calls();
    let write = || -> sled::Result<()> {
        db.insert(record::MARK_KEY, record::encode_mark(commit, calendar))?;
        db.flush()?;
        Ok(())
    };
    write().map_err(|error| OpenError::NotWritable { dir: dir.to_owned(), problem: error.to_string() })?;
    if redirected_calls() == before {
        return Err(OpenError::NotDurable);
    }
    Ok(())
}

/// Copies all records into a fresh database and puts it in the place of the bloated one, by one atomic exchange. When
/// the copy cannot be made, the bloated one goes on.
fn compact(files: &Files, db: sled::Db) -> Result<sled::Db, OpenError> {
    if let Err(problem) = copy_records(&db, &files.compacted()) {
        warn!(problem, "cannot compact the job store");
        // The disk may be full, and a file that is still open keeps its room.
        sync_file_range::end();
        return remove_tree(&files.compacted()).map(|()| db);
    }
    // Closed before its directory changes names.
    drop(db);
    let exchanged = renameat2(AT_FDCWD, &files.compacted(), AT_FDCWD, &files.jobs(), RenameFlags::RENAME_EXCHANGE)
        .map_err(io::Error::from)
        .and_then(|()| sync_dir(files.dir()));
    // What now has the name of the copy is the old database. When it stays, the next start removes it.
    if let Err(error) = exchanged.and_then(|()| fs::remove_dir_all(files.compacted())) {
        warn!(%error, "cannot put the compacted job store in place of {}", files.jobs().display());
    }
    database(&files.jobs()).map_err(|error| OpenError::of_sled(files, error))
}

fn copy_records(db: &sled::Db, path: &Path) -> Result<(), String> {
    let new = database(path).map_err(|error| error.to_string())?;
    let copy = || -> sled::Result<()> {
        for entry in db.iter() {
            let (key, value) = entry?;
            new.insert(key, value)?;
        }
        new.flush().map(|_| ())
    };
    copy().map_err(|error| error.to_string())?;
    drop(new);
    sync_dir(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobState;
    use crate::store::record::tests::any_job;

    const KEPT: usize = 50;

    /// A state directory with a store from which almost every job has been retired.
    fn bloated() -> (tempfile::TempDir, Files, Vec<Job>) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let db = database(&files.jobs()).unwrap();
        let jobs: Vec<Job> = (1..8000).map(|n| any_job(n, JobState::Succeeded)).collect();
        for (commit, job) in jobs.iter().enumerate() {
            db.insert(record::key(job.id), record::encode(job, commit as u64)).unwrap();
        }
        let (retired, kept) = jobs.split_at(jobs.len() - KEPT);
        for job in retired {
            db.remove(record::key(job.id)).unwrap();
        }
        db.flush().unwrap();
        (dir, files, kept.to_vec())
    }

    fn opened_above(bloat_floor: u64, files: &Files) -> (Store, u64) {
        let retention = Retention { age: Duration::MAX, jobs: usize::MAX };
        let (store, unfinished) = open_above(bloat_floor, files.clone(), files.lock().unwrap(), retention).unwrap();
        assert_eq!(unfinished, []);
        let size = store.size_on_disk();
        (store, size)
    }

    #[test]
    fn what_a_disk_cannot_do_is_no_damage() {
        let of = |error| OpenError::of_sled(&Files::new(Path::new("/state")), error);
        let of_disk = |errno: Errno| {
            let error = io::Error::from(errno);
            // As sled passes on what it has remembered.
            let remembered = io::Error::new(error.kind(), format!("{error:?}"));
            [error, remembered].map(|error| matches!(of(sled::Error::Io(error)), OpenError::Disk { .. })) == [true; 2]
        };
        let disk = [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO, Errno::EACCES, Errno::EPERM];
        assert!(disk.into_iter().all(of_disk));
        // What reading something else than sled wrote leads to.
        let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData, io::ErrorKind::Other];
        let damage = kinds.map(|kind| sled::Error::Io(io::Error::new(kind, "corrupted")));
        let damage = damage.into_iter().chain([
            sled::Error::Io(Errno::EINVAL.into()),
            sled::Error::Corruption { at: None, bt: () },
            sled::Error::ReportableBug(String::new()),
        ]);
        assert!(damage.into_iter().all(|error| matches!(of(error), OpenError::Damaged { .. })));
        let told = of(sled::Error::Io(Errno::ENOSPC.into())).to_string();
        assert!(told.contains("start growd again") && !told.contains("set-aside"));
        let told = of(sled::Error::Corruption { at: None, bt: () }).to_string();
        assert!(told.contains("is damaged: the file db is damaged. growd does not start with it"), "{told}");
    }

    #[test]
    fn a_store_whose_flush_does_not_end_in_growd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(&Files::new(dir.path()).jobs()).unwrap();
        // sled writes nothing for a value that is there already.
        let check = |commit, calls: fn() -> u64| check_flush(dir.path(), &db, commit, &Calendar::default(), calls);
        assert!(matches!(check(1, || 7), Err(OpenError::NotDurable)));
        assert!(check(2, sync_file_range::redirected_calls).is_ok());
    }

    #[tokio::test]
    async fn a_bloated_store_shrinks_when_it_is_opened_and_keeps_every_record() {
        let (_dir, files, kept) = bloated();
        let (store, before) = opened_above(u64::MAX, &files);
        store.close().await;
        drop(store);
        let (store, after) = opened_above(0, &files);
        assert!(after < before / 2, "{before} bytes became {after}");
        assert_eq!(store.len(), KEPT);
        for job in &kept {
            assert_eq!(store.get(job.id).unwrap().as_ref(), Some(job));
        }
        // It is written and opened again as any other.
        let new = any_job(9000, JobState::Queued);
        store.commit(vec![new.clone()]).await.unwrap();
        store.close().await;
        drop(store);
        let (store, unfinished) = Store::open(files.dir(), Retention { age: Duration::MAX, jobs: usize::MAX }).unwrap();
        assert_eq!((store.len(), unfinished), (KEPT + 1, vec![new]));
        // What it has kept to be safe goes beside all else, and is gone at its end.
        store.close().await;
        let names: Vec<_> = fs::read_dir(files.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let known = ["jobs", "jobs.left", "jobs.mark", "lock"];
        assert!(names.iter().all(|name| known.iter().any(|known| name == known)), "{names:?}");
    }
}
