//! A share as the share API shows it.

use growd::model::{Bytes, Reason};
use growd::wire::proto::{Job, Share, ShareStatus};
use serde_json::{Value, json};

use crate::nodes::{Failure, words};

/// What is told of a share.
#[derive(Debug, PartialEq, Eq)]
pub struct Details {
    pub id: String,
    pub status: &'static str,
    /// GiB, rounded down. 0 when the kernel cannot tell: clients calculate with it before they ask for another.
    pub size: u64,
    /// Why the last change failed, or why there is no size.
    pub error: Option<String>,
}

impl Details {
    /// `job` is the one that the share's status comes from. While a share is extending or shrinking its size is the old one,
    /// whatever part of the work is done: size and status change together.
    ///
    /// # Errors
    /// [`Failure::Nonsense`] for a share without status.
    pub fn new(share: Share, job: Option<Job>) -> Result<Self, Failure> {
        let before = job.as_ref().map(|job| job.size_before_bytes).or(share.size_bytes);
        let failed = job.and_then(|job| Some((job.error?, job.job_id)));
        let in_the_way = failed.as_ref().is_some_and(|(error, _)| error.reason == Reason::WouldLoseData.as_str());
        let (status, size) = match share.status() {
            ShareStatus::Extending => ("extending", before),
            ShareStatus::Shrinking => ("shrinking", before),
            ShareStatus::ExtendingError => ("extending_error", share.size_bytes),
            // Nothing is lost: it is Manila's name for a shrink that would have lost something.
            ShareStatus::ShrinkingError if in_the_way => ("shrinking_possible_data_loss_error", share.size_bytes),
            ShareStatus::ShrinkingError => ("shrinking_error", share.size_bytes),
            ShareStatus::Available if share.size_bytes.is_some() => ("available", share.size_bytes),
            ShareStatus::Available => ("error", None),
            ShareStatus::Unspecified => return Err(Failure::nonsense("a share without status")),
        };
        let failed = failed.map(|(error, job_id)| match error.reason == Reason::Internal.as_str() {
            // Whoever may know more finds it by the job.
            true => format!("{} Its operators find which by the job {job_id}.", words(&error.reason, error.message)),
            false => words(&error.reason, error.message),
        });
        let finding = || share.findings.first().map(|finding| words(&finding.kind, finding.message.clone()));
        let error = failed.or_else(|| size.is_none().then(finding).flatten());
        Ok(Self { id: share.share_id, status, size: Bytes::new(size.unwrap_or_default()).whole_gib(), error })
    }

    /// The fields that clients know at any microversion. What growd does not know, such as names, is null.
    pub fn json(&self, base_url: &str, project: &str, owner: Option<&str>) -> Value {
        json!({
            "id": self.id,
            "size": self.size,
            "status": self.status,
            "error_message": self.error,
            "project_id": owner,
            "name": null,
            "description": null,
            "availability_zone": null,
            "created_at": null,
            "snapshot_id": null,
            "share_network_id": null,
            "share_proto": null,
            "share_type": null,
            "volume_type": null,
            "export_location": null,
            "export_locations": [],
            "metadata": {},
            "is_public": false,
            "links": links(base_url, project, &self.id),
        })
    }
}

/// Whether a share of growd's status may be shown with this one of the share API; its job tells the rest.
pub fn may_be_shown(of_growd: ShareStatus, status: &str) -> bool {
    match of_growd {
        ShareStatus::Extending => status == "extending",
        ShareStatus::Shrinking => status == "shrinking",
        ShareStatus::ExtendingError => status == "extending_error",
        ShareStatus::ShrinkingError => matches!(status, "shrinking_error" | "shrinking_possible_data_loss_error"),
        ShareStatus::Available => matches!(status, "available" | "error"),
        // That is nonsense, which is not passed over.
        ShareStatus::Unspecified => true,
    }
}

/// The entry of a list without details.
pub fn summary(base_url: &str, project: &str, id: &str) -> Value {
    json!({"id": id, "name": null, "links": links(base_url, project, id)})
}

fn links(base_url: &str, project: &str, id: &str) -> Value {
    json!([
        {"rel": "self", "href": format!("{base_url}/v2/{project}/shares/{id}")},
        {"rel": "bookmark", "href": format!("{base_url}/{project}/shares/{id}")},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use growd::wire::proto::{Finding, JobError};

    const GIB: u64 = 1 << 30;

    fn details(status: ShareStatus, size: Option<u64>, job: Option<Job>) -> Details {
        let finding = Finding { kind: "UNLIMITED".to_owned(), message: "no limit".to_owned(), ..Finding::default() };
        let share = Share { size_bytes: size, status: status.into(), findings: vec![finding], ..Share::default() };
        let details = Details::new(share, job).unwrap();
        assert!(may_be_shown(status, details.status));
        details
    }

    #[test]
    fn size_and_status_change_together() {
        let job = Job { size_before_bytes: 2 * GIB, ..Job::default() };
        let extending = details(ShareStatus::Extending, Some(3 * GIB), Some(job));
        assert_eq!((extending.status, extending.size), ("extending", 2));
        let job = Job { size_before_bytes: 3 * GIB, ..Job::default() };
        let shrinking = details(ShareStatus::Shrinking, Some(2 * GIB), Some(job));
        assert_eq!((shrinking.status, shrinking.size), ("shrinking", 3));
        let available = details(ShareStatus::Available, Some(3 * GIB), None);
        assert_eq!((available.status, available.size, available.error), ("available", 3, None));
    }

    #[test]
    fn a_size_between_two_is_rounded_down() {
        assert_eq!(details(ShareStatus::Available, Some(3 * GIB - 1), None).size, 2);
        assert_eq!(details(ShareStatus::Available, Some(GIB - 1), None).size, 0);
    }

    #[test]
    fn what_went_wrong_is_told() {
        let error = JobError { reason: "POOL_FULL".to_owned(), message: "no space".to_owned(), retryable: true };
        let failed =
            details(ShareStatus::ExtendingError, Some(2 * GIB), Some(Job { error: Some(error), ..Job::default() }));
        assert_eq!((failed.status, failed.size, failed.error.as_deref()), ("extending_error", 2, Some("no space")));
        for (reason, status) in
            [("STUCK", "shrinking_error"), ("WOULD_LOSE_DATA", "shrinking_possible_data_loss_error")]
        {
            let error = JobError { reason: reason.to_owned(), message: "why".to_owned(), ..JobError::default() };
            let job = Job { error: Some(error), ..Job::default() };
            let failed = details(ShareStatus::ShrinkingError, Some(2 * GIB), Some(job));
            assert_eq!((failed.status, failed.size, failed.error.as_deref()), (status, 2, Some("why")));
        }
        let unknown = details(ShareStatus::Available, None, None);
        let told = "The share has no limit, so there is no size to change.";
        assert_eq!((unknown.status, unknown.size, unknown.error.as_deref()), ("error", 0, Some(told)));
        let (reason, told) = ("PROJECT_ID_SHARED".to_owned(), "The quota of the share bounds another share as well.");
        let message = "/srv/home/of-another-tenant has it too".to_owned();
        let finding = Finding { kind: reason.clone(), message: message.clone(), ..Finding::default() };
        let error = Some(JobError { reason, message, retryable: false });
        let failed = details(ShareStatus::ExtendingError, Some(2 * GIB), Some(Job { error, ..Job::default() }));
        assert_eq!(failed.error.as_deref(), Some(told));
        let mut share = Share { findings: vec![finding], ..Share::default() };
        share.set_status(ShareStatus::Available);
        assert_eq!(Details::new(share, None).unwrap().error.as_deref(), Some(told));
        let unspecified = Share { status: 17, ..Share::default() };
        assert!(matches!(Details::new(unspecified, None), Err(Failure::Nonsense { .. })));
    }
}
