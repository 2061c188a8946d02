//! Records read back as they were written, and nothing else is taken for one.

use super::*;
use crate::model::TraceParent;
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
        promised: Bytes::gib(1),
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
        trace: Some(TraceParent { trace_id: 1, span_id: 2, flags: 1 }),
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
    let label = ProjectLabel::of_record("taken\u{202e}once".to_owned());
    let old = Job { project: label, ..any_job(42, JobState::Succeeded) };
    assert_eq!(decode(&key(old.id), &encode(&old, 77)), Ok((old, 77)));
    let note = |at, newest| Note { at: Duration::from_secs(at), newest: JobId::from_uuid(Uuid::from_u128(newest)) };
    let kept_time = KeptTime { open: Duration::from_secs(9), notes: vec![note(1, 2), note(3, 4)] };
    assert_eq!(decode_mark(&encode_mark(5, &kept_time)), Ok((5, kept_time)));
}

#[test]
fn another_format_is_named_as_such() {
    let key = key(JobId::from_uuid(Uuid::from_u128(1)));
    for format in [0, EXTEND - 1, SHRINK + 1] {
        let mut short = vec![format, 0, 0];
        let sum = checksum(&key, &short);
        short.extend_from_slice(&sum);
        for value in [short, seal(format, &key, 7, &[])] {
            assert_eq!(decode(&key, &value), Err(RecordError::OtherFormat(format)));
            assert_eq!(entry(&key, &value), Err(RecordError::OtherFormat(format)));
        }
        let mark = seal(format, MARK_KEY, 7, &[]);
        assert_eq!(decode_mark(&mark), Err(RecordError::OtherFormat(format)));
    }
}

#[test]
fn times_soon_after_the_acceptance_take_few_bytes() {
    let mut job = any_job(42, JobState::Succeeded);
    let with = |job: &Job| encode(job, 1).len();
    let far = with(&job);
    let soon = |nanos: u64| time(1_700_000_000_123_456_789 + nanos);
    job.started_at = Some(soon(1_000_000));
    job.steps[0].started_at = soon(2_000_000);
    job.steps[0].finished_at = Some(soon(100_000_000));
    // Each varint: 3 or 4 bytes for 10.
    assert_eq!(far - with(&job), 7 + 7 + 6);
}

fn any_time() -> impl Strategy<Value = SystemTime> {
    any::<u64>().prop_map(time)
}

fn any_step() -> impl Strategy<Value = StepRecord> {
    (any::<String>(), any_time(), prop::option::of(any_time()), any::<String>())
        .prop_map(|(name, started_at, finished_at, detail)| StepRecord { name, started_at, finished_at, detail })
}

fn any_trace() -> impl Strategy<Value = TraceParent> {
    (1..=u128::MAX, 1..=u64::MAX, any::<u8>()).prop_map(|(trace_id, span_id, flags)| TraceParent {
        trace_id,
        span_id,
        flags,
    })
}

fn any_kept_time() -> impl Strategy<Value = KeptTime> {
    let note = (any::<u64>(), any::<u128>()).prop_map(|(at, newest)| Note {
        at: Duration::from_nanos(at),
        newest: JobId::from_uuid(Uuid::from_u128(newest)),
    });
    (any::<u64>(), prop::collection::vec(note, 0..5))
        .prop_map(|(open, notes)| KeptTime { open: Duration::from_nanos(open), notes })
}

fn arbitrary_job() -> impl Strategy<Value = Job> {
    let ids = (any::<u128>(), any::<u128>(), prop::option::of(any::<u128>()));
    let names = ("[a-zA-Z0-9][-_a-zA-Z0-9]{0,62}", any::<String>(), any::<String>());
    let sizes = (any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<u64>());
    let kinds = (
        prop::sample::select(&DriverKind::ALL[..]),
        prop::sample::select(&JobState::ALL[..]),
        prop::sample::select(&JobKind::ALL[..]),
    );
    let error = prop::option::of((any::<String>(), any::<String>(), any::<bool>()));
    let times = (any_time(), prop::option::of(any_time()), prop::option::of(any_time()));
    let history =
        (prop::collection::vec(any_step(), 0..5), error, any::<u32>(), any::<u64>(), prop::option::of(any_trace()));
    (ids, names, sizes, kinds, times, history).prop_map(|(ids, names, sizes, (driver, state, kind), times, history)| {
        let (steps, error, attempt, revision, trace) = history;
        Job {
            id: JobId::from_uuid(Uuid::from_u128(ids.0)),
            kind,
            share: ShareId::from_uuid(Uuid::from_u128(ids.1)),
            request_id: ids.2.map(|id| RequestId::from_uuid(Uuid::from_u128(id))),
            pool: names.0.parse().unwrap(),
            // What a label may be was wider once.
            project: ProjectLabel::of_record(names.1),
            requested_by: names.2,
            driver,
            state,
            size_before: Bytes::new(sizes.0),
            requested_size: Bytes::new(sizes.1),
            expected_size: sizes.2.map(Bytes::new),
            size_after: sizes.3.map(Bytes::new),
            promised: Bytes::new(sizes.4),
            steps,
            error: error.map(|(reason, message, retryable)| JobError { reason, message, retryable }),
            attempt,
            revision,
            created_at: times.0,
            started_at: times.1,
            finished_at: times.2,
            trace,
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(job in arbitrary_job(), commit: u64, kept_time in any_kept_time()) {
        let record = encode(&job, commit);
        prop_assert_eq!(entry(&key(job.id), &record), Ok((Entry::from(&job), commit)));
        prop_assert_eq!(decode(&key(job.id), &record), Ok((job, commit)));
        prop_assert_eq!(decode_mark(&encode_mark(commit, &kept_time)), Ok((commit, kept_time)));
    }

    #[test]
    fn keys_sort_as_their_ids(one: u128, other: u128) {
        let [one, other] = [one, other].map(|id| JobId::from_uuid(Uuid::from_u128(id)));
        prop_assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
        prop_assert_eq!(job_of_key(&key(one)), Ok(one));
    }

    #[test]
    fn no_flipped_bit_and_no_other_key_is_taken(bit in 0..8_usize, at in 0..400_usize, other in 0..u128::MAX) {
        let job = any_job(42, JobState::Failed);
        let good = encode(&job, 1);
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] ^= 1 << bit;
        prop_assert!(decode(&key(job.id), &bad).is_err());
        prop_assert!(entry(&key(job.id), &bad).is_err());
        if other != 42 {
            prop_assert!(decode(&key(JobId::from_uuid(Uuid::from_u128(other))), &good).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
        let _ = decode(&key, &value);
        let _ = entry(&key, &value);
        let _ = decode_mark(&value);
    }
}
