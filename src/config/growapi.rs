//! The configuration file of growapi: the same habits as growd's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::Targets;

use super::problem::{ConfigError, Hint, Problem, Table, ValueProblem};
use super::read::{self, At, Report, Section};
use crate::model::{Credentials, PoolName};

/// What growapi is told at its start, and again by SIGHUP.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    pub listen: SocketAddr,
    /// Without a slash at its end.
    pub public_url: Option<String>,
    pub node_timeout: Duration,
    pub request_timeout: Duration,
    /// Where metrics are served; nowhere unless configured.
    pub metrics: Option<SocketAddr>,
    /// What is logged; as RUST_LOG says unless configured.
    pub log: Option<Targets>,
    /// At least one, in the order of their names.
    pub nodes: Vec<NodeConfig>,
    /// What nodes behind https are shown.
    pub tls: Option<Credentials>,
    pub identity: IdentityConfig,
    pub owners: Vec<OwnerConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub name: String,
    /// As `wire::client` takes it.
    pub endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityConfig {
    Nobody,
    TokenFile(PathBuf),
    Keystone(KeystoneConfig),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeystoneConfig {
    /// Of API v3, without a slash at its end.
    pub auth_url: String,
    pub username: String,
    pub password_file: PathBuf,
    pub user_domain: String,
    pub project: String,
    pub project_domain: String,
    pub ca: Option<PathBuf>,
    pub cache: Duration,
}

/// A project owns the shares of a pool, on one node or on all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerConfig {
    pub project: String,
    pub pool: PoolName,
    pub node: Option<String>,
}

/// A revoked token is believed for so long at most.
const CACHE_MOST: Duration = Duration::from_secs(5 * 60);
const PATIENCE: Duration = Duration::from_secs(10);
/// The port of the share API.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8786);

/// Only for this machine: what is scraped names nodes and counts.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9421);

impl ApiConfig {
    /// # Errors
    /// The file cannot be read, or [`ApiConfig::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        super::load(path, Self::parse)
    }

    /// # Errors
    /// All that is wrong with the text; the file's name only appears in the messages.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        super::parse_table(text, file_name, Self::from_table)
    }

    fn from_table(table: &DeTable<'_>, report: &mut Report<'_>) -> Option<Self> {
        let top = Section::new(Table::Api, 0, table, report);
        let listen = top.optional("listen", LISTEN, read::address, report);
        let public_url = top.found("public_url", read::http_url, report).map(|at| at.value);
        let node_timeout = top.optional("node_timeout", PATIENCE, read::duration, report);
        let request_timeout = top.optional("request_timeout", PATIENCE, read::duration, report);
        let metrics = top.metrics(METRICS, listen.map(|listen| (listen, Table::Api)), report);
        let log = top.log(report);
        let tls = top.table("tls", Table::Tls, report);
        let tls = tls.map_or(Some(None), |section| section.credentials("ca", report).map(Some));
        let nodes = top.tables("node", Table::Node, report)?;
        if nodes.is_empty() {
            report.add(0, Problem::NoNode);
        }
        let nodes = read_nodes(&nodes, top.offset_of("tls").is_some(), report);
        if top.offset_of("identity").is_none() {
            report.add(0, Problem::MissingKey { key: "identity", table: Table::Api });
        }
        let identity = top.table("identity", Table::Identity, report);
        let identity = identity.and_then(|section| read_identity(&section, report));
        let owners = top.tables("owner", Table::Owner, report)?;
        let owners = read_owners(&owners, &nodes, report);
        Some(Self {
            listen: listen?,
            public_url,
            node_timeout: node_timeout?,
            request_timeout: request_timeout?,
            metrics: metrics?,
            log,
            nodes: nodes.into_values().map(|node| node.value).collect(),
            tls: tls?,
            identity: identity?,
            owners,
        })
    }
}

/// The nodes by their names, as far as they could be read.
fn read_nodes(all: &[Section<'_, '_>], tls: bool, report: &mut Report<'_>) -> BTreeMap<String, At<NodeConfig>> {
    let mut nodes: BTreeMap<String, At<NodeConfig>> = BTreeMap::new();
    for section in all {
        let name = section.required("name", read::node_name, report);
        let endpoint = section.required("endpoint", read::endpoint, report);
        let (Some(name), Some(endpoint)) = (name, endpoint) else { continue };
        if endpoint.value.starts_with("https:") && !tls {
            report.add(endpoint.offset, Problem::NoTls);
        }
        if let Some(other) = nodes.get(&name.value) {
            let line = report.line_of(other.offset);
            report.add(name.offset, Problem::NodeRepeated { name: name.value, line });
            continue;
        }
        if let Some(other) = nodes.values().find(|other| other.value.endpoint == endpoint.value) {
            let line = report.line_of(other.offset);
            report.add(endpoint.offset, Problem::EndpointRepeated { endpoint: endpoint.value, line });
            continue;
        }
        let node = NodeConfig { name: name.value.clone(), endpoint: endpoint.value };
        nodes.insert(name.value, At { offset: section.offset, value: node });
    }
    nodes
}

fn read_identity(section: &Section<'_, '_>, report: &mut Report<'_>) -> Option<IdentityConfig> {
    let kind = section.required("kind", identity_kind, report)?.value;
    section.only_for(kind.as_str(), &["kind"], kind.keys(), report);
    match kind {
        IdentityKind::TokenFile => {
            Some(IdentityConfig::TokenFile(section.required("token_file", read::path, report)?.value))
        }
        IdentityKind::Keystone => {
            let auth_url = section.required("auth_url", read::http_url, report).map(|at| at.value);
            // Other services are given it without the version, and find that out.
            let auth_url = auth_url.map(|url| if url.ends_with("/v3") { url } else { url + "/v3" });
            let username = section.required("username", read::words, report);
            let password_file = section.required("password_file", read::path, report);
            let user_domain = section.optional("user_domain", "Default".to_owned(), read::words, report);
            let project = section.optional("project", "service".to_owned(), read::words, report);
            let project_domain = section.optional("project_domain", "Default".to_owned(), read::words, report);
            let ca = section.found("ca", read::path, report).map(|at| at.value);
            let cache = section.found_or("cache", CACHE_MOST, read::duration, report)?;
            if cache.value > CACHE_MOST {
                report.add(cache.offset, Problem::CacheTooLong);
            }
            Some(IdentityConfig::Keystone(KeystoneConfig {
                auth_url: auth_url?,
                username: username?.value,
                password_file: password_file?.value,
                user_domain: user_domain?,
                project: project?,
                project_domain: project_domain?,
                ca,
                cache: cache.value,
            }))
        }
        IdentityKind::Nobody => Some(IdentityConfig::Nobody),
    }
}

fn identity_kind(value: &DeValue<'_>) -> Result<IdentityKind, ValueProblem> {
    read::one_of(value, &IdentityKind::ALL, IdentityKind::as_str, "a kind of identity", "kinds")
}

#[derive(Clone, Copy)]
enum IdentityKind {
    Nobody,
    TokenFile,
    Keystone,
}

impl IdentityKind {
    const ALL: [Self; 3] = [Self::Nobody, Self::TokenFile, Self::Keystone];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::TokenFile => "token-file",
            Self::Keystone => "keystone",
        }
    }

    /// The keys that it has besides `kind`.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Nobody => &[],
            Self::TokenFile => &["token_file"],
            Self::Keystone => {
                &["auth_url", "username", "password_file", "user_domain", "project", "project_domain", "ca", "cache"]
            }
        }
    }
}

fn read_owners(
    all: &[Section<'_, '_>],
    nodes: &BTreeMap<String, At<NodeConfig>>,
    report: &mut Report<'_>,
) -> Vec<OwnerConfig> {
    let mut owners: Vec<At<OwnerConfig>> = Vec::new();
    for section in all {
        let project = section.required("project", read::words, report);
        let pool = section.required("pool", read::parsed::<PoolName>, report);
        let node = section.found("node", read::node_name, report);
        if let Some(node) = &node
            && !nodes.contains_key(&node.value)
        {
            let hint = Hint::new(&node.value, "the nodes", nodes.keys());
            report.add(node.offset, Problem::UnknownNode { name: node.value.clone(), hint });
        }
        let (Some(project), Some(pool)) = (project, pool) else { continue };
        let owner = OwnerConfig { project: project.value, pool: pool.value, node: node.map(|at| at.value) };
        let meets = |other: &&At<OwnerConfig>| {
            let (mine, theirs) = (&owner.node, &other.value.node);
            other.value.pool == owner.pool && (mine == theirs || mine.is_none() || theirs.is_none())
        };
        if let Some(other) = owners.iter().find(meets) {
            let line = report.line_of(other.offset);
            report.add(section.offset, Problem::OwnerRepeated { pool: owner.pool, line });
            continue;
        }
        owners.push(At { offset: section.offset, value: owner });
    }
    owners.into_iter().map(|at| at.value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/growd/growapi.toml";
    const NODE: &str = "[[node]]\nname = \"n1\"\nendpoint = \"unix:/run/a.sock\"\n";
    const NOBODY: &str = "[identity]\nkind = \"none\"\n";

    fn refused(text: &str) -> Vec<String> {
        let message = ApiConfig::parse(text, FILE).unwrap_err().to_string();
        message.lines().map(|line| line.strip_prefix("/etc/growd/growapi.toml:").unwrap().to_owned()).collect()
    }

    #[test]
    fn the_example_is_a_configuration_and_shows_the_defaults() {
        let text = include_str!("../../systemd/growapi.toml");
        // As it is shipped nobody has chosen who may ask: who starts growapi by that would open it to all of the machine.
        let line = text.lines().position(|line| line == "[identity]").unwrap() + 1;
        assert_eq!(refused(text), [format!("{line}:1: [identity] has no \"kind\"")]);
        let text = text.replace("#kind", "kind");
        let config = ApiConfig::parse(&text, FILE).unwrap();
        assert_eq!(
            config,
            ApiConfig::parse(&format!("{NODE}{NOBODY}").replace("n1", "node1").replace("a.", "growd/growd."), FILE)
                .unwrap()
        );
        // With every key that has a default uncommented, and the tables of https and of owners, it stays the same.
        let uncommented: String = text
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()).unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = uncommented.replace("kind = \"none\"", "kind = \"keystone\"").replace("token_file =", "#");
        let all = ApiConfig::parse(&all, FILE).unwrap();
        assert_eq!(all.metrics, Some(METRICS));
        assert_eq!(all.log, Some(crate::logging::level("info").unwrap()));
        assert_eq!((all.listen, all.node_timeout, all.request_timeout), (LISTEN, PATIENCE, PATIENCE));
        let IdentityConfig::Keystone(keystone) = all.identity else { panic!("{:?}", all.identity) };
        assert_eq!((keystone.cache, keystone.project.as_str()), (CACHE_MOST, "service"));
        assert_eq!(all.owners[0].node.as_deref(), Some("node1"));
    }

    #[test]
    fn tells_everything_that_is_wrong_with_its_place() {
        let text = "lissten = \"127.0.0.1:1\"\nlisten = \"localhost\"\npublic_url = \"share.example.org\"\n\
             [[node]]\nname = \"n 1\"\nendpoint = \"unix:sock\"\n\
             [[node]]\nname = \"n1\"\nendpoint = \"https://a:1\"\n\
             [[node]]\nname = \"n1\"\nendpoint = \"https://b:1\"\n\
             [identity]\nkind = \"keystoen\"\n\
             [[owner]]\nproject = \"p\"\npool = \"home\"\nnode = \"n2\"\n\
             [[owner]]\nproject = \"q\"\npool = \"home\"\n";
        let expected = [
            "1:1: unknown key \"lissten\" in the file; did you mean \"listen\"?",
            "2:10: listen: \"localhost\" is not an address and a port, such as 127.0.0.1:9420 or [::1]:9420",
            "3:14: public_url: \"share.example.org\" is not an http:// or https:// URL without query",
            "5:8: name: \"n 1\" is not the name of a node (a letter or digit, then letters, digits, '-' or '_', up to 63)",
            "6:12: endpoint: \"unix:sock\" is not an endpoint: unix:/path, https://host:port or http://host:port",
            "9:12: endpoint: https needs [tls], by which growapi and the node know each other",
            "11:8: name: \"n1\" is already defined in line 7",
            "12:12: endpoint: https needs [tls], by which growapi and the node know each other",
            "14:8: kind: \"keystoen\" is not a kind of identity; did you mean \"keystone\"?",
            "18:8: node: \"n2\" is not defined; did you mean \"n1\"?",
            "19:1: pool \"home\" already has an owner in line 15",
        ];
        let mut found = refused(text);
        found.sort_by_key(|line| line.split(':').next().unwrap().parse::<u32>().unwrap());
        assert_eq!(found, expected);
    }

    #[test]
    fn says_what_is_missing_or_does_not_belong() {
        assert_eq!(refused(""), ["1:1: no [[node]]: there is nobody to ask", "1:1: the file has no \"identity\""]);
        let tokens = format!("{NODE}[identity]\nkind = \"token-file\"\ncache = \"1m\"\n");
        assert_eq!(
            refused(&tokens),
            ["4:1: [identity] has no \"token_file\"", "6:1: identity of kind token-file has no key \"cache\""]
        );
        let tokens = format!("{NODE}[identity]\nkind = \"token-file\"\ntoken_file = \"/t\"\n");
        // Places may say which projects shares belong to.
        assert_eq!(ApiConfig::parse(&tokens, FILE).unwrap().owners, []);
        let keystone = "kind = \"keystone\"\nauth_url = \"http://k/v3/\"\nusername = \"u\"\npassword_file = \"/p\"\n";
        let owner = "[[owner]]\nproject = \"p\"\npool = \"home\"\n";
        let long = format!("{NODE}[identity]\n{keystone}cache = \"6m\"\n{owner}");
        assert_eq!(refused(&long), ["9:9: cache: at most 5m, since a revoked token is believed for so long"]);
        for keystone in [keystone, &keystone.replace("/v3/", ""), &keystone.replace("v3/", "")] {
            let config = ApiConfig::parse(&format!("{NODE}[identity]\n{keystone}{owner}"), FILE).unwrap();
            let IdentityConfig::Keystone(keystone) = config.identity else { panic!("{:?}", config.identity) };
            assert_eq!(keystone.auth_url, "http://k/v3");
        }
    }
}
