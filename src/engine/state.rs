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

/// At most so many changes of a job (to RUNNING, and its steps) are seen before the next one is stored. A restart skips as
/// many revisions, so that none is ever seen twice.
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

/// The job after an event, or `None` where the drawing has no such arrow, for a step beside the one at work or the end of
/// none, and for the cancellation of a job that an earlier run of growd had: RUNNING is not on disk, so the share may have
/// been changed, and only the job's next run finds out and makes it right.
pub fn apply(job: &Job, event: Event, now: SystemTime) -> Option<Job> {
    use JobState::{Cancelled, Failed, Queued, Running, Succeeded};
    let mut after = Job { revision: job.revision + 1, ..job.clone() };
    after.state = match (job.state, event) {
        (Queued, Event::Start) => {
            after.started_at = Some(now);
            Running
        }
        (Running, Event::BeginStep { name }) if step_at_work(job).is_none() => {
            after.steps.push(StepRecord {
                name: name.to_owned(),
                started_at: now,
                finished_at: None,
                detail: String::new(),
            });
            Running
        }
        (Running, Event::EndStep { detail }) if step_at_work(job).is_some() => {
            end_step(&mut after, detail, now);
            Running
        }
        (Running, Event::Succeed { size }) => {
            after.size_after = Some(size);
            Succeeded
        }
        (Running, Event::Fail(error)) => {
            end_step(&mut after, format!("failed: {}", error.reason), now);
            after.error = Some(error);
            Failed
        }
        (Queued, Event::Cancel) if job.attempt == 1 => Cancelled,
        (Queued | Running, Event::Restart) => {
            // What it was at when growd was killed is asked of the kernel anew.
            after.steps.retain(|step| step.finished_at.is_some());
            after.attempt += 1;
            after.revision += UNSTORED_REVISIONS;
            Queued
        }
        _ => return None,
    };
    if after.state.is_ended() {
        end_step(&mut after, String::new(), now);
        after.promised = Bytes::ZERO;
        after.finished_at = Some(now);
    }
    Some(after)
}

/// The step that has begun and not ended.
pub fn step_at_work(job: &Job) -> Option<&StepRecord> {
    job.steps.last().filter(|step| step.finished_at.is_none())
}

/// Ends the step at work, if there is one.
fn end_step(job: &mut Job, detail: String, now: SystemTime) {
    if let Some(step) = job.steps.last_mut().filter(|step| step.finished_at.is_none()) {
        step.finished_at = Some(now);
        step.detail = detail;
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;
    use crate::model::{DriverKind, JobId, JobKind, ShareId};
    use uuid::Uuid;

    pub fn job() -> Job {
        Job {
            id: JobId::from_uuid(Uuid::now_v7()),
            kind: JobKind::Extend,
            share: ShareId::from_uuid(Uuid::from_u128(7)),
            pool: "home".parse().unwrap(),
            driver: DriverKind::ProjectQuota,
            state: JobState::Queued,
            size_before: Bytes::gib(1),
            requested_size: Bytes::gib(2),
            promised: Bytes::gib(1),
            expected_size: None,
            size_after: None,
            steps: Vec::new(),
            error: None,
            attempt: 1,
            revision: 1,
            requested_by: "uid=0".to_owned(),
            project: "".parse().unwrap(),
            request_id: None,
            trace: None,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::job;
    use super::*;
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

    /// Those of the drawing. A job keeps its state when a step begins or ends, and when it waits over a restart.
    const ARROWS: [(JobState, JobState); 7] = [
        (JobState::Queued, JobState::Running),
        (JobState::Queued, JobState::Cancelled),
        (JobState::Queued, JobState::Queued),
        (JobState::Running, JobState::Queued),
        (JobState::Running, JobState::Running),
        (JobState::Running, JobState::Succeeded),
        (JobState::Running, JobState::Failed),
    ];

    /// What a job has been through, told by the events that it took.
    #[derive(Default)]
    struct Past {
        starts: u32,
        restarts: u32,
        /// Starts that no restart or end has followed.
        runs: u32,
        cancelled: bool,
    }

    impl Past {
        fn took(&mut self, event: &Event) {
            match event {
                Event::Start => (self.starts, self.runs) = (self.starts + 1, self.runs + 1),
                Event::Restart => (self.restarts, self.runs) = (self.restarts + 1, 0),
                Event::Succeed { .. } | Event::Fail(_) => self.runs -= 1,
                Event::Cancel => self.cancelled = true,
                Event::BeginStep { .. } | Event::EndStep { .. } => {}
            }
        }
    }

    /// What no event changes.
    fn asked(job: &Job) -> impl PartialEq + std::fmt::Debug + use<> {
        let who = (job.requested_by.clone(), job.project.clone(), job.request_id, job.created_at);
        let sizes = (job.size_before, job.requested_size, job.expected_size);
        (job.id, job.share, job.pool.clone(), job.driver, sizes, who)
    }

    fn times(job: &Job) -> Vec<SystemTime> {
        let steps = job.steps.iter().flat_map(|step| [Some(step.started_at), step.finished_at]);
        // A job that was interrupted has the time of its last start, behind the steps of the earlier ones.
        let started = job.started_at.filter(|_| job.attempt == 1);
        [Some(job.created_at), started].into_iter().chain(steps).chain([job.finished_at]).flatten().collect()
    }

    /// What holds of any job at any time.
    fn check(job: &Job, past: &Past) -> Result<(), TestCaseError> {
        prop_assert_eq!(job.state == JobState::Running, past.runs == 1, "never two runs at once");
        prop_assert!(past.starts <= past.restarts + 1);
        prop_assert_eq!(job.attempt, past.restarts + 1);
        prop_assert_eq!(job.started_at.is_some(), past.starts > 0);
        prop_assert_eq!(job.state == JobState::Cancelled, past.cancelled);
        prop_assert!(!past.cancelled || past.starts + past.restarts == 0, "a cancelled job has changed nothing");
        prop_assert_eq!(job.state.is_ended(), job.finished_at.is_some());
        prop_assert_eq!(job.state == JobState::Failed, job.error.is_some());
        prop_assert_eq!(job.state == JobState::Succeeded, job.size_after.is_some());
        let at_work = job.steps.iter().filter(|step| step.finished_at.is_none()).count();
        prop_assert_eq!(at_work, usize::from(step_at_work(job).is_some()), "one step at a time, the last");
        prop_assert!(at_work == 0 || job.state == JobState::Running, "only a running job has a step at work");
        prop_assert!(times(job).is_sorted(), "{job:?}");
        Ok(())
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_promises(
            events in prop::collection::vec((any_event(), 0..1000_u64), 0..40),
        ) {
            let (mut job, mut past) = (job(), Past::default());
            let mut now = job.created_at;
            for (event, passed) in events {
                now += std::time::Duration::from_millis(passed);
                let Some(after) = apply(&job, event.clone(), now) else { continue };
                let arrow = (job.state, after.state);
                prop_assert!(ARROWS.contains(&arrow), "{arrow:?} by {event:?} is not in the drawing");
                prop_assert!(!job.state.is_ended(), "an ended job never changes");
                prop_assert!(after.revision > job.revision);
                past.took(&event);
                check(&after, &past)?;
                prop_assert_eq!(asked(&after), asked(&job));
                job = after;
            }
        }

        /// The clock may be set back or forward at any time: the revision tells the order all the same.
        #[test]
        fn no_clock_changes_what_happens(
            events in prop::collection::vec((any_event(), any::<u32>()), 0..40),
        ) {
            let (mut steady, mut jumping) = (job(), job());
            for (event, clock) in events {
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(clock.into());
                let after = (apply(&steady, event.clone(), steady.created_at), apply(&jumping, event, at));
                let what = |job: &Job| (job.state, job.revision, job.attempt, job.steps.len());
                prop_assert_eq!(after.0.as_ref().map(what), after.1.as_ref().map(what));
                if let (Some(one), Some(other)) = after {
                    (steady, jumping) = (one, other);
                }
            }
        }
    }

    #[test]
    fn only_a_queued_job_can_be_cancelled() {
        for state in JobState::ALL {
            let cancelled = apply(&Job { state, ..job() }, Event::Cancel, SystemTime::now());
            assert_eq!(cancelled.is_some(), state == JobState::Queued, "{state}");
        }
    }
}
