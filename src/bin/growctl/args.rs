//! What can be typed. Ids, sizes and names are checked here, before growd is called.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use growd::model::{Bytes, JobId, JobState, PoolName, ProjectLabel, RequestId, ShareId};
use growd::wire::client::{Credentials, DEFAULT_ENDPOINT};

const AFTER_HELP: &str = "\
Sizes are binary: 10GiB, 500MiB, 1.5TiB. Results go to stdout, progress and errors to stderr.

Exit codes:
  0    done; for doctor: no findings
  1    unexpected error; for doctor: there are findings
  2    bad usage: an argument, an id, a size or the endpoint is not well formed
  3    refused: the request itself is wrong, not permitted or not supported
  4    no such share or job
  5    refused in this state: share busy, not the expected size, more in use than a shrink would leave, ...
  6    refused: the pool has not enough space
  7    growd is not reachable, not serving or too busy, or did not answer in time: try again
  8    the job failed or was cancelled
  130  stopped waiting by Ctrl-C; the job goes on";

/// Heading of the options that all verbs have.
const EVERY: &str = "Options of every command";

/// Command line of growd, the share host agent of this node: lists shares, changes their sizes, follows jobs.
#[derive(Debug, Parser)]
#[command(name = "growctl", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Where growd listens: unix:/path or https://host:port
    #[arg(long, env = "GROWD_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_name = "ENDPOINT")]
    #[arg(global = true, help_heading = EVERY)]
    pub endpoint: String,
    #[command(flatten)]
    pub tls: Tls,
    /// Tables for people or one JSON document for programs; errors too, but for arguments that cannot be read
    #[arg(long, short, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    #[arg(global = true, help_heading = EVERY)]
    pub output: Output,
    /// How long growd may take to answer a call, connecting included; does not limit --wait and --watch
    // growd says after 40 s that a pool is stuck.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    #[arg(global = true, help_heading = EVERY)]
    pub timeout: Duration,
    #[command(subcommand)]
    pub verb: Verb,
}

/// For https:// endpoints; all three or none.
#[derive(Debug, Args)]
pub struct Tls {
    /// For https: the authority of growd's certificate, a PEM file
    #[arg(long, env = "GROWD_CA", value_name = "FILE", global = true, help_heading = EVERY)]
    ca: Option<PathBuf>,
    /// For https: the own certificate, a PEM file
    #[arg(long, env = "GROWD_CERT", value_name = "FILE", global = true, help_heading = EVERY)]
    cert: Option<PathBuf>,
    /// For https: the key of the own certificate, a PEM file
    #[arg(long, env = "GROWD_KEY", value_name = "FILE", global = true, help_heading = EVERY)]
    key: Option<PathBuf>,
}

impl Tls {
    /// `None` unless all of it was given.
    pub fn credentials(self) -> Option<Credentials> {
        Some(Credentials { ca: self.ca?, certificate: self.cert?, key: self.key? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// What growd is asked for.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Shows the node and the daemon
    Node,
    /// Lists the pools with what can still be given
    Pools,
    /// Lists the shares with the sizes that the kernel reports
    Shares {
        /// Only the shares of this pool
        #[arg(long)]
        pool: Option<PoolName>,
    },
    /// Shows one share
    Share {
        /// The share
        id: ShareId,
    },
    /// Extends a share; returns when the job is accepted, which is on disk and survives restarts
    Extend(ResizeArgs),
    /// Lowers the quota of a share, not below what is in use; returns when the job is accepted, as extend does. A volume or
    /// an image is never made smaller
    Shrink(ResizeArgs),
    /// Lists jobs, newest first
    Jobs(JobsArgs),
    /// Shows one job
    Job {
        /// The job
        id: JobId,
        /// Follow the job until it has ended; exits 8 when it failed or was cancelled
        #[arg(long)]
        watch: bool,
    },
    /// Cancels a job that is QUEUED; not one of before the last start of growd, which may have begun then
    Cancel {
        /// The job
        id: JobId,
    },
    /// Looks for everything that would make an extend fail or a quota not hold; exits 1 when there is any finding
    Doctor,
}

#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The share
    pub id: ShareId,
    /// The size that it shall have, such as 10GiB: the new total, not the difference
    #[arg(value_parser = new_size)]
    pub size: Bytes,
    /// Follow the job until it has ended; exits 8 when it failed or was cancelled
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// Check everything, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse unless the share has this size now
    #[arg(long, value_name = "SIZE")]
    pub expect_current: Option<Bytes>,
    /// Makes the request repeatable: the same id and request answer the same job. Made up when not given
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<RequestId>,
    /// Label of the job for audit and filters
    #[arg(long, value_name = "LABEL")]
    pub project: Option<ProjectLabel>,
}

/// No share is made to have no size.
fn new_size(text: &str) -> Result<Bytes, String> {
    match text.parse::<Bytes>() {
        Ok(Bytes::ZERO) => Err("must be above 0".to_owned()),
        size => size.map_err(|error| error.to_string()),
    }
}

#[derive(Debug, Args)]
pub struct JobsArgs {
    /// Only jobs of this share
    #[arg(long, value_name = "ID")]
    pub share: Option<ShareId>,
    /// Only jobs in this state
    #[arg(long, ignore_case = true, value_parser = PossibleValuesParser::new(JobState::ALL.map(JobState::as_str))
        .try_map(|state| JobState::named(&state.to_uppercase()).ok_or("it is no state")))]
    pub state: Option<JobState>,
    /// Only jobs with this project label
    #[arg(long, value_name = "LABEL")]
    pub project: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_what_a_verb_takes_before_what_all_take() {
        let mut cli = Cli::command();
        cli.build();
        for verb in cli.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
            let help = verb.render_help().to_string();
            let (own, every) = help.split_once(&format!("\n{EVERY}:\n")).unwrap();
            for option in ["--endpoint ", "--ca ", "--cert ", "--key ", "--output ", "--timeout "] {
                assert!(every.contains(option) && !own.contains(option), "{option}: {help}");
            }
            let unexplained = |line: &&str| line.starts_with("  ") && line.trim_end().ends_with('>');
            assert!(help.lines().find(unexplained).is_none(), "{help}");
        }
    }

    #[test]
    fn global_options_are_taken_behind_the_verb() {
        let cli = Cli::try_parse_from(["growctl", "jobs", "--state", "failed", "-o", "json", "--timeout", "1m 5s"]);
        let cli = cli.unwrap();
        assert_eq!((cli.output, cli.timeout), (Output::Json, Duration::from_secs(65)));
        assert!(matches!(cli.verb, Verb::Jobs(JobsArgs { state: Some(JobState::Failed), limit: 50, .. })));
    }

    #[test]
    fn every_state_of_a_job_can_be_asked_for_in_either_case_and_is_completed() {
        for state in JobState::ALL {
            for typed in [state.as_str(), &state.as_str().to_lowercase()] {
                let cli = Cli::try_parse_from(["growctl", "jobs", "--state", typed]).unwrap();
                assert!(
                    matches!(cli.verb, Verb::Jobs(JobsArgs { state: Some(asked), .. }) if asked == state),
                    "{typed}"
                );
            }
        }
        let mut completion = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "growctl", &mut completion);
        let completion = String::from_utf8(completion).unwrap();
        assert!(completion.contains(&JobState::ALL.map(JobState::as_str).join(" ")) && !completion.contains("pages"));
    }

    #[test]
    fn growd_has_said_that_a_pool_is_stuck_before_growctl_gives_up() {
        let cli = Cli::try_parse_from(["growctl", "doctor"]).unwrap();
        let stuck = Duration::from_secs(40);
        assert!(cli.timeout >= stuck + Duration::from_secs(10), "{:?}", cli.timeout);
    }

    #[test]
    fn waiting_for_a_dry_run_makes_no_sense() {
        let id = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
        assert!(Cli::try_parse_from(["growctl", "extend", id, "3GiB", "--wait", "--dry-run"]).is_err());
        assert!(Cli::try_parse_from(["growctl", "shrink", id, "3GiB", "--wait", "--dry-run"]).is_err());
    }
}
