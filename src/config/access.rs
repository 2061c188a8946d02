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
