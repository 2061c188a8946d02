//! From TOML to values, each with its place in the file.
//!
//! The tables are walked by hand: a derived reader stops at the first problem, and whoever edits the file should see
//! all of them at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::Targets;

use super::problem::{ConfigError, Hint, Located, Problem, Table, ValueProblem};
use crate::driver::path_template::{check_lvm_name, plain_path};
use crate::logging;
use crate::model::{Credentials, DriverKind, InvalidName, PoolName};

/// `sun_path` has 108 bytes, the last of which is zero.
const SOCKET_PATH_MOST: usize = 107;
const OVERCOMMIT: (f64, f64) = (0.1, 1000.0);
const PERCENT: (f64, f64) = (1.0, 100.0);

/// A value and where it starts in the text.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub offset: usize,
    pub value: T,
}

/// Collects what is wrong.
pub struct Report<'t> {
    file: &'t str,
    text: &'t str,
    problems: Vec<At<Problem>>,
}

impl<'t> Report<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    pub fn add(&mut self, offset: usize, problem: Problem) {
        self.problems.push(At { offset, value: problem });
    }

    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn line_of(&self, offset: usize) -> usize {
        self.before(offset).matches('\n').count() + 1
    }

    pub fn into_error(mut self) -> ConfigError {
        self.problems.sort_by_key(|problem| problem.offset);
        let locate = |problem: &At<Problem>| Located {
            file: self.file.to_owned(),
            line: self.line_of(problem.offset),
            column: self.before(problem.offset).chars().rev().take_while(|c| *c != '\n').count() + 1,
            problem: problem.value.clone(),
        };
        ConfigError::Invalid { problems: self.problems.iter().map(locate).collect() }
    }

    /// The text up to the offset, or all of it when the offset is none.
    fn before(&self, offset: usize) -> &'t str {
        self.text.get(..offset).unwrap_or(self.text)
    }
}

type Read<T> = fn(&DeValue<'_>) -> Result<T, ValueProblem>;

/// One table of the file.
pub struct Section<'d, 't> {
    table: Table,
    pub offset: usize,
    entries: &'d DeTable<'t>,
}

impl<'d, 't> Section<'d, 't> {
    /// Reports the keys that the table should not have.
    pub fn new(table: Table, offset: usize, entries: &'d DeTable<'t>, report: &mut Report<'_>) -> Self {
        for key in entries.keys() {
            let name: &str = key.get_ref();
            if !table.keys().contains(&name) {
                let of_the_file = |top: Table| top.keys().contains(&name);
                let hint = match of_the_file(Table::Top) || of_the_file(Table::Api) {
                    true => Hint::OfTheFile,
                    false => Hint::new(name, "the keys here", table.keys()),
                };
                report.add(key.span().start, Problem::UnknownKey { key: name.to_owned(), table, hint });
            }
        }
        Self { table, offset, entries }
    }

    /// `None` when the key is missing or its value is wrong; both are reported.
    pub fn required<T>(&self, key: &'static str, read: Read<T>, report: &mut Report<'_>) -> Option<At<T>> {
        match self.entries.get(key) {
            Some(value) => value_of(key, value, read, report),
            None => {
                report.add(self.offset, Problem::MissingKey { key, table: self.table });
                None
            }
        }
    }

    /// The default when the key is missing; `None` when its value is wrong, which is reported.
    pub fn optional<T>(&self, key: &'static str, default: T, read: Read<T>, report: &mut Report<'_>) -> Option<T> {
        self.found_or(key, default, read, report).map(|at| at.value)
    }

    /// As [`Self::optional`], with the place of the value, or of the table.
    pub fn found_or<T>(&self, key: &'static str, default: T, read: Read<T>, report: &mut Report<'_>) -> Option<At<T>> {
        match self.entries.get(key) {
            Some(value) => value_of(key, value, read, report),
            None => Some(At { offset: self.offset, value: default }),
        }
    }

    /// `None` when the key is missing, or when its value is wrong, which is reported.
    pub fn found<T>(&self, key: &'static str, read: Read<T>, report: &mut Report<'_>) -> Option<At<T>> {
        value_of(key, self.entries.get(key)?, read, report)
    }

    /// The elements of an array, each reported at its own place. Empty when the key is missing.
    pub fn list<T>(&self, key: &'static str, read: Read<T>, report: &mut Report<'_>) -> Option<Vec<T>> {
        let Some(value) = self.entries.get(key) else { return Some(Vec::new()) };
        let Some(elements) = value.get_ref().as_array() else {
            report.add(value.span().start, wrong_type(key, "an array", value.get_ref()));
            return None;
        };
        let read: Vec<_> = elements.iter().map(|element| value_of(key, element, read, report)).collect();
        read.into_iter().map(|element| element.map(|at| at.value)).collect()
    }

    /// Where the value of a key is, whatever it is.
    pub fn offset_of(&self, key: &str) -> Option<usize> {
        self.entries.get(key).map(|value| value.span().start)
    }

    /// Reports the keys that only other kinds of the table have: all but those of every kind and its own.
    pub fn only_for(&self, kind: &'static str, common: &[&str], own: &[&str], report: &mut Report<'_>) {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if self.table.keys().contains(&name) && !common.contains(&name) && !own.contains(&name) {
                let of = self.table.kind();
                report.add(key.span().start, Problem::OtherKindsKey { key: name.to_owned(), of, kind });
            }
        }
    }

    /// The table under the key, if there is one.
    pub fn table(&self, key: &'static str, table: Table, report: &mut Report<'_>) -> Option<Section<'d, 't>> {
        section(key, self.entries.get(key)?, table, report)
    }

    /// Where `[metrics]` says that metrics are served: nowhere without it, at `default` when it does not say where. `None` when
    /// that is wrong, which is reported, as is an address that `other` has taken.
    pub fn metrics(
        &self,
        default: SocketAddr,
        other: Option<(SocketAddr, Table)>,
        report: &mut Report<'_>,
    ) -> Option<Option<SocketAddr>> {
        let Some(metrics) = self.table("metrics", Table::Metrics, report) else { return Some(None) };
        let At { offset, value: mine } = metrics.found_or("listen", default, address, report)?;
        if let Some((theirs, of)) = other.filter(|(theirs, _)| excludes(mine, *theirs)) {
            report.add(offset, Problem::AddressTaken { mine, theirs, of });
        }
        Some(Some(mine))
    }

    /// What `[log]` says is logged. `None` where it is missing, or wrong, which is reported.
    pub fn log(&self, report: &mut Report<'_>) -> Option<Targets> {
        let log = self.table("log", Table::Log, report)?;
        log.required("level", level, report).map(|at| at.value)
    }

    /// The files of TLS, with the authorities under the key `ca`. `None` when one is missing or wrong, which is reported.
    pub fn credentials(&self, ca: &'static str, report: &mut Report<'_>) -> Option<Credentials> {
        let mut file = |key| self.required(key, path, report).map(|at| at.value);
        let (certificate, key, ca) = (file("certificate"), file("key"), file(ca));
        Some(Credentials { certificate: certificate?, key: key?, ca: ca? })
    }

    /// The array of tables under the key. `None` when there is something else, which is reported.
    pub fn tables(&self, key: &'static str, table: Table, report: &mut Report<'_>) -> Option<Vec<Section<'d, 't>>> {
        let Some(value) = self.entries.get(key) else { return Some(Vec::new()) };
        let Some(elements) = value.get_ref().as_array() else {
            report.add(value.span().start, wrong_type(key, "tables in double brackets", value.get_ref()));
            return None;
        };
        elements.iter().map(|element| section(key, element, table, report)).collect()
    }
}

fn section<'d, 't>(
    key: &'static str,
    value: &'d Spanned<DeValue<'t>>,
    table: Table,
    report: &mut Report<'_>,
) -> Option<Section<'d, 't>> {
    let offset = value.span().start;
    match value.get_ref().as_table() {
        Some(entries) => Some(Section::new(table, offset, entries, report)),
        None => {
            report.add(offset, wrong_type(key, "a table", value.get_ref()));
            None
        }
    }
}

fn value_of<T>(
    key: &'static str,
    value: &Spanned<DeValue<'_>>,
    read: Read<T>,
    report: &mut Report<'_>,
) -> Option<At<T>> {
    let offset = value.span().start;
    match read(value.get_ref()) {
        Ok(value) => Some(At { offset, value }),
        Err(problem) => {
            report.add(offset, Problem::Value { key, problem });
            None
        }
    }
}

fn wrong_type(key: &'static str, expected: &'static str, found: &DeValue<'_>) -> Problem {
    Problem::Value { key, problem: ValueProblem::Type { expected, found: found.type_str() } }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, ValueProblem> {
    value.as_str().ok_or(ValueProblem::Type { expected: "a string", found: value.type_str() })
}

/// Anything whose text form is its own: names, ids, sizes, templates.
pub fn parsed<T>(value: &DeValue<'_>) -> Result<T, ValueProblem>
where
    T: FromStr<Err: Into<ValueProblem>>,
{
    text(value)?.parse().map_err(Into::into)
}

pub fn path(value: &DeValue<'_>) -> Result<PathBuf, ValueProblem> {
    Ok(plain_path(text(value)?)?)
}

pub fn listen(value: &DeValue<'_>) -> Result<PathBuf, ValueProblem> {
    let text = text(value)?;
    match text.strip_prefix("unix:") {
        Some(path) if path.len() > SOCKET_PATH_MOST => {
            Err(ValueProblem::SocketPath { text: text.to_owned(), most: SOCKET_PATH_MOST })
        }
        Some(path) if path.starts_with('/') => Ok(plain_path(path)?),
        _ => Err(ValueProblem::Listen { text: text.to_owned() }),
    }
}

pub fn address(value: &DeValue<'_>) -> Result<SocketAddr, ValueProblem> {
    let text = text(value)?;
    text.parse().map_err(|_| ValueProblem::Address { text: text.to_owned() })
}

/// Whether Linux lets only one of two listeners have its address. All of IPv6 includes all of IPv4.
fn excludes(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4()) || wide.ip() == narrow.ip()
    };
    // With port 0 each gets one of its own.
    one.port() == other.port() && one.port() != 0 && (covers(one, other) || covers(other, one))
}

/// One of several words; `what` and `plural` are what these are called.
pub fn one_of<T: Copy>(
    value: &DeValue<'_>,
    all: &[T],
    name: fn(T) -> &'static str,
    what: &'static str,
    plural: &'static str,
) -> Result<T, ValueProblem> {
    let text = text(value)?;
    let hint = || Hint::new(text, plural, all.iter().copied().map(name));
    let unknown = || ValueProblem::Word { text: text.to_owned(), what, hint: hint() };
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(unknown)
}

pub fn driver(value: &DeValue<'_>) -> Result<DriverKind, ValueProblem> {
    one_of(value, &DriverKind::ALL, DriverKind::as_str, "a driver", "drivers")
}

pub fn duration(value: &DeValue<'_>) -> Result<Duration, ValueProblem> {
    let text = text(value)?;
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(ValueProblem::NotAboveZero),
        Ok(duration) => Ok(duration),
        Err(source) => Err(ValueProblem::Duration { text: text.to_owned(), source }),
    }
}

/// A number of things, at least one.
pub fn count(value: &DeValue<'_>) -> Result<usize, ValueProblem> {
    let integer =
        value.as_integer().ok_or(ValueProblem::Type { expected: "a whole number", found: value.type_str() })?;
    if integer.as_str().starts_with('-') {
        return Err(ValueProblem::NotAboveZero);
    }
    match usize::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(0) => Err(ValueProblem::NotAboveZero),
        Ok(count) => Ok(count),
        Err(_) => Err(ValueProblem::TooLarge { given: integer.as_str().to_owned(), most: usize::MAX }),
    }
}

pub fn boolean(value: &DeValue<'_>) -> Result<bool, ValueProblem> {
    value.as_bool().ok_or(ValueProblem::Type { expected: "true or false", found: value.type_str() })
}

pub fn level(value: &DeValue<'_>) -> Result<Targets, ValueProblem> {
    Ok(logging::level(text(value)?)?)
}

/// Without TLS: a collector is on the node, or on a network of its own.
pub fn collector(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let url = http_url(value)?;
    match url.starts_with("http://") {
        true => Ok(url),
        false => Err(InvalidName::new(&url, "an http:// URL of a collector").into()),
    }
}

/// A URL to which paths can be added: without a slash at its end.
pub fn http_url(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let text = text(value)?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_graphic() && c != '?' && c != '#';
    match rest.map(|rest| rest.trim_end_matches('/')) {
        Some(rest) if !rest.is_empty() && rest.chars().all(plain) => Ok(text.trim_end_matches('/').to_owned()),
        _ => {
            let expected = "an http:// or https:// URL without query";
            Err(InvalidName::new(text, expected).into())
        }
    }
}

/// Where a node listens, in the form that clients take.
pub fn endpoint(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let text = text(value)?;
    let path = text.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
    let legal = match path {
        Some(path) => path.len() > 1 && path.starts_with('/'),
        None => {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let parts = rest.and_then(|rest| rest.rsplit_once(':'));
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
            parts.is_some_and(|(host, port)| {
                !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        }
    };
    let expected = "an endpoint: unix:/path, https://host:port or http://host:port";
    if legal { Ok(text.to_owned()) } else { Err(InvalidName::new(text, expected).into()) }
}

/// The name of a node follows the rules of a pool's.
pub fn node_name(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let text = text(value)?;
    let expected = "the name of a node (a letter or digit, then letters, digits, '-' or '_', up to 63)";
    match text.parse::<PoolName>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(InvalidName::new(text, expected).into()),
    }
}

/// Text that is not empty and has no control characters.
pub fn words(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let text = text(value)?;
    let legal = !text.is_empty() && !text.chars().any(char::is_control);
    let expected = "printable text";
    if legal { Ok(text.to_owned()) } else { Err(InvalidName::new(text, expected).into()) }
}

/// The name of a volume group or of a logical volume.
pub fn lvm_name(value: &DeValue<'_>) -> Result<String, ValueProblem> {
    let text = text(value)?;
    let problem = |problem| ValueProblem::LvmName { text: text.to_owned(), problem };
    check_lvm_name(text).map(|()| text.to_owned()).map_err(problem)
}

pub fn percent(value: &DeValue<'_>) -> Result<f64, ValueProblem> {
    ratio(value, PERCENT)
}

pub fn overcommit(value: &DeValue<'_>) -> Result<f64, ValueProblem> {
    ratio(value, OVERCOMMIT)
}

fn ratio(value: &DeValue<'_>, (least, most): (f64, f64)) -> Result<f64, ValueProblem> {
    // A whole number is a ratio too.
    let number = match value {
        DeValue::Float(float) => float.as_str(),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
        _ => return Err(ValueProblem::Type { expected: "a number", found: value.type_str() }),
    };
    let given = number.parse().unwrap_or(f64::NAN);
    // Refuses NaN as well.
    if (least..=most).contains(&given) { Ok(given) } else { Err(ValueProblem::Ratio { given, least, most }) }
}
