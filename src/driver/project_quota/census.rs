//! Which shares of a file system have which project id, to find two with the same: an extend of one would extend both.
//!
//! Projects are those of the file system, which several pools may be on. A scan opens every share of a pool, so its result
//! is kept for a while. What is kept only raises a suspicion: both sides are read afresh before anybody is accused. A share
//! that was given another's id since the scan is found by the next one; so is one that was made since in the folder of a
//! project, which does not change the pool's directory.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::DriverError;
use crate::driver::directory_version::Seen;
use crate::driver::neighbours::{Neighbour, Neighbours};
use crate::driver::places::{Opened, Places, PoolDirectory};
use crate::model::ShareId;
use crate::sys::fsxattr;
use crate::sys::open_beneath::DIRECTORY;

/// The shares of each project.
type Scan = BTreeMap<u32, Vec<ShareId>>;

/// The censuses of all pools of the daemon, since pools may share a file system.
#[derive(Default)]
pub struct Censuses(pub(super) Neighbours<Census>);

/// The census of one pool.
pub(super) struct Census {
    places: Arc<Places>,
    last: Mutex<Option<Seen<Scan>>>,
}

impl Neighbour for Census {
    fn places(&self) -> &Places {
        &self.places
    }
}

impl Census {
    pub fn new(places: Arc<Places>) -> Self {
        Self { places, last: Mutex::default() }
    }

    /// The place of another share of the pool with the same project.
    pub fn twin(&self, pool: &PoolDirectory, share: ShareId, project_id: u32) -> Result<Option<PathBuf>, DriverError> {
        let places = &self.places;
        let mut last = self.last.lock();
        let scan = match last.take().filter(|scan| scan.is_trusted(pool.version)) {
            Some(scan) => last.insert(scan),
            None => last.insert(Seen::read(pool.version, || scan(places, pool))?),
        };
        let suspects = scan.content.get(&project_id).into_iter().flatten();
        for other in suspects.filter(|other| **other != share) {
            match project_of(places, pool, *other)? {
                Some((opened, project)) if project == project_id => return Ok(Some(opened.path)),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn scan(places: &Places, pool: &PoolDirectory) -> Result<Scan, DriverError> {
    let mut by_project = Scan::new();
    for share in places.list(pool)?.iter().copied() {
        if let Some((_, project)) = project_of(places, pool, share)? {
            by_project.entry(project).or_default().push(share);
        }
    }
    Ok(by_project)
}

/// The project of a share; `None` for what is none, has none or cannot be read, and so cannot be accused.
fn project_of(places: &Places, pool: &PoolDirectory, share: ShareId) -> Result<Option<(Opened, u32)>, DriverError> {
    let Some(opened) = places.try_open(pool, share, DIRECTORY)? else { return Ok(None) };
    let project = fsxattr::get(opened.fd.as_fd()).map_or(0, |attributes| attributes.project_id);
    Ok((project != 0).then_some((opened, project)))
}
