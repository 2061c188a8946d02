//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::driver::path_template::{PathError, PathTemplate, TemplateError};
use crate::logging::LevelError;
use crate::model::{InvalidName, ParseBytesError, PoolName, ShareId};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// All that is wrong, in the order of the file.
    #[error("{}", lines(problems))]
    Invalid { problems: Vec<Located> },
}

fn lines(problems: &[Located]) -> String {
    problems.iter().map(Located::to_string).collect::<Vec<_>>().join("\n")
}

/// A problem and its place. Line and column count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub problem: Problem,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.problem)
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    #[error("{message}")]
    Syntax { message: String },
    #[error("unknown key {key:?} in {table}; {hint}")]
    UnknownKey { key: String, table: Table, hint: Hint },
    #[error("{table} has no {key:?}")]
    MissingKey { key: &'static str, table: Table },
    #[error("{of} {kind} has no key {key:?}")]
    OtherKindsKey { key: String, of: &'static str, kind: &'static str },
    #[error("overcommit: a thick volume takes its whole size, so only 1 is possible without thin_pool")]
    ThickOvercommit,
    #[error("volume: {mine} and {theirs} of line {line} can be the same volume of {group}")]
    VolumesMeet { mine: String, theirs: String, group: String, line: usize },
    #[error("{key}: {problem}")]
    Value { key: &'static str, problem: ValueProblem },
    #[error("insecure: a listener without TLS has no certificate, key or client_ca")]
    InsecureTls,
    #[error("endpoint: this growd was built without the feature otlp, by which it exports spans")]
    NoOtlp,
    #[error("listen: {mine} cannot be had beside {theirs}, the listen of {of}")]
    AddressTaken { mine: SocketAddr, theirs: SocketAddr, of: Table },
    #[error("no [[pool]]: there is nothing to serve")]
    NoPool,
    #[error("pool \"{name}\" is already defined in line {line}")]
    PoolRepeated { name: PoolName, line: usize },
    #[error("path: {mine} and {theirs} of line {line} can be the same place, or one inside the other")]
    PoolsMeet { mine: PathTemplate, theirs: PathTemplate, line: usize },
    #[error("pool: \"{pool}\" is not defined; {hint}")]
    UnknownPool { pool: PoolName, hint: Hint },
    #[error("share {share} is already defined in line {line}")]
    ShareRepeated { share: ShareId, line: usize },
    #[error("path: {} is already the path of a share in line {line}", path.display())]
    SharePathRepeated { path: PathBuf, line: usize },
    #[error("path: {} and {} of line {line} are one inside the other", mine.display(), theirs.display())]
    ShareInsideShare { mine: PathBuf, theirs: PathBuf, line: usize },
    #[error(
        "path: {} can be a place that the pool of line {line} finds by itself, or inside or around one: {template}",
        path.display()
    )]
    ShareMeetsPool { path: PathBuf, template: PathTemplate, line: usize },
    #[error("no [[node]]: there is nobody to ask")]
    NoNode,
    #[error("name: {name:?} is already defined in line {line}")]
    NodeRepeated { name: String, line: usize },
    #[error("endpoint: {endpoint:?} is already the endpoint of the node in line {line}")]
    EndpointRepeated { endpoint: String, line: usize },
    #[error("endpoint: https needs [tls], by which growapi and the node know each other")]
    NoTls,
    #[error("cache: at most 5m, since a revoked token is believed for so long")]
    CacheTooLong,
    #[error("node: {name:?} is not defined; {hint}")]
    UnknownNode { name: String, hint: Hint },
    #[error("pool \"{pool}\" already has an owner in line {line}")]
    OwnerRepeated { pool: PoolName, line: usize },
}

/// What is wrong with one value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ValueProblem {
    #[error("expected {expected}, found {found}")]
    Type { expected: &'static str, found: &'static str },
    #[error(transparent)]
    Bytes(#[from] ParseBytesError),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{text:?} is not a duration such as 90d or 12h: {source}")]
    Duration { text: String, source: humantime::DurationError },
    #[error("{text:?} is not {what}; {hint}")]
    Word { text: String, what: &'static str, hint: Hint },
    #[error("{text:?} is not unix: and an absolute path, such as unix:/run/growd/growd.sock")]
    Listen { text: String },
    #[error("{text:?} is not an address and a port, such as 127.0.0.1:9420 or [::1]:9420")]
    Address { text: String },
    #[error("{text:?} is longer than the {most} bytes that the path of a socket may have")]
    SocketPath { text: String, most: usize },
    #[error("{text:?} is not a name of LVM's: {problem}")]
    LvmName { text: String, problem: &'static str },
    #[error("must be above zero")]
    NotAboveZero,
    #[error("{given} is above {most}, the largest number here")]
    TooLarge { given: String, most: usize },
    #[error("{given} is not between {least} and {most}")]
    Ratio { given: f64, least: f64, most: f64 },
}

/// A table of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Top,
    Tcp,
    Access,
    Retention,
    Metrics,
    Log,
    Traces,
    Pool,
    Share,
    Api,
    Node,
    Tls,
    Identity,
    Owner,
}

impl Table {
    pub(super) const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Top => &[
                "listen",
                "tcp",
                "access",
                "state_dir",
                "max_active_jobs",
                "retention",
                "metrics",
                "log",
                "traces",
                "pool",
                "share",
            ],
            Self::Tcp => &["listen", "certificate", "key", "client_ca", "insecure"],
            Self::Access => &["readers", "operators", "admins", "reflection"],
            Self::Retention => &["age", "jobs"],
            Self::Metrics => &["listen"],
            Self::Log => &["level"],
            Self::Traces => &["endpoint"],
            Self::Pool => &[
                "name",
                "driver",
                "path",
                "volume_group",
                "volume",
                "thin_pool",
                "max_data_percent",
                "max_metadata_percent",
                "reserve",
                "overcommit",
                "allow_any_growth",
            ],
            Self::Share => &["id", "pool", "path", "volume"],
            Self::Api => &[
                "listen",
                "public_url",
                "node_timeout",
                "request_timeout",
                "metrics",
                "log",
                "node",
                "tls",
                "identity",
                "owner",
            ],
            Self::Node => &["name", "endpoint"],
            Self::Tls => &["certificate", "key", "ca"],
            Self::Identity => &[
                "kind",
                "token_file",
                "auth_url",
                "username",
                "password_file",
                "user_domain",
                "project",
                "project_domain",
                "ca",
                "cache",
            ],
            Self::Owner => &["project", "pool", "node"],
        }
    }

    /// What the kinds of a table are called that has several.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Identity => "identity of kind",
            _ => "driver",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Top | Self::Api => "the file",
            Self::Tcp => "[tcp]",
            Self::Access => "[access]",
            Self::Retention => "[retention]",
            Self::Metrics => "[metrics]",
            Self::Log => "[log]",
            Self::Traces => "[traces]",
            Self::Pool => "[[pool]]",
            Self::Share => "[[share]]",
            Self::Node => "[[node]]",
            Self::Tls => "[tls]",
            Self::Identity => "[identity]",
            Self::Owner => "[[owner]]",
        })
    }
}

/// What may have been meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    Meant(String),
    /// A key of the top of a file, which TOML takes for one of the table above it.
    OfTheFile,
    Known {
        what: &'static str,
        names: Vec<String>,
    },
}

impl Hint {
    pub(super) fn new<S: AsRef<str>>(given: &str, what: &'static str, known: impl IntoIterator<Item = S>) -> Self {
        let mut names: Vec<String> = known.into_iter().map(|name| name.as_ref().to_owned()).collect();
        names.dedup();
        // A third of the letters may be wrong: enough for slips, too little to offer another word.
        let nearest = names
            .iter()
            .map(|name| (strsim::damerau_levenshtein(given, name), name))
            .filter(|(distance, name)| distance * 3 <= name.chars().count().max(3))
            .min_by_key(|(distance, _)| *distance);
        match nearest {
            Some((_, name)) => Self::Meant(name.clone()),
            None => Self::Known { what, names },
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meant(name) => write!(f, "did you mean {name:?}?"),
            Self::OfTheFile => f.write_str("it is a key of the file: write it above the first table"),
            Self::Known { what, names } if names.is_empty() => write!(f, "there are no {what}"),
            Self::Known { what, names } => write!(f, "{what} are {}", names.join(", ")),
        }
    }
}
