//! Why a node has given no answer that can be used, told from the gRPC status.

use std::error::Error;
use std::time::Duration;

use anyhow::Chain;
use axum::http::StatusCode;
use growd::model::{Bytes, Reason};
use growd::wire::client::ConnectError;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt};

use crate::refusal::Refusal;

/// Seconds that clients are asked to wait for a node that is restarting or was cut off.
pub const RETRY_AFTER: u64 = 5;
const IN_TWO_PLACES: &str = "The storage node has the share in two places, and nothing tells which of them is meant.";

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// growd's own refusal.
    #[error("{}: {}", .0.reason, .0.message)]
    Refused(Refused),
    /// There is no connection, or it broke.
    #[error("not reachable: {problem}")]
    Unreachable { problem: String },
    /// Somebody takes connections there and closes them before a request is sent.
    #[error("it closes connections before a request is sent: {problem}")]
    Closed { problem: String },
    /// growd does not let growapi make the call.
    #[error("it denies growapi the call, since [access] in its growd.toml gives it no role for that: {problem}")]
    Denied { problem: String },
    #[error("no answer in time")]
    Silent,
    #[error("it answered what growd does not answer: {problem}")]
    Nonsense { problem: String },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// That of a newer growd may be none that is known here.
    pub reason: String,
    pub http_status: u16,
    /// growd's words, for the log.
    pub message: String,
    /// What the client hears.
    pub told: String,
    /// The size of the share, where the refusal tells it.
    pub current_size: Option<Bytes>,
    pub retry_after: Option<Duration>,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Unreachable { problem: chain(&error) }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status that came over the wire has no cause here; one that the transport made up has.
        if let Some(cause) = status.source() {
            let problem = chain(cause);
            return match broken(cause) {
                Broken::Protocol => Self::Nonsense { problem },
                Broken::BeforeRequest => Self::Closed { problem },
                Broken::Connection => Self::Unreachable { problem },
            };
        }
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == "growd");
        let http_status = info.and_then(|info| info.metadata.get("http_status")?.parse().ok());
        let problem = || format!("{:?}: {}", status.code(), status.message());
        let told = |info: &ErrorInfo| match info.metadata.contains_key("other_place") {
            true => IN_TWO_PLACES.to_owned(),
            false => words(&info.reason, status.message().to_owned()),
        };
        match (info, http_status) {
            // The right to call a node is growapi's, not the tenant's.
            (Some(_), Some(401 | 403)) => Self::Denied { problem: problem() },
            (Some(info), Some(http_status)) if (400..600).contains(&http_status) => Self::Refused(Refused {
                reason: info.reason.clone(),
                http_status,
                message: status.message().to_owned(),
                told: told(info),
                current_size: info
                    .metadata
                    .get("current_size_bytes")
                    .and_then(|size| size.parse().ok())
                    .map(Bytes::new),
                retry_after: details.retry_info().and_then(|info| info.retry_delay),
            }),
            _ if status.code() == Code::Unavailable => Self::Unreachable { problem: problem() },
            _ if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => Self::Silent,
            _ => Self::Nonsense { problem: problem() },
        }
    }
}

impl Failure {
    /// Of a node that is not asked.
    pub fn down() -> Self {
        Self::Unreachable { problem: "it did not answer when it was last asked".to_owned() }
    }

    /// What every node would say.
    pub fn unknown_share() -> Self {
        let message = "no node has the share".to_owned();
        Self::Refused(Refused {
            reason: Reason::ShareNotFound.to_string(),
            http_status: StatusCode::NOT_FOUND.as_u16(),
            told: message.clone(),
            message,
            current_size: None,
            retry_after: None,
        })
    }

    pub fn nonsense(problem: impl Into<String>) -> Self {
        Self::Nonsense { problem: problem.into() }
    }

    /// Of a node that refuses to tell of a share nobody is known to have: the share may be in a pool of it that cannot be
    /// read, or nowhere. Without growd's words, which may tell of another project's share, or of places on the node. What
    /// is wrong in the state of things may pass, a disk that fails included, and growd may then know the share or not; what
    /// growd cannot do stays so.
    pub fn cannot_tell(mut self) -> Self {
        let stays = self.stays();
        if let Self::Refused(refused) = &mut self {
            if !stays {
                refused.http_status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
            }
            refused.told = "The storage node cannot tell of the share.".to_owned();
        }
        self
    }

    /// Whether it is no use to ask again.
    pub fn stays(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.http_status == StatusCode::NOT_IMPLEMENTED.as_u16())
    }

    pub fn has_reason(&self, reason: Reason) -> bool {
        matches!(self, Self::Refused(refused) if refused.has(reason))
    }

    /// What the client hears. `asked` is the size that an action named, in GiB.
    pub fn into_refusal(self, asked: Option<u64>) -> Refusal {
        match self {
            Self::Refused(refused) => refused.into_refusal(asked),
            Self::Unreachable { .. } => {
                Refusal::unavailable("The storage node of the share is not reachable.", RETRY_AFTER)
            }
            Self::Silent => {
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "The storage node of the share did not answer in time.")
            }
            Self::Closed { .. } | Self::Denied { .. } | Self::Nonsense { .. } => {
                Refusal::new(StatusCode::BAD_GATEWAY, "The storage node of the share gave an invalid answer.")
            }
        }
    }
}

/// What a tenant hears of a refusal, an error or a finding of growd. growd tells admins where on the node something is and
/// what else is there, which may be another tenant's. So its own words go on only where they have no more of the node than
/// the name of a pool.
pub fn words(reason: &str, message: String) -> String {
    let own = match Reason::named(reason) {
        Some(
            Reason::InvalidShareId
            | Reason::InvalidSize
            | Reason::InvalidRequest
            | Reason::SizeNotGreater
            | Reason::SizeNotSmaller
            | Reason::ShareNotFound
            | Reason::JobNotFound
            | Reason::ShareBusy
            | Reason::CurrentSizeMismatch
            | Reason::WouldLoseData
            | Reason::PoolFull
            | Reason::QueueFull
            | Reason::JobNotQueued
            | Reason::Draining
            | Reason::Stuck,
        ) => return message,
        Some(Reason::RequestIdReused) => "The request id belongs to another request.",
        Some(Reason::NotMounted) => "The storage of the share is not ready.",
        Some(Reason::QuotaNotEnforced) => "The quota of the share is not enforced.",
        Some(Reason::NoProjectId) => "The share has no quota of its own.",
        Some(Reason::ProjectIdShared) => "The quota of the share bounds another share as well.",
        Some(Reason::Unlimited) => "The share has no limit, so there is no size to change.",
        Some(Reason::ThinPoolCritical) => "The storage of the share is too full to promise more of it.",
        Some(Reason::HasSnapshot) => "The share has snapshots with which it cannot be extended.",
        Some(Reason::GrowthTooLarge) => "The file system of the share cannot grow so far.",
        Some(Reason::StoreUnavailable) => "The storage node of the share takes no requests now.",
        Some(Reason::Unsupported) => "The storage node does not support this for the share as it is.",
        // No tenant is told of these by name.
        Some(
            Reason::Unauthenticated
            | Reason::Forbidden
            | Reason::SoftLimitFirst
            | Reason::PoolOvercommitted
            | Reason::HalfGrown
            | Reason::Internal,
        )
        | None => "The storage node of the share has met an error.",
    };
    own.to_owned()
}

impl Refused {
    /// Whether it is about what the client asks for, and the client hears all there is to it.
    pub fn is_told(&self) -> bool {
        let is_of_request = self.told == self.message || self.has(Reason::RequestIdReused);
        is_of_request && self.http_status < StatusCode::INTERNAL_SERVER_ERROR.as_u16()
    }

    pub fn has(&self, reason: Reason) -> bool {
        self.reason == reason.as_str()
    }

    fn into_refusal(self, asked: Option<u64>) -> Refusal {
        match (Reason::named(&self.reason), asked) {
            (Some(Reason::ShareNotFound), None) => Refusal::not_found(),
            // Manila has another text for actions.
            (Some(Reason::ShareNotFound), Some(_)) => {
                Refusal::new(StatusCode::NOT_FOUND, "Resource could not be found.")
            }
            (Some(Reason::SizeNotGreater), Some(asked)) => {
                let current = self.current_size.unwrap_or_default().whole_gib();
                let problem = "New size for extend must be greater than current size.";
                let sizes = format!("(current: {current}, extended: {asked})");
                Refusal::bad_request(format!("Invalid input received: {problem} {sizes}."))
            }
            (Some(Reason::SizeNotSmaller), Some(asked)) => {
                let current = self.current_size.unwrap_or_default().whole_gib();
                let problem = "New size for shrink must be less than current size and greater than 0";
                Refusal::bad_request(format!("Invalid input received: {problem} (current: {current}, new: {asked})."))
            }
            _ => {
                let status = StatusCode::from_u16(self.http_status).unwrap_or(StatusCode::BAD_GATEWAY);
                let mut refusal = Refusal::new(status, self.told);
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    refusal.retry_after = Some(self.retry_after.map_or(RETRY_AFTER, |delay| delay.as_secs().max(1)));
                }
                refusal
            }
        }
    }
}

enum Broken {
    Connection,
    BeforeRequest,
    /// The other side speaks, but no HTTP/2.
    Protocol,
}

fn broken(cause: &(dyn Error + 'static)) -> Broken {
    let protocol = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<h2::Error>().is_some_and(|error| error.is_library() && !error.is_io())
    };
    let unsent =
        |cause: &(dyn Error + 'static)| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
    if Chain::new(cause).any(protocol) {
        Broken::Protocol
    } else if Chain::new(cause).any(unsent) {
        Broken::BeforeRequest
    } else {
        Broken::Connection
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Chain::new(error).map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use growd::model::{Bytes, PoolName, Refusal as Told, ShareId};
    use std::io;
    use std::path::PathBuf;
    use tonic_types::ErrorDetails;

    fn refused(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Failure {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let details =
            ErrorDetails::with_error_info(reason, "growd", metadata.collect::<std::collections::HashMap<_, _>>());
        Status::with_error_details(code, format!("refused: {reason}"), details).into()
    }

    fn heard(failure: Failure, asked: Option<u64>) -> (u16, String) {
        let refusal = failure.into_refusal(asked);
        (refusal.status.as_u16(), refusal.message)
    }

    #[test]
    fn refusals_carry_their_http_status_and_the_words_of_the_api() {
        let size = [("http_status", "400"), ("current_size_bytes", "2684354559")];
        let text =
            "Invalid input received: New size for extend must be greater than current size. (current: 2, extended: 1).";
        let smaller = refused(Code::InvalidArgument, "SIZE_NOT_GREATER", &size);
        assert_eq!(heard(smaller, Some(1)), (400, text.to_owned()));
        let text = "Invalid input received: New size for shrink must be less than current size and greater than 0 \
                    (current: 2, new: 3).";
        let larger = refused(Code::InvalidArgument, "SIZE_NOT_SMALLER", &size);
        assert_eq!(heard(larger, Some(3)), (400, text.to_owned()));
        let unknown = refused(Code::NotFound, "SHARE_NOT_FOUND", &[("http_status", "404")]);
        assert_eq!(heard(unknown.clone(), Some(1)), (404, "Resource could not be found.".to_owned()));
        assert_eq!(heard(unknown, None), (404, "The resource could not be found.".to_owned()));
        let shared = refused(Code::FailedPrecondition, "PROJECT_ID_SHARED", &[("http_status", "409")]);
        assert_eq!(heard(shared, Some(3)), (409, "The quota of the share bounds another share as well.".to_owned()));
        for (code, reason, http) in [
            (Code::Aborted, "SHARE_BUSY", "409"),
            (Code::ResourceExhausted, "POOL_FULL", "409"),
            (Code::FailedPrecondition, "WOULD_LOSE_DATA", "409"),
            (Code::Unavailable, "DRAINING", "503"),
        ] {
            let (status, message) = heard(refused(code, reason, &[("http_status", http)]), Some(3));
            assert_eq!((status.to_string().as_str(), message), (http, format!("refused: {reason}")));
        }
    }

    #[test]
    fn nobody_hears_where_on_the_node_something_is_or_of_what_else_is_there() {
        let (share, pool) = (ShareId::from_uuid(uuid::Uuid::nil()), "home".parse::<PoolName>().unwrap());
        let (location, problem) = (PathBuf::from("/srv/of-another/share"), "/srv/of-another is not there".to_owned());
        let percent = Box::<str>::default;
        for refusal in [
            Told::NotMounted { pool: pool.clone(), problem: problem.clone() },
            Told::ShareNotMounted { share, pool: pool.clone(), problem: problem.clone() },
            Told::QuotaNotEnforced { location: location.clone(), problem: problem.clone() },
            Told::NoProjectId { location: location.clone(), problem: problem.clone() },
            Told::ProjectIdShared { location: location.clone(), project_id: 7, other: location.clone() },
            Told::Unlimited { location: location.clone(), quota: "project id 7".to_owned() },
            Told::ThinPoolCritical {
                thin_pool: "/srv/of-another".to_owned(),
                problem: problem.clone(),
                data_percent: percent(),
                metadata_percent: percent(),
                max_data_percent: percent(),
                max_metadata_percent: percent(),
            },
            Told::HasSnapshot { location: location.clone() },
            Told::GrowthTooLarge {
                location: location.clone(),
                filesystem: "xfs",
                to: Bytes::gib(1),
                what: "groups",
                needed: 2,
                most: 1,
            },
            Told::StoreUnavailable { problem: problem.clone() },
            Told::Unsupported { what: problem.clone() },
            Told::InTwoPlaces { share, one: format!("at {}", location.display()), other: problem.clone() },
            Told::Internal { problem: problem.clone() },
        ] {
            let (message, reason) = (refusal.to_string(), refusal.reason());
            assert!(message.contains("of-another"), "this shows nothing: {message}");
            let told = words(reason.as_str(), message);
            assert!(!told.contains("of-another") && told.ends_with('.'), "{reason}: {told}");
        }
        assert!(!words("OF_A_NEWER_GROWD", problem).contains("of-another"));

        let places = [("http_status", "501"), ("place", "in pool a"), ("other_place", "at /srv/of-another")];
        let twice = refused(Code::Unimplemented, "UNSUPPORTED", &places);
        assert_eq!(heard(twice, Some(3)), (501, IN_TWO_PLACES.to_owned()));
        let other = "The storage node does not support this for the share as it is.".to_owned();
        assert_eq!(heard(refused(Code::Unimplemented, "UNSUPPORTED", &places[..1]), Some(3)), (501, other));
    }

    #[test]
    fn a_node_that_cannot_tell_is_asked_again_only_where_that_may_help() {
        for (code, reason, http, expected) in [
            (Code::FailedPrecondition, "NOT_MOUNTED", "409", (503, Some(RETRY_AFTER))),
            (Code::Unavailable, "STUCK", "503", (503, Some(RETRY_AFTER))),
            (Code::Unimplemented, "UNSUPPORTED", "501", (501, None)),
            (Code::Internal, "INTERNAL", "500", (503, Some(RETRY_AFTER))),
        ] {
            let refusal = refused(code, reason, &[("http_status", http)]).cannot_tell().into_refusal(None);
            assert_eq!((refusal.status.as_u16(), refusal.retry_after), expected, "{reason}");
            assert_eq!(refusal.message, "The storage node cannot tell of the share.");
        }
    }

    #[test]
    fn unavailable_says_when_to_ask_again() {
        let mut details =
            ErrorDetails::with_error_info("QUEUE_FULL", "growd", [("http_status".to_owned(), "503".to_owned())]);
        details.set_retry_info(Some(Duration::from_secs(7)));
        let failure = Failure::from(Status::with_error_details(Code::Unavailable, "full", details));
        assert_eq!(failure.into_refusal(Some(3)).retry_after, Some(7));
        let draining = refused(Code::Unavailable, "DRAINING", &[("http_status", "503")]);
        assert_eq!(draining.into_refusal(Some(3)).retry_after, Some(RETRY_AFTER));
        let gone = Failure::Unreachable { problem: String::new() };
        assert_eq!(gone.into_refusal(None).retry_after, Some(RETRY_AFTER));
    }

    #[test]
    fn the_log_tells_a_failure_in_words() {
        let busy = refused(Code::Aborted, "SHARE_BUSY", &[("http_status", "409")]);
        assert_eq!(busy.to_string(), "SHARE_BUSY: refused: SHARE_BUSY");
        assert_eq!(Failure::Silent.to_string(), "no answer in time");
        let gone = Failure::Unreachable { problem: "Connection refused".to_owned() };
        assert_eq!(gone.to_string(), "not reachable: Connection refused");
    }

    #[test]
    fn what_growd_does_not_say_is_nonsense() {
        for failure in [
            Failure::from(Status::internal("failed to decode")),
            Failure::from(Status::unimplemented("unknown service")),
            refused(Code::Internal, "INTERNAL", &[]),
            refused(Code::Internal, "INTERNAL", &[("http_status", "x")]),
            refused(Code::Internal, "INTERNAL", &[("http_status", "200")]),
        ] {
            assert!(matches!(failure, Failure::Nonsense { .. }), "{failure:?}");
            assert_eq!(heard(failure, None).0, 502);
        }
        let denied = refused(Code::PermissionDenied, "FORBIDDEN", &[("http_status", "403")]);
        assert!(matches!(denied, Failure::Denied { .. }), "{denied:?}");
        assert_eq!(heard(denied, None).0, 502);
        assert_eq!(heard(Status::unavailable("no").into(), None).0, 503);
        assert_eq!(heard(Status::deadline_exceeded("late").into(), None).0, 504);
    }

    #[test]
    fn a_broken_connection_is_no_nonsense() {
        let broken = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(matches!(Failure::from(broken), Failure::Unreachable { .. }));
    }
}
