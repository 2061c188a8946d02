//! What the metadata of an ordinary group tell, so that `lvs` and `vgs` need not be asked: these look at every block device
//! of the node first. Where only they can tell, they are asked.

use std::collections::HashMap;

use super::Lvm;
use super::metadata::Metadata;
use super::report::Row;
use super::suspension::Patience;
use super::volume::{self, Group, Volume};
use crate::driver::DriverError;
use crate::driver::filesystem::Mounts;
use crate::model::{Refusal, ShareId};

/// The volumes of some shares at one moment.
#[derive(Default)]
pub(super) struct Volumes {
    pub ordinary: HashMap<ShareId, Volume>,
    /// As far as the metadata told of it.
    pub group: Option<Group>,
    /// What `lvs` reports of the others, and of the thin pool if the pool has one.
    pub rows: Vec<Row>,
    pub mounts: Mounts,
    pub patience: Patience,
}

impl From<Vec<Row>> for Volumes {
    /// Those that `lvs` reports.
    fn from(rows: Vec<Row>) -> Self {
        Self { rows, ..Self::default() }
    }
}

impl Lvm {
    /// What `read` makes of the group's metadata as they are now. `None` when these cannot be had.
    fn by_metadata<T>(&self, read: impl FnOnce(&Metadata<'_>) -> Option<T>) -> Result<Option<T>, Refusal> {
        if self.group.knows_no_disks() {
            self.read_group()?;
        }
        let Some((text, disks)) = self.group.metadata(&self.pool)? else { return Ok(None) };
        let Some(metadata) = Metadata::read(&text, self.group.name()) else { return Ok(None) };
        if metadata.disks() != Some(disks) {
            self.group.forget_disks();
            return Ok(None);
        }
        Ok(read(&metadata))
    }

    /// A share's volume that needs no `lvs`: active, and ordinary by the metadata.
    pub(super) fn ordinary(&self, share: ShareId) -> Result<Option<Volume>, Refusal> {
        Ok(self.all_ordinary(&[share])?.0.remove(&share))
    }

    fn all_ordinary(&self, shares: &[ShareId]) -> Result<(HashMap<ShareId, Volume>, Option<Group>), Refusal> {
        let active = |share: &ShareId| {
            let name = self.name_of(*share);
            let mapper = volume::mapper(&volume::node(self.group.name(), &name)).ok()?;
            Some((*share, name, mapper.uuid))
        };
        // Those of a thin pool are not ordinary.
        let shares = if self.thin.is_some() { &[] } else { shares };
        let active: Vec<(ShareId, String, String)> = shares.iter().filter_map(active).collect();
        if active.is_empty() {
            return Ok((HashMap::new(), None));
        }
        let read = |metadata: &Metadata<'_>| {
            let ordinary = active.iter().filter_map(|(share, name, mapper_uuid)| {
                let (volume, uuid) = metadata.ordinary(name)?;
                (uuid == *mapper_uuid).then_some((*share, volume))
            });
            Some((ordinary.collect(), metadata.group))
        };
        Ok(self.by_metadata(read)?.unwrap_or_default())
    }

    /// Looks up the volumes of some shares. Of several `lvs` is asked once, if at all: it reads the metadata of the whole
    /// group for each question.
    ///
    /// # Errors
    /// NOT_MOUNTED when the group is not there.
    pub(super) fn look_for(&self, shares: &[ShareId]) -> Result<Volumes, DriverError> {
        let (ordinary, group) = self.all_ordinary(shares)?;
        let rows = match shares {
            _ if shares.iter().all(|share| ordinary.contains_key(share)) => Vec::new(),
            [share] => self.read_share(*share)?,
            _ => self.lvs(volume::FIELDS, &[])?,
        };
        Ok(Volumes { ordinary, group, rows, ..Volumes::default() })
    }

    /// The names of the group's volumes.
    ///
    /// # Errors
    /// NOT_MOUNTED when the group is not there.
    pub(super) fn read_names(&self) -> Result<Vec<String>, DriverError> {
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        if let Some(names) = self.by_metadata(|metadata| metadata.names().map(owned))? {
            return Ok(names);
        }
        let rows = self.lvs("lv_name", &[])?;
        Ok(rows.iter().filter_map(|row| row.text("lv_name").ok().map(str::to_owned)).collect())
    }

    /// # Errors
    /// NOT_MOUNTED when the group is not there.
    pub(super) fn group_now(&self) -> Result<Group, DriverError> {
        match self.by_metadata(|metadata| metadata.group)? {
            Some(group) => Ok(group),
            None => Ok(self.read_group()?),
        }
    }
}
