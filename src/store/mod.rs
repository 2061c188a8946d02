//! The job store: every job in sled, durable before anyone can see it.
//!
//! One key per job holds everything that must change together. One thread writes: it drains what waits, inserts, flushes
//! once, publishes to the in-memory index, then answers all. The store knows nothing of the kernel's sizes and nothing
//! of what a job means; it gives back exactly what it was given, or says that it cannot.

mod committer;
mod database;
mod files;
mod index;
mod kept_time;
pub mod offline;
mod open;
mod open_error;
pub(crate) mod record;
mod safety_copy;
mod scan;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot, watch};

use crate::meters::Meters;
use crate::model::{Job, JobId, JobKind, JobState, RequestId, ShareId};
use committer::Work;
use files::{Files, Lock};
use index::Index;

pub use index::Selection;
pub use open_error::OpenError;

/// Commits that may wait for the committer; whoever comes then waits for its place.
const INBOX: usize = 1024;

/// How long ended jobs are kept: for an age, counted while the store is open, and up to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub age: Duration,
    pub jobs: usize,
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Whether the write will be found after a restart is unknown.
    #[error("the job store cannot be written: {problem}")]
    Write { problem: String },
    #[error("the job store cannot be read: {problem}")]
    Read { problem: String },
    #[error("the job store is closed")]
    Closed,
}

/// Why the store cannot be written now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The committer waits for it.
    #[error("its disk does not answer: a write has not ended for more than 10 s")]
    Hangs,
    #[error("{0}")]
    Broken(String),
}

/// What the readers and the committer share.
struct Shared {
    /// `None` while the database is being opened again after a failed write.
    db: RwLock<Option<sled::Db>>,
    index: RwLock<Index>,
    /// Up to which commit number all is on disk and in the index.
    durable: AtomicU64,
    /// What the database took on disk when it was last looked at.
    size: AtomicU64,
    /// `None` when the store can be written.
    failure: watch::Sender<Option<Failure>>,
    /// Since when the committer is at the work that it is at.
    at_work_since: Mutex<Option<Instant>>,
    meters: Arc<Meters>,
}

impl Shared {
    fn db(&self) -> Result<MappedRwLockReadGuard<'_, sled::Db>, String> {
        RwLockReadGuard::try_map(self.db.read(), Option::as_ref).map_err(|_| "it is being opened again".to_owned())
    }
}

/// The open store. All methods but [`Store::commit`], [`Store::close`] and [`Store::get`] answer from memory.
pub struct Store {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Work>,
    /// The newest job that was noted when the store was opened; it may be gone.
    noted: Option<JobId>,
    /// Kept until the store is closed: a second daemon on the same directory is refused.
    _lock: Lock,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The directory of a store, which no other process can use now. Taking it is quick, opening may take a while.
pub struct Claimed {
    files: Files,
    lock: Lock,
}

impl Claimed {
    /// Makes the directory when there is none.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it; [`OpenError::Create`]; [`OpenError::Io`].
    pub fn of(dir: &Path) -> Result<Self, OpenError> {
        // Looked at first: on a file system that answers with EIO, creating says "File exists".
        match std::fs::metadata(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(dir).map_err(|source| OpenError::Create { dir: dir.to_owned(), source })?;
            }
            Err(source) => return Err(OpenError::io("cannot read", dir, source)),
            Ok(_) => {}
        }
        let files = Files::new(dir);
        let lock = files.lock()?;
        Ok(Self { files, lock })
    }

    /// Opens the store, or creates it, and gives the jobs that have not ended, oldest first. To be called within a runtime.
    ///
    /// # Errors
    /// When anything about the store is not as it was left. Nothing is deleted or replaced then; the message says which
    /// command shows, saves and sets aside what is there.
    pub fn open(self, retention: Retention, meters: Arc<Meters>) -> Result<(Store, Vec<Job>), OpenError> {
        open::open(open::BLOAT_FLOOR, self.files, self.lock, retention, meters)
    }
}

impl Store {
    /// Makes jobs durable, all or, where growd is stopped in between, a part of them. Returns when they are on disk
    /// and published.
    ///
    /// # Errors
    /// [`StoreError::Write`] when it is unknown whether they are on disk.
    pub async fn commit(&self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Work::Commit((jobs, answer))).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// A job as it was last committed. Waits for the disk where sled has not got it in memory.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        // Asked first: what is not on disk yet may never be.
        let durable = self.shared.durable.load(Ordering::Acquire);
        let found = self.shared.db().and_then(|db| committer::read(&db, id));
        let found = found.map_err(|problem| StoreError::Read { problem })?;
        // The database also shows what is not flushed yet: then the index knows whether there was a record before.
        let exists = |commit| commit <= durable || self.shared.index.read().contains(id);
        Ok(found.and_then(|(job, commit)| exists(commit).then_some(job)))
    }

    /// Ids of jobs, newest first; see [`Selection`]. A selection of an unfinished state gives all that are unfinished.
    pub fn newest_first(&self, selection: &Selection, before: Option<JobId>, limit: usize) -> Vec<JobId> {
        self.shared.index.read().newest_first(selection, before, limit)
    }

    pub fn of_request(&self, request_id: RequestId) -> Option<JobId> {
        self.shared.index.read().of_request(request_id)
    }

    pub fn kind(&self, job: JobId) -> Option<JobKind> {
        self.shared.index.read().kind(job)
    }

    /// The newest of a share's jobs that have ended in a state that counts, with what it did and that state.
    pub fn last_ended(&self, share: ShareId, counts: impl Fn(JobState) -> bool) -> Option<(JobId, JobKind, JobState)> {
        self.shared.index.read().last_ended(share, counts)
    }

    /// The newest job that is kept, or was noted before this start. A new one must be above it, or retention takes it for
    /// as old.
    pub fn newest(&self) -> Option<JobId> {
        self.shared.index.read().newest().max(self.noted)
    }

    /// Number of jobs kept.
    pub fn kept(&self) -> usize {
        self.shared.index.read().len()
    }

    /// Bytes that the database took on disk some seconds ago.
    pub fn size_on_disk(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }

    /// Why the store cannot be written, as it changes; `None` when it can.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.shared.failure.subscribe()
    }

    /// Flushes, notes that the store was left in order, and ends the committer.
    pub async fn close(&self) {
        // An error here means that the committer has already ended, which is what was asked for.
        let _ = self.inbox.send(Work::Close).await;
        let committer = self.committer.lock().take();
        if let Some(committer) = committer {
            let _ = tokio::task::spawn_blocking(move || committer.join()).await;
        }
    }
}
