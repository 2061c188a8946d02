//! From the configuration to pools, each with its driver; again whenever the configuration changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;
use tracing::warn;

use crate::config::{Backend, LvmConfig, PoolConfig};
use crate::driver::btrfs::Btrfs;
use crate::driver::flight_recorder::FlightRecorder;
use crate::driver::image::{Image, Images};
use crate::driver::lvm::{Lvm, VolumeGroup, find_lvm};
use crate::driver::project_quota::{Censuses, ProjectQuota};
use crate::driver::promises::Promises;
use crate::driver::{Driver, Space};
use crate::engine::pools::{Pool, Seats, TURNS, TURNS_TOGETHER};
use crate::model::PoolName;

/// What is wrong with a pool as the node has it; asks its disk, which may hang.
///
/// # Errors
/// All of it, in words.
pub fn check_pool(config: &PoolConfig, driver: &dyn Driver) -> Result<Space, Vec<String>> {
    let missing = config.missing_directories();
    if !missing.is_empty() {
        return Err(missing);
    }
    let space = driver.space().map_err(|error| vec![error.into_refusal().to_string()])?;
    let mut problems: Vec<String> =
        space.problems.iter().map(|found| format!("{}: {}", found.message, found.remedy)).collect();
    if config.reserve >= space.total {
        let (reserve, total) = (config.reserve, space.total.rounded());
        problems.push(format!("its reserve of {reserve} leaves nothing of {total} to promise"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(space)
}

/// Makes pools, and keeps what pools of one daemon have in common, also with those that were configured before.
pub struct PoolMaker {
    recorder: Arc<FlightRecorder>,
    promises: Arc<Promises>,
    censuses: Arc<Censuses>,
    images: Arc<Images>,
    lvm: Option<PathBuf>,
    /// Those that a pool has, or a job that is still at work in a pool of before. LVM changes one volume of a group at a
    /// time; whoever waits for that should still be QUEUED.
    groups: BTreeMap<String, (Weak<VolumeGroup>, Weak<Semaphore>)>,
    /// A pool that hangs must not come by new ones through a change of its configuration.
    seats: BTreeMap<PoolName, Arc<Seats>>,
    made: Vec<(PoolConfig, Arc<Pool>)>,
}

impl PoolMaker {
    pub fn new(recorder: Arc<FlightRecorder>) -> Self {
        Self {
            recorder,
            promises: Arc::default(),
            censuses: Arc::default(),
            images: Arc::default(),
            lvm: None,
            groups: BTreeMap::new(),
            seats: BTreeMap::new(),
            made: Vec::new(),
        }
    }

    /// The pools as configured. One whose configuration is what it was stays the same pool.
    pub fn make(&mut self, configured: &[PoolConfig]) -> Vec<Arc<Pool>> {
        if self.lvm.is_none() && configured.iter().any(is_lvm) {
            match find_lvm() {
                Some(lvm) => self.has_lvm(lvm),
                None => warn!("lvm is not installed: pools of logical volumes are refused as not mounted"),
            }
        }
        let made = configured.iter().map(|config| {
            let same = self.made.iter().find(|(before, _)| before == config).map(|(_, pool)| Arc::clone(pool));
            (config.clone(), same.unwrap_or_else(|| Arc::new(self.pool(config))))
        });
        self.made = made.collect::<Vec<_>>();
        self.groups.retain(|_, (group, turns)| group.strong_count() + turns.strong_count() > 0);
        self.seats.retain(|_, seats| Arc::strong_count(seats) > 1 || seats.taken() > 0);
        self.made.iter().map(|(_, pool)| Arc::clone(pool)).collect()
    }

    /// Pools that were made without it are made anew. Whoever changes a group still has its turn.
    fn has_lvm(&mut self, lvm: PathBuf) {
        self.lvm = Some(lvm);
        self.groups.values_mut().for_each(|(group, _)| *group = Weak::new());
        self.made.retain(|(config, _)| !is_lvm(config));
    }

    /// Tells the log what is wrong with the pools that were made last, without waiting for them.
    pub fn warn_of_problems(&self) {
        for (config, pool) in self.made.iter().cloned() {
            tokio::spawn(async move {
                let checked = pool.call(move |driver| Ok(check_pool(&config, driver).err().unwrap_or_default())).await;
                for problem in checked.unwrap_or_else(|refusal| vec![refusal.to_string()]) {
                    warn!("pool {:?}: {problem}", pool.name.as_str());
                }
            });
        }
    }

    fn pool(&mut self, config: &PoolConfig) -> Pool {
        let name = || config.name.clone();
        let turns = |count| Arc::new(Semaphore::new(count));
        let (driver, turns): (Arc<dyn Driver>, _) = match &config.backend {
            Backend::ProjectQuota { path, shares } => {
                let (promises, censuses) = (Arc::clone(&self.promises), Arc::clone(&self.censuses));
                let driver = ProjectQuota::new(name(), path.clone(), shares.clone(), promises, censuses);
                (Arc::new(driver), turns(TURNS_TOGETHER))
            }
            Backend::Lvm(lvm) => {
                let (group, turns) = self.group(lvm);
                let (volume, shares, thin) = (lvm.volume.clone(), lvm.shares.clone(), lvm.thin_pool.clone());
                let driver = Lvm::new(name(), group, volume, shares, thin, lvm.allow_any_growth);
                (Arc::new(driver), turns)
            }
            Backend::Image { path, shares, allow_any_growth } => {
                let overcommits = config.overcommit > 1.0;
                let images = Arc::clone(&self.images);
                let driver = Image::new(name(), path.clone(), shares.clone(), *allow_any_growth, overcommits, images);
                (Arc::new(driver), turns(TURNS))
            }
            Backend::Btrfs { path, shares } => {
                let driver = Btrfs::new(name(), path.clone(), shares.clone(), Arc::clone(&self.promises));
                (Arc::new(driver), turns(TURNS_TOGETHER))
            }
        };
        let seats = Arc::clone(self.seats.entry(name()).or_default());
        let named = config.backend.named();
        Pool::new(name(), driver, named, config.reserve, config.overcommit, turns, seats)
    }

    fn group(&mut self, lvm: &LvmConfig) -> (Arc<VolumeGroup>, Arc<Semaphore>) {
        let name = &lvm.volume_group;
        let (group, turns) = self.groups.entry(name.clone()).or_default();
        let new = || VolumeGroup::new(name.clone(), self.lvm.clone(), Arc::clone(&self.recorder));
        (shared(group, new), shared(turns, || Semaphore::new(1)))
    }
}

fn is_lvm(config: &PoolConfig) -> bool {
    matches!(config.backend, Backend::Lvm(_))
}

/// The one that others have, or a new one when none has it any more.
fn shared<T>(known: &mut Weak<T>, new: impl FnOnce() -> T) -> Arc<T> {
    known.upgrade().unwrap_or_else(|| {
        let new = Arc::new(new());
        *known = Arc::downgrade(&new);
        new
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bytes;

    #[test]
    fn pools_of_volumes_are_made_anew_when_lvm_is_there() {
        let backend = LvmConfig {
            volume_group: "vg".to_owned(),
            volume: "share-{share_id}".parse().unwrap(),
            shares: Vec::new(),
            thin_pool: None,
            allow_any_growth: false,
        };
        let config = PoolConfig {
            name: "vols".parse().unwrap(),
            backend: Backend::Lvm(backend),
            reserve: Bytes::ZERO,
            overcommit: 1.0,
        };
        let configured = [config];
        // It is not looked for: this node may have it.
        let mut maker = PoolMaker { lvm: Some(PathBuf::new()), ..PoolMaker::new(Arc::default()) };
        let before = maker.make(&configured).remove(0);
        let group = maker.groups["vg"].0.clone();
        assert!(Arc::ptr_eq(&before, &maker.make(&configured)[0]));
        maker.has_lvm(PathBuf::from("/usr/sbin/lvm"));
        let after = maker.make(&configured).remove(0);
        assert!(!Arc::ptr_eq(&before, &after) && !Weak::ptr_eq(&group, &maker.groups["vg"].0));
        assert!(Arc::ptr_eq(&before.turns, &after.turns), "two changes of a group at once");
        assert!(Arc::ptr_eq(&after, &maker.make(&configured)[0]));
    }

    #[test]
    fn a_pool_that_is_changed_or_comes_back_has_the_jobs_of_before() {
        let config = |reserve| PoolConfig {
            name: "home".parse().unwrap(),
            backend: Backend::ProjectQuota { path: "/nowhere/{share_id}".parse().unwrap(), shares: Vec::new() },
            reserve,
            overcommit: 1.0,
        };
        let mut maker = PoolMaker::new(Arc::default());
        let mut make = |configured: &[PoolConfig]| maker.make(configured);
        let before = make(&[config(Bytes::ZERO)]);
        let hangs = [before[0].seats.take(), before[0].seats.take()];
        let changed = make(&[config(Bytes::gib(1))]);
        assert!(!Arc::ptr_eq(&before[0], &changed[0]));
        assert_eq!(changed[0].seats.taken(), 2);
        drop((before, changed));
        make(&[]);
        make(&[]);
        let back = make(&[config(Bytes::ZERO)]);
        let another = back[0].seats.take();
        assert_eq!(back[0].seats.taken(), 3);
        drop((hangs, another));
        assert_eq!(back[0].seats.taken(), 0);
    }
}
