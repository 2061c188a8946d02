//! The rules by which a request is let in: pure, over what was asked and what the kernel said.

use std::time::SystemTime;

use crate::driver::{Bounds, Space};
use crate::model::{
    Bytes, DriverKind, Job, JobId, JobKind, JobState, PoolName, ProjectLabel, Refusal, RequestId, ShareId, TraceParent,
};

/// A request to extend or to shrink a share, well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeRequest {
    pub kind: JobKind,
    pub share: ShareId,
    pub new_size: Bytes,
    pub expected_size: Option<Bytes>,
    pub request_id: Option<RequestId>,
    pub project: ProjectLabel,
    pub validate_only: bool,
    /// Who asks, as the transport tells.
    pub requested_by: String,
    /// What the job will follow.
    pub trace: Option<TraceParent>,
}

impl SizeRequest {
    /// The job of a request that is let in, not begun.
    pub fn into_job(self, id: JobId, pool: &PoolName, driver: DriverKind, size_before: Bytes, promised: Bytes) -> Job {
        Job {
            id,
            kind: self.kind,
            share: self.share,
            pool: pool.clone(),
            driver,
            state: JobState::Queued,
            size_before,
            requested_size: self.new_size,
            promised,
            expected_size: self.expected_size,
            size_after: None,
            steps: Vec::new(),
            error: None,
            attempt: 1,
            revision: 1,
            requested_by: self.requested_by,
            project: self.project,
            request_id: self.request_id,
            trace: self.trace,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
        }
    }
}

/// Whether the share is one of the project that is asked for, where its place says whose it is.
///
/// # Errors
/// SHARE_NOT_FOUND: to whoever asks for another project it is not there.
pub fn check_project(request: &SizeRequest, of_place: &ProjectLabel) -> Result<(), Refusal> {
    let both_say_one = !request.project.is_empty() && !of_place.is_empty();
    if both_say_one && request.project != *of_place {
        Err(Refusal::ShareNotFound { share: request.share })
    } else {
        Ok(())
    }
}

/// Whether the size that was asked for is one to change to.
///
/// # Errors
/// CURRENT_SIZE_MISMATCH, SIZE_NOT_GREATER, SIZE_NOT_SMALLER.
pub fn check_size(request: &SizeRequest, current: Bytes) -> Result<(), Refusal> {
    let (share, requested) = (request.share, request.new_size);
    match (request.expected_size, request.kind) {
        (Some(expected), _) if expected != current => Err(Refusal::CurrentSizeMismatch { share, current, expected }),
        (_, JobKind::Extend) if requested <= current => Err(Refusal::SizeNotGreater { share, current, requested }),
        (_, JobKind::Shrink) if requested >= current => Err(Refusal::SizeNotSmaller { share, current, requested }),
        _ => Ok(()),
    }
}

/// Whether what is in use fits into the smaller size.
///
/// # Errors
/// WOULD_LOSE_DATA.
pub fn check_use(request: &SizeRequest, bounds: Bounds) -> Result<(), Refusal> {
    let (share, used, requested) = (request.share, bounds.used, request.new_size);
    if used > requested { Err(Refusal::WouldLoseData { share, used, requested }) } else { Ok(()) }
}

/// What a space can still be given by the kernel's account alone, queued jobs not counted.
pub fn left(space: &Space, reserve: Bytes, overcommit: f64) -> Bytes {
    space.total.saturating_sub(reserve).scaled(overcommit).saturating_sub(space.promised)
}

/// Whether a request with a known id is the one that the job was made for.
///
/// # Errors
/// REQUEST_ID_REUSED, naming the field that differs.
pub fn same_request(request: &SizeRequest, request_id: RequestId, job: &Job) -> Result<(), Refusal> {
    let fields = [
        ("kind", request.kind == job.kind),
        ("share_id", request.share == job.share),
        ("new_size_bytes", request.new_size == job.requested_size),
        ("expected_current_size_bytes", request.expected_size == job.expected_size),
        ("project_id", request.project == job.project),
    ];
    match fields.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Refusal::RequestIdReused { request_id, job: job.id, field }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::SpaceId;
    use crate::model::Reason;
    use uuid::Uuid;

    fn request(kind: JobKind, new: Bytes, expected: Option<Bytes>) -> SizeRequest {
        SizeRequest {
            kind,
            share: ShareId::from_uuid(Uuid::nil()),
            new_size: new,
            expected_size: expected,
            request_id: None,
            project: ProjectLabel::default(),
            validate_only: false,
            requested_by: String::new(),
            trace: None,
        }
    }

    #[test]
    fn only_a_greater_size_from_the_expected_one() {
        let gib = Bytes::gib;
        let reason = |new, expected| {
            check_size(&request(JobKind::Extend, new, expected), gib(2)).map_err(|refusal| refusal.reason())
        };
        assert_eq!(reason(gib(3), None), Ok(()));
        assert_eq!(reason(gib(3), Some(gib(2))), Ok(()));
        assert_eq!(reason(gib(2), None), Err(Reason::SizeNotGreater));
        assert_eq!(reason(gib(1), None), Err(Reason::SizeNotGreater));
        assert_eq!(reason(gib(3), Some(gib(1))), Err(Reason::CurrentSizeMismatch));
        let text = check_size(&request(JobKind::Extend, gib(1), None), gib(2)).unwrap_err().to_string();
        assert_eq!(
            text,
            "Invalid input: New size for extend must be greater than current size (current: 2GiB, new: 1GiB)"
        );
    }

    #[test]
    fn a_share_of_another_project_is_not_there() {
        let label = |text: &str| text.parse::<ProjectLabel>().unwrap();
        let checked = |asked, of_place| {
            let request = SizeRequest { project: label(asked), ..request(JobKind::Extend, Bytes::gib(1), None) };
            check_project(&request, &label(of_place)).map_err(|refusal| refusal.reason())
        };
        for (asked, of_place) in [("", ""), ("p", ""), ("", "p"), ("p", "p")] {
            assert_eq!(checked(asked, of_place), Ok(()), "{asked} {of_place}");
        }
        assert_eq!(checked("q", "p"), Err(Reason::ShareNotFound));
    }

    #[test]
    fn a_shrink_takes_a_smaller_size_that_holds_what_is_in_use() {
        let gib = Bytes::gib;
        let ask = |new, expected| request(JobKind::Shrink, new, expected);
        let reason = |new, expected| check_size(&ask(new, expected), gib(2)).map_err(|refusal| refusal.reason());
        assert_eq!(reason(gib(1), None), Ok(()));
        assert_eq!(reason(gib(1), Some(gib(2))), Ok(()));
        assert_eq!(reason(gib(2), None), Err(Reason::SizeNotSmaller));
        assert_eq!(reason(gib(3), None), Err(Reason::SizeNotSmaller));
        assert_eq!(reason(gib(1), Some(gib(1))), Err(Reason::CurrentSizeMismatch));
        let text = check_size(&ask(gib(3), None), gib(2)).unwrap_err().to_string();
        let problem = "New size for shrink must be less than current size and greater than 0";
        assert_eq!(text, format!("Invalid input: {problem} (current: 2GiB, new: 3GiB)"));

        let bounds = Bounds { limit: gib(2), used: gib(1) };
        assert_eq!(check_use(&ask(gib(1), None), bounds), Ok(()));
        let refusal = check_use(&ask(Bytes::new(gib(1).get() - 1), None), bounds).unwrap_err();
        assert_eq!(refusal.reason(), Reason::WouldLoseData);
    }

    #[test]
    fn what_is_left_honours_reserve_and_overcommit() {
        let space = Space {
            id: SpaceId(String::new()),
            filesystem: "xfs",
            total: Bytes::gib(10),
            free: Bytes::gib(9),
            promised: Bytes::gib(6),
            thin: None,
            problems: Vec::new(),
        };
        assert_eq!(left(&space, Bytes::ZERO, 1.0), Bytes::gib(4));
        assert_eq!(left(&space, Bytes::gib(2), 2.0), Bytes::gib(10));
        assert_eq!(left(&space, Bytes::gib(9), 1.0), Bytes::ZERO);
    }
}
