//! The log: for people, as JSON, or with fields of their own in the journal.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use clap::ValueEnum;
use nix::sys::stat::fstat;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, on stderr
    Human,
    /// One JSON object a line, on stderr
    Json,
    /// Straight to the journal, with a field for each value
    Journald,
}

/// Begins to log. Without a format it goes to the journal when stderr does, and is for people otherwise.
///
/// # Errors
/// When the journal does not listen.
pub fn start(format: Option<LogFormat>) -> io::Result<()> {
    let stderr_is_journal = || is_journal(&std::env::var("JOURNAL_STREAM").unwrap_or_default());
    let (format, journal) = match format {
        Some(LogFormat::Journald) => (LogFormat::Journald, Some(journal()?)),
        Some(format) => (format, None),
        // A sandbox may keep the journal's socket away; stderr gets there all the same.
        None => match stderr_is_journal().then(journal).and_then(Result::ok) {
            Some(journal) => (LogFormat::Journald, Some(journal)),
            None => (LogFormat::Human, None),
        },
    };
    let lines = fmt::layer().with_writer(io::stderr);
    let output: Box<dyn Layer<Registry> + Send + Sync> = match (format, journal) {
        (_, Some(journal)) => Box::new(journal),
        (LogFormat::Json, None) => Box::new(lines.json()),
        // Colours are for people who look at it now: elsewhere their escapes make a line unreadable.
        (_, None) => Box::new(lines.with_ansi(io::stderr().is_terminal())),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry().with(output.with_filter(filter)).init();
    Ok(())
}

/// Fields are called `GROWD_SHARE` and so on.
fn journal() -> io::Result<tracing_journald::Layer> {
    let layer = tracing_journald::layer()?;
    Ok(layer.with_field_prefix(Some("GROWD".to_owned())).with_syslog_identifier("growd".to_owned()))
}

/// Whether stderr is the stream that `JOURNAL_STREAM` names, as `device:inode` (systemd.exec(5)): it may have been
/// redirected since.
fn is_journal(journal_stream: &str) -> bool {
    let stderr = fstat(io::stderr().as_fd());
    stderr.is_ok_and(|stderr| journal_stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        let stderr = fstat(io::stderr().as_fd()).unwrap();
        assert!(is_journal(&format!("{}:{}", stderr.st_dev, stderr.st_ino)));
        assert!(!is_journal(&format!("{}:{}", stderr.st_dev, stderr.st_ino + 1)));
        assert!(!is_journal(""));
    }
}
