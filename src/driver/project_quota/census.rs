//! Which shares of a file system have which project id, to find two with the same: an extend of one would extend both.
//!
//! Projects are those of the file system, which several pools may be on. A scan opens every share of a pool, so its result
//! is kept for a while. What is kept only raises a suspicion: both sides are read afresh before anybody is accused. A share
//! that was given another's id since the scan is found by the next one; so is one that was made since in the folder of a
//! project, which does not change the pool's directory.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::driver::DriverError;
use crate::driver::directory_version::Seen;
use crate::driver::places::{Opened, Places, Pool};
use crate::model::ShareId;
use crate::sys::fsxattr;

/// The shares of each project.
type Scan = BTreeMap<u32, Vec<ShareId>>;

/// The censuses of all pools of the daemon.
#[derive(Default)]
pub(in crate::driver) struct Censuses(Mutex<Vec<Weak<Census>>>);

impl Censuses {
    /// That of one more pool.
    pub fn begin(&self, places: Arc<Places>) -> Arc<Census> {
        let census = Arc::new(Census { places, last: Mutex::default() });
        let mut all = self.0.lock();
        // A pool of the same name is this one under an earlier configuration, and has the same shares.
        all.retain(|other| other.upgrade().is_some_and(|other| other.places.pool() != census.places.pool()));
        all.push(Arc::downgrade(&census));
        census
    }
}

/// The census of one pool.
pub(in crate::driver) struct Census {
    places: Arc<Places>,
    last: Mutex<Option<Seen<Scan>>>,
}

impl Census {
    /// Those of other pools on the file system of this one, with their directories.
    pub fn others(&self, all: &Censuses, pool: &Pool) -> Vec<(Arc<Self>, Pool)> {
        let all = all.0.lock().clone();
        let others = all.iter().filter_map(Weak::upgrade).filter(|other| other.places.pool() != self.places.pool());
        others.filter_map(|other| other.places.open_pool_beside(pool.device).map(|pool| (other, pool))).collect()
    }

    /// The place of another share of the pool with the same project.
    pub fn twin(&self, pool: &Pool, share: ShareId, project_id: u32) -> Result<Option<PathBuf>, DriverError> {
        let places = &self.places;
        let mut last = self.last.lock();
        let scan = match last.take().filter(|scan| scan.is_trusted(pool.version)) {
            Some(scan) => last.insert(scan),
            None => last.insert(Seen::read(pool.version, || scan(places, pool))?),
        };
        let suspects = scan.content.get(&project_id).into_iter().flatten();
        let mut others = suspects.filter(|other| **other != share);
        Ok(others.find_map(|other| {
            let (opened, project) = project_of(places, pool, *other)?;
            (project == project_id).then_some(opened.path)
        }))
    }
}

fn scan(places: &Places, pool: &Pool) -> Result<Scan, DriverError> {
    let mut by_project = Scan::new();
    for share in places.list(pool)?.iter().copied() {
        if let Some((_, project)) = project_of(places, pool, share) {
            by_project.entry(project).or_default().push(share);
        }
    }
    Ok(by_project)
}

/// The project of a share; `None` for what is none, has none or cannot be read, and so cannot be accused.
fn project_of(places: &Places, pool: &Pool, share: ShareId) -> Option<(Opened, u32)> {
    let opened = places.try_open(pool, share)?;
    let attributes = fsxattr::get(opened.fd.as_fd()).ok()?;
    (attributes.project_id != 0).then_some((opened, attributes.project_id))
}
