//! Refusals: what the contract says of each.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The reason of a refusal, from its google.rpc.ErrorInfo.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Panics when this was refused for any other reason than these: a connection that breaks gives none.
pub fn unless_killed<T>(answer: Result<T, Status>, reasons: &[&str]) -> Option<T> {
    if let Err(refusal) = &answer {
        let reason = reason(refusal);
        assert!(reason.is_empty() || reasons.contains(&&*reason), "{refusal:?}");
    }
    answer.ok()
}

pub fn metadata(status: &Status, key: &str) -> String {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get(key).cloned()).unwrap_or_default()
}

/// The field of the request that is wrong, from its google.rpc.BadRequest.
pub fn field(status: &Status) -> String {
    let details = status.get_error_details();
    details.bad_request().map(|bad| bad.field_violations[0].field.clone()).unwrap_or_default()
}

/// What the contract says of each reason: code, HTTP status, and the keys that its metadata has beside that.
const CONTRACT: [(&str, Code, &str, &[&str]); 29] = [
    ("INVALID_SHARE_ID", Code::InvalidArgument, "400", &["share_id"]),
    ("INVALID_SIZE", Code::InvalidArgument, "400", &["new_size_bytes"]),
    ("INVALID_REQUEST", Code::InvalidArgument, "400", &[]),
    ("SIZE_NOT_GREATER", Code::InvalidArgument, "400", &["share_id", "current_size_bytes", "new_size_bytes"]),
    ("SIZE_NOT_SMALLER", Code::InvalidArgument, "400", &["share_id", "current_size_bytes", "new_size_bytes"]),
    ("WOULD_LOSE_DATA", Code::FailedPrecondition, "409", &["share_id", "used_bytes", "requested_bytes"]),
    ("UNAUTHENTICATED", Code::Unauthenticated, "401", &[]),
    ("FORBIDDEN", Code::PermissionDenied, "403", &["rpc", "role"]),
    ("SHARE_NOT_FOUND", Code::NotFound, "404", &["share_id"]),
    ("JOB_NOT_FOUND", Code::NotFound, "404", &["job_id"]),
    ("SHARE_BUSY", Code::Aborted, "409", &["share_id", "job_id"]),
    ("REQUEST_ID_REUSED", Code::AlreadyExists, "409", &["request_id", "job_id"]),
    (
        "CURRENT_SIZE_MISMATCH",
        Code::FailedPrecondition,
        "409",
        &["share_id", "current_size_bytes", "expected_current_size_bytes"],
    ),
    ("NOT_MOUNTED", Code::FailedPrecondition, "409", &["pool"]),
    ("QUOTA_NOT_ENFORCED", Code::FailedPrecondition, "409", &["location"]),
    ("NO_PROJECT_ID", Code::FailedPrecondition, "409", &["location"]),
    ("PROJECT_ID_SHARED", Code::FailedPrecondition, "409", &["location", "quota_project_id", "other_location"]),
    ("UNLIMITED", Code::FailedPrecondition, "409", &["location", "quota"]),
    (
        "THIN_POOL_CRITICAL",
        Code::FailedPrecondition,
        "409",
        &["thin_pool", "data_percent", "metadata_percent", "max_data_percent", "max_metadata_percent"],
    ),
    ("HAS_SNAPSHOT", Code::FailedPrecondition, "409", &["location"]),
    (
        "GROWTH_TOO_LARGE",
        Code::FailedPrecondition,
        "409",
        &["location", "filesystem", "volume_size_bytes", "limit", "needed", "most"],
    ),
    ("JOB_NOT_QUEUED", Code::FailedPrecondition, "409", &["job_id", "state"]),
    ("POOL_FULL", Code::ResourceExhausted, "409", &["pool", "free_bytes", "reserved_bytes", "asked_bytes"]),
    ("QUEUE_FULL", Code::Unavailable, "503", &["active_jobs"]),
    ("DRAINING", Code::Unavailable, "503", &[]),
    ("STORE_UNAVAILABLE", Code::Unavailable, "503", &[]),
    ("STUCK", Code::Unavailable, "503", &["pool"]),
    ("UNSUPPORTED", Code::Unimplemented, "501", &[]),
    ("INTERNAL", Code::Internal, "500", &[]),
];

/// The keys of an UNSUPPORTED that two places have the share.
const IN_TWO_PLACES: &[&str] = &["share_id", "place", "other_place"];

/// Panics unless this is the refusal with that reason, with everything that the contract says of it.
pub fn assert_refused(status: &Status, expected: &str) {
    let (_, code, http, keys) = CONTRACT.iter().find(|row| row.0 == expected).expect("a reason of the contract");
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo, but {expected} expected: {status:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (expected, "growd"), "{status:?}");
    assert_eq!((status.code(), info.metadata.get("http_status").map(String::as_str)), (*code, Some(*http)));
    let keys = if metadata(status, "other_place").is_empty() { keys } else { IN_TWO_PLACES };
    for key in keys {
        assert!(info.metadata.contains_key(*key), "{expected} without {key}: {info:?}");
    }
    assert_eq!(info.metadata.len(), keys.len() + 1, "{info:?}");
    match expected {
        "INVALID_SHARE_ID" => assert_eq!(field(status), "share_id"),
        "INVALID_SIZE" | "SIZE_NOT_GREATER" | "SIZE_NOT_SMALLER" => assert_eq!(field(status), "new_size_bytes"),
        "INVALID_REQUEST" => assert_ne!(field(status), ""),
        _ => assert!(details.bad_request().is_none(), "{expected} and BadRequest"),
    }
    assert_eq!(details.retry_info().is_some(), expected == "QUEUE_FULL", "{expected} and RetryInfo");
    assert!(!status.message().is_empty());
    // gRPC's own libraries refuse an answer with more than 8 KiB of metadata, in which both are.
    let told = status.message().len() + status.details().len();
    assert!(told < 4096, "{expected} takes {told} bytes");
}
