//! Everything that ends growctl without success: its exit code, its words for people and its JSON for programs.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Chain;
use growd::model::Reason;
use growd::output;
use growd::wire::client::ConnectError;
use growd::wire::proto;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::advice::{self, RETRY_AFTER_SECONDS};
use crate::render::exact;

/// The exit codes; `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Unexpected = 1,
    Usage = 2,
    Refused = 3,
    NotFound = 4,
    State = 5,
    NoSpace = 6,
    Unavailable = 7,
    JobEnded = 8,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub enum CallError {
    /// growd answered with a refusal.
    Refused(Status),
    /// The connection failed: whether growd took the request is not known.
    Lost(Status),
    TimedOut(Duration),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        // A status that came over the wire has no cause here; one that the transport made up has.
        if status.source().is_some() { Self::Lost(status) } else { Self::Refused(status) }
    }
}

impl CallError {
    /// Whether growd may have an earlier attempt of a change all the same: one that starts or stops may not have looked
    /// for the request id yet, any other refuses after it has.
    pub fn is_no_answer(&self) -> bool {
        let Self::Refused(status) = self else { return true };
        let details = status.get_error_details();
        let passing = |reason: &str| matches!(Reason::named(reason), Some(Reason::StoreUnavailable | Reason::Draining));
        self.is_passing() && details.error_info().is_none_or(|info| passing(&info.reason))
    }

    /// What a restart of growd looks like from here.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Lost(_) | Self::TimedOut(_) => true,
            Self::Refused(status) => matches!(status.code(), Code::Unavailable | Code::Cancelled),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub reason: String,
    /// Name of the gRPC code, when a call failed.
    pub code: Option<&'static str>,
    pub message: String,
    pub metadata: BTreeMap<String, String>,
    /// What to do about it: one line.
    pub next: String,
}

impl Failure {
    fn new(exit: Exit, reason: &str, message: String, next: String) -> Self {
        Self { exit, reason: reason.to_owned(), code: None, message, metadata: BTreeMap::new(), next }
    }

    fn from_answer(status: &Status) -> Self {
        let details = status.get_error_details();
        let code = code_name(status.code());
        let (reason, mut metadata) = match details.error_info() {
            Some(info) => (info.reason.clone(), info.metadata.clone().into_iter().collect()),
            None => (code.to_owned(), BTreeMap::new()),
        };
        if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
            metadata.insert(RETRY_AFTER_SECONDS.to_owned(), delay.as_secs_f64().ceil().to_string());
        }
        let next = advice::next_step(&reason, &metadata);
        let exit = exit_of(status.code());
        Self { exit, reason, code: Some(code), message: status.message().to_owned(), metadata, next }
    }

    /// A job that has ended without success; `None` for any other job.
    pub fn of_job(job: &proto::Job) -> Option<Self> {
        let id = &job.job_id;
        match job.state() {
            proto::JobState::Failed => {
                let error = job.error.clone().unwrap_or_default();
                let metadata = BTreeMap::from([
                    ("job_id".to_owned(), id.clone()),
                    ("share_id".to_owned(), job.share_id.clone()),
                    ("pool".to_owned(), job.pool.clone()),
                ]);
                let next = advice::next_step(&error.reason, &metadata);
                let message = format!("job {id} failed: {}", error.message);
                Some(Self { metadata, ..Self::new(Exit::JobEnded, &error.reason, message, next) })
            }
            proto::JobState::Cancelled => {
                let message = format!("job {id} was cancelled; nothing was changed");
                let next = "ask again if the size shall change after all".to_owned();
                Some(Self::new(Exit::JobEnded, "JOB_CANCELLED", message, next))
            }
            _ => None,
        }
    }

    pub fn interrupted(job_id: &str) -> Self {
        let message = format!("stopped waiting; job {job_id} goes on");
        Self::new(Exit::Interrupted, "INTERRUPTED", message, format!("`growctl job {job_id} --watch`"))
    }

    pub fn timed_out(limit: Duration) -> Self {
        let message = format!("growd did not answer within {}", humantime::format_duration(limit));
        let next = "`systemctl status growd` and `journalctl -u growd`; --timeout gives it longer".to_owned();
        Self::new(Exit::Unavailable, "TIMEOUT", message, next)
    }

    /// A change of a size without an answer: growd may have the job, and asking with the same id finds out.
    pub fn unanswered_change(mut self, request_id: &str) -> Self {
        self.message += "; growd may have accepted the request";
        self.next = format!("repeat it with --request-id {request_id}: that never makes a second job; {}", self.next);
        self.metadata.insert("request_id".to_owned(), request_id.to_owned());
        self
    }

    /// growd has nothing to do with it.
    pub fn unwritten(error: &io::Error) -> Self {
        let next = "check its path, the free space and the permissions there; a job that was accepted goes on";
        Self::new(Exit::Unexpected, "GROWCTL", format!("{}: {error}", output::UNWRITTEN), next.to_owned())
    }

    /// For people: the error, the sizes of the case, the next step.
    pub fn text(&self) -> String {
        let mut text = format!("error: {}: {}\n", self.reason, self.message);
        for (key, value) in &self.metadata {
            if let (Some(name), Ok(bytes)) = (key.strip_suffix("_bytes"), value.parse()) {
                // `growctl pools` calls so what can still be promised, and what is not written yet it calls free.
                let name = if name == "free" { "available" } else { name };
                let _ = writeln!(text, "  {}: {}", name.replace('_', " "), exact(bytes));
            }
        }
        let _ = writeln!(text, "  next: {}", self.next);
        text
    }

    /// For programs: one JSON object on one line.
    pub fn json(&self) -> String {
        let error = serde_json::json!({
            "reason": self.reason,
            "code": self.code,
            "message": self.message,
            "metadata": self.metadata,
            "next": self.next,
        });
        format!("{}\n", serde_json::json!({ "error": error }))
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(status) => Self::from_answer(&status),
            CallError::Lost(status) => {
                let message = format!("the connection to growd was lost: {}", root_cause(&status));
                Self {
                    code: Some(code_name(status.code())),
                    ..Self::new(Exit::Unavailable, "CONNECTION_LOST", message, STATUS_STEP.to_owned())
                }
            }
            CallError::TimedOut(limit) => Self::timed_out(limit),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let cause = || error.source().map(root_cause).unwrap_or_default();
        match &error {
            ConnectError::Form { .. } => {
                let next = "give --endpoint or GROWD_ENDPOINT such as unix:/run/growd/growd.sock".to_owned();
                Self::new(Exit::Usage, "INVALID_ENDPOINT", error.to_string(), next)
            }
            ConnectError::NoCredentials { .. } | ConnectError::Read { .. } | ConnectError::Credentials { .. } => {
                let message = match cause() {
                    cause if cause.is_empty() => error.to_string(),
                    cause => format!("{error}: {cause}"),
                };
                let next = "give --ca, --cert and --key, or GROWD_CA, GROWD_CERT and GROWD_KEY: PEM files".to_owned();
                Self::new(Exit::Usage, "INVALID_CREDENTIALS", message, next)
            }
            ConnectError::Unreachable { source, .. } => {
                let message = format!("{error}: {}", cause());
                if io_error_kind(source) == Some(io::ErrorKind::PermissionDenied) {
                    let next =
                        "run as root, or as a member of the socket's group: `ls -l` shows which that is".to_owned();
                    return Self::new(Exit::Refused, "FORBIDDEN", message, next);
                }
                let code = Some(code_name(Code::Unavailable));
                Self { code, ..Self::new(Exit::Unavailable, "UNREACHABLE", message, STATUS_STEP.to_owned()) }
            }
        }
    }
}

/// What growctl itself cannot do.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Unexpected, "GROWCTL", format!("{error:#}"), "this is a fault of growctl: report it".to_owned())
    }
}

const STATUS_STEP: &str = "is growd running? `systemctl status growd`";

fn root_cause(error: &(dyn Error + 'static)) -> String {
    Chain::new(error).last().map(ToString::to_string).unwrap_or_default()
}

fn io_error_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    Chain::new(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

const fn exit_of(code: Code) -> Exit {
    match code {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Exit::Refused,
        Code::NotFound => Exit::NotFound,
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => Exit::State,
        Code::ResourceExhausted => Exit::NoSpace,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unavailable,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Exit::Unexpected,
    }
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn refusal(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<_, _> =
            metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let details = ErrorDetails::with_error_info(reason, "growd", metadata);
        Status::with_error_details(code, "New size must be greater", details)
    }

    #[test]
    fn a_refusal_shows_reason_message_both_sizes_and_the_next_step() {
        let status = refusal(
            Code::InvalidArgument,
            "SIZE_NOT_GREATER",
            &[("current_size_bytes", "2147483648"), ("new_size_bytes", "1073741825"), ("share_id", "s")],
        );
        let failure = Failure::from(CallError::from(status));
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(
            failure.text(),
            "error: SIZE_NOT_GREATER: New size must be greater\n  \
             current size: 2GiB\n  \
             new size: 1073741825B (about 1GiB)\n  \
             next: ask for more than the current size (`growctl share s`); `growctl shrink` lowers a quota\n"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.json()).unwrap();
        assert_eq!(json["error"]["code"], "INVALID_ARGUMENT");
        assert_eq!(json["error"]["metadata"]["current_size_bytes"], "2147483648");
    }

    #[test]
    fn what_a_full_pool_can_give_is_called_as_in_the_list_of_pools() {
        let sizes = [("free_bytes", "53561917440"), ("reserved_bytes", "0"), ("asked_bytes", "1098987339776")];
        let failure = Failure::from(CallError::from(refusal(Code::ResourceExhausted, "POOL_FULL", &sizes)));
        let text = failure.text();
        let sizes = "  asked: 1048076MiB (about 1023.5GiB)\n  \
             available: 52306560KiB (about 49.9GiB)\n  \
             reserved: 0B\n";
        assert!(text.contains(sizes) && !text.contains("free:"), "{text}");
    }

    #[test]
    fn a_status_without_details_has_its_code_as_reason() {
        let failure = Failure::from(CallError::from(Status::unimplemented("no such method")));
        assert_eq!((failure.reason.as_str(), failure.exit), ("UNIMPLEMENTED", Exit::Refused));
        assert!(failure.next.contains("doctor"));
    }

    #[test]
    fn a_full_queue_tells_when_to_try_again() {
        let mut details = ErrorDetails::with_error_info("QUEUE_FULL", "growd", HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(4500)));
        let failure = Failure::from(CallError::from(Status::with_error_details(Code::Unavailable, "full", details)));
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.next.starts_with("try again in 5 s"), "{}", failure.next);
    }

    #[test]
    fn only_jobs_that_ended_without_success_are_failures() {
        let mut job = proto::Job { job_id: "j".to_owned(), ..proto::Job::default() };
        for state in [proto::JobState::Queued, proto::JobState::Running, proto::JobState::Succeeded] {
            job.set_state(state);
            assert_eq!(Failure::of_job(&job), None);
        }
        job.set_state(proto::JobState::Failed);
        job.error = Some(proto::JobError { reason: "POOL_FULL".to_owned(), message: "m".to_owned(), retryable: true });
        let failure = Failure::of_job(&job).unwrap();
        assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("POOL_FULL", "job j failed: m"));
        assert!(failure.next.contains("growctl pools"));
        job.set_state(proto::JobState::Cancelled);
        assert_eq!(Failure::of_job(&job).unwrap().exit, Exit::JobEnded);
    }
}
