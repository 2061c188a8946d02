//! Waiting for a job to end, across restarts of growd: jobs survive them, so a broken stream only means to look again.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use growd::wire::proto::{Job, JobState};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Output;
use crate::calls::{Calls, RETRY_PAUSE};
use crate::failure::{CallError, Failure};

const SPINNER_TICK: Duration = Duration::from_millis(120);

/// Follows the job to its end. Ctrl-C ends the waiting, not the job.
pub async fn to_the_end(calls: &Calls, job_id: &str, output: Output) -> Result<Job, Failure> {
    let mut progress = Progress::new(output);
    let ended = tokio::select! {
        ended = watch_until_ended(calls, job_id, &mut progress) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted(job_id)),
    };
    progress.clear();
    ended
}

/// Endless on purpose: a job that was accepted always ends, so there is always something to wait for.
async fn watch_until_ended(calls: &Calls, job_id: &str, progress: &mut Progress) -> Result<Job, Failure> {
    loop {
        let problem = match watch_once(calls, job_id, progress).await {
            Ok(Some(job)) => return Ok(job),
            Err(error) if !error.is_passing() => return Err(error.into()),
            // A growd that starts, a store that cannot be read, a certificate that has expired: the words tell which it is.
            Err(error) => Failure::from(error).message,
            Ok(None) => "the connection to growd was lost".to_owned(),
        };
        progress.show(&format!("{problem}; the job goes on, asking again"));
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// `None`: the stream ended before the job did.
async fn watch_once(calls: &Calls, job_id: &str, progress: &mut Progress) -> Result<Option<Job>, CallError> {
    let mut changes = calls.watch(job_id).await?;
    while let Some(job) = changes.message().await? {
        progress.show(&progress_text(&job));
        if is_ended(&job) {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

fn is_ended(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

fn progress_text(job: &Job) -> String {
    let state = job.state().as_str_name();
    match job.steps.last() {
        Some(step) if step.detail.is_empty() => format!("{state} {}", step.name),
        Some(step) => format!("{state} {}: {}", step.name, step.detail),
        None => state.to_owned(),
    }
}

/// What is told on stderr while waiting.
enum Progress {
    /// A terminal: one line that moves.
    Spinner(ProgressBar),
    /// No terminal: a line for each change.
    Lines { last: String },
    /// JSON: stderr has nothing but the error.
    Silent,
}

impl Progress {
    fn new(output: Output) -> Self {
        match output {
            Output::Json => Self::Silent,
            Output::Table if stderr().is_terminal() => {
                let spinner = ProgressBar::new_spinner();
                if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed}] {wide_msg}") {
                    spinner.set_style(style);
                }
                spinner.enable_steady_tick(SPINNER_TICK);
                Self::Spinner(spinner)
            }
            Output::Table => Self::Lines { last: String::new() },
        }
    }

    fn show(&mut self, text: &str) {
        match self {
            Self::Spinner(spinner) => spinner.set_message(text.to_owned()),
            Self::Lines { last } if last != text => {
                // Nobody reading the progress is no reason to stop waiting.
                let _ = writeln!(stderr(), "{text}");
                text.clone_into(last);
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    fn clear(&self) {
        if let Self::Spinner(spinner) = self {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use growd::wire::proto::JobStep;
    use tonic::Status;

    #[test]
    fn progress_names_the_state_and_the_last_step() {
        let mut job = Job { state: JobState::Running.into(), ..Job::default() };
        assert_eq!(progress_text(&job), "RUNNING");
        job.steps.push(JobStep {
            name: "set_limit".to_owned(),
            detail: "2GiB -> 3GiB".to_owned(),
            ..JobStep::default()
        });
        job.steps.push(JobStep { name: "verify".to_owned(), ..JobStep::default() });
        assert_eq!(progress_text(&job), "RUNNING verify");
        job.steps.pop();
        assert_eq!(progress_text(&job), "RUNNING set_limit: 2GiB -> 3GiB");
    }

    #[test]
    fn only_what_passes_is_waited_out() {
        for status in [Status::unavailable("starting"), Status::cancelled("shutting down")] {
            assert!(CallError::Refused(status).is_passing());
        }
        for status in [Status::not_found("gone"), Status::internal("broken"), Status::permission_denied("no")] {
            assert!(!CallError::Refused(status).is_passing());
        }
    }
}
