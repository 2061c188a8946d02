//! A job as it lies on disk: a format byte, the commit number, a protobuf payload, and a CRC-32 over key and all that.
//!
//! The structs here are the disk's own: the model may change without them. A record of another format is refused,
//! never guessed at: three of four single-bit flips would decode as some valid payload, so the checksum decides.

#[cfg(test)]
pub mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use uuid::Uuid;

use super::index::Entry;
use super::kept_time::{KeptTime, Note};
use crate::model::{
    Bytes, DriverKind, Job, JobError, JobId, JobKind, JobState, PoolName, ProjectLabel, RequestId, ShareId, StepRecord,
};

/// Format of the records of extends. Those of shrinks have one of their own: a growd that knows no shrinks would take an
/// unfinished one for an extend that is done, and refuses the store instead.
const EXTEND: u8 = 3;
const SHRINK: u8 = 4;
/// Format of the record under [`MARK_KEY`].
pub const MARK: u8 = 1;
const HEADER: usize = 1 + 8;
const CHECKSUM: usize = 4;

/// Keys of jobs: this, then the big-endian UUIDv7, so that keys sort by the time of acceptance.
pub const JOB_PREFIX: u8 = b'j';
/// Key of the record that carries the commit number when the job that had the highest one is no longer kept, and the
/// kept time.
pub const MARK_KEY: &[u8] = b"m";

#[derive(Clone, PartialEq, Message)]
struct JobRecord {
    #[prost(bytes = "vec", tag = "1")]
    share: Vec<u8>,
    #[prost(string, tag = "2")]
    pool: String,
    #[prost(string, tag = "3")]
    driver: String,
    #[prost(string, tag = "4")]
    state: String,
    #[prost(uint64, tag = "5")]
    size_before: u64,
    #[prost(uint64, tag = "6")]
    requested_size: u64,
    #[prost(uint64, optional, tag = "7")]
    expected_size: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    size_after: Option<u64>,
    #[prost(message, repeated, tag = "9")]
    steps: Vec<StepOnDisk>,
    #[prost(message, optional, tag = "10")]
    error: Option<ErrorOnDisk>,
    #[prost(uint32, tag = "11")]
    attempt: u32,
    #[prost(uint64, tag = "12")]
    revision: u64,
    #[prost(string, tag = "13")]
    requested_by: String,
    #[prost(string, tag = "14")]
    project: String,
    #[prost(bytes = "vec", optional, tag = "15")]
    request_id: Option<Vec<u8>>,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "16")]
    created_at: u64,
    /// Nanoseconds since `created_at`, as all that follow, those of steps too: a third of a record would be times otherwise.
    /// What was before wraps around.
    #[prost(uint64, optional, tag = "17")]
    started_at: Option<u64>,
    #[prost(uint64, optional, tag = "18")]
    finished_at: Option<u64>,
    /// As in the header of the request; empty for none.
    #[prost(string, tag = "20")]
    trace: String,
    #[prost(uint64, tag = "21")]
    promised: u64,
}

/// Of a [`JobRecord`] what the index has; the other fields are skipped.
#[derive(Clone, PartialEq, Message)]
struct EntryOnDisk {
    #[prost(bytes = "vec", tag = "1")]
    share: Vec<u8>,
    #[prost(string, tag = "4")]
    state: String,
    #[prost(bytes = "vec", optional, tag = "15")]
    request_id: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct StepOnDisk {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    started_at: u64,
    #[prost(uint64, optional, tag = "3")]
    finished_at: Option<u64>,
    #[prost(string, tag = "4")]
    detail: String,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorOnDisk {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(bool, tag = "3")]
    retryable: bool,
}

#[derive(Clone, PartialEq, Message)]
struct KeptTimeOnDisk {
    /// Nanoseconds, as those of the notes.
    #[prost(uint64, tag = "1")]
    open: u64,
    #[prost(message, repeated, tag = "2")]
    notes: Vec<NoteOnDisk>,
}

#[derive(Clone, PartialEq, Message)]
struct NoteOnDisk {
    #[prost(uint64, tag = "1")]
    at: u64,
    #[prost(bytes = "vec", tag = "2")]
    newest: Vec<u8>,
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it is of format {0}, which this growd does not read")]
    OtherFormat(u8),
    #[error("its checksum does not match")]
    Checksum,
    #[error("its key {0:02x?} is not a job's")]
    Key(Vec<u8>),
    #[error("its {0} is not valid")]
    Field(&'static str),
}

pub fn key(job: JobId) -> [u8; 17] {
    let mut key = [JOB_PREFIX; 17];
    key[1..].copy_from_slice(job.as_uuid().as_bytes());
    key
}

pub fn job_of_key(key: &[u8]) -> Result<JobId, RecordError> {
    match key.split_first() {
        Some((&JOB_PREFIX, id)) => {
            Uuid::from_slice(id).map(JobId::from_uuid).map_err(|_| RecordError::Key(key.to_vec()))
        }
        _ => Err(RecordError::Key(key.to_vec())),
    }
}

/// The record of a job, for [`key`] of its id.
pub fn encode(job: &Job, commit: u64) -> Vec<u8> {
    let created_at = nanos(job.created_at);
    let since = |time: SystemTime| nanos(time).wrapping_sub(created_at);
    let step_on_disk = |step: &StepRecord| StepOnDisk {
        name: step.name.clone(),
        started_at: since(step.started_at),
        finished_at: step.finished_at.map(since),
        detail: step.detail.clone(),
    };
    let record = JobRecord {
        share: job.share.as_uuid().as_bytes().to_vec(),
        pool: job.pool.to_string(),
        driver: job.driver.to_string(),
        state: job.state.to_string(),
        size_before: job.size_before.get(),
        requested_size: job.requested_size.get(),
        expected_size: job.expected_size.map(Bytes::get),
        size_after: job.size_after.map(Bytes::get),
        steps: job.steps.iter().map(step_on_disk).collect(),
        error: job.error.as_ref().map(|error| ErrorOnDisk {
            reason: error.reason.clone(),
            message: error.message.clone(),
            retryable: error.retryable,
        }),
        attempt: job.attempt,
        revision: job.revision,
        requested_by: job.requested_by.clone(),
        project: job.project.as_str().to_owned(),
        request_id: job.request_id.map(|id| id.as_uuid().as_bytes().to_vec()),
        created_at,
        started_at: job.started_at.map(since),
        finished_at: job.finished_at.map(since),
        trace: job.trace.map(|trace| trace.to_string()).unwrap_or_default(),
        promised: job.promised.get(),
    };
    seal(format(job.kind), &key(job.id), commit, &record.encode_to_vec())
}

pub const fn format(kind: JobKind) -> u8 {
    match kind {
        JobKind::Extend => EXTEND,
        JobKind::Shrink => SHRINK,
    }
}

/// The job and the commit number of a record.
///
/// # Errors
/// When the record is not exactly what [`encode`] wrote under this key.
pub fn decode(key: &[u8], value: &[u8]) -> Result<(Job, u64), RecordError> {
    let id = job_of_key(key)?;
    let (kind, commit, payload) = unseal_job(key, value)?;
    let record = JobRecord::decode(payload).map_err(|_| RecordError::Field("payload"))?;
    let after = |nanos: u64| time(record.created_at.wrapping_add(nanos));
    let step_from_disk = |step: StepOnDisk| StepRecord {
        name: step.name,
        started_at: after(step.started_at),
        finished_at: step.finished_at.map(after),
        detail: step.detail,
    };
    let job = Job {
        id,
        kind,
        share: share(&record.share)?,
        pool: record.pool.parse::<PoolName>().map_err(|_| RecordError::Field("pool"))?,
        driver: DriverKind::named(&record.driver).ok_or(RecordError::Field("driver"))?,
        state: state(&record.state)?,
        size_before: Bytes::new(record.size_before),
        requested_size: Bytes::new(record.requested_size),
        promised: Bytes::new(record.promised),
        expected_size: record.expected_size.map(Bytes::new),
        size_after: record.size_after.map(Bytes::new),
        steps: record.steps.into_iter().map(step_from_disk).collect(),
        error: record.error.map(|error| JobError {
            reason: error.reason,
            message: error.message,
            retryable: error.retryable,
        }),
        attempt: record.attempt,
        revision: record.revision,
        requested_by: record.requested_by,
        project: ProjectLabel::of_record(record.project),
        request_id: record.request_id.as_deref().map(request_id).transpose()?,
        trace: match record.trace.as_str() {
            "" => None,
            trace => Some(trace.parse().map_err(|_| RecordError::Field("trace"))?),
        },
        created_at: time(record.created_at),
        started_at: record.started_at.map(after),
        finished_at: record.finished_at.map(after),
    };
    Ok((job, commit))
}

/// What the index has of a record that is as it was written, and its commit number. A start with many jobs looks at no more.
///
/// # Errors
/// When the record is not what [`encode`] wrote under this key.
pub fn entry(key: &[u8], value: &[u8]) -> Result<(Entry, u64), RecordError> {
    let id = job_of_key(key)?;
    let (kind, commit, payload) = unseal_job(key, value)?;
    let record = EntryOnDisk::decode(payload).map_err(|_| RecordError::Field("payload"))?;
    let request_id = record.request_id.as_deref().map(request_id).transpose()?;
    Ok((Entry { id, kind, state: state(&record.state)?, share: share(&record.share)?, request_id }, commit))
}

fn share(bytes: &[u8]) -> Result<ShareId, RecordError> {
    Uuid::from_slice(bytes).map(ShareId::from_uuid).map_err(|_| RecordError::Field("share"))
}

fn request_id(bytes: &[u8]) -> Result<RequestId, RecordError> {
    Uuid::from_slice(bytes).map(RequestId::from_uuid).map_err(|_| RecordError::Field("request id"))
}

fn state(text: &str) -> Result<JobState, RecordError> {
    JobState::named(text).ok_or(RecordError::Field("state"))
}

/// A record that carries a commit number and the kept time, for [`MARK_KEY`].
pub fn encode_mark(commit: u64, kept_time: &KeptTime) -> Vec<u8> {
    let note = |note: &Note| NoteOnDisk { at: whole_nanos(note.at), newest: note.newest.as_uuid().as_bytes().to_vec() };
    let kept_time =
        KeptTimeOnDisk { open: whole_nanos(kept_time.open), notes: kept_time.notes.iter().map(note).collect() };
    seal(MARK, MARK_KEY, commit, &kept_time.encode_to_vec())
}

/// # Errors
/// When the record is not what [`encode_mark`] wrote.
pub fn decode_mark(value: &[u8]) -> Result<(u64, KeptTime), RecordError> {
    let (format, commit, payload) = unseal(MARK_KEY, value)?;
    if format != MARK {
        return Err(RecordError::OtherFormat(format));
    }
    let invalid = RecordError::Field("kept_time");
    let kept_time = KeptTimeOnDisk::decode(payload).map_err(|_| invalid.clone())?;
    let mut notes = Vec::new();
    for note in kept_time.notes {
        let newest = Uuid::from_slice(&note.newest).map_err(|_| invalid.clone())?;
        notes.push(Note { at: Duration::from_nanos(note.at), newest: JobId::from_uuid(newest) });
    }
    Ok((commit, KeptTime { open: Duration::from_nanos(kept_time.open), notes }))
}

/// A payload with all that goes around it.
pub fn seal(format: u8, key: &[u8], commit: u64, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + payload.len() + CHECKSUM);
    value.push(format);
    value.extend_from_slice(&commit.to_be_bytes());
    value.extend_from_slice(payload);
    let checksum = checksum(key, &value);
    value.extend_from_slice(&checksum);
    value
}

fn unseal_job<'a>(key: &[u8], value: &'a [u8]) -> Result<(JobKind, u64, &'a [u8]), RecordError> {
    let (found, commit, payload) = unseal(key, value)?;
    let kind = JobKind::ALL.into_iter().find(|kind| format(*kind) == found);
    Ok((kind.ok_or(RecordError::OtherFormat(found))?, commit, payload))
}

/// The format, the commit number and the payload.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<(u8, u64, &'a [u8]), RecordError> {
    let (body, found) = value.split_last_chunk::<CHECKSUM>().ok_or(RecordError::Checksum)?;
    if checksum(key, body) != *found {
        return Err(RecordError::Checksum);
    }
    let (format, rest) = body.split_first().ok_or(RecordError::Checksum)?;
    // A record of another format may be shorter.
    let (commit, payload) = rest.split_first_chunk::<8>().ok_or(RecordError::OtherFormat(*format))?;
    Ok((*format, u64::from_be_bytes(*commit), payload))
}

fn checksum(key: &[u8], body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize().to_be_bytes()
}

fn nanos(time: SystemTime) -> u64 {
    whole_nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn whole_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}
