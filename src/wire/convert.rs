//! Between the contract's messages and the model: requests are checked here, field by field.

use std::time::SystemTime;

use super::proto;
use crate::model::{
    Bytes, CommandRecord, Finding, Job, JobId, JobKind, JobState, PoolReport, ProjectLabel, Refusal, ShareId,
    ShareReport, ShareStatus, TraceParent, shortened,
};
use crate::service::NodeReport;
use crate::service::admission::SizeRequest;

/// Entries of a page when the caller names no size, and the most that are given.
const PAGE_DEFAULT: usize = 100;
const PAGE_MOST: usize = 1000;

/// Both requests have the same fields, so one of them stands for either beside the kind.
impl From<proto::ShrinkShareRequest> for proto::ExtendShareRequest {
    fn from(message: proto::ShrinkShareRequest) -> Self {
        Self {
            share_id: message.share_id,
            new_size_bytes: message.new_size_bytes,
            expected_current_size_bytes: message.expected_current_size_bytes,
            request_id: message.request_id,
            project_id: message.project_id,
            validate_only: message.validate_only,
        }
    }
}

pub fn size_request(
    kind: JobKind,
    message: &proto::ExtendShareRequest,
    requested_by: String,
    trace: Option<TraceParent>,
) -> Result<SizeRequest, Refusal> {
    let request_id = message.request_id.as_deref().map(str::parse).transpose();
    Ok(SizeRequest {
        kind,
        share: share_id(&message.share_id)?,
        new_size: size("new_size_bytes", message.new_size_bytes)?,
        expected_size: message.expected_current_size_bytes.map(Bytes::new),
        request_id: request_id.map_err(|error| invalid("request_id", &error))?,
        project: project(&message.project_id)?,
        validate_only: message.validate_only,
        requested_by,
        trace,
    })
}

pub fn share_id(text: &str) -> Result<ShareId, Refusal> {
    text.parse().map_err(|_| Refusal::InvalidShareId { given: shortened(text) })
}

pub fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|error| invalid("job_id", &error))
}

pub fn project(text: &str) -> Result<ProjectLabel, Refusal> {
    text.parse().map_err(|error| invalid("project_id", &error))
}

fn size(field: &'static str, given: u64) -> Result<Bytes, Refusal> {
    let refuse = |problem| Err(Refusal::InvalidSize { field, given, problem });
    match Bytes::new(given) {
        Bytes::ZERO => refuse("must be above 0"),
        size if size > Bytes::MAX_FILE => refuse("is above the largest size, 8 EiB - 1"),
        size => Ok(size),
    }
}

pub fn invalid(field: &'static str, problem: &dyn std::fmt::Display) -> Refusal {
    Refusal::InvalidRequest { field, problem: problem.to_string() }
}

pub fn page_size(asked: u32) -> usize {
    match asked as usize {
        0 => PAGE_DEFAULT,
        asked => asked.min(PAGE_MOST),
    }
}

/// A page token says which filter it belongs to and which entry it follows. `None` for the first page.
pub fn page_after<T: std::str::FromStr>(token: &str, filter: &str) -> Result<Option<T>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let unknown = || Refusal::InvalidRequest {
        field: "page_token",
        problem: "is not one that this listing, with this filter, has given".to_owned(),
    };
    let (sum, entry) = token.split_once('.').ok_or_else(unknown)?;
    if sum != filter_sum(filter) {
        return Err(unknown());
    }
    entry.parse().map(Some).map_err(|_| unknown())
}

pub fn page_token(after: Option<impl std::fmt::Display>, filter: &str) -> String {
    after.map(|entry| format!("{}.{entry}", filter_sum(filter))).unwrap_or_default()
}

fn filter_sum(filter: &str) -> String {
    format!("{:08x}", crc32fast::hash(filter.as_bytes()))
}

/// What the page tokens of a list of shares belong to. No pool's name has a slash.
pub fn shares_filter(pool: &str, project: Option<&str>) -> String {
    project.map_or_else(|| pool.to_owned(), |project| format!("{pool}/{project}"))
}

/// `None` for all states.
pub fn state_filter(state: i32) -> Result<Option<JobState>, Refusal> {
    let asked = proto::JobState::try_from(state);
    let asked = asked.map_err(|_| invalid("state", &format!("{state} is not a job state")))?;
    Ok(JobState::ALL.into_iter().find(|state| job_state(*state) == asked))
}

fn job_state(state: JobState) -> proto::JobState {
    match state {
        JobState::Queued => proto::JobState::Queued,
        JobState::Running => proto::JobState::Running,
        JobState::Succeeded => proto::JobState::Succeeded,
        JobState::Failed => proto::JobState::Failed,
        JobState::Cancelled => proto::JobState::Cancelled,
    }
}

pub fn job(job: Job) -> proto::Job {
    let kind = match job.kind {
        JobKind::Extend => proto::JobKind::Extend,
        JobKind::Shrink => proto::JobKind::Shrink,
    };
    proto::Job {
        // Only a job that validate_only answers has the nil id.
        job_id: if job.id.as_uuid().is_nil() { String::new() } else { job.id.to_string() },
        kind: kind.into(),
        share_id: job.share.to_string(),
        pool: job.pool.into(),
        driver: job.driver.as_str().to_owned(),
        state: job_state(job.state).into(),
        size_before_bytes: job.size_before.get(),
        requested_size_bytes: job.requested_size.get(),
        size_after_bytes: job.size_after.map(Bytes::get),
        steps: job
            .steps
            .into_iter()
            .map(|step| proto::JobStep {
                name: step.name,
                started_at: time(step.started_at),
                finished_at: step.finished_at.and_then(time),
                detail: step.detail,
            })
            .collect(),
        error: job.error.map(|error| proto::JobError {
            reason: error.reason,
            message: error.message,
            retryable: error.retryable,
        }),
        attempt: job.attempt,
        revision: job.revision,
        requested_by: job.requested_by,
        project_id: job.project.into(),
        request_id: job.request_id.map(|id| id.to_string()).unwrap_or_default(),
        traceparent: job.trace.map(|trace| trace.to_string()).unwrap_or_default(),
        created_at: time(job.created_at),
        started_at: job.started_at.and_then(time),
        finished_at: job.finished_at.and_then(time),
    }
}

pub fn share(report: ShareReport) -> proto::Share {
    let status = match report.status {
        ShareStatus::Available => proto::ShareStatus::Available,
        ShareStatus::Extending => proto::ShareStatus::Extending,
        ShareStatus::ExtendingError => proto::ShareStatus::ExtendingError,
        ShareStatus::Shrinking => proto::ShareStatus::Shrinking,
        ShareStatus::ShrinkingError => proto::ShareStatus::ShrinkingError,
    };
    let id = |id: Option<JobId>| id.map(|id| id.to_string()).unwrap_or_default();
    proto::Share {
        share_id: report.share.to_string(),
        pool: report.pool.to_string(),
        driver: report.driver.to_string(),
        location: report.location.display().to_string(),
        filesystem: report.filesystem,
        size_bytes: report.size.map(Bytes::get),
        used_bytes: report.used.map(Bytes::get),
        status: status.into(),
        active_job_id: id(report.active_job),
        last_job_id: id(report.last_job),
        findings: report.findings.into_iter().map(finding).collect(),
        project_id: report.project.as_str().to_owned(),
    }
}

pub fn pool(report: PoolReport) -> proto::Pool {
    proto::Pool {
        name: report.pool.to_string(),
        driver: report.driver.to_string(),
        location: report.location,
        filesystem: report.filesystem,
        total_bytes: report.total.get(),
        free_bytes: report.free.get(),
        promised_bytes: report.promised.get(),
        queued_bytes: report.queued.get(),
        available_bytes: report.available.get(),
        reserve_bytes: report.reserve.get(),
        overcommit: report.overcommit,
        shares: report.shares as u64,
        findings: report.findings.into_iter().map(finding).collect(),
    }
}

pub fn command(record: CommandRecord) -> proto::HostCommand {
    proto::HostCommand {
        command: record.command,
        started_at: time(record.started_at),
        finished_at: record.took.and_then(|took| time(record.started_at + took)),
        outcome: record.outcome,
        output: record.output,
    }
}

pub fn finding(finding: Finding) -> proto::Finding {
    proto::Finding {
        kind: finding.kind.to_string(),
        pool: finding.pool.to_string(),
        share_id: finding.share.map(|share| share.to_string()).unwrap_or_default(),
        message: finding.message,
        remedy: finding.remedy,
    }
}

pub fn node(report: NodeReport) -> proto::Node {
    let state = match (report.draining, report.store_failed) {
        (true, _) => proto::NodeState::Draining,
        (false, true) => proto::NodeState::StoreFailed,
        (false, false) => proto::NodeState::Serving,
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    proto::Node {
        hostname: report.hostname,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: report.kernel,
        state: state.into(),
        started_at: time(report.started_at),
        queued_jobs: count(report.queued),
        running_jobs: count(report.running),
        max_active_jobs: count(report.max_active_jobs),
        kept_jobs: report.kept_jobs as u64,
        store_bytes: report.store_bytes,
    }
}

fn time(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Reason;
    use proptest::prelude::*;
    use uuid::Uuid;

    #[test]
    fn bad_fields_are_named() {
        let good = proto::ExtendShareRequest {
            share_id: "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11".to_owned(),
            new_size_bytes: 1,
            ..Default::default()
        };
        let reason = |message: &proto::ExtendShareRequest| {
            size_request(JobKind::Extend, message, String::new(), None).map(|_| ()).map_err(|refusal| refusal.reason())
        };
        assert_eq!(reason(&good), Ok(()));
        for share_id in ["", "../..", "x"] {
            let bad = proto::ExtendShareRequest { share_id: share_id.to_owned(), ..good.clone() };
            assert_eq!(reason(&bad), Err(Reason::InvalidShareId));
        }
        for new_size_bytes in [0, u64::MAX, 1 << 63] {
            assert_eq!(reason(&proto::ExtendShareRequest { new_size_bytes, ..good.clone() }), Err(Reason::InvalidSize));
        }
        let bad = proto::ExtendShareRequest { request_id: Some("7".to_owned()), ..good.clone() };
        assert_eq!(reason(&bad), Err(Reason::InvalidRequest));
        let bad = proto::ExtendShareRequest { project_id: "a\n".to_owned(), ..good };
        assert_eq!(reason(&bad), Err(Reason::InvalidRequest));
    }

    #[test]
    fn a_page_token_belongs_to_its_filter() {
        let id = job_id("018f0000-0000-7000-8000-000000000000").unwrap();
        let token = page_token(Some(id), "share=1");
        assert_eq!(page_after(&token, "share=1"), Ok(Some(id)));
        assert_eq!(page_after::<JobId>("", "share=1"), Ok(None));
        for (token, filter) in [(token.as_str(), "share=2"), ("rubbish", "share=1"), ("0.0", "share=1")] {
            assert!(page_after::<JobId>(token, filter).is_err(), "{token}");
        }
    }

    proptest! {
        #[test]
        fn a_page_token_gives_back_its_entry(id: u128, filter in any::<String>(), other in any::<String>()) {
            let id = JobId::from_uuid(Uuid::from_u128(id));
            let token = page_token(Some(id), &filter);
            prop_assert_eq!(page_after(&token, &filter), Ok(Some(id)));
            // A CRC tells by mistake only: a filter that differs in few bytes never has the same.
            if filter_sum(&other) != filter_sum(&filter) {
                prop_assert!(page_after::<JobId>(&token, &other).is_err());
            }
        }

        #[test]
        fn no_page_token_makes_it_panic(token in any::<String>(), rest in "[0-9a-f-]{0,40}", filter in any::<String>()) {
            for token in [token, format!("{}.{rest}", filter_sum(&filter))] {
                if let Ok(Some(id)) = page_after::<JobId>(&token, &filter) {
                    prop_assert_eq!(page_token(Some(id), &filter), token.to_lowercase());
                }
            }
        }
    }
}
