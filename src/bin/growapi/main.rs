//! `growapi`, the share API in front of the storage nodes. It keeps no state: several may run side by side, and any may
//! be restarted at any time.

mod action;
mod api;
mod caller;
mod identity;
mod listing;
mod metrics;
mod microversion;
mod nodes;
mod owners;
mod python_text;
mod refusal;
mod routes;
mod view;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use growd::config::ApiConfig;
use growd::logging::{self, Log, LogFormat};
use growd::wire::http;
use growd::{output, pages};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use api::{Api, Current};
use identity::Identity;
use metrics::Metrics;

/// Connections of clients at once; more wait in the listener's queue.
const CONNECTIONS_MOST: usize = 8192;
/// Short ones can be guessed, and their hashes be turned back.
const TOKEN_LEAST: usize = 32;
const EXIT_CODES: &str = "Exit codes: 0 done, or stopped in order; 1 refused or failed, as told on stderr; 2 the command \
    line is wrong.";

/// Serves the share API over HTTP, in front of the growd of each storage node.
#[derive(Parser)]
#[command(name = "growapi", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/growd/growapi.toml", env = "GROWAPI_CONFIG")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM; SIGHUP reads the configuration again. Without [log] in it the log level is RUST_LOG, by
    /// default info.
    Run {
        /// How to log; by default to the journal when stderr is the journal, for people otherwise.
        #[arg(long, value_enum, env = "GROWAPI_LOG_FORMAT")]
        log_format: Option<LogFormat>,
    },
    /// Check the configuration and the files that it names.
    CheckConfig,
    /// Read a token from stdin and print its hash for the token file.
    HashToken,
}

fn main() -> ExitCode {
    if let Some(code) = pages::asked_for::<Arguments>() {
        return code;
    }
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Run { log_format } => run(&arguments.config, log_format),
        Command::CheckConfig => check_config(&arguments.config),
        Command::HashToken => hash_token(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a stderr the exit code is all that can be said.
            let _ = writeln!(io::stderr(), "growapi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check_config(path: &Path) -> Result<()> {
    let config = ApiConfig::load(path)?;
    nodes::check_credentials(&config)?;
    Identity::new(&config.identity)?;
    Ok(())
}

fn run(path: &Path, log_format: Option<LogFormat>) -> Result<()> {
    let config = ApiConfig::load(path)?;
    let log = logging::start(log_format, config.log.clone(), None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve_until_told(path, config, &log))
}

async fn serve_until_told(path: &Path, config: ApiConfig, log: &Log) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let current = Current::new(Api::new(&config, None)?);
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    let metrics = Arc::new(Metrics::new()?);
    if let Some(address) = config.metrics {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address} for metrics"))?;
        tokio::spawn(metrics::serve(listener, Arc::clone(&metrics), current.clone()));
    }
    info!(address = %listener.local_addr()?, nodes = config.nodes.len(), "growapi is ready");
    let stop = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => reload(path, &config, &current, &metrics, log),
            }
        }
    };
    let router = routes::router(current.clone(), Arc::clone(&metrics));
    http::serve(listener, router, CONNECTIONS_MOST, config.request_timeout, stop).await;
    Ok(())
}

/// Goes on as before when the configuration is refused.
fn reload(path: &Path, first: &ApiConfig, current: &Current, metrics: &Metrics, log: &Log) {
    let read = || {
        let config = ApiConfig::load(path)?;
        let api = Api::new(&config, Some(&*current.get()))?;
        for (key, changed) in [
            ("listen", config.listen != first.listen),
            ("[metrics]", config.metrics != first.metrics),
            // The time for a body is the new one at once.
            ("request_timeout, of heads and answers,", config.request_timeout != first.request_timeout),
        ] {
            if changed {
                warn!("{key} has changed in the configuration, which growapi follows at its next start");
            }
        }
        Ok::<_, anyhow::Error>((config, api))
    };
    let read = read();
    metrics.reloaded(read.is_ok());
    match read {
        Ok((config, api)) => {
            current.replace(api);
            log.set_level(config.log);
            info!(nodes = config.nodes.len(), "the configuration was read again");
        }
        Err(error) => error!("the configuration is refused and the one before stays: {error:#}"),
    }
}

fn hash_token() -> Result<()> {
    let mut token = String::new();
    io::stdin().lock().read_line(&mut token).context("cannot read a token from stdin")?;
    let token = token.trim_end_matches(['\n', '\r']);
    if token.len() < TOKEN_LEAST {
        bail!("a token has at least {TOKEN_LEAST} characters; `openssl rand -hex 32` makes one");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("a token has no spaces and only characters of ASCII, since it travels in a header");
    }
    let line = identity::hex(&identity::hash(token.as_bytes())) + "\n";
    output::write(io::stdout().lock(), &line).context(output::UNWRITTEN)
}
