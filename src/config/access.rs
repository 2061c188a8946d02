//! `[tcp]` and `[access]`: where growd is called from, and who may do what.

use std::net::SocketAddr;

use super::problem::{Problem, Table};
use super::read::{self, At, Report, Section};
use crate::model::{Credentials, Grantee, Identity, Role};

/// A listener besides the unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub address: SocketAddr,
    /// `None` when callers are neither encrypted nor known.
    pub tls: Option<Credentials>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// In the order of the file.
    pub grants: Vec<(Grantee, Role)>,
    /// Whether the contract can be asked for by server reflection.
    pub reflection: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { grants: Vec::new(), reflection: true }
    }
}

impl Access {
    /// `None` when something has been reported.
    pub(super) fn read(top: &Section<'_, '_>, report: &mut Report<'_>) -> Option<Self> {
        let Some(section) = top.table("access", Table::Access, report) else { return Some(Self::default()) };
        let lists = [("readers", Role::Reader), ("operators", Role::Operator), ("admins", Role::Admin)];
        let lists = lists.map(|(key, role)| section.list(key, read::parsed, report).map(|grantees| (grantees, role)));
        let reflection = section.optional("reflection", true, read::boolean, report);
        let mut grants = Vec::new();
        for list in lists {
            let (grantees, role) = list?;
            grants.extend(grantees.into_iter().map(|grantee| (grantee, role)));
        }
        Some(Self { grants, reflection: reflection? })
    }

    /// Whether the unix socket is for others than root.
    pub fn names_accounts(&self) -> bool {
        let is_account = |grantee: &Grantee| match grantee {
            Grantee::User(_) | Grantee::Group(_) => true,
            Grantee::Known(identity) => matches!(identity, Identity::User(_) | Identity::Group(_)),
        };
        self.grants.iter().any(|(grantee, _)| is_account(grantee))
    }
}

impl Tcp {
    /// The outer `None` when something has been reported, the inner one when there is no such listener.
    pub(super) fn read(top: &Section<'_, '_>, report: &mut Report<'_>) -> Option<Option<Self>> {
        let Some(section) = top.table("tcp", Table::Tcp, report) else { return Some(None) };
        let address = section.required("listen", read::address, report);
        let insecure = section.found_or("insecure", false, read::boolean, report);
        let tls = match insecure {
            Some(At { value: true, offset }) => {
                let files = ["certificate", "key", "client_ca"];
                if files.iter().any(|key| section.offset_of(key).is_some()) {
                    report.add(offset, Problem::InsecureTls);
                }
                None
            }
            _ => Some(section.credentials("client_ca", report)?),
        };
        insecure?;
        Some(Some(Self { address: address?.value, tls }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::tests::{FILE, POOL, refused};

    #[test]
    fn two_listeners_have_two_addresses() {
        let both = |tcp, metrics| {
            let text = format!("[tcp]\ninsecure = true\nlisten = {tcp:?}\n[metrics]\nlisten = {metrics:?}\n{POOL}");
            Config::parse(&text, FILE).map_err(|error| error.to_string())
        };
        for (tcp, metrics) in [
            ("127.0.0.1:7070", "127.0.0.1:7070"),
            ("0.0.0.0:7070", "127.0.0.1:7070"),
            ("192.0.2.7:7070", "0.0.0.0:7070"),
            ("[::]:7070", "127.0.0.1:7070"),
            ("[::1]:7070", "[::]:7070"),
        ] {
            let expected = format!("{FILE}:5:10: listen: {metrics} cannot be had beside {tcp}, the listen of [tcp]");
            assert_eq!(both(tcp, metrics), Err(expected));
        }
        for (tcp, metrics) in [
            ("127.0.0.1:7070", "127.0.0.1:7071"),
            ("127.0.0.1:7070", "192.0.2.7:7070"),
            ("0.0.0.0:7070", "[::1]:7070"),
            ("127.0.0.1:0", "127.0.0.1:0"),
        ] {
            assert!(both(tcp, metrics).is_ok(), "{tcp} {metrics}");
        }
        let default = format!("[tcp]\ninsecure = true\nlisten = \"[::]:9420\"\n[metrics]\n{POOL}");
        assert_eq!(
            refused(&default),
            ["4:1: listen: 127.0.0.1:9420 cannot be had beside [::]:9420, the listen of [tcp]"]
        );
    }

    #[test]
    fn callers_and_their_roles() {
        let text = format!(
            "[tcp]\nlisten = \"[::1]:7070\"\ncertificate = \"/a.pem\"\nkey = \"/a.key\"\nclient_ca = \"/ca.pem\"\n\
             [access]\nreaders = [\"group:wheel\", \"cn:x\"]\nadmins = [\"user:0\"]\nreflection = false\n{POOL}"
        );
        let config = Config::parse(&text, FILE).unwrap();
        let files = Credentials { certificate: "/a.pem".into(), key: "/a.key".into(), ca: "/ca.pem".into() };
        assert_eq!(config.tcp, Some(Tcp { address: "[::1]:7070".parse().unwrap(), tls: Some(files) }));
        let to = |text: &str| text.parse::<Grantee>().unwrap();
        let grants = vec![(to("group:wheel"), Role::Reader), (to("cn:x"), Role::Reader), (to("user:0"), Role::Admin)];
        assert_eq!(config.access, Access { grants, reflection: false });

        let insecure = format!("[tcp]\nlisten = \"127.0.0.1:1\"\ninsecure = true\n{POOL}");
        let tcp = Config::parse(&insecure, FILE).unwrap().tcp.unwrap();
        assert_eq!(tcp.tls, None);
    }

    #[test]
    fn no_listener_is_without_tls_by_an_oversight() {
        for (text, problems) in [
            (
                "[tcp]\nlisten = \"0.0.0.0:1\"\nkey = \"/a\"\n",
                vec!["1:1: [tcp] has no \"certificate\"", "1:1: [tcp] has no \"client_ca\""],
            ),
            (
                "[tcp]\nlisten = \"0.0.0.0:1\"\nkey = \"/a\"\ninsecure = true\n",
                vec!["4:12: insecure: a listener without TLS has no certificate, key or client_ca"],
            ),
            (
                "[tcp]\nlisten = \"localhost:1\"\ninsecure = true\n",
                vec![
                    "2:10: listen: \"localhost:1\" is not an address and a port, such as 127.0.0.1:9420 or [::1]:9420",
                ],
            ),
            (
                "[access]\nreaders = [\"cn:x\", \"root\"]\noperators = \"cn:x\"\n",
                vec![
                    "2:20: readers: \"root\" is not user:NAME, group:NAME, uri:URI, dns:NAME, cn:NAME or anonymous",
                    "3:13: operators: expected an array, found string",
                ],
            ),
        ] {
            assert_eq!(refused(&format!("{text}{POOL}")), problems, "{text}");
        }
    }
}
