//! `growctl`, the admin's way to growd. It knows the contract and nothing of what is behind it.
//!
//! Results go to stdout, progress and errors to stderr, and the exit code says what kind of error it was.

mod advice;
mod args;
mod calls;
mod failure;
mod follow;
mod render;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Parser;
use growd::model::JobKind;
use growd::wire::json::to_json_pretty;
use growd::wire::proto::{ExtendShareRequest, Job, JobState, ListJobsRequest};
use growd::{output, pages};

use args::{Cli, JobsArgs, Output, ResizeArgs, Verb};
use calls::Calls;
use failure::{Exit, Failure};
use render::{detail, list};

fn main() -> ExitCode {
    if let Some(code) = pages::asked_for::<Cli>() {
        return code;
    }
    let cli = Cli::parse();
    let output = cli.output;
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            let text = if output == Output::Json { failure.json() } else { failure.text() };
            // Without a stderr the exit code is all that can be said.
            let _ = io::stderr().write_all(text.as_bytes());
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let calls = Calls::connect(&cli.endpoint, cli.tls.credentials().as_ref(), cli.timeout).await?;
        perform(&calls, cli.verb, cli.output).await
    })
}

async fn perform(calls: &Calls, verb: Verb, output: Output) -> Result<ExitCode, Failure> {
    let now = SystemTime::now();
    match verb {
        Verb::Node => print(output, &calls.node().await?, |node| detail::node(node, now)),
        Verb::Pools => {
            let answer = calls.pools().await?;
            print_list(output, &answer, "no pools", |all| list::pools(&all.pools))
        }
        Verb::Shares { pool } => {
            let answer = calls.all_shares(pool.map(|pool| pool.to_string()).unwrap_or_default()).await?;
            if output == Output::Table && !answer.unreadable_pools.is_empty() {
                let pools = answer.unreadable_pools.join(", ");
                note(&format!("warning: the shares of {pools} are missing; `growctl pools` tells why"))?;
            }
            print_list(output, &answer, "no shares", |all| list::shares(&all.shares))
        }
        Verb::Share { id } => print(output, &calls.share(id).await?, detail::share),
        Verb::Extend(args) => resize(calls, JobKind::Extend, args, output).await,
        Verb::Shrink(args) => resize(calls, JobKind::Shrink, args, output).await,
        Verb::Jobs(args) => jobs(calls, args, output, now).await,
        Verb::Job { id, watch: true } => {
            print_ended(output, &follow::to_the_end(calls, &id.to_string(), output).await?)
        }
        Verb::Job { id, watch: false } => print_job(output, &calls.job(id).await?),
        Verb::Cancel { id } => print_job(output, &calls.cancel(id).await?),
        Verb::Doctor => {
            let answer = calls.diagnose().await?;
            print(output, &answer, |all| {
                let commands = list::commands(&all.commands, now).map(|table| format!("\nlast commands:\n{table}"));
                list::findings(&all.findings) + &commands.unwrap_or_default()
            })?;
            Ok(if answer.findings.is_empty() { ExitCode::SUCCESS } else { Exit::Unexpected.into() })
        }
    }
}

async fn resize(calls: &Calls, kind: JobKind, args: ResizeArgs, output: Output) -> Result<ExitCode, Failure> {
    let request = ExtendShareRequest {
        share_id: args.id.to_string(),
        new_size_bytes: args.size.get(),
        expected_current_size_bytes: args.expect_current.map(|size| size.get()),
        request_id: args.request_id.map(|id| id.to_string()),
        project_id: args.project.map(|label| label.as_str().to_owned()).unwrap_or_default(),
        validate_only: args.dry_run,
    };
    if args.dry_run {
        let answer = calls.try_resize(kind, request).await?;
        if answer.job_id.is_empty() {
            return print(output, &answer, detail::dry_run);
        }
        if output == Output::Table {
            note("the request id stands for a job already, which is all that the request would answer")?;
        }
        return print_ended(output, &answer);
    }
    let job = calls.resize(kind, request).await?;
    if args.wait {
        print_ended(output, &follow::to_the_end(calls, &job.job_id, output).await?)
    } else {
        // A repeated request answers its job as it is now, which may be its end.
        print_ended(output, &job)
    }
}

async fn jobs(calls: &Calls, args: JobsArgs, output: Output, now: SystemTime) -> Result<ExitCode, Failure> {
    let filter = ListJobsRequest {
        share_id: args.share.map(|id| id.to_string()).unwrap_or_default(),
        state: args.state.and_then(|state| JobState::from_str_name(state.as_str())).unwrap_or_default().into(),
        project_id: args.project.unwrap_or_default(),
        ..ListJobsRequest::default()
    };
    let answer = calls.newest_jobs(filter, args.limit).await?;
    print_list(output, &answer, "no jobs", |all| list::jobs(&all.jobs, now))?;
    if output == Output::Table && !answer.next_page_token.is_empty() {
        note(&format!("the newest {} are shown; --limit shows more", answer.jobs.len()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_job(output: Output, job: &Job) -> Result<ExitCode, Failure> {
    print(output, job, |job| detail::job(job, SystemTime::now()))
}

/// Prints the job; one that has ended without success is a failure of the command.
fn print_ended(output: Output, job: &Job) -> Result<ExitCode, Failure> {
    print_job(output, job)?;
    Failure::of_job(job).map_or(Ok(ExitCode::SUCCESS), Err)
}

fn print<M: prost::Name>(output: Output, message: &M, table: impl FnOnce(&M) -> String) -> Result<ExitCode, Failure> {
    print_list(output, message, "", |message| Some(table(message)))
}

/// An empty list is said on stderr: whatever reads the table sees no lines.
fn print_list<M: prost::Name>(
    output: Output,
    message: &M,
    when_empty: &str,
    table: impl FnOnce(&M) -> Option<String>,
) -> Result<ExitCode, Failure> {
    let text = match output {
        Output::Table => table(message),
        Output::Json => Some(to_json_pretty(message).context("cannot write the answer as JSON")? + "\n"),
    };
    match text {
        Some(text) => write_to(io::stdout().lock(), &text)?,
        None => note(when_empty)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn note(text: &str) -> Result<(), Failure> {
    write_to(io::stderr().lock(), &format!("{text}\n"))
}

fn write_to(to: impl Write, text: &str) -> Result<(), Failure> {
    output::write(to, text).map_err(|error| Failure::unwritten(&error))
}
