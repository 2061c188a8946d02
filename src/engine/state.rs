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
const UNSTORED_REVISIONS: u64 = 64;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Start,
    BeginStep { name: &'static str },
    EndStep { detail: String },
    Succeed { size: Bytes },
    Fail(JobError),
    Cancel,
    Restart,
}

/// The state that an event leads to, or `None` where the drawing has no such arrow.
pub const fn next(state: JobState, event: &Event) -> Option<JobState> {
    match (state, event) {
        (JobState::Queued, Event::Start) | (JobState::Running, Event::BeginStep { .. } | Event::EndStep { .. }) => {
            Some(JobState::Running)
        }
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
        Event::BeginStep { name } => {
            job.steps.push(StepRecord {
                name: name.to_owned(),
                started_at: now,
                finished_at: None,
                detail: String::new(),
            });
        }
        Event::EndStep { detail } => end_step(&mut job, detail, now),
        Event::Succeed { size } => job.size_after = Some(size),
        Event::Fail(error) => {
            end_step(&mut job, format!("failed: {}", error.reason), now);
            job.error = Some(error);
        }
        Event::Cancel => {}
        Event::Restart => {
            // What it was at when growd was killed is asked of the kernel anew.
            job.steps.retain(|step| step.finished_at.is_some());
            job.attempt += 1;
            job.revision += UNSTORED_REVISIONS;
        }
    }
    if state.is_ended() {
        job.finished_at = Some(now);
    }
    Some(job)
}

/// Ends the step at work, if there is one.
fn end_step(job: &mut Job, detail: String, now: SystemTime) {
    if let Some(step) = job.steps.last_mut().filter(|step| step.finished_at.is_none()) {
        step.finished_at = Some(now);
        step.detail = detail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fixture::job;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = Event> {
        let error = JobError { reason: "INTERNAL".to_owned(), message: String::new(), retryable: false };
        prop::sample::select(vec![
            Event::Start,
            Event::BeginStep { name: "set_limit" },
            Event::EndStep { detail: "1GiB -> 2GiB".to_owned() },
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
                let at_work = after.steps.last().is_some_and(|step| step.finished_at.is_none());
                prop_assert!(after.state != JobState::Failed || !at_work, "a failed step has ended too");
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
