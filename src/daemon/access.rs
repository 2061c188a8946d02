//! From the configuration to the rules of the gate and the TCP listener.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tracing::warn;

use crate::config::{self, Config};
use crate::model::{Credentials, Grantee, Identity, Roles};
use crate::sys::accounts;
use crate::wire::gate::Rules;
use crate::wire::server::{self, Tcp};
use crate::wire::tls::Tls;

/// The rules, and what of the configuration names nobody on this host.
pub fn rules(access: &config::Access) -> (Rules, Vec<String>) {
    let (mut roles, mut problems) = (Roles::default(), Vec::new());
    for (grantee, role) in &access.grants {
        let found = match grantee {
            Grantee::Known(identity) => Ok(Some(identity.clone())),
            Grantee::User(user) => accounts::user_id(user).map(|id| id.map(Identity::User)),
            Grantee::Group(group) => accounts::group_id(group).map(|id| id.map(Identity::Group)),
        };
        match found.map_err(io::Error::from) {
            Ok(Some(identity)) => roles.grant(identity, *role),
            Ok(None) => problems.push(format!("[access]: {grantee} is not known on this host, and has no role")),
            Err(error) => problems.push(format!("[access]: {grantee} cannot be looked up and has no role: {error}")),
        }
    }
    (Rules { roles, reflection: access.reflection }, problems)
}

/// Binds the TCP port of the configuration, if there is one.
///
/// # Errors
/// When the port is taken, or the TLS files cannot be used.
pub async fn listen(config: &Config) -> Result<Option<Tcp>> {
    let Some(tcp) = &config.tcp else { return Ok(None) };
    let tls = tcp.tls.as_ref().map(load).transpose()?;
    if let Some(problem) = tls.as_ref().and_then(expired) {
        warn!("{problem}");
    }
    if tls.is_none() {
        warn!(
            address = %tcp.address,
            "INSECURE: [tcp] insecure = true: anybody who reaches this port is an anonymous caller, and everybody in \
             between can read and change what is said; take this out of the configuration unless it is an experiment"
        );
    }
    Ok(Some(Tcp { listener: server::bind_tcp(tcp.address).await?, tls: tls.map(Arc::new) }))
}

/// What is wrong with a certificate that no client believes any more.
pub fn expired(tls: &Tls) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // 0 where it is not known.
    let is_over = (1..now).contains(&tls.expires());
    is_over.then(|| {
        "[tcp] of the configuration: the certificate, or one between it and its authority, has expired".to_owned()
    })
}

/// # Errors
/// When the files cannot be used.
pub fn load(files: &Credentials) -> Result<Tls> {
    Tls::load(files.clone()).context("[tcp] of the configuration")
}
