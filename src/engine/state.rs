//! The states of a job, and the only ways from one to the next.
//!
//! ```text
//!             accept (durable)          (durable)
//!  request ─────────────▶ QUEUED ─────▶ RUNNING ─────────▶ SUCCEEDED
//!                           │  ▲           │ └────────────▶ FAILED
//!                    cancel │  └───────────┘
//!                           ▼     restart: observe again, plan what is left
//!                        CANCELLED
//! ```

use std::time::SystemTime;

use crate::model::{Bytes, Job, JobError, JobState, StepRecord};

/// Changes of a job that can be seen and are not on disk, between two that are: to RUNNING, and its steps. After a
/// crash the revision goes on behind them, so that it never repeats or falls.
const UNSTORED_REVISIONS: u64 = 16;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Start,
    StepDone(StepRecord),
    Succeed { size: Bytes },
    Fail(JobError),
    Cancel,
    Restart,
}

/// The state that an event leads to, or `None` where the drawing has no such arrow.
pub const fn next(state: JobState, event: &Event) -> Option<JobState> {
    match (state, event) {
        (JobState::Queued, Event::Start) | (JobState::Running, Event::StepDone(_)) => Some(JobState::Running),
        (JobState::Running, Event::Succeed { .. }) => Some(JobState::Succeeded),
        (JobState::Running, Event::Fail(_)) => Some(JobState::Failed),
        (JobState::Queued, Event::Cancel) => Some(JobState::Cancelled),
        (JobState::Queued | JobState::Running, Event::Restart) => Some(JobState::Queued),
        _ => None,
    }
}

/// The job after an event, or `None` where the drawing has no such arrow.
pub fn apply(job: &Job, event: Event, now: SystemTime) -> Option<Job> {
    let state = next(job.state, &event)?;
    let mut job = Job { state, revision: job.revision + 1, ..job.clone() };
    match event {
        Event::Start => job.started_at = Some(now),
        Event::StepDone(step) => job.steps.push(step),
        Event::Succeed { size } => job.size_after = Some(size),
        Event::Fail(error) => job.error = Some(error),
        Event::Cancel => {}
        Event::Restart => {
            job.attempt += 1;
            job.revision += UNSTORED_REVISIONS;
        }
    }
    if state.is_ended() {
        job.finished_at = Some(now);
    }
    Some(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fixture::job;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn any_event() -> impl Strategy<Value = Event> {
        let step = StepRecord {
            name: "set_limit".to_owned(),
            started_at: UNIX_EPOCH,
            finished_at: UNIX_EPOCH,
            detail: String::new(),
        };
        let error = JobError { reason: "INTERNAL".to_owned(), message: String::new(), retryable: false };
        prop::sample::select(vec![
            Event::Start,
            Event::StepDone(step),
            Event::Succeed { size: Bytes::gib(2) },
            Event::Fail(error),
            Event::Cancel,
            Event::Restart,
        ])
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_promises(events in prop::collection::vec(any_event(), 0..40)) {
            let mut job = job();
            for event in events {
                let Some(after) = apply(&job, event.clone(), SystemTime::now()) else {
                    prop_assert!(next(job.state, &event).is_none());
                    continue;
                };
                prop_assert!(!job.state.is_ended(), "an ended job never changes");
                prop_assert!(after.revision > job.revision);
                prop_assert_eq!(after.state.is_ended(), after.finished_at.is_some());
                prop_assert_eq!(after.state == JobState::Failed, after.error.is_some());
                prop_assert_eq!(after.state == JobState::Succeeded, after.size_after.is_some());
                prop_assert_eq!((after.id, after.share, after.requested_size), (job.id, job.share, job.requested_size));
                job = after;
            }
        }
    }

    #[test]
    fn only_a_queued_job_can_be_cancelled() {
        for state in JobState::ALL {
            assert_eq!(next(state, &Event::Cancel).is_some(), state == JobState::Queued, "{state}");
        }
    }
}
