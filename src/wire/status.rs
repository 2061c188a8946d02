//! The one table from refusals to gRPC codes and HTTP statuses.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::model::{Reason, Refusal};

/// Domain of the reasons in google.rpc.ErrorInfo.
const DOMAIN: &str = "growd";

/// The gRPC code of a reason, and the HTTP status that an API tier answers for it.
const fn codes(reason: Reason) -> (Code, u16) {
    match reason {
        Reason::InvalidShareId
        | Reason::InvalidSize
        | Reason::InvalidRequest
        | Reason::SizeNotGreater
        | Reason::SizeNotSmaller => (Code::InvalidArgument, 400),
        Reason::Unauthenticated => (Code::Unauthenticated, 401),
        Reason::Forbidden => (Code::PermissionDenied, 403),
        Reason::ShareNotFound | Reason::JobNotFound => (Code::NotFound, 404),
        Reason::ShareBusy => (Code::Aborted, 409),
        Reason::RequestIdReused => (Code::AlreadyExists, 409),
        Reason::CurrentSizeMismatch
        | Reason::NotMounted
        | Reason::QuotaNotEnforced
        | Reason::NoProjectId
        | Reason::ProjectIdShared
        | Reason::Unlimited
        | Reason::WouldLoseData
        | Reason::GrowthTooLarge
        | Reason::SoftLimitFirst
        | Reason::PoolOvercommitted
        | Reason::ThinPoolCritical
        | Reason::HasSnapshot
        | Reason::HalfGrown
        | Reason::JobNotQueued => (Code::FailedPrecondition, 409),
        Reason::PoolFull => (Code::ResourceExhausted, 409),
        Reason::QueueFull | Reason::Draining | Reason::StoreUnavailable | Reason::Stuck => (Code::Unavailable, 503),
        Reason::Unsupported => (Code::Unimplemented, 501),
        Reason::Internal => (Code::Internal, 500),
    }
}

/// The answer for a refusal, with its google.rpc details. The log level follows the class.
impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let reason = refusal.reason();
        let message = refusal.to_string();
        if codes(reason).0 == Code::Internal {
            tracing::error!(%reason, error = message, "internal error");
        } else {
            tracing::info!(%reason, error = message, "refused");
        }
        unlogged(&refusal)
    }
}

/// The same for refusals that are logged elsewhere.
pub fn unlogged(refusal: &Refusal) -> Status {
    let reason = refusal.reason();
    let (code, http) = codes(reason);
    let message = refusal.to_string();
    let mut metadata: std::collections::HashMap<String, String> =
        refusal.metadata().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    metadata.insert("http_status".to_owned(), http.to_string());
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    let field = match refusal {
        Refusal::InvalidShareId { .. } => Some("share_id"),
        Refusal::InvalidSize { field, .. } | Refusal::InvalidRequest { field, .. } => Some(*field),
        Refusal::SizeNotGreater { .. } | Refusal::SizeNotSmaller { .. } => Some("new_size_bytes"),
        _ => None,
    };
    if let Some(field) = field {
        details.add_bad_request_violation(field, message.as_str());
    }
    if let Refusal::QueueFull { retry_after, .. } = refusal {
        details.set_retry_info(Some(*retry_after));
    }
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_http_status_travel_as_details() {
        let refusal = Refusal::InvalidSize { field: "new_size_bytes", given: 0, problem: "must be above 0" };
        let status = Status::from(refusal);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (Code::InvalidArgument, "INVALID_SIZE", "growd")
        );
        assert_eq!(info.metadata["http_status"], "400");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "new_size_bytes");
    }

    /// Callers decide by these whether they ask again.
    #[test]
    fn the_readme_tells_what_each_refusal_is_answered_with() {
        let rows: Vec<Vec<&str>> = include_str!("../../README.md")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect()))
            .collect();
        // These are never refused with.
        let findings = [Reason::SoftLimitFirst, Reason::PoolOvercommitted, Reason::HalfGrown];
        for reason in Reason::ALL.iter().filter(|reason| !findings.contains(reason)) {
            let row = rows.iter().find(|row| row.len() == 6 && row[0] == reason.as_str());
            let Some([.., code, http, again]) = row.map(Vec::as_slice) else { panic!("{reason} is not in the README") };
            let (expected, status) = codes(*reason);
            assert_eq!(code.replace('_', ""), format!("{expected:?}").to_uppercase(), "{reason}");
            assert_eq!(*http, status.to_string(), "{reason}");
            assert_eq!(*again, if reason.is_retryable() { "yes" } else { "no" }, "{reason}");
        }
    }
}
