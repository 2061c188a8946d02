//! Pools that may share a file system, and so its space and its project ids, though each is asked for itself.
//!
//! Whoever answers for one pool looks into the others on its file system as well, at that moment: a directory may be made,
//! and a file system mounted, at any time. But a pool on another disk, which may hang, must hold up nobody. So the table of
//! mounts decides, which no disk is needed for.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::places::{Places, PoolDirectory};
use super::{DriverError, system};
use crate::sys::mountinfo::{self, above};

/// What is kept of a pool for its neighbours.
pub(super) trait Neighbour {
    fn places(&self) -> &Places;
}

/// Those of all pools of one kind that the daemon has.
pub(super) struct Neighbours<T>(Mutex<Vec<Weak<T>>>);

impl<T> Default for Neighbours<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Neighbour> Neighbours<T> {
    /// That of one more pool.
    pub fn join(&self, one: T) -> Arc<T> {
        let one = Arc::new(one);
        let mut all = self.0.lock();
        // A pool of the same name is this one under an earlier configuration, and must not count twice.
        all.retain(|other| other.upgrade().is_some_and(|other| other.places().pool() != one.places().pool()));
        all.push(Arc::downgrade(&one));
        one
    }

    /// Those of other pools on the file system of this one, with their directories.
    pub fn beside(&self, own: &Places, pool: &PoolDirectory) -> Result<Vec<(Arc<T>, PoolDirectory)>, DriverError> {
        let mut others = self.others(own);
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let failed = system("find the mount of", &pool.path);
        let mounts = own.note_real_path(pool).and_then(|()| mountinfo::read()).map_err(failed)?;
        let device = |places: &Places| above(&mounts, &places.real_path()).map(|mount| mount.device);
        let here = device(own);
        others.retain(|other| device(other.places()) == here);
        let mut beside = Vec::new();
        for other in others {
            let opened = other.places().open_beside().map_err(system("open", other.places().template().directory()))?;
            let Some(opened) = opened else { continue };
            if own.is_shared_with(pool, &opened).map_err(system("find the file system of", &opened.path))? {
                beside.push((other, opened));
            }
        }
        Ok(beside)
    }

    fn others(&self, own: &Places) -> Vec<Arc<T>> {
        let all = self.0.lock();
        all.iter().filter_map(Weak::upgrade).filter(|other| other.places().pool() != own.pool()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Ground;
    use super::*;
    use crate::sys::open_beneath::DIRECTORY;
    use nix::sys::stat::fstat;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    const GROUND: Ground = Ground {
        way: DIRECTORY,
        what: "file system",
        is_there: |_| Ok(true),
        turn_on: |_| None,
        holds: |pool, fd| Ok(fstat(fd)?.st_dev == pool.device),
    };

    fn places(name: &str, directory: &Path) -> Places {
        let template = format!("{}/{{share_id}}", directory.display()).parse().unwrap();
        Places::new(GROUND, name.parse().unwrap(), template, vec![])
    }

    fn beside(all: &Neighbours<Places>, own: &Places) -> Vec<String> {
        let found = all.beside(own, &own.open_pool().unwrap()).unwrap();
        found.iter().map(|(other, _)| other.pool().to_string()).collect()
    }

    #[test]
    fn pools_on_one_file_system_know_of_each_other_as_soon_as_they_are_there() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real/linked")).unwrap();
        symlink("real", root.join("link")).unwrap();
        fs::create_dir(root.join("own")).unwrap();
        let all = Neighbours::default();
        let [own, _later, linked, _other] =
            [("own", "own"), ("later", "later"), ("linked", "link/linked"), ("other", "/proc")]
                .map(|(name, directory)| all.join(places(name, &root.join(directory))));
        assert_eq!(beside(&all, &own), [""; 0]);
        fs::create_dir(root.join("later")).unwrap();
        assert_eq!(beside(&all, &own), ["later"]);
        // A link may lead to a disk that hangs, so it is not followed before that pool was asked for itself.
        assert_eq!(beside(&all, &linked), ["own", "later"]);
        assert_eq!(beside(&all, &own), ["later", "linked"]);
        // Another configuration.
        let _later = all.join(places("later", &root.join("elsewhere")));
        assert_eq!(beside(&all, &own), ["linked"]);
    }
}
