//! What requests are answered with: nodes, owners, identity. Replaced as a whole when the configuration is read again;
//! a request that has begun goes on with what it began with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use growd::config::ApiConfig;
use parking_lot::RwLock;

use crate::identity::Identity;
use crate::nodes::{self, Nodes};
use crate::owners::Owners;

pub struct Api {
    pub public_url: Option<String>,
    /// For a client to send its request.
    pub request_timeout: Duration,
    pub nodes: Nodes,
    pub owners: Owners,
    pub identity: Identity,
}

impl Api {
    /// # Errors
    /// A file that the configuration names cannot be read or is wrong.
    pub fn new(config: &ApiConfig, before: Option<&Self>) -> Result<Self> {
        nodes::check_credentials(config)?;
        Ok(Self {
            public_url: config.public_url.clone(),
            request_timeout: config.request_timeout,
            identity: Identity::new(&config.identity)?,
            owners: Owners::new(config),
            nodes: Nodes::new(config, before.map(|before| &before.nodes)),
        })
    }
}

/// The one that is in use now.
#[derive(Clone)]
pub struct Current(Arc<RwLock<Arc<Api>>>);

impl Current {
    pub fn new(api: Api) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(api))))
    }

    pub fn get(&self) -> Arc<Api> {
        Arc::clone(&self.0.read())
    }

    pub fn replace(&self, api: Api) {
        *self.0.write() = Arc::new(api);
    }
}
