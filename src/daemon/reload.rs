//! SIGHUP: the configuration is read anew. Pools, shares, access and the level of the log follow it at once, the rest at
//! the next start.
//!
//! All or nothing: a configuration with anything wrong in it leaves everything as it was. No job is dropped: what is at
//! work goes on with the pool that it began with, what is queued begins with the pool of that name by then, and ends
//! with NOT_MOUNTED when there is none.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tracing::{error, info, warn};

use super::access;
use super::pools::PoolMaker;
use crate::config::Config;
use crate::engine::Engine;
use crate::logging::Log;
use crate::wire::server::{self, Control};
use crate::wire::tls::Tls;

pub struct Reload {
    pub path: PathBuf,
    /// As growd was started: each reload is compared with it, so that what needs a restart is told each time.
    pub first: Config,
    pub log: Arc<Log>,
    /// Whether growd made its unix socket, and so sets the socket's mode.
    pub own_socket: bool,
    pub maker: PoolMaker,
    pub engine: Arc<Engine>,
    pub control: Control,
    pub tls: Option<Arc<Tls>>,
}

impl Reload {
    /// Follows the file as it is now; what is wrong with it goes into the log.
    pub fn reload(&mut self) {
        let followed = self.follow();
        self.engine.meters.reloaded(followed.is_ok());
        match followed {
            Ok(pools) => info!(pools, "the configuration was read anew"),
            Err(error) => {
                for line in format!("{error:#}").lines() {
                    error!("configuration: {line}");
                }
                error!("the configuration has not been read anew: the earlier one stays");
            }
        }
    }

    /// How many pools there are now.
    fn follow(&mut self) -> Result<usize> {
        let new = Config::load(&self.path)?;
        let (rules, problems) = access::rules(&new.access);
        // At a start they cost only their own roles, or growd would not serve. Here they would take away what is there.
        if !problems.is_empty() {
            bail!(problems.join("\n"));
        }
        for key in need_a_restart(&self.first, &new) {
            warn!("{key} has changed in the configuration, which growd follows at its next start");
        }
        let files = new.tcp.as_ref().and_then(|tcp| tcp.tls.as_ref());
        match (&self.tls, files) {
            (Some(tls), Some(files)) => tls.replace(files.clone()).context("[tcp] of the configuration")?,
            // A start will need them.
            (None, Some(files)) => drop(access::load(files)?),
            (_, None) => {}
        }
        // From here on nothing fails.
        self.log.set_level(new.log);
        self.control.set_rules(rules);
        if self.own_socket
            && let Err(error) = server::open_to_all(&self.first.listen, new.access.names_accounts())
        {
            warn!(%error, socket = %self.first.listen.display(), "the mode of the socket cannot be changed");
        }
        self.engine.pools.replace(self.maker.make(&new.pools));
        self.maker.warn_of_problems();
        let engine = Arc::clone(&self.engine);
        tokio::spawn(async move { engine.learn_spaces().await });
        Ok(new.pools.len())
    }
}

fn need_a_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let listener = |config: &Config| config.tcp.as_ref().map(|tcp| (tcp.address, tcp.tls.is_some()));
    let retention = |config: &Config| (config.retention_age, config.retention_jobs);
    [
        ("listen", old.listen != new.listen),
        ("[tcp]", listener(old) != listener(new)),
        ("state_dir", old.state_dir != new.state_dir),
        ("max_active_jobs", old.max_active_jobs != new.max_active_jobs),
        ("[retention]", retention(old) != retention(new)),
        ("[metrics]", old.metrics != new.metrics),
        ("[traces]", old.traces != new.traces),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}
