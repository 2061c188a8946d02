//! What LVM says of a logical volume, and what the kernel says of its device.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::stat;

use super::report::Row;
use super::rounding::Rounding;
use crate::model::{Bytes, Refusal, ThinUse};
use crate::sys::block_device::{self, Mapper};

/// The fields of `lvs` that [`Volume::read`] reads.
pub const FIELDS: &str = "lv_name,lv_size,lv_active,lv_role,lv_allocation_locked,lv_health_status,\
                          segtype,stripes,data_stripes,data_copies,pool_lv,data_percent,metadata_percent,\
                          vg_extent_size,vg_partial,lv_attr";

/// The first of the attributes in lvs(8).
const ORIGIN_OF_A_MERGE: char = 'O';

#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub name: String,
    /// What LVM's metadata say; the kernel has the last word.
    pub size: Bytes,
    pub is_active: bool,
    /// pvmove is at work on it: LVM resizes it only afterwards.
    pub is_locked: bool,
    /// What LVM finds wrong with it, as `failed` or `metadata_read_only` of a thin pool; mostly empty.
    pub health: String,
    /// Comma-separated, as `public,origin,thickorigin`.
    pub role: String,
    /// Of its last segment, which the next one is made like.
    pub segment_type: String,
    pub rounding: Option<Rounding>,
    /// Name of the thin pool that it is in.
    pub thin_pool: Option<String>,
    pub data_percent: Option<f64>,
    pub metadata_percent: Option<f64>,
    /// A snapshot takes its place, at its next activation if not before.
    pub is_merging: bool,
    /// A physical volume of its group is missing.
    pub is_partial: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub size: Bytes,
    /// Where volumes may be put: `pvchange -xn` forbids it, as before a physical volume is taken away.
    pub free: Bytes,
    pub extent: Bytes,
}

/// The fields of `vgs` that [`Group::read`] reads, and those of its physical volumes, each of which has a row.
pub const GROUP_FIELDS: &str = "vg_size,vg_extent_size,vg_exported,pv_name,pv_mda_used_count,pv_allocatable,pv_free";

impl Group {
    /// Of the rows of a report, which has one for each physical volume.
    ///
    /// # Errors
    /// INTERNAL when a field is missing or not what it should be.
    pub fn read(rows: &[Row]) -> Result<Option<Self>, Refusal> {
        let Some(row) = rows.first() else { return Ok(None) };
        let mut free = Bytes::ZERO;
        for disk in rows {
            if !disk.text("pv_allocatable")?.is_empty() {
                free = free.saturating_add(disk.bytes("pv_free")?);
            }
        }
        Ok(Some(Self { size: row.bytes("vg_size")?, free, extent: row.bytes("vg_extent_size")? }))
    }
}

impl Volume {
    /// Of the rows of a report, which has one for each segment.
    ///
    /// # Errors
    /// As [`Group::read`].
    pub fn read(rows: &[Row], name: &str) -> Result<Option<Self>, Refusal> {
        let mut last = None;
        for row in rows {
            if row.text("lv_name")? == name {
                last = Some(row);
            }
        }
        let Some(row) = last else { return Ok(None) };
        let extent = row.bytes("vg_extent_size")?;
        let segment_type = row.text("segtype")?.to_owned();
        let count = |field| row.number::<u64>(field);
        let (stripes, data_stripes, copies) = (count("stripes")?, count("data_stripes")?, count("data_copies")?);
        Ok(Some(Self {
            name: name.to_owned(),
            size: row.bytes("lv_size")?,
            is_active: row.text("lv_active")? == "active",
            is_locked: !row.text("lv_allocation_locked")?.is_empty(),
            health: row.text("lv_health_status")?.to_owned(),
            role: row.text("lv_role")?.to_owned(),
            rounding: Rounding::of(&segment_type, extent, stripes, data_stripes, copies),
            segment_type,
            thin_pool: Some(row.text("pool_lv")?.to_owned()).filter(|pool| !pool.is_empty()),
            data_percent: row.percent("data_percent")?,
            metadata_percent: row.percent("metadata_percent")?,
            is_merging: row.text("lv_attr")?.starts_with(ORIGIN_OF_A_MERGE),
            is_partial: !row.text("vg_partial")?.is_empty(),
        }))
    }

    /// How full a thin pool is; `None` when the kernel does not tell.
    pub fn use_of_thin_pool(&self) -> Option<ThinUse> {
        let (data_percent, metadata_percent) = self.data_percent.zip(self.metadata_percent)?;
        Some(ThinUse { data_percent, metadata_percent })
    }

    pub fn has_role(&self, role: &str) -> bool {
        self.role.split(',').any(|own| own == role)
    }
}

/// A name as it is part of another in `/dev/mapper`: a hyphen in it is written twice.
pub fn doubled(name: &str) -> String {
    name.replace('-', "--")
}

/// The volume's node in `/dev/mapper`, where the hyphen between two names is written once.
pub fn node(group: &str, volume: &str) -> PathBuf {
    PathBuf::from(format!("/dev/mapper/{}-{}", doubled(group), doubled(volume)))
}

/// The node of what the volumes of a thin pool lie on. That of its own name lies on it as they do.
pub fn thin_pool_node(group: &str, thin_pool: &str) -> PathBuf {
    PathBuf::from(format!("{}-tpool", node(group, thin_pool).display()))
}

/// Whether device-mapper has the thin pool, or without one any volume of the group, on disks that are there. It has what
/// is active, and keeps what is in use when the disks are gone.
pub fn is_active(group: &str, thin_pool: Option<&str>) -> bool {
    let is_whole = |node: &Path| stat(node).is_ok_and(|found| block_device::is_whole(found.st_rdev));
    if let Some(thin_pool) = thin_pool {
        // Without volumes it has no other node than that of its name.
        return is_whole(&thin_pool_node(group, thin_pool)) || is_whole(&node(group, thin_pool));
    }
    let of_group = format!("{}-", doubled(group));
    let is_its = |name: &str| name.strip_prefix(&of_group).is_some_and(|volume| !volume.starts_with('-'));
    let mut entries = fs::read_dir("/dev/mapper").into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_str().is_some_and(is_its) && is_whole(&entry.path()))
}

/// What device-mapper says of the device of a node.
///
/// # Errors
/// `ENOENT` when there is no such device, or it is not device-mapper's.
pub fn mapper(node: &Path) -> Result<Mapper, Errno> {
    block_device::mapper(stat(node)?.st_rdev)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::lvm::report::rows;

    /// As LVM 2.03.16 printed it.
    const STRIPED: &str = "  LVM2_LV_NAME='str' LVM2_LV_SIZE='427819008' LVM2_LV_ACTIVE='active' \
        LVM2_LV_ROLE='public,origin,thickorigin' LVM2_LV_ALLOCATION_LOCKED='' \
        LVM2_LV_HEALTH_STATUS='' LVM2_SEGTYPE='striped' LVM2_STRIPES='3' LVM2_DATA_STRIPES='3' \
        LVM2_DATA_COPIES='1' LVM2_POOL_LV='' LVM2_DATA_PERCENT='' LVM2_METADATA_PERCENT='' \
        LVM2_VG_EXTENT_SIZE='4194304' LVM2_VG_PARTIAL='' LVM2_LV_ATTR=''";

    #[test]
    fn reads_the_last_segment() {
        let linear = STRIPED.replace("striped", "linear").replace("='3'", "='1'");
        let printed = format!("{linear}\n{STRIPED}\n");
        let volume = Volume::read(&rows(&printed), "str").unwrap().unwrap();
        assert_eq!(volume.rounding.unwrap().unit, Bytes::mib(12));
        assert!(volume.is_active && !volume.is_partial);
        assert!(volume.has_role("thickorigin") && !volume.has_role("thick"));
        assert_eq!(volume.thin_pool, None);
        assert_eq!(Volume::read(&rows(&printed), "other"), Ok(None));
        assert!(Volume::read(&rows(&STRIPED.replace("'427819008'", "'much'")), "str").is_err());
    }

    #[test]
    fn how_full_a_thin_pool_is_takes_both_figures() {
        let used = |data: &str, metadata: &str| {
            let printed = STRIPED.replace("DATA_PERCENT=''", &format!("DATA_PERCENT='{data}'"));
            let printed =
                printed.replace(&format!("METADATA_PERCENT='{data}'"), &format!("METADATA_PERCENT='{metadata}'"));
            Volume::read(&rows(&printed), "str").unwrap().unwrap().use_of_thin_pool()
        };
        assert_eq!(used("5.5", "7"), Some(ThinUse { data_percent: 5.5, metadata_percent: 7.0 }));
        assert_eq!([used("", ""), used("5.5", ""), used("", "7")], [None, None, None]);
    }

    #[test]
    fn doubles_hyphens() {
        assert_eq!(node("vg-0", "a-b"), Path::new("/dev/mapper/vg--0-a--b"));
        assert_eq!(thin_pool_node("vg-0", "a-b"), Path::new("/dev/mapper/vg--0-a--b-tpool"));
    }
}
