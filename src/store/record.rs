//! A job as it lies on disk: a format byte, the commit number, a protobuf payload, and a CRC-32 over key and all that.
//!
//! The structs here are the disk's own: the model may change without them. A record of an unknown format is refused,
//! never guessed at: three of four single-bit flips would decode as some valid payload, so the checksum decides.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use uuid::Uuid;

use crate::model::{
    Bytes, DriverKind, Job, JobError, JobId, JobKind, JobState, PoolName, ProjectLabel, RequestId, ShareId, StepRecord,
};

/// Format of the records of extends. Those of shrinks have one of their own: a growd that knows no shrinks would take an
/// unfinished one for an extend that is done, and refuses the store instead.
const EXTEND: u8 = 1;
const SHRINK: u8 = 2;
const HEADER: usize = 1 + 8;
const CHECKSUM: usize = 4;

/// Keys of jobs: this, then the big-endian UUIDv7, so that keys sort by the time of acceptance.
pub const JOB_PREFIX: u8 = b'j';
/// Key of the record that carries the commit number when the job that had the highest one is no longer kept.
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
    /// Nanoseconds since 1970, as all times here.
    #[prost(uint64, tag = "16")]
    created_at: u64,
    #[prost(uint64, optional, tag = "17")]
    started_at: Option<u64>,
    #[prost(uint64, optional, tag = "18")]
    finished_at: Option<u64>,
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

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it is of format {0}, and this growd knows only formats up to {SHRINK}: it was written by a newer growd")]
    Newer(u8),
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
        created_at: nanos(job.created_at),
        started_at: job.started_at.map(nanos),
        finished_at: job.finished_at.map(nanos),
    };
    let format = match job.kind {
        JobKind::Extend => EXTEND,
        JobKind::Shrink => SHRINK,
    };
    seal(format, &key(job.id), commit, &record.encode_to_vec())
}

/// The job and the commit number of a record.
///
/// # Errors
/// When the record is not exactly what [`encode`] wrote under this key.
pub fn decode(key: &[u8], value: &[u8]) -> Result<(Job, u64), RecordError> {
    let id = job_of_key(key)?;
    let (format, commit, payload) = unseal(key, value)?;
    let kind = if format == SHRINK { JobKind::Shrink } else { JobKind::Extend };
    let record = JobRecord::decode(payload).map_err(|_| RecordError::Field("payload"))?;
    let uuid = |bytes: &[u8], field| Uuid::from_slice(bytes).map_err(|_| RecordError::Field(field));
    let job = Job {
        id,
        kind,
        share: ShareId::from_uuid(uuid(&record.share, "share")?),
        pool: record.pool.parse::<PoolName>().map_err(|_| RecordError::Field("pool"))?,
        driver: DriverKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == record.driver)
            .ok_or(RecordError::Field("driver"))?,
        state: record.state.parse::<JobState>().map_err(|_| RecordError::Field("state"))?,
        size_before: Bytes::new(record.size_before),
        requested_size: Bytes::new(record.requested_size),
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
        project: record.project.parse::<ProjectLabel>().map_err(|_| RecordError::Field("project"))?,
        request_id: match record.request_id {
            Some(bytes) => Some(RequestId::from_uuid(uuid(&bytes, "request id")?)),
            None => None,
        },
        created_at: time(record.created_at),
        started_at: record.started_at.map(time),
        finished_at: record.finished_at.map(time),
    };
    Ok((job, commit))
}

/// A record that carries a commit number and nothing else, for [`MARK_KEY`].
pub fn encode_mark(commit: u64) -> Vec<u8> {
    seal(EXTEND, MARK_KEY, commit, &[])
}

/// # Errors
/// When the record is not what [`encode_mark`] wrote.
pub fn decode_mark(value: &[u8]) -> Result<u64, RecordError> {
    unseal(MARK_KEY, value).map(|(_, commit, _)| commit)
}

fn seal(format: u8, key: &[u8], commit: u64, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + payload.len() + CHECKSUM);
    value.push(format);
    value.extend_from_slice(&commit.to_be_bytes());
    value.extend_from_slice(payload);
    let checksum = checksum(key, &value);
    value.extend_from_slice(&checksum);
    value
}

/// The format, the commit number and the payload.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<(u8, u64, &'a [u8]), RecordError> {
    let (body, found) = value.split_last_chunk::<CHECKSUM>().ok_or(RecordError::Checksum)?;
    if checksum(key, body) != *found {
        return Err(RecordError::Checksum);
    }
    let (format, rest) = body.split_first().ok_or(RecordError::Checksum)?;
    if !(EXTEND..=SHRINK).contains(format) {
        return Err(RecordError::Newer(*format));
    }
    let (commit, payload) = rest.split_first_chunk::<8>().ok_or(RecordError::Field("commit number"))?;
    Ok((*format, u64::from_be_bytes(*commit), payload))
}

fn checksum(key: &[u8], body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize().to_be_bytes()
}

fn step_on_disk(step: &StepRecord) -> StepOnDisk {
    StepOnDisk {
        name: step.name.clone(),
        started_at: nanos(step.started_at),
        finished_at: step.finished_at.map(nanos),
        detail: step.detail.clone(),
    }
}

fn step_from_disk(step: StepOnDisk) -> StepRecord {
    StepRecord {
        name: step.name,
        started_at: time(step.started_at),
        finished_at: step.finished_at.map(time),
        detail: step.detail,
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A job with something in every field.
    pub fn any_job(id: u128, state: JobState) -> Job {
        Job {
            id: JobId::from_uuid(Uuid::from_u128(id)),
            kind: JobKind::Extend,
            share: ShareId::from_uuid(Uuid::from_u128(7)),
            pool: "home".parse().unwrap(),
            driver: DriverKind::ProjectQuota,
            state,
            size_before: Bytes::gib(1),
            requested_size: Bytes::gib(2),
            expected_size: Some(Bytes::gib(1)),
            size_after: Some(Bytes::gib(2)),
            steps: vec![StepRecord {
                name: "set_limit".to_owned(),
                started_at: time(5),
                finished_at: Some(time(6)),
                detail: "1GiB -> 2GiB".to_owned(),
            }],
            error: Some(JobError {
                reason: "INTERNAL".to_owned(),
                message: "read back nothing".to_owned(),
                retryable: true,
            }),
            attempt: 2,
            revision: 3,
            requested_by: "uid=0 pid=1".to_owned(),
            project: "demo".parse().unwrap(),
            request_id: Some(RequestId::from_uuid(Uuid::from_u128(9))),
            created_at: time(1_700_000_000_123_456_789),
            started_at: Some(time(4)),
            finished_at: None,
        }
    }

    #[test]
    fn every_field_comes_back() {
        for state in JobState::ALL {
            let job = any_job(42, state);
            assert_eq!(decode(&key(job.id), &encode(&job, 77)), Ok((job.clone(), 77)));
            let shrink = Job { kind: JobKind::Shrink, ..job };
            assert_eq!(decode(&key(shrink.id), &encode(&shrink, 77)), Ok((shrink, 77)));
        }
        assert_eq!(decode_mark(&encode_mark(5)), Ok(5));
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let key = key(JobId::from_uuid(Uuid::from_u128(1)));
        let mut body = vec![3_u8, 0, 0];
        let sum = checksum(&key, &body);
        body.extend_from_slice(&sum);
        assert_eq!(decode(&key, &body), Err(RecordError::Newer(3)));
    }

    /// [`any_job`] as growd wrote it before there were shrinks.
    const OLD_RECORD: &str = "\
        0100000000000000020a10000000000000000000000000000000071204686f6d651a0d70726f6a6563742d71756f746122064641\
        494c45442880808080043080808080083880808080044080808080084a1d0a097365745f6c696d697410051806220c3147694220\
        2d3e2032476942521f0a08494e5445524e414c121172656164206261636b206e6f7468696e671801580260036a0b7569643d3020\
        7069643d31720464656d6f7a10000000000000000000000000000000098001959a97ece39fe7cb17880104a7f1f017\
        ";

    #[test]
    fn a_record_of_before_there_were_kinds_is_an_extend() {
        let byte = |at| u8::from_str_radix(&OLD_RECORD[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..OLD_RECORD.len()).step_by(2).map(byte).collect();
        let job = any_job(42, JobState::Failed);
        assert_eq!(decode(&key(job.id), &bytes), Ok((job.clone(), 2)));
        assert_eq!(encode(&job, 2), bytes, "and an extend is still written so");
    }

    proptest! {
        #[test]
        fn no_flipped_bit_and_no_other_key_is_taken(bit in 0..8_usize, at in 0..400_usize, other in 0..u128::MAX) {
            let job = any_job(42, JobState::Failed);
            let good = encode(&job, 1);
            let mut bad = good.clone();
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            prop_assert!(decode(&key(job.id), &bad).is_err());
            if other != 42 {
                prop_assert!(decode(&key(JobId::from_uuid(Uuid::from_u128(other))), &good).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
            let _ = decode(&key, &value);
            let _ = decode_mark(&value);
        }
    }
}
