//! `growd`, the share host agent of a storage node.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use growd::config::Config;
use growd::daemon::pools::{PoolMaker, check_pool};
use growd::logging::LogFormat;
use growd::model::Job;
use growd::store::offline;
use growd::{daemon, logging, output, pages, wire};
// For its malloc, which takes the place of libc's.
use tikv_jemalloc_sys as _;

const EXIT_CODES: &str = "Exit codes: 0 done, or stopped in order; 1 refused, failed, or something is wrong, as told on \
    stderr; 2 the command line is wrong.";

/// Extends file shares on this storage node, durably.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/growd/growd.toml", env = "GROWD_CONFIG")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM; SIGHUP reads the configuration anew. Without [log] in it the log level is RUST_LOG, by
    /// default info.
    Run {
        /// How to log; by default to the journal when stderr is the journal, for people otherwise.
        #[arg(long, value_enum, env = "GROWD_LOG_FORMAT")]
        log_format: Option<LogFormat>,
    },
    /// Check the configuration and the pools that it names, and change nothing.
    CheckConfig {
        /// Print a drop-in for growd.service that lets growd write where the pools of the configuration are.
        #[arg(long)]
        drop_in: bool,
    },
    /// Look at the job store, or set it aside, while growd is stopped.
    #[command(subcommand)]
    Store(StoreCommand),
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Check every record; exit code 1 when anything is wrong. Works on a copy and changes nothing.
    Verify,
    /// Print every job that can be read as a line of JSON; exit code 1 when that is not all. Works on a copy and changes
    /// nothing. Of a store that does not open it prints what can still be read of its log, and says so on stderr: jobs in
    /// older states than their last, and jobs removed long ago, may be among it.
    Export,
    /// Move the store away, so that the next start begins with an empty one.
    SetAside,
}

fn main() -> ExitCode {
    if let Some(code) = pages::asked_for::<Arguments>() {
        return code;
    }
    match execute(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Without a stderr the exit code is all that can be said.
            let _ = writeln!(io::stderr(), "growd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> Result<ExitCode> {
    let config = || Config::load(&arguments.config);
    match arguments.command {
        Command::Run { log_format } => run(config()?, arguments.config, log_format),
        Command::CheckConfig { drop_in: true } => {
            print(&daemon::drop_in::drop_in(&config()?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::CheckConfig { drop_in: false } => check_config(&config()?),
        Command::Store(command) => store(&config()?, &command),
    }
}

fn run(config: Config, path: PathBuf, log_format: Option<LogFormat>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(daemon::blocking_threads(&config))
        .thread_keep_alive(daemon::THREADS_STAY)
        .build()?;
    // Spans are exported over a connection of the runtime's.
    let inside = runtime.enter();
    let log = Arc::new(logging::start(log_format, config.log.clone(), config.traces.as_deref())?);
    let ended = runtime.block_on(daemon::run(config, path, Arc::clone(&log)));
    log.finish();
    drop(inside);
    // All that matters has been waited for; a thread that waits for a disk to answer a question must not hold up the end.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

fn check_config(config: &Config) -> Result<ExitCode> {
    let mut problems = config.files_in_the_way();
    problems.extend(daemon::access::rules(&config.access).1);
    if let Some(files) = config.tcp.as_ref().and_then(|tcp| tcp.tls.as_ref()) {
        match daemon::access::load(files) {
            Ok(tls) => problems.extend(daemon::access::expired(&tls)),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    let pools = PoolMaker::new(Arc::default()).make(&config.pools);
    for (config, pool) in config.pools.iter().zip(pools) {
        match check_pool(config, &*pool.driver) {
            Ok(space) => print(&format!("pool {}: {} of {}\n", pool.name, space.filesystem, space.total.rounded()))?,
            Err(found) => {
                problems.extend(found.iter().map(|problem| format!("pool {:?}: {problem}", pool.name.as_str())));
            }
        }
    }
    for problem in &problems {
        let _ = writeln!(io::stderr(), "{problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn store(config: &Config, command: &StoreCommand) -> Result<ExitCode> {
    match command {
        StoreCommand::Verify => {
            let verdict = offline::verify(&config.state_dir, |_| {})?;
            print(&format!(
                "{} jobs, {} of them unfinished; last commit {}; {} problems\n",
                verdict.jobs, verdict.unfinished, verdict.commit, verdict.problems
            ))?;
            if let Some(problem) = verdict.first_problem {
                bail!("first problem: {problem}");
            }
        }
        StoreCommand::Export => {
            let mut out = BufWriter::new(io::stdout().lock());
            let mut written = Ok(());
            let verdict = offline::verify(&config.state_dir, |job| {
                if written.is_ok() {
                    written = write_line(&mut out, job);
                }
            })?;
            output::ended(written.and_then(|()| out.flush())).context(output::UNWRITTEN)?;
            if let Some(problem) = verdict.first_problem {
                bail!("the export is not complete; {} problems, the first: {problem}", verdict.problems);
            }
        }
        StoreCommand::SetAside => {
            let aside = offline::set_aside(&config.state_dir).context("cannot set the store aside")?;
            let done = format!("the store is in {} now", aside.display());
            print(&format!("{done}\n")).context(done)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_line(out: &mut impl Write, job: &Job) -> io::Result<()> {
    let line = wire::json::to_json(&wire::job_message(job.clone())).map_err(io::Error::other)?;
    writeln!(out, "{line}")
}

fn print(text: &str) -> Result<()> {
    output::write(io::stdout().lock(), text).context(output::UNWRITTEN)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Nothing fails where libc's malloc is linked instead, or knows nothing of the settings.
    #[test]
    fn the_allocator_is_the_one_that_was_set() {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).arg("--list").env("MALLOC_CONF", "stats_print:true").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        for setting in ["opt.narenas: 2", "opt.background_thread: true", "opt.dirty_decay_ms: 1000"] {
            assert!(told.contains(setting), "{setting} in {told}");
        }
    }
}
