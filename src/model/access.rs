//! Who may do what: identities as the transport proves them, and the roles that the configuration gives them. And the
//! files of TLS by which both sides show who they are.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::InvalidName;

words! {
    /// Each role may do what the roles before it may.
    pub enum Role {
        /// Sees shares, jobs, pools and the node.
        Reader = "reader",
        /// Extends and shrinks shares and cancels jobs.
        Operator = "operator",
        /// Everything.
        Admin = "admin",
    }
}

/// One thing that is known of a caller. A caller has several: its user and each of its groups, or the names of its
/// certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    User(u32),
    Group(u32),
    Uri(String),
    /// In lower case.
    Dns(String),
    Cn(String),
    /// Whoever reaches a TCP port without TLS.
    Anonymous,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Group(id) => write!(f, "group:{id}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Cn(name) => write!(f, "cn:{name}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Whom the configuration gives a role. The host tells which numbers users and groups have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grantee {
    User(String),
    Group(String),
    Known(Identity),
}

impl FromStr for Grantee {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        const EXPECTED: &str = "user:NAME, group:NAME, uri:URI, dns:NAME, cn:NAME or anonymous";
        let wrong = || InvalidName::new(text, EXPECTED);
        if text == "anonymous" {
            return Ok(Self::Known(Identity::Anonymous));
        }
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        let name = name.to_owned();
        let number = name.parse::<u32>().ok();
        Ok(match (kind, number) {
            ("user", Some(id)) => Self::Known(Identity::User(id)),
            ("group", Some(id)) => Self::Known(Identity::Group(id)),
            ("user", None) => Self::User(name),
            ("group", None) => Self::Group(name),
            ("uri", _) => Self::Known(Identity::Uri(name)),
            ("dns", _) => Self::Known(Identity::Dns(name.to_ascii_lowercase())),
            ("cn", _) => Self::Known(Identity::Cn(name)),
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Known(identity) => identity.fmt(f),
        }
    }
}

/// What either side of TLS needs, as PEM files: whom it believes, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The authorities of the other side's certificate.
    pub ca: PathBuf,
    /// The own certificate, with those between it and its authority, and its key.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Which identity has which role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(HashMap<Identity, Role>);

impl Roles {
    /// Of two roles for one identity the higher one counts.
    pub fn grant(&mut self, identity: Identity, role: Role) {
        let granted = self.0.entry(identity).or_insert(role);
        *granted = role.max(*granted);
    }

    /// The highest role of a caller. root is always admin: it could change the configuration as well.
    pub fn of(&self, identities: &[Identity]) -> Option<Role> {
        let role = |identity: &Identity| match identity {
            Identity::User(0) => Some(Role::Admin),
            identity => self.0.get(identity).copied(),
        };
        identities.iter().filter_map(role).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grantee_is_written_as_it_is_read() {
        for text in
            ["user:manila", "group:storage", "user:7", "uri:spiffe://a/b", "dns:api.example", "cn:x", "anonymous"]
        {
            assert_eq!(text.parse::<Grantee>().unwrap().to_string(), text);
        }
        assert_eq!("dns:API.Example".parse::<Grantee>().unwrap().to_string(), "dns:api.example");
        for text in ["", "manila", "user:", "User:x", "mail:x", "anonymous:x"] {
            assert!(text.parse::<Grantee>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_highest_role_of_any_identity_counts() {
        let mut roles = Roles::default();
        roles.grant(Identity::Group(5), Role::Operator);
        roles.grant(Identity::Group(5), Role::Reader);
        roles.grant(Identity::User(7), Role::Reader);
        assert_eq!(roles.of(&[Identity::User(7)]), Some(Role::Reader));
        assert_eq!(roles.of(&[Identity::User(7), Identity::Group(1), Identity::Group(5)]), Some(Role::Operator));
        assert_eq!(roles.of(&[Identity::User(5), Identity::Group(0)]), None);
        assert_eq!(roles.of(&[Identity::User(0)]), Some(Role::Admin));
        assert_eq!(roles.of(&[]), None);
    }
}
