//! Logical volumes, thick or thin: a share's size is that of the file system on its volume, or of a volume without one.
//!
//! LVM is asked what only LVM knows; sizes are the kernel's. A volume is grown by `lvextend` alone: the file system is a
//! step of its own, so that whatever a crash leaves half done is seen by its sizes and finished.

mod findings;
mod group;
pub(crate) mod metadata;
mod ordinary;
pub(crate) mod report;
mod rounding;
mod suspension;
pub(crate) mod volume;

use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::stat;
use parking_lot::Mutex;

pub use self::group::{VolumeGroup, find_lvm};
use self::ordinary::Volumes;
use self::report::Row;
pub use self::volume::doubled;
use self::volume::{Group, Volume};
use super::filesystem::{Device, Mounts};
use super::path_template::NameTemplate;
use super::{
    Assessment, Driver, DriverError, Observed, Outcome, Problem, Shares, Sizes, Space, SpaceId, Step, answer_each,
    nothing_blocks, system,
};
use crate::model::{Bytes, DriverKind, PoolName, ProjectLabel, Refusal, ShareId, ThinPool};

/// Options of every report: sizes in bytes, values with the names of their fields, no waiting for LVM's locks. What the
/// node's lvm.conf(5) says of the form of reports is for people.
const REPORT: &str = "--nolocking --units b --nosuffix --noheadings --nameprefixes --config 'report { quoted=1 \
                      separator=\" \" list_item_separator=\",\" binary_values_as_numeric=0 columns_as_rows=0 \
                      compact_output=0 compact_output_cols=\"\" } log { prefix=\"  \" command_names=0 }'";

/// The unit of sizes in the metadata, and in which `lvextend --size` takes bytes.
const SECTOR: u64 = 512;

/// A pool of logical volumes in one volume group.
pub struct Lvm {
    pool: PoolName,
    group: Arc<VolumeGroup>,
    template: NameTemplate,
    /// Volumes whose names the template does not give.
    explicit: Vec<(ShareId, String)>,
    thin: Option<ThinPool>,
    /// Whether a file system may grow beyond what its makers had in mind.
    allow_any_growth: bool,
    /// What growd's last lvextend has given, until it is put to use: when it has ended, LVM has that size on its disks. One
    /// job at a time changes a group.
    given: Mutex<Option<(ShareId, Bytes)>>,
}

/// A share's volume at one moment.
struct Share {
    volume: Volume,
    /// `None` when something blocks it, which `observed` tells.
    device: Option<Device>,
    observed: Observed,
}

impl Lvm {
    pub fn new(
        pool: PoolName,
        group: Arc<VolumeGroup>,
        template: NameTemplate,
        explicit: Vec<(ShareId, String)>,
        thin: Option<ThinPool>,
        allow_any_growth: bool,
    ) -> Self {
        Self { pool, group, template, explicit, thin, allow_any_growth, given: Mutex::default() }
    }

    fn name_of(&self, share: ShareId) -> String {
        let explicit = self.explicit.iter().find(|(id, _)| *id == share);
        explicit.map_or_else(|| self.template.name_of(share), |(_, name)| name.clone())
    }

    fn location_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/dev/{}/{name}", self.group.name()))
    }

    fn not_mounted(&self, problem: String) -> Refusal {
        Refusal::NotMounted { pool: self.pool.clone(), problem }
    }

    fn not_ready(&self, share: ShareId, problem: String) -> Refusal {
        Refusal::ShareNotMounted { share, pool: self.pool.clone(), problem }
    }

    /// # Errors
    /// [`Refusal::NotMounted`] when the group is not there.
    fn read_group(&self) -> Result<Group, Refusal> {
        let name = self.group.name();
        let command = format!("vgs {REPORT} -o {} {name}", volume::GROUP_FIELDS);
        let (rows, words) = self.group.ask(&self.pool, &command)?;
        self.group.learn_disks(&rows);
        // Its volumes are in no report then.
        if let Some(row) = rows.first()
            && !row.text("vg_exported")?.is_empty()
        {
            return Err(self.not_mounted(format!("volume group {name} is exported; vgimport {name}")));
        }
        Group::read(&rows)?.ok_or_else(|| self.not_mounted(format!("volume group {name}: {words}")))
    }

    /// Fields that `lvs` reports of some volumes, or of all of the group when none is named.
    ///
    /// # Errors
    /// [`Refusal::NotMounted`] when the group is not there.
    fn lvs(&self, fields: &str, names: &[&str]) -> Result<Vec<Row>, Refusal> {
        let group = self.group.name();
        let places: Vec<String> = names.iter().map(|name| format!("{group}/{name}")).collect();
        let places = if places.is_empty() { group.to_owned() } else { places.join(" ") };
        let (rows, _) = self.group.ask(&self.pool, &format!("lvs {REPORT} -o {fields} {places}"))?;
        if rows.is_empty() {
            // It is not said in a form for programs whether the group or the volume is missing.
            self.read_group()?;
        }
        Ok(rows)
    }

    fn find(&self, share: ShareId) -> Result<Share, DriverError> {
        self.find_among(&self.look_for(&[share])?, share)
    }

    fn find_among(&self, volumes: &Volumes, share: ShareId) -> Result<Share, DriverError> {
        if let Some(volume) = volumes.ordinary.get(&share) {
            return self.describe(share, volume.clone(), None, volumes);
        }
        let thin_pool = match &self.thin {
            Some(thin) => Volume::read(&volumes.rows, &thin.name)?,
            None => None,
        };
        let volume = Volume::read(&volumes.rows, &self.name_of(share))?.ok_or(Refusal::ShareNotFound { share })?;
        self.describe(share, volume, thin_pool, volumes)
    }

    /// What `lvs` reports of a share's volume, and of the thin pool if the pool has one.
    fn read_share(&self, share: ShareId) -> Result<Vec<Row>, Refusal> {
        let name = self.name_of(share);
        let mut names = vec![name.as_str()];
        names.extend(self.thin.as_ref().map(|thin| thin.name.as_str()));
        self.lvs(volume::FIELDS, &names)
    }

    fn describe(
        &self,
        share: ShareId,
        volume: Volume,
        thin_pool: Option<Volume>,
        Volumes { mounts, patience, .. }: &Volumes,
    ) -> Result<Share, DriverError> {
        let name = &volume.name;
        let location = self.location_of(name);
        let group = self.group.name();
        let is_suspended = patience.is_outlasted_by(&volume::node(group, name));
        let mut problems = self.problems(share, &volume, is_suspended);
        let pool_node = thin_pool.as_ref().map(|thin_pool| volume::thin_pool_node(group, &thin_pool.name));
        let is_pool_suspended = pool_node.is_some_and(|node| patience.is_outlasted_by(&node));
        let critical = thin_pool.and_then(|thin_pool| self.critical(&thin_pool, is_pool_suspended));
        let waits = is_suspended || is_pool_suspended;
        let looked = if volume.is_active && !waits { self.look_among(share, mounts).map(Some) } else { Ok(None) };
        let device = match looked.map_err(DriverError::into_problem) {
            Ok(device) => device,
            Err(Ok(problem)) => {
                problems.push(problem);
                None
            }
            // What is in a thin pool that has failed cannot be read.
            Err(Err(_)) if critical.is_some() => None,
            Err(Err(error)) => return Err(error),
        };
        if let Some(device) = &device {
            // Of a thick snapshot LVM tells another size.
            let unrecorded = if problems.is_empty() { self.unrecorded(share, &volume, device)? } else { None };
            let obstacle = || device.obstacle(&location).or_else(|| device.half_grown(&location));
            problems.extend(unrecorded.or_else(obstacle));
        }
        problems.extend(critical);
        let (sizes, used) = (device.as_ref().map(Device::sizes), device.as_ref().and_then(Device::used));
        let filesystem = device.as_ref().map_or("", Device::filesystem);
        let observed = Observed { location, project: ProjectLabel::default(), filesystem, sizes, used, problems };
        Ok(Share { volume, device, observed })
    }

    /// A device that is larger than LVM knows of. An extend is in the metadata before the kernel has it, so those that were
    /// read before the device are read again: somebody may have extended the volume in between.
    fn unrecorded(&self, share: ShareId, volume: &Volume, device: &Device) -> Result<Option<Problem>, Refusal> {
        if device.size <= volume.size {
            return Ok(None);
        }
        let now = self.read_volume(&volume.name)?;
        Ok(now.filter(|now| now.size < device.size).map(|now| self.larger_than_recorded(share, &now, device)))
    }

    fn read_volume(&self, name: &str) -> Result<Option<Volume>, Refusal> {
        Volume::read(&self.lvs(volume::FIELDS, &[name])?, name)
    }

    /// Before the end of a device is put to use: after a crash it may be larger than it was when the extend was accepted, and
    /// LVM not know of it. What else LVM thinks does not stop an extend whose volume has grown already.
    fn check_recorded(&self, share: ShareId, device: &Device) -> Result<(), DriverError> {
        if self.given.lock().take() == Some((share, device.size)) {
            return Ok(());
        }
        let name = self.name_of(share);
        let volume = match self.ordinary(share)? {
            Some(volume) => Some(volume),
            None => self.read_volume(&name)?,
        };
        let Some(volume) = volume else { return Ok(()) };
        Ok(nothing_blocks(self.unrecorded(share, &volume, device)?)?)
    }

    fn grow_filesystem(&self, share: ShareId, to: Bytes) -> Result<Outcome, DriverError> {
        let device = self.look_at(share)?;
        self.check_recorded(share, &device)?;
        device.grow_filesystem(to)
    }

    /// The volume's device and what is on it, by the kernel alone.
    fn look_at(&self, share: ShareId) -> Result<Device, DriverError> {
        self.look_among(share, &Mounts::default())
    }

    fn look_among(&self, share: ShareId, mounts: &Mounts) -> Result<Device, DriverError> {
        let name = self.name_of(share);
        let node = volume::node(self.group.name(), &name);
        let device = match stat(&node) {
            Err(Errno::ENOENT) => {
                // It may have been removed or deactivated since the extend was accepted.
                let volume = self.read_volume(&name)?.ok_or(Refusal::ShareNotFound { share })?;
                if !volume.is_active {
                    let (refusal, remedy) = self.not_active(share, &format!("{}/{name}", self.group.name()));
                    return Err(DriverError::unusable(refusal, remedy));
                }
                let refusal = self.not_ready(share, format!("{} does not exist", node.display()));
                return Err(DriverError::unusable(refusal, format!("vgmknodes {}", self.group.name())));
            }
            result => result.map_err(system("stat", &node))?.st_rdev,
        };
        Device::look(share, &self.pool, device, &node, &self.location_of(&name), mounts)
    }

    /// Asks LVM what it thinks only where it matters: each question reads the metadata of the whole group, which in a
    /// large one takes as long as the change.
    fn grow_volume(&self, share: ShareId, to: Bytes) -> Result<Outcome, DriverError> {
        let name = self.name_of(share);
        if self.thin.is_some() {
            // LVM would go on growing the volumes of a thin pool that has no room for what is written to them.
            self.find(share)?.observed.extendable()?;
        }
        let device = self.look_at(share)?;
        let before = device.size;
        // LVM rounds it up to whole extents and stripes.
        let wanted = device.least_size_for(to).rounded_up_to(SECTOR);
        if wanted <= before {
            return Ok(Outcome::AlreadyThere { size: before });
        }
        nothing_blocks(device.obstacle(&self.location_of(&name)))?;
        let command = format!("lvextend --yes --size {}b {}/{name}", wanted.get(), self.group.name());
        let mut words = self.group.change(&self.pool, &command)?;
        let mut after = self.look_at(share)?.size;
        if after == before && self.group.forget_disks() {
            // The group may have got a disk since it was looked at.
            words = self.group.change(&self.pool, &command)?;
            after = self.look_at(share)?.size;
        }
        if after >= wanted {
            // Of one that failed half way the kernel may tell the new size all the same: dm-raid of Linux 6.12 has that of a
            // table which nobody uses.
            *self.given.lock() = words.contains("successfully resized").then_some((share, after));
            return Ok(Outcome::Changed { from: before, to: after });
        }
        let reported = Volumes::from(self.read_share(share)?);
        let Share { volume, observed, .. } = self.find_among(&reported, share)?;
        observed.extendable()?;
        let (missing, free) = (wanted.saturating_sub(before), self.group_now()?.free);
        let asked = volume.rounding.map_or(missing, |rounding| rounding.space(missing));
        // Else one of its disks is full that a stripe or a copy should be on, which LVM's words tell.
        if words.contains("nsufficient") && free < asked {
            return Err(Refusal::PoolFull { pool: self.pool.clone(), free, reserved: Bytes::ZERO, asked }.into());
        }
        let problem = format!("lvextend to {wanted} left {} at {after}: {words}", observed.location.display());
        Err(Refusal::Internal { problem }.into())
    }

    fn verify(&self, share: ShareId) -> Result<Bytes, DriverError> {
        self.look_at(share)?.flush()?;
        let device = self.look_at(share)?;
        if device.mounted.is_none() {
            // Of a volume without a file system nothing may have been left to do.
            self.check_recorded(share, &device)?;
        }
        Ok(device.sizes().usable())
    }

    /// The volumes of some shares, and the space that they grow into.
    fn look_with_space(&self, shares: &[ShareId]) -> Result<(Volumes, Space), DriverError> {
        let Some(thin) = &self.thin else {
            let volumes = self.look_for(shares)?;
            let group = volumes.group.map_or_else(|| self.group_now(), Ok)?;
            return Ok((volumes, self.space_of(group)));
        };
        let volumes = Volumes::from(self.lvs(volume::FIELDS, &[])?);
        let space = self.space_of_thin_pool(thin, &volumes)?;
        Ok((volumes, space))
    }

    fn assess(
        &self,
        volumes: &Volumes,
        space: Space,
        (share, target): (ShareId, Bytes),
    ) -> Result<Assessment, DriverError> {
        let Share { volume, device, observed } = self.find_among(volumes, share)?;
        let growth = match (device, volume.rounding) {
            (Some(device), Some(rounding)) => {
                let before = device.size;
                let wanted = rounding.round_up(before, device.least_size_for(target));
                let checked = device.check_growth(wanted, self.allow_any_growth);
                checked.map(|()| rounding.space(wanted.saturating_sub(before)))
            }
            _ => Ok(Bytes::ZERO),
        };
        Ok(Assessment { observed, growth, space })
    }

    /// By a report of all volumes of the group.
    fn space_of_thin_pool(&self, thin: &ThinPool, volumes: &Volumes) -> Result<Space, DriverError> {
        let Volumes { rows, patience, .. } = volumes;
        let missing = || self.not_mounted(format!("there is no thin pool {} in {}", thin.name, self.group.name()));
        let thin_pool = Volume::read(rows, &thin.name)?.ok_or_else(missing)?;
        let mut promised = Bytes::ZERO;
        for row in rows {
            if row.text("pool_lv")? == thin.name {
                promised = promised.saturating_add(row.bytes("lv_size")?);
            }
        }
        let is_suspended = patience.is_outlasted_by(&volume::thin_pool_node(self.group.name(), &thin.name));
        let thin_use = thin_pool.use_of_thin_pool();
        let used = thin_use.map_or(thin_pool.size, |used| thin_pool.size.scaled(used.data_percent / 100.0));
        Ok(Space {
            id: SpaceId(format!("vg {}/{}", self.group.name(), thin.name)),
            filesystem: "",
            total: thin_pool.size,
            free: thin_pool.size.saturating_sub(used),
            promised,
            thin: thin_use,
            problems: self.critical(&thin_pool, is_suspended).into_iter().collect(),
        })
    }

    fn space_of(&self, group: Group) -> Space {
        Space {
            id: SpaceId(format!("vg {}", self.group.name())),
            filesystem: "",
            total: group.size,
            free: group.free,
            promised: group.size.saturating_sub(group.free),
            thin: None,
            problems: Vec::new(),
        }
    }
}

impl Driver for Lvm {
    fn kind(&self) -> DriverKind {
        DriverKind::Lvm
    }

    fn location(&self) -> String {
        format!("/dev/{}/{}", self.group.name(), self.template)
    }

    fn shares(&self, project: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
        // The name of a volume says no project.
        if project.is_some_and(|project| !project.is_empty()) {
            return Ok(Shares::from([]));
        }
        let names = self.read_names()?;
        let found = names.iter().filter_map(|name| self.template.share_of(name));
        let explicit = self.explicit.iter().filter(|(_, name)| names.contains(name)).map(|(share, _)| *share);
        let mut shares: Vec<ShareId> = found.chain(explicit).collect();
        shares.sort_unstable();
        // One with a volume of its own may have another by the convention.
        shares.dedup();
        Ok(shares.into())
    }

    fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>> {
        answer_each(self.look_for(shares), shares, |volumes, share| Ok(self.find_among(volumes, *share)?.observed))
    }

    fn assess_all(&self, asked: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>> {
        let shares: Vec<ShareId> = asked.iter().map(|(share, _)| *share).collect();
        answer_each(self.look_with_space(&shares), asked, |(volumes, space), asked| {
            self.assess(volumes, space.clone(), *asked)
        })
    }

    fn measure(&self, share: ShareId) -> Result<Sizes, DriverError> {
        Ok(self.look_at(share)?.sizes())
    }

    fn space(&self) -> Result<Space, DriverError> {
        match &self.thin {
            Some(thin) => self.space_of_thin_pool(thin, &Volumes::from(self.lvs(volume::FIELDS, &[])?)),
            None => Ok(self.space_of(self.group_now()?)),
        }
    }

    /// Not asked of LVM, whose commands admins look back at, where the kernel knows it: something of the group is active.
    fn check_mounted(&self) -> Result<(), DriverError> {
        let thin_pool = self.thin.as_ref().map(|thin| thin.name.as_str());
        if volume::is_active(self.group.name(), thin_pool) { Ok(()) } else { self.space().map(drop) }
    }

    fn apply(&self, share: ShareId, step: Step) -> Result<Outcome, DriverError> {
        match step {
            Step::GrowVolume { to } => self.grow_volume(share, to),
            Step::GrowFilesystem { to } => self.grow_filesystem(share, to),
            Step::SetLimit { .. } | Step::LowerLimit { .. } => Err(step.unknown_to(self.kind())),
        }
    }

    fn verify_all(&self, shares: &[ShareId]) -> Vec<Result<Bytes, DriverError>> {
        shares.iter().map(|share| self.verify(*share)).collect()
    }
}
