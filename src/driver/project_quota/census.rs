//! Which share of a pool has which project id, to find two with the same: an extend of one would extend both.
//!
//! A scan opens every share, so its result is kept for a while. What is kept only raises a suspicion: both sides are
//! read afresh before anybody is accused. A share that was given another's id since the scan is found by the next one;
//! so is one that was made since in the folder of a project, which does not change the pool's directory.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::driver::DriverError;
use crate::driver::directory_version::Version;
use crate::driver::places::{Opened, Places, Pool};
use crate::model::ShareId;
use crate::sys::fsxattr;

/// The most that a scan may be old.
const TRUSTED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Census {
    last: Mutex<Option<Scan>>,
}

struct Scan {
    begun: Instant,
    directory: Version,
    /// Whether the directory's timestamp would tell a change since.
    settled: bool,
    by_project: BTreeMap<u32, Vec<ShareId>>,
}

impl Scan {
    fn is_trusted(&self, directory: Version) -> bool {
        self.settled && self.directory == directory && self.begun.elapsed() < TRUSTED
    }
}

impl Census {
    /// The place of another share of the pool with the same project.
    pub fn twin(
        &self,
        places: &Places,
        pool: &Pool,
        share: ShareId,
        project_id: u32,
    ) -> Result<Option<PathBuf>, DriverError> {
        // A panic while it was locked left a whole scan or none.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = match last.take().filter(|scan| scan.is_trusted(pool.version)) {
            Some(scan) => last.insert(scan),
            None => last.insert(scan(places, pool)?),
        };
        let suspects = scan.by_project.get(&project_id).into_iter().flatten();
        let mut others = suspects.filter(|other| **other != share);
        Ok(others.find_map(|other| {
            let (opened, project) = project_of(places, pool, *other)?;
            (project == project_id).then_some(opened.path)
        }))
    }
}

fn scan(places: &Places, pool: &Pool) -> Result<Scan, DriverError> {
    let (begun, directory) = (Instant::now(), pool.version);
    let settled = directory.is_settled(SystemTime::now());
    let mut by_project: BTreeMap<u32, Vec<ShareId>> = BTreeMap::new();
    for share in places.list(pool)?.iter().copied() {
        if let Some((_, project)) = project_of(places, pool, share) {
            by_project.entry(project).or_default().push(share);
        }
    }
    Ok(Scan { begun, directory, settled, by_project })
}

/// The project of a share; `None` for what is none, has none or cannot be read, and so cannot be accused.
fn project_of(places: &Places, pool: &Pool, share: ShareId) -> Option<(Opened, u32)> {
    let opened = places.try_open(pool, share)?;
    let attributes = fsxattr::get(opened.fd.as_fd()).ok()?;
    (attributes.project_id != 0).then_some((opened, attributes.project_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::directory_version::fixture::version;

    #[test]
    fn trusts_a_scan_while_the_directory_is_the_same() {
        let directory = version(1, 5);
        let scan = |settled| Scan { begun: Instant::now(), directory, settled, by_project: BTreeMap::default() };
        assert!(scan(true).is_trusted(directory));
        assert!(!scan(false).is_trusted(directory));
        assert!(!scan(true).is_trusted(version(1, 6)));
        assert!(!scan(true).is_trusted(version(3, 5)));
    }
}
