//! Opening the store: everything is checked before anything is trusted, and nothing is deleted or replaced.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::committer::{self, Work};
use super::database::database;
use super::files::{Files, Lock, remove_tree, sync_dir};
use super::index::Index;
use super::kept_time::KeptTime;
use super::open_error::OpenError;
use super::safety_copy;
use super::scan::Scan;
use super::{Failure, Retention, Shared, Store, record};
use crate::meters::Meters;
use crate::model::Job;
use crate::sys::sync_file_range;
use crate::sys::timer_slack::Lenient;

/// sled never gives space back, and restarts leak it: above this ratio of disk to live bytes the store is copied.
const BLOAT_RATIO: u64 = 6;
/// Below this a bloated store is nobody's trouble.
pub const BLOAT_FLOOR: u64 = 64 << 20;
const TICK: Duration = Duration::from_secs(10);
/// sled has seven threads that look for work once a second, though they are woken when there is any.
const SLED_MAY_SLEEP_ON: Duration = Duration::from_secs(60);

pub fn open(
    bloat_floor: u64,
    files: Files,
    lock: Lock,
    retention: Retention,
    meters: Arc<Meters>,
) -> Result<(Store, Vec<Job>), OpenError> {
    // Its threads are started by the first flush, at the latest; without this they only wake more often.
    let _lenient = Lenient::by(SLED_MAY_SLEEP_ON);
    let (mut db, mut scan) = checked(&files)?;
    // Another number than the last start's: sled writes nothing for a value that is there already.
    scan.commit += 1;
    let kept_time = scan.kept_time.take().unwrap_or_default();
    note_start(&files, &db, scan.commit, &kept_time)?;
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
        meters,
    });
    let noted = kept_time.notes.last().map(|note| note.newest);
    let (inbox, committer) = committer::start(Arc::clone(&shared), files, retention, kept_time)?;
    start_ticking(inbox.downgrade(), Arc::clone(&shared));
    let store = Store { shared, inbox, noted, _lock: lock, committer: Mutex::new(Some(committer)) };
    Ok((store, scan.unfinished))
}

/// The database, with all that is in it. When anything is wrong, the files are put back as they were.
fn checked(files: &Files) -> Result<(sled::Db, Scan), OpenError> {
    let dir = files.dir();
    safety_copy::settle(files)?;
    let (exists, mark) = (files.jobs().exists(), files.read_mark()?);
    if let (false, Some(mark)) = (exists, mark) {
        return Err(files.gone(mark));
    }
    remove_tree(&files.compacted())?;
    safety_copy::keep(files)?;
    let opened = database(&files.jobs()).map_err(|error| OpenError::of_sled(files.dir(), error)).and_then(|db| {
        let scan = if exists { Scan::of_all(&db) } else { Scan::default() };
        scan.check(dir, mark).map(|scan| (db, scan))
    });
    match opened {
        Ok(opened) => {
            // Before anything is committed: a later start that finds it takes the store for one that nobody has used since.
            safety_copy::retire(files)?;
            Ok(opened)
        }
        Err(error) => {
            // Only one of the two can be answered, and this one says what is to be seen to first.
            safety_copy::put_back(files).inspect_err(|_| warn!("{error}"))?;
            Err(error)
        }
    }
}

/// The first commit of this start, which is on disk for certain then, and the names of all files with it.
fn note_start(files: &Files, db: &sled::Db, commit: u64, kept_time: &KeptTime) -> Result<(), OpenError> {
    check_flush(files.dir(), db, commit, kept_time, sync_file_range::redirected_calls)?;
    for created in [&files.jobs(), files.dir()] {
        sync_dir(created).map_err(|source| OpenError::io("cannot sync", created, source))?;
    }
    files.write_mark(commit).map_err(|source| OpenError::io("cannot write", &files.mark(), source))
}

/// Has the committer see to its upkeep, and says so when its disk keeps it from doing anything.
fn start_ticking(inbox: mpsc::WeakSender<Work>, shared: Arc<Shared>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(inbox) = inbox.upgrade() else { return };
            let at_work_since = shared.at_work_since.lock();
            if at_work_since.is_some_and(|since| since.elapsed() > TICK) {
                // Said under the lock: the committer takes it back as soon as the disk answers.
                let hangs = |failure: &mut Option<Failure>| {
                    let is_new = failure.is_none();
                    failure.get_or_insert(Failure::Hangs);
                    is_new
                };
                if shared.failure.send_if_modified(hangs) {
                    error!(problem = %Failure::Hangs, "the job store cannot be written; extends are refused until it can");
                }
            } else if let Err(TrySendError::Closed(_)) = inbox.try_send(Work::Tick) {
                return;
            }
        }
    });
}

/// Writes the commit number, flushes, and sees whether that reached fdatasync; see `sys::sync_file_range`.
fn check_flush(
    dir: &Path,
    db: &sled::Db,
    commit: u64,
    kept_time: &KeptTime,
    redirected_calls: impl Fn() -> u64,
) -> Result<(), OpenError> {
    let before = redirected_calls();
    let write = || -> sled::Result<()> {
        db.insert(record::MARK_KEY, record::encode_mark(commit, kept_time))?;
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
    database(&files.jobs()).map_err(|error| OpenError::of_sled(files.dir(), error))
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
    use std::path::Path;
    use std::process::Command;
    use std::time::Instant;

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

    fn opened_above(bloat_floor: u64, files: &Files) -> (Store, Vec<Job>) {
        let retention = Retention { age: Duration::MAX, jobs: usize::MAX };
        // A process that another test starts has the locks of before too, until it is the program that it is to be. It would
        // have one that was tried here as well, so another program tries.
        let is_locked =
            |file: &Path| !Command::new("flock").arg("-n").arg(file).arg("true").status().unwrap().success();
        let begin = Instant::now();
        for file in [files.dir().join("lock"), files.jobs().join("db")] {
            while file.exists() && is_locked(&file) {
                assert!(begin.elapsed() < Duration::from_secs(60), "{} stays locked", file.display());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (lock, meters) = (files.lock().unwrap(), Arc::new(Meters::new().unwrap()));
        open(bloat_floor, files.clone(), lock, retention, meters).unwrap()
    }

    #[test]
    fn a_store_whose_flush_does_not_end_in_growd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(&Files::new(dir.path()).jobs()).unwrap();
        // sled writes nothing for a value that is there already.
        let check = |commit, calls: fn() -> u64| check_flush(dir.path(), &db, commit, &KeptTime::default(), calls);
        assert!(matches!(check(1, || 7), Err(OpenError::NotDurable)));
        assert!(check(2, sync_file_range::redirected_calls).is_ok());
    }

    #[tokio::test]
    async fn a_bloated_store_shrinks_when_it_is_opened_and_keeps_every_record() {
        let (_dir, files, kept) = bloated();
        let (store, _) = opened_above(u64::MAX, &files);
        let before = store.size_on_disk();
        store.close().await;
        drop(store);
        let (store, unfinished) = opened_above(0, &files);
        let after = store.size_on_disk();
        assert!(after < before / 2, "{before} bytes became {after}");
        assert_eq!((store.kept(), unfinished), (KEPT, Vec::new()));
        for job in &kept {
            assert_eq!(store.get(job.id).unwrap().as_ref(), Some(job));
        }
        // It is written and opened again as any other.
        let new = any_job(9000, JobState::Queued);
        store.commit(vec![new.clone()]).await.unwrap();
        store.close().await;
        drop(store);
        let (store, unfinished) = opened_above(u64::MAX, &files);
        assert_eq!((store.kept(), unfinished), (KEPT + 1, vec![new]));
        // What it has kept to be safe goes beside all else, and is gone at its end.
        store.close().await;
        let names: Vec<_> = fs::read_dir(files.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let known = ["jobs", "jobs.mark", "lock"];
        assert!(names.iter().all(|name| known.iter().any(|known| name == known)), "{names:?}");
    }
}
