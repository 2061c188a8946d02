//! The storage nodes, and which of them has which share.
//!
//! Nobody keeps a list of places: a share is where a node says it is. What was found is remembered, so that a known
//! share costs one call however many nodes there are, and forgotten when its node no longer knows it. The only room
//! that speaks gRPC.

mod failure;
mod node;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use growd::config::{ApiConfig, NodeConfig};
use growd::model::{JobKind, Reason, ShareId, TraceParent};
use growd::wire::client::{self, ConnectError};
use growd::wire::proto::{ExtendShareRequest, ListSharesResponse, Share};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use failure::{Failure, RETRY_AFTER, words};
pub use node::{Node, Taken, watch_health};

/// How many nodes one search asks at once, and all searches together: whoever makes up shares does not get all there is.
const SEARCH_WIDTH: usize = 64;
const SEARCHES_WIDTH: usize = 256;
/// How long a node that did not answer when it was last asked may take.
const DOWN_PATIENCE: Duration = Duration::from_secs(1);
/// For so long a share that was not found elsewhere is not looked for again while its node is down: all others would be
/// asked by every request.
const SEARCH_PAUSE: Duration = Duration::from_secs(5);

/// Where a share is.
#[derive(Clone)]
pub struct Place {
    pub node: Arc<Node>,
    pub pool: String,
    /// The project that the share's place on the node says; empty where it says none.
    pub project: String,
    /// When the share was last looked for elsewhere, in vain.
    missed: Option<Instant>,
}

impl Place {
    pub fn new(node: Arc<Node>, pool: String, project: String) -> Self {
        Self { node, pool, project, missed: None }
    }

    pub fn of(node: &Arc<Node>, share: &Share) -> Self {
        Self::new(Arc::clone(node), share.pool.clone(), share.project_id.clone())
    }
}

pub struct Nodes {
    /// In the order of their names.
    nodes: Vec<Arc<Node>>,
    /// Of shares that a node had when it was asked. That of one that is gone stays until somebody asks for the share.
    places: Mutex<HashMap<ShareId, Place>>,
    searching: Semaphore,
}

/// Looks at what growapi shows to nodes behind https.
///
/// # Errors
/// The files cannot be read or are not fit for it.
pub fn check_credentials(config: &ApiConfig) -> Result<(), ConnectError> {
    config.tls.as_ref().map_or(Ok(()), client::check)
}

impl Nodes {
    /// Nodes that are the same as before keep their connections, and what is known of their shares stays known. Those
    /// behind https connect anew, since their certificates may be others.
    pub fn new(config: &ApiConfig, before: Option<&Self>) -> Self {
        let timeout = config.node_timeout;
        let old = |name: &str, endpoint: &str| {
            let same = |node: &&Arc<Node>| {
                let plain = !endpoint.starts_with("https:");
                plain && node.name == name && node.endpoint == endpoint && node.timeout() == timeout
            };
            before.and_then(|before| before.nodes.iter().find(same))
        };
        let mut nodes = Vec::new();
        for NodeConfig { name, endpoint } in &config.nodes {
            nodes.push(old(name, endpoint).cloned().unwrap_or_else(|| {
                let node = Arc::new(Node::new(name.clone(), endpoint.clone(), config.tls.clone(), timeout));
                tokio::spawn(watch_health(Arc::downgrade(&node)));
                node
            }));
        }
        let mut places = before.map(|before| before.places.lock().clone()).unwrap_or_default();
        places.retain(|_, place| nodes.iter().any(|node| Arc::ptr_eq(node, &place.node)));
        Self { nodes, places: Mutex::new(places), searching: Semaphore::new(SEARCHES_WIDTH) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter()
    }

    pub fn places_known(&self) -> usize {
        self.places.lock().len()
    }

    /// The share as its node tells it.
    ///
    /// # Errors
    /// Every [`Failure`]; SHARE_NOT_FOUND only when every node has said so.
    pub async fn share(&self, id: ShareId) -> Result<(Place, Share), Failure> {
        let Some(known) = self.known(id) else { return self.search(id).await };
        if let Some(found) = self.elsewhere(id, &known).await {
            return Ok(found);
        }
        let answer = match known.node.is_down() {
            // It may be there again, and is not worth a long wait.
            true => timeout(DOWN_PATIENCE, known.node.share(id)).await.unwrap_or_else(|_| Err(Failure::down())),
            false => known.node.share(id).await,
        };
        match answer {
            Ok(share) => Ok(self.remember(id, &known.node, share)),
            Err(failure) if failure.has_reason(Reason::ShareNotFound) => self.search(id).await,
            Err(failure) => Err(failure),
        }
    }

    /// Where the share is; asks no node when that is known, unless it is down: another may have the share now. A share
    /// that was moved to another pool of its node is told to be in the old one until somebody has looked at it.
    ///
    /// # Errors
    /// As [`Self::share`].
    pub async fn place(&self, id: ShareId) -> Result<Place, Failure> {
        match self.known(id) {
            Some(known) => Ok(self.elsewhere(id, &known).await.map_or(known, |(place, _)| place)),
            None => self.search(id).await.map(|(place, _)| place),
        }
    }

    /// Asks the node for an extend or a shrink; `None` when the share is no longer there and was found elsewhere, where it
    /// has to be asked for again.
    ///
    /// # Errors
    /// Every other [`Failure`].
    pub async fn resize(
        &self,
        kind: JobKind,
        id: ShareId,
        place: &Place,
        request: ExtendShareRequest,
        caller: Option<TraceParent>,
    ) -> Result<Option<Taken>, Failure> {
        match place.node.resize(kind, request, caller).await {
            Ok(taken) => {
                let place = Place::new(Arc::clone(&place.node), taken.job.pool.clone(), place.project.clone());
                keep(&mut self.places.lock(), id, place);
                Ok(Some(taken))
            }
            Err(failure) if failure.has_reason(Reason::ShareNotFound) => self.search(id).await.map(|_| None),
            Err(failure) => Err(failure),
        }
    }

    /// A page of the shares of a node, pool and project, whose places are known then. A node that is down is not asked.
    ///
    /// # Errors
    /// Every [`Failure`].
    pub async fn page(
        &self,
        node: &Arc<Node>,
        pool: &str,
        project: Option<&str>,
        behind: Option<ShareId>,
        size: u32,
    ) -> Result<ListSharesResponse, Failure> {
        if node.is_down() {
            return Err(Failure::down());
        }
        let page = node.shares(pool, project, behind, size).await?;
        let mut places = self.places.lock();
        for share in &page.shares {
            if let Ok(id) = share.share_id.parse() {
                keep(&mut places, id, Place::of(node, share));
            }
        }
        Ok(page)
    }

    /// Where the share was when it was last asked for, for as long as it is not known to be gone.
    pub fn known(&self, id: ShareId) -> Option<Place> {
        self.places.lock().get(&id).cloned()
    }

    fn remember(&self, id: ShareId, node: &Arc<Node>, share: Share) -> (Place, Share) {
        let place = Place::of(node, &share);
        keep(&mut self.places.lock(), id, place.clone());
        (place, share)
    }

    /// A share may have been moved from a node that is down. `None` where it was not, as far as the others can tell, and
    /// when its node is not down.
    async fn elsewhere(&self, id: ShareId, known: &Place) -> Option<(Place, Share)> {
        if !known.node.is_down() || known.missed.is_some_and(|at| at.elapsed() < SEARCH_PAUSE) {
            return None;
        }
        let found = self.search(id).await.ok();
        if found.is_none()
            && let Some(place) = self.places.lock().get_mut(&id)
        {
            place.missed = Some(Instant::now());
        }
        found
    }

    /// Unless somebody has found it elsewhere meanwhile.
    fn forget(&self, id: ShareId, place: &Place) {
        let mut places = self.places.lock();
        if places.get(&id).is_some_and(|known| Arc::ptr_eq(&known.node, &place.node)) {
            places.remove(&id);
        }
    }

    /// Asks all nodes, and is content with the first that has the share. When none has it, one that could not be asked
    /// may be the one: then the share is not unknown, but cannot be reached, even if a node says that it can do nothing with
    /// what it has in the share's place. Whose it is nobody has said, so what a node says of it goes into the log and not
    /// to the client.
    async fn search(&self, id: ShareId) -> Result<(Place, Share), Failure> {
        let known = self.known(id);
        let ask = |node: &Arc<Node>| {
            let node = Arc::clone(node);
            async move {
                if node.is_down() {
                    return (node, Err(Failure::down()));
                }
                // Never closed.
                let _turn = self.searching.acquire().await.ok();
                let answer = node.share(id).await;
                (node, answer)
            }
        };
        let mut answers = stream::iter(self.nodes.iter().map(ask)).buffer_unordered(SEARCH_WIDTH);
        let mut worst = None;
        while let Some((node, answer)) = answers.next().await {
            match answer {
                Ok(share) => return Ok(self.remember(id, &node, share)),
                Err(failure) if failure.has_reason(Reason::ShareNotFound) => {}
                Err(failure) if worst.as_ref().is_none_or(Failure::stays) => worst = Some(failure.cannot_tell()),
                Err(_) => {}
            }
        }
        if let (Some(known), None) = (known, &worst) {
            self.forget(id, &known);
        }
        Err(worst.unwrap_or_else(Failure::unknown_share))
    }
}

/// Two nodes that both say they have a share are seen by this log alone.
fn keep(places: &mut HashMap<ShareId, Place>, id: ShareId, place: Place) {
    let to = Arc::clone(&place.node);
    if let Some(before) = places.insert(id, place)
        && !Arc::ptr_eq(&before.node, &to)
    {
        tracing::info!(share = %id, from = before.node.name, to = to.name, "the share is on another node than before");
    }
}
