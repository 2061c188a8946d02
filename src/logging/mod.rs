//! The log: for people, as JSON, or with fields of their own in the journal. And the spans that its lines are in.

mod lines;
#[cfg(feature = "otlp")]
mod otlp;
pub mod spans;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Mutex;

use clap::ValueEnum;
use nix::sys::stat::fstat;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::lines::Lines;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, on stderr
    Human,
    /// One JSON object a line, on stderr
    Json,
    /// Straight to the journal, with a field for each value
    Journald,
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot log to the journal")]
    Journal(#[from] io::Error),
    #[error("RUST_LOG")]
    Level(#[from] LevelError),
    #[cfg(feature = "otlp")]
    #[error("cannot export spans")]
    Export(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Why a text says no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a level (off, error, warn, info, debug, trace) or such as \"info,growd::driver=debug\"")]
pub struct LevelError {
    text: String,
}

/// Who changed what is logged at every level, unless a level of its own is given to it: `warn,audit=off`.
const AUDIT: (&str, LevelFilter) = ("audit", LevelFilter::INFO);

/// A level, and others for parts of the code behind it: `info,growd::driver=debug`.
///
/// # Errors
/// [`LevelError`], also for a part that is neither: a slip would silence everything else.
pub fn level(text: &str) -> Result<Targets, LevelError> {
    let wrong = || LevelError { text: text.to_owned() };
    // The empty text would be read as a level too.
    let level = |text: &str| match text.trim() {
        "" => Err(wrong()),
        text => text.parse::<LevelFilter>().map_err(|_| wrong()),
    };
    let mut parts = text.split(',');
    let mut targets = Targets::from_iter([AUDIT]).with_default(level(parts.next().unwrap_or_default())?);
    for part in parts {
        let (target, of_target) = part.split_once('=').ok_or_else(wrong)?;
        targets = targets.with_target(target.trim(), level(of_target)?);
    }
    Ok(targets)
}

/// Where the log can be told another level, and what is still to be exported.
pub struct Log {
    level: reload::Handle<Targets, Registry>,
    #[cfg(feature = "otlp")]
    export: Option<otlp::Export>,
}

/// Begins to log. Without a format it goes to the journal when stderr does, and is for people otherwise. Without a level
/// it is RUST_LOG's, or info. Spans go to a `collector`, where the build can do that.
///
/// # Errors
/// [`LogError`].
pub fn start(format: Option<LogFormat>, level: Option<Targets>, collector: Option<&str>) -> Result<Log, LogError> {
    let stderr_is_journal = || is_journal(&std::env::var("JOURNAL_STREAM").unwrap_or_default());
    let journal = match format {
        Some(LogFormat::Journald) => Some(journal()?),
        Some(_) => None,
        // A sandbox may keep the journal's socket away; stderr gets there all the same.
        None => stderr_is_journal().then(journal).and_then(Result::ok),
    };
    let are_json = format == Some(LogFormat::Json);
    let lines = fmt::layer().with_writer(Mutex::new(Lines { are_json, lost: 0 }));
    let output: Box<dyn Layer<Filtered> + Send + Sync> = match journal {
        Some(journal) => Box::new(journal),
        None if are_json => Box::new(lines.json()),
        // Colours are for people who look at it now: elsewhere their escapes make a line unreadable.
        None => Box::new(lines.with_ansi(io::stderr().is_terminal())),
    };
    let (filter, level) = reload::Layer::new(or_usual(level)?);
    let subscriber = tracing_subscriber::registry().with(filter).with(output);
    #[cfg(not(feature = "otlp"))]
    {
        // A configuration that names one is refused by such a build.
        let _ = collector;
        subscriber.init();
        Ok(Log { level })
    }
    #[cfg(feature = "otlp")]
    {
        let export = collector.map(otlp::Export::new).transpose()?;
        subscriber.with(export.as_ref().map(otlp::Export::layer)).init();
        Ok(Log { level, export })
    }
}

type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;

fn or_usual(level: Option<Targets>) -> Result<Targets, LevelError> {
    match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => Ok(level),
        (None, Ok(text)) if !text.is_empty() => self::level(&text),
        (None, _) => Ok(Targets::new().with_default(LevelFilter::INFO)),
    }
}

impl Log {
    /// From now on this level, or without one that of RUST_LOG, or info.
    pub fn set_level(&self, level: Option<Targets>) {
        if let Ok(level) = or_usual(level) {
            // Fails only when the subscriber is gone, which nobody logs to then.
            let _ = self.level.reload(level);
        }
    }

    /// Sends what has not been exported yet; takes some seconds when the collector does not answer.
    pub fn finish(&self) {
        #[cfg(feature = "otlp")]
        if let Some(export) = &self.export {
            export.finish();
        }
    }
}

/// Fields are called `GROWD_SHARE` and so on; the identifier is the program's name.
fn journal() -> io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?.with_field_prefix(Some("GROWD".to_owned())))
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
    fn a_level_is_a_level_and_a_slip_is_none() {
        let enabled = |targets: &Targets, target, level: tracing::Level| targets.would_enable(target, &level);
        let told = level("info,growd::driver=debug, growd::wire = error").unwrap();
        assert!(enabled(&told, "growd::driver::lvm", tracing::Level::DEBUG));
        assert!(!enabled(&told, "growd::store", tracing::Level::DEBUG));
        assert!(!enabled(&told, "growd::wire", tracing::Level::WARN));
        assert!(!enabled(&level("off").unwrap(), "growd", tracing::Level::ERROR));
        for quiet in ["warn", "off", "error,growd::wire=off"] {
            assert!(enabled(&level(quiet).unwrap(), "audit", tracing::Level::INFO), "{quiet}");
        }
        assert!(!enabled(&level("warn,audit=off").unwrap(), "audit", tracing::Level::ERROR));
        for slip in ["", "inof", "growd=debug", "info,debug", "info,growd=loud", "info,"] {
            assert_eq!(level(slip), Err(LevelError { text: slip.to_owned() }));
        }
    }

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        let stderr = fstat(io::stderr().as_fd()).unwrap();
        assert!(is_journal(&format!("{}:{}", stderr.st_dev, stderr.st_ino)));
        assert!(!is_journal(&format!("{}:{}", stderr.st_dev, stderr.st_ino + 1)));
        assert!(!is_journal(""));
    }
}
