//! The one thread that writes the database.
//!
//! It drains what waits, inserts, flushes once, publishes, then answers all. When a write fails, everyone who waits is
//! told, and nothing is written until the database has been opened again: sled refuses writes after its first error
//! until it is dropped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::database::{database, told};
use super::files::{Files, Identity, remove_tree, write_over};
use super::kept_time::KeptTime;
use super::open_error::OpenError;
use super::{Failure, INBOX, Retention, Shared, StoreError, record};
use crate::model::{Job, JobId};
use crate::sys::sync_file_range;

/// Most commits in a group: above it the wait for the flush is no longer what costs.
const GROUP: usize = 512;
/// The mark follows the commits at this distance: it takes flushes of its own.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// How often time is counted and what got old is removed; a kill forgets as much of the time.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Sweeps in one age, when that is short.
const SWEEPS: u32 = 32;
/// Ended jobs above the kept number before they are swept, so that not every commit sweeps.
const SWEEP_SLACK: usize = 100;
/// Jobs removed between two groups of commits: nobody shall wait long behind a sweep.
const SWEEP_BATCH: usize = 1000;
/// What must fit on the disk again before the database is opened again: sled writes whole segments of 512 KiB.
const PROBE_BYTES: usize = 4 << 20;

/// Jobs that wait to be written, and who waits for it.
pub type Waiting = (Vec<Job>, oneshot::Sender<Result<(), StoreError>>);

pub enum Work {
    Commit(Waiting),
    /// Time has passed: see to the mark, to retention, and to a failed database.
    Tick,
    Close,
}

const REPLACED: &str = "its database was removed or replaced while growd was running. When the state directory is put \
    back, growd goes on; without it, growd has an empty history after a restart";

struct Committer {
    shared: Arc<Shared>,
    files: Files,
    /// The file that was opened.
    identity: Identity,
    retention: Retention,
    /// The thread that writes the mark: no group waits for the flushes of the mark.
    marking: (SyncSender<u64>, JoinHandle<()>),
    /// The highest commit number given out.
    commit: u64,
    /// The commit number that was last given to the thread that writes the mark.
    marked: u64,
    marked_at: Instant,
    /// The commit number at which the size on disk was last asked for.
    measured: u64,
    kept_time: KeptTime,
    /// Up to when the time is counted.
    counted_at: Instant,
    swept_at: Option<Instant>,
    /// Jobs of failed groups that may or may not be on disk.
    unanswered: HashSet<JobId>,
}

/// Starts the thread that writes the database. It ends at [`Work::Close`], or when nobody is left who could send.
///
/// # Errors
/// When a thread cannot be started, or the database is not where it was opened.
pub fn start(
    shared: Arc<Shared>,
    files: Files,
    retention: Retention,
    kept_time: KeptTime,
) -> Result<(mpsc::Sender<Work>, JoinHandle<()>), OpenError> {
    let dir = files.dir().to_owned();
    let no_thread = |source| OpenError::io("cannot start a thread for", &dir, source);
    let (inbox, outbox) = mpsc::channel(INBOX);
    let commit = shared.durable.load(Ordering::Acquire);
    let committer = Committer {
        shared: Arc::clone(&shared),
        marking: start_marking(&files).map_err(no_thread)?,
        identity: files.identity().map_err(|source| OpenError::io("cannot find", &files.jobs(), source))?,
        files,
        retention,
        commit,
        marked: commit,
        marked_at: Instant::now(),
        measured: commit,
        kept_time,
        counted_at: Instant::now(),
        swept_at: None,
        unanswered: HashSet::new(),
    };
    let run = move || {
        if catch_unwind(AssertUnwindSafe(|| committer.run(outbox))).is_err() {
            let problem = "its thread has panicked; growd needs a restart".to_owned();
            shared.failure.send_replace(Some(Failure::Broken(problem)));
        }
    };
    let thread = std::thread::Builder::new().name("committer".to_owned()).spawn(run).map_err(no_thread)?;
    Ok((inbox, thread))
}

impl Committer {
    fn run(mut self, mut inbox: mpsc::Receiver<Work>) {
        let mut waiting = Vec::new();
        while let Some(first) = inbox.blocking_recv() {
            let mut next = Some(first);
            let mut closing = false;
            while let Some(work) = next {
                match work {
                    Work::Commit(waits) => waiting.push(waits),
                    Work::Tick => {
                        self.note_progress();
                        self.tick(|| waiting.is_empty() && inbox.is_empty());
                    }
                    Work::Close => closing = true,
                }
                next = if waiting.len() < GROUP { inbox.try_recv().ok() } else { None };
            }
            if !waiting.is_empty() {
                self.commit_group(&mut waiting);
            }
            if closing {
                break;
            }
            self.note_progress();
            *self.shared.at_work_since.lock() = None;
        }
        self.close();
    }

    /// Notes that the disk has answered, and takes back what was said when it did not for a while.
    fn note_progress(&self) {
        // Held to the end, as by whoever says so: neither may come between the other's two steps.
        let mut at_work_since = self.shared.at_work_since.lock();
        *at_work_since = Some(Instant::now());
        self.shared.failure.send_if_modified(|failure| failure.take_if(|failure| *failure == Failure::Hangs).is_some());
    }

    fn commit_group(&mut self, waiting: &mut Vec<Waiting>) {
        self.note_progress();
        let written = match &*self.shared.failure.borrow() {
            Some(failure) => Err(failure.to_string()),
            None => Ok(()),
        };
        let begun = Instant::now();
        let written = written.and_then(|()| self.write(waiting.iter().flat_map(|(jobs, _)| jobs)));
        self.note_progress();
        match written {
            Ok(()) => {
                self.shared.meters.committed(waiting.iter().map(|(jobs, _)| jobs.len()).sum(), begun.elapsed());
                // Published only now: a job that was seen before the flush could be gone after a power cut.
                let mut index = self.shared.index.write();
                waiting.iter().flat_map(|(jobs, _)| jobs).for_each(|job| index.publish(job));
                drop(index);
                self.shared.durable.store(self.commit, Ordering::Release);
                for (_, answer) in waiting.drain(..) {
                    let _ = answer.send(Ok(()));
                }
            }
            Err(problem) => {
                let index = self.shared.index.read();
                let new = waiting.iter().flat_map(|(jobs, _)| jobs).map(|job| job.id);
                self.unanswered.extend(new.filter(|id| !index.contains(*id)));
                drop(index);
                self.fail(&problem);
                for (_, answer) in waiting.drain(..) {
                    let _ = answer.send(Err(StoreError::Write { problem: problem.clone() }));
                }
            }
        }
        if self.shared.failure.borrow().is_none() {
            self.mark();
            if self.surplus() > SWEEP_SLACK {
                let _more = self.sweep();
            }
        }
    }

    /// Notes that the database takes no writes until it is opened again.
    fn fail(&self, problem: &str) {
        if self.shared.failure.borrow().is_none() {
            error!(problem, "the job store cannot be written; extends are refused until it can");
            self.shared.failure.send_replace(Some(Failure::Broken(problem.to_owned())));
        }
    }

    fn write<'a>(&mut self, jobs: impl Iterator<Item = &'a Job>) -> Result<(), String> {
        let db = self.shared.db()?;
        for job in jobs {
            self.commit += 1;
            put(&db, &record::key(job.id), record::encode(job, self.commit))?;
        }
        // The one flush of the group; answered by fdatasync, see `sys::sync_file_range`.
        db.flush().map_err(|error| error.to_string())?;
        // A file without a name takes writes and flushes as any other.
        self.check_identity()
    }

    fn check_identity(&self) -> Result<(), String> {
        match self.files.identity() {
            Ok(now) if now == self.identity => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Err(REPLACED.to_owned()),
        }
    }

    /// `is_idle` tells whether nobody waits for a commit.
    fn tick(&mut self, is_idle: impl Fn() -> bool) {
        if self.shared.failure.borrow().is_some() {
            self.reopen();
            return;
        }
        self.mark();
        // Here, since whoever asks for it shall not wait for the disk; only after changes, since an idle growd sleeps.
        if self.measured != self.commit
            && let Ok(Ok(size)) = self.shared.db().map(|db| db.size_on_disk())
        {
            self.shared.size.store(size, Ordering::Relaxed);
            self.measured = self.commit;
        }
        let every = SWEEP_EVERY.min(self.retention.age / SWEEPS);
        if self.swept_at.is_none_or(|at| at.elapsed() > every) {
            // Where fewer jobs than before are to be kept, this is many batches.
            while self.sweep() && is_idle() {}
        }
    }

    fn surplus(&self) -> usize {
        self.shared.index.read().ended().saturating_sub(self.retention.jobs)
    }

    /// Removes a batch of ended jobs that are no longer kept, and tells whether more may be left.
    fn sweep(&mut self) -> bool {
        self.note_progress();
        // The job with the highest commit number may be among those that go: the number must stay on disk, or the store
        // would look as if it had been set back.
        if let Err(problem) = self.count() {
            self.fail(&problem);
            return false;
        }
        let old = self.kept_time.kept_for(self.retention.age);
        let expired = self.shared.index.read().expired(old, self.retention.jobs, SWEEP_BATCH);
        match self.remove(&expired) {
            Ok(()) if expired.is_empty() => {}
            // More may be left: the next tick or group goes on.
            Ok(()) => {
                info!(jobs = expired.len(), "removed jobs that are no longer kept");
                return true;
            }
            Err(problem) => warn!(problem, "cannot remove jobs that are no longer kept"),
        }
        self.swept_at = Some(Instant::now());
        false
    }

    /// Counts the time that has passed, and writes it.
    fn count(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let newest = self.shared.index.read().newest();
        self.kept_time.advance(now - self.counted_at, newest, self.retention.age);
        self.counted_at = now;
        self.commit += 1;
        let db = self.shared.db()?;
        put(&db, record::MARK_KEY, record::encode_mark(self.commit, &self.kept_time))?;
        db.flush().map_err(|error| error.to_string())?;
        self.shared.durable.store(self.commit, Ordering::Release);
        Ok(())
    }

    fn remove(&self, jobs: &[JobId]) -> Result<(), String> {
        let db = self.shared.db()?;
        for id in jobs {
            if let Some((job, _)) = read(&db, *id)? {
                self.shared.index.write().forget(&job);
            }
            // Not flushed: a job that comes back after a power cut is removed again.
            db.remove(record::key(*id)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Has the mark brought up to what is on disk, unless that was done a moment ago or the last one is still at it.
    fn mark(&mut self) {
        let durable = self.shared.durable.load(Ordering::Acquire);
        if self.marked == durable || self.marked_at.elapsed() < MARK_EVERY {
            return;
        }
        if self.marking.0.try_send(durable).is_ok() {
            self.marked = durable;
        }
        self.marked_at = Instant::now();
    }

    /// Opens the database again after a failed write, as soon as the disk takes writes.
    fn reopen(&mut self) {
        // Opened by name, it would be another database than the index tells of.
        if let Err(problem) = self.check_identity() {
            info!(problem, "the job store cannot be opened again");
            return;
        }
        if let Err(error) = probe(&self.files) {
            info!(%error, "the job store's disk still takes no writes");
            return;
        }
        // sled's lock and its threads go with the last handle, so it is dropped before the next one is opened: both without
        // the lock, for which threads wait that serve others.
        let failed = self.shared.db.write().take();
        drop(failed);
        sync_file_range::end();
        let reopened = write_over(&self.files.jobs())
            .map_err(|error| error.to_string())
            .and_then(|()| database(&self.files.jobs()).map_err(|error| error.to_string()))
            .and_then(|db| self.settle(&db).map(|()| db));
        match reopened {
            Ok(db) => {
                *self.shared.db.write() = Some(db);
                info!("the job store can be written again");
                self.shared.failure.send_replace(None);
            }
            Err(problem) => error!(problem, "the job store cannot be opened again"),
        }
    }

    /// Takes back what failed groups may have left on disk: their callers were told that it was not accepted.
    fn settle(&mut self, db: &sled::Db) -> Result<(), String> {
        for id in &self.unanswered {
            db.remove(record::key(*id)).map_err(|error| error.to_string())?;
        }
        db.flush().map_err(|error| error.to_string())?;
        self.unanswered.clear();
        Ok(())
    }

    fn close(self) {
        let db = self.shared.db.write().take();
        let flushed = db.as_ref().map(|db| db.flush());
        self.note_progress();
        let Self { shared, files, marking: (marks, marker), .. } = self;
        drop(marks);
        // It only writes the mark, which is written once more below.
        let _ = marker.join();
        drop(db);
        sync_file_range::end();
        match flushed {
            Some(Ok(_)) if shared.failure.borrow().is_none() => {
                if let Err(error) = files.write_mark(shared.durable.load(Ordering::Acquire)) {
                    warn!(%error, "cannot write {}", files.mark().display());
                }
            }
            Some(Err(error)) => warn!(%error, "the job store cannot be flushed at its close"),
            _ => {}
        }
        shared.failure.send_replace(Some(Failure::Broken("it is closed".to_owned())));
    }
}

/// Inserts, and leaves no node of the tree too large: sled splits those when they are next looked at, which is a write, so
/// that a read would fail on a disk that has become full.
fn put(db: &sled::Db, key: &[u8], value: Vec<u8>) -> Result<(), String> {
    let inserted = db.insert(key, value).and_then(|_| db.contains_key(key));
    inserted.map(drop).map_err(|error| error.to_string())
}

/// Starts the thread that writes the mark; it ends when the sender is dropped. It begins with the removal of the copy that
/// the start has left, which nobody needs to wait for.
fn start_marking(files: &Files) -> io::Result<(SyncSender<u64>, JoinHandle<()>)> {
    let files = files.clone();
    let (marks, inbox) = sync_channel::<u64>(1);
    let mark = move || {
        if let Err(error) = remove_tree(&files.looked_at()) {
            warn!("{error}");
        }
        for commit in inbox {
            if let Err(error) = files.write_mark(commit) {
                warn!(%error, "cannot write {}", files.mark().display());
            }
        }
    };
    Ok((marks, std::thread::Builder::new().name("mark".to_owned()).spawn(mark)?))
}

/// The record of a job as the database has it now, flushed or not, and its commit number.
pub fn read(db: &sled::Db, id: JobId) -> Result<Option<(Job, u64)>, String> {
    let key = record::key(id);
    let Some(value) = db.get(key).map_err(|error| told(&error))? else { return Ok(None) };
    record::decode(&key, &value).map(Some).map_err(|error| format!("the record of job {id}: {error}"))
}

fn probe(files: &Files) -> io::Result<()> {
    let path = files.dir().join("probe");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}
