//! The configuration files of growd and of growapi: read at the start and at each SIGHUP, checked as a whole, every problem
//! with its line.

mod access;
mod check;
mod growapi;
mod problem;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;
use tracing_subscriber::filter::Targets;

pub use access::{Access, Tcp};
pub use growapi::{ApiConfig, IdentityConfig, KeystoneConfig, NodeConfig, OwnerConfig};
pub use problem::{ConfigError, Hint, Located, Problem, Table, ValueProblem};
use read::{At, Report, Section};

use crate::driver::path_template::{NameTemplate, PathTemplate};
use crate::model::{Bytes, DriverKind, PoolName, ShareId, ThinPool};

/// What growd is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Path of the socket.
    pub listen: PathBuf,
    pub tcp: Option<Tcp>,
    pub access: Access,
    pub state_dir: PathBuf,
    /// How many jobs may be queued or running.
    pub max_active_jobs: usize,
    /// How long an ended job is kept.
    pub retention_age: Duration,
    /// How many ended jobs are kept.
    pub retention_jobs: usize,
    /// Where metrics are served; nowhere unless configured.
    pub metrics: Option<SocketAddr>,
    /// What is logged; as RUST_LOG says unless configured.
    pub log: Option<Targets>,
    /// URL of the collector that spans go to; nowhere unless configured.
    pub traces: Option<String>,
    /// At least one, in the order of the file.
    pub pools: Vec<PoolConfig>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    pub name: PoolName,
    pub backend: Backend,
    /// Space that is never promised to shares.
    pub reserve: Bytes,
    /// How much of the rest may be promised: 1.0 is all of it once.
    pub overcommit: f64,
}

impl PoolConfig {
    /// Directories that should be there and are not, as messages. A pool may be mounted later, so this is no error.
    pub fn missing_directories(&self) -> Vec<String> {
        let missing = self.backend.directories().into_iter().filter_map(|path| {
            let problem = match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => return None,
                Ok(_) => "is not a directory".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    "does not exist: is its file system mounted?".to_owned()
                }
                Err(error) => format!("cannot be looked at: {error}"),
            };
            Some(format!("{} {problem}", path.display()))
        });
        missing.collect()
    }
}

/// Where the shares of a pool are. `shares` are those at places that the template does not give, in the order of the
/// file.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    ProjectQuota { path: PathTemplate, shares: Vec<(ShareId, PathBuf)> },
    Lvm(LvmConfig),
    Image { path: PathTemplate, shares: Vec<(ShareId, PathBuf)>, allow_any_growth: bool },
    Btrfs { path: PathTemplate, shares: Vec<(ShareId, PathBuf)> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct LvmConfig {
    pub volume_group: String,
    pub volume: NameTemplate,
    pub shares: Vec<(ShareId, String)>,
    pub thin_pool: Option<ThinPool>,
    pub allow_any_growth: bool,
}

impl Backend {
    /// The shares that have an entry of their own.
    pub fn named(&self) -> BTreeSet<ShareId> {
        match self {
            Self::ProjectQuota { shares, .. } | Self::Image { shares, .. } | Self::Btrfs { shares, .. } => {
                shares.iter().map(|(share, _)| *share).collect()
            }
            Self::Lvm(lvm) => lvm.shares.iter().map(|(share, _)| *share).collect(),
        }
    }

    /// The directories that have its shares: the pool's own, and those of shares at places of their own. None for volumes.
    pub fn directories(&self) -> Vec<&Path> {
        let (path, own): (_, Vec<&Path>) = match self {
            Self::ProjectQuota { path, shares } | Self::Btrfs { path, shares } => {
                (path, shares.iter().map(|(_, path)| path.as_path()).collect())
            }
            Self::Image { path, shares, .. } => (path, shares.iter().filter_map(|(_, path)| path.parent()).collect()),
            Self::Lvm(_) => return Vec::new(),
        };
        [path.directory()].into_iter().chain(own).collect()
    }
}

impl Config {
    /// Files in the way of the directories that growd makes where they are missing, as messages.
    pub fn files_in_the_way(&self) -> Vec<String> {
        let places = [("state_dir", Some(self.state_dir.as_path())), ("listen", self.listen.parent())];
        let in_the_way = places.into_iter().filter_map(|(key, place)| {
            let file = place?.ancestors().find(|above| above.exists()).filter(|above| !above.is_dir())?;
            Some(format!("{key}: {} is not a directory", file.display()))
        });
        in_the_way.collect()
    }

    /// # Errors
    /// The file cannot be read, or [`Config::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path, Self::parse)
    }

    /// # Errors
    /// All that is wrong with the text; the file's name only appears in the messages.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        parse_table(text, file_name, Self::from_table)
    }

    /// `None` when something has been reported. Everything is read before anything is given up, so that all is said.
    fn from_table(table: &DeTable<'_>, report: &mut Report<'_>) -> Option<Self> {
        let top = Section::new(Table::Top, 0, table, report);
        let listen = top.optional("listen", PathBuf::from("/run/growd/growd.sock"), read::listen, report);
        let tcp = Tcp::read(&top, report);
        let access = Access::read(&top, report);
        let state_dir = top.optional("state_dir", PathBuf::from("/var/lib/growd"), read::path, report);
        let max_active_jobs = top.optional("max_active_jobs", 1000, read::count, report);
        let (mut retention_age, mut retention_jobs) = (Some(DEFAULT_AGE), Some(DEFAULT_JOBS));
        if let Some(retention) = top.table("retention", Table::Retention, report) {
            retention_age = retention.optional("age", DEFAULT_AGE, read::duration, report);
            retention_jobs = retention.optional("jobs", DEFAULT_JOBS, read::count, report);
        }
        let of_tcp = tcp.iter().flatten().next().map(|tcp| (tcp.address, Table::Tcp));
        let metrics = top.metrics(DEFAULT_METRICS, of_tcp, report);
        let log = top.log(report);
        let traces = top.table("traces", Table::Traces, report);
        let traces = traces.and_then(|section| section.required("endpoint", read::collector, report));
        if let (Some(endpoint), false) = (&traces, cfg!(feature = "otlp")) {
            report.add(endpoint.offset, Problem::NoOtlp);
        }
        let pools = top.tables("pool", Table::Pool, report);
        if pools.as_ref().is_some_and(Vec::is_empty) {
            report.add(0, Problem::NoPool);
        }
        let shares = top.tables("share", Table::Share, report);
        let pools = pools.map(|all| all.iter().map(|section| PoolEntry::read(section, report)).collect::<Vec<_>>());
        let shares = shares.map(|all| all.iter().map(|section| ShareEntry::read(section, report)).collect::<Vec<_>>());
        let (pools, shares) = (pools?, shares?);
        check::check(&pools, &shares, report);
        Some(Self {
            listen: listen?,
            tcp: tcp?,
            access: access?,
            state_dir: state_dir?,
            max_active_jobs: max_active_jobs?,
            retention_age: retention_age?,
            retention_jobs: retention_jobs?,
            metrics: metrics?,
            log,
            traces: traces.map(|at| at.value),
            pools: pools.into_iter().map(|pool| pool.into_config(&shares)).collect::<Option<_>>()?,
        })
    }
}

/// # Errors
/// The file cannot be read, or the parser refuses its text.
fn load<T>(path: &Path, parse: fn(&str, &str) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, &path.display().to_string())
}

/// # Errors
/// The text is not TOML, or the reader has reported something.
fn parse_table<T>(
    text: &str,
    file_name: &str,
    read: impl FnOnce(&DeTable<'_>, &mut Report<'_>) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut report = Report::new(file_name, text);
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let offset = error.span().map_or(0, |span| span.start);
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            report.add(offset, Problem::Syntax { message });
            return Err(report.into_error());
        }
    };
    match read(&table, &mut report) {
        Some(config) if report.is_empty() => Ok(config),
        _ => Err(report.into_error()),
    }
}

/// Only for this node: what is scraped names pools and counts.
const DEFAULT_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9420);
const DEFAULT_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const DEFAULT_JOBS: usize = 100_000;

/// Per cent of a thin pool from which on nothing is extended: time is left to enlarge it before it is full.
const DEFAULT_THIN_LIMIT: f64 = 90.0;

/// A `[[pool]]` as far as it could be read.
struct PoolEntry {
    name: Option<At<PoolName>>,
    driver: Option<At<DriverKind>>,
    /// Where the driver's shares are directories or files.
    path: Option<At<PathTemplate>>,
    /// Where they are logical volumes.
    volumes: Option<Volumes>,
    reserve: Option<Bytes>,
    overcommit: Option<At<f64>>,
    allow_any_growth: Option<bool>,
}

struct Volumes {
    group: Option<At<String>>,
    template: Option<At<NameTemplate>>,
    thin_pool: Option<String>,
    max_data: Option<f64>,
    max_metadata: Option<f64>,
}

impl PoolEntry {
    fn read(section: &Section<'_, '_>, report: &mut Report<'_>) -> Self {
        let name = section.required("name", read::parsed, report);
        let driver = section.required("driver", read::driver, report);
        let kind = driver.as_ref().map(|driver| driver.value);
        if let Some(kind) = kind {
            section.only_for(kind.as_str(), &["name", "driver", "reserve"], keys_of(kind), report);
        }
        let volumes = (kind == Some(DriverKind::Lvm)).then(|| Volumes::read(section, report));
        Self {
            name,
            path: match kind {
                Some(DriverKind::Lvm) | None => None,
                Some(_) => section.required("path", read::parsed, report),
            },
            driver,
            volumes,
            reserve: section.optional("reserve", Bytes::ZERO, read::parsed, report),
            overcommit: section.found_or("overcommit", 1.0, read::overcommit, report),
            allow_any_growth: section.optional("allow_any_growth", false, read::boolean, report),
        }
    }

    fn into_config(self, shares: &[ShareEntry]) -> Option<PoolConfig> {
        let name = self.name?.value;
        let own = shares.iter().filter(|share| share.pool.as_ref().is_some_and(|pool| pool.value == name));
        let paths =
            || own.clone().filter_map(|share| Some((share.id.as_ref()?.value, share.path.as_ref()?.value.clone())));
        let backend = match self.driver?.value {
            DriverKind::ProjectQuota => Backend::ProjectQuota { path: self.path?.value, shares: paths().collect() },
            DriverKind::Btrfs => Backend::Btrfs { path: self.path?.value, shares: paths().collect() },
            DriverKind::Image => Backend::Image {
                path: self.path?.value,
                shares: paths().collect(),
                allow_any_growth: self.allow_any_growth?,
            },
            DriverKind::Lvm => {
                let volumes = self.volumes?;
                let (max_data, max_metadata) = (volumes.max_data?, volumes.max_metadata?);
                Backend::Lvm(LvmConfig {
                    volume_group: volumes.group?.value,
                    volume: volumes.template?.value,
                    shares: own
                        .filter_map(|share| Some((share.id.as_ref()?.value, share.volume.as_ref()?.value.clone())))
                        .collect(),
                    thin_pool: volumes.thin_pool.map(|name| ThinPool { name, max_data, max_metadata }),
                    allow_any_growth: self.allow_any_growth?,
                })
            }
        };
        Some(PoolConfig { backend, reserve: self.reserve?, overcommit: self.overcommit?.value, name })
    }
}

impl Volumes {
    fn is_of(&self, group: &str) -> bool {
        self.group.as_ref().is_some_and(|own| own.value == group)
    }

    fn read(section: &Section<'_, '_>, report: &mut Report<'_>) -> Self {
        Self {
            group: section.required("volume_group", read::lvm_name, report),
            template: section.required("volume", read::parsed, report),
            thin_pool: section.found("thin_pool", read::lvm_name, report).map(|at| at.value),
            max_data: section.optional("max_data_percent", DEFAULT_THIN_LIMIT, read::percent, report),
            max_metadata: section.optional("max_metadata_percent", DEFAULT_THIN_LIMIT, read::percent, report),
        }
    }
}

/// The keys of `[[pool]]` that a driver has besides those of all.
const fn keys_of(driver: DriverKind) -> &'static [&'static str] {
    match driver {
        DriverKind::ProjectQuota | DriverKind::Btrfs => &["path", "overcommit"],
        DriverKind::Image => &["path", "overcommit", "allow_any_growth"],
        DriverKind::Lvm => &[
            "volume_group",
            "volume",
            "thin_pool",
            "max_data_percent",
            "max_metadata_percent",
            "overcommit",
            "allow_any_growth",
        ],
    }
}

/// A `[[share]]` as far as it could be read.
struct ShareEntry {
    offset: usize,
    id: Option<At<ShareId>>,
    pool: Option<At<PoolName>>,
    /// One of the two, as the pool's driver has it.
    path: Option<At<PathBuf>>,
    volume: Option<At<String>>,
    /// Where the two are in the text, also where their values are wrong.
    path_at: Option<usize>,
    volume_at: Option<usize>,
}

impl ShareEntry {
    fn read(section: &Section<'_, '_>, report: &mut Report<'_>) -> Self {
        Self {
            offset: section.offset,
            id: section.required("id", read::parsed, report),
            pool: section.required("pool", read::parsed, report),
            path: section.found("path", read::path, report),
            volume: section.found("volume", read::lvm_name, report),
            path_at: section.offset_of("path"),
            volume_at: section.offset_of("volume"),
        }
    }
}
