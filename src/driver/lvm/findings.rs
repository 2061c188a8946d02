//! What can be wrong with a share's volume, in words, each with the commands that heal it.
//!
//! The order matters: the first blocking problem is what an extend is refused with.

use std::path::Path;

use super::Lvm;
use super::volume::{self, Volume};
use crate::driver::filesystem::Device;
use crate::driver::{Problem, Sizes};
use crate::model::{Refusal, ShareId};

impl Lvm {
    /// What LVM's own report says against growing the volume, or that it stays suspended.
    pub(super) fn problems(&self, share: ShareId, volume: &Volume, is_suspended: bool) -> Vec<Problem> {
        let group = self.group.name();
        let place = format!("{group}/{}", volume.name);
        let mut problems = Vec::new();
        let mut block = |refusal, remedy| problems.push(Problem::blocking(refusal, remedy));

        if volume.is_partial {
            let problem =
                format!("volume group {group} lacks a physical volume, and LVM changes nothing in it until then");
            block(self.not_mounted(problem), format!("vgs -o +devices {group}, and bring the missing device back"));
        }
        if is_suspended {
            let problem = format!("logical volume {place} is suspended: whatever reads or writes it waits");
            let node = volume::node(group, &volume.name);
            block(self.not_ready(share, problem), self.resume(&node, &place));
        } else if !volume.is_active {
            let (refusal, remedy) = self.not_active(share, &place);
            block(refusal, remedy);
        }
        if volume.is_locked {
            let problem =
                format!("logical volume {place} is being moved by pvmove, and LVM resizes it only afterwards");
            let remedy = format!("lvs -a {group} shows how far pvmove is; pvmove --abort ends it");
            block(self.not_ready(share, problem), remedy);
        }
        if volume.is_merging {
            let problem = format!("a snapshot is merged into {place}, which will have its content and its size");
            let remedy = format!(
                "wait until lvs -a {group} shows it no more; it waits itself while the volume is in use: unmount that, \
                 lvchange -an {place} && lvchange -ay {place}, and mount it again"
            );
            block(self.not_ready(share, problem), remedy);
        }
        if volume.has_role("thickorigin") {
            let remedy = format!("remove its snapshots: lvs -S 'origin={}' {group}, then lvremove", volume.name);
            block(Refusal::HasSnapshot { location: place.clone().into() }, remedy);
        }
        if volume.rounding.is_none() || volume.has_role("thicksnapshot") {
            let what = self.unsupported_what(volume);
            block(Refusal::Unsupported { what }, "move the share to another volume".to_owned());
        }
        if let Some(thin) = &self.thin {
            if volume.thin_pool.as_deref() != Some(&thin.name) {
                let problem = format!("{place} is not in the thin pool {}", thin.name);
                let remedy = "set thin_pool of the pool in growd.toml to the one that it is in".to_owned();
                block(Refusal::Unsupported { what: problem }, remedy);
            }
        } else if let Some(pool) = &volume.thin_pool {
            let what = format!("{place}, which is thin, in a pool of thick volumes");
            block(Refusal::Unsupported { what }, format!("add thin_pool = {pool:?} to the pool in growd.toml"));
        }
        problems
    }

    pub(super) fn not_active(&self, share: ShareId, place: &str) -> (Refusal, String) {
        let problem = format!("logical volume {place} is not active");
        (self.not_ready(share, problem), format!("lvchange -ay {place}, and mount it"))
    }

    /// What resumes a device and all that it lies on in the group: an lvextend that was killed has suspended them all and left
    /// larger tables there. LVM's metadata need not know of these sizes, so they are cleared, and the refresh takes the sizes
    /// that it has. What lies below comes first: mirrors and thin pools write to it before they let go of a table.
    fn resume(&self, node: &Path, place: &str) -> String {
        let group = volume::doubled(self.group.name());
        let devices = format!("lsblk -nrso NAME {} | grep ^{group}- | tac", node.display());
        format!("for d in $({devices}); do dmsetup clear $d; dmsetup resume $d; done; lvchange --refresh {place}")
    }

    /// As when the table of an lvextend that was killed is used all the same: LVM may give what is behind the recorded size
    /// to another volume.
    pub(super) fn larger_than_recorded(&self, share: ShareId, volume: &Volume, device: &Device) -> Problem {
        let (group, Volume { name, size: recorded, .. }) = (self.group.name(), volume);
        let (place, size) = (format!("{group}/{name}"), device.size);
        let problem = format!("the kernel has {size} of logical volume {place}, and LVM's metadata only {recorded}");
        let (refresh, extend) =
            (format!("lvchange --refresh {place}"), format!("lvextend --size {}b {place}", size.get()));
        let remedy = match device.sizes() {
            Sizes::Volume { filesystem: Some(filesystem), .. } if filesystem <= *recorded => {
                // A refresh would use a larger table that was loaded, though what it lies on gets smaller (Linux 6.12).
                if volume.segment_type.starts_with("raid") { extend } else { refresh }
            }
            // What is behind the recorded size is in use, and the extents that LVM takes should be the same.
            _ => {
                let node = volume::node(group, name);
                format!("{extend} (if that changes what dmsetup table {} shows, its end is lost)", node.display())
            }
        };
        Problem::blocking(self.not_ready(share, problem), remedy)
    }

    /// A thin pool that is nearly full or has failed: what is written into it may be lost, so nothing more is promised. Of
    /// one that is suspended nothing can be read.
    pub(super) fn critical(&self, thin_pool: &Volume, is_suspended: bool) -> Option<Problem> {
        let thin = self.thin.as_ref()?;
        let place = format!("{}/{}", self.group.name(), thin_pool.name);
        if is_suspended {
            let problem = format!("thin pool {place} is suspended: whatever reads or writes its volumes waits");
            let node = volume::thin_pool_node(self.group.name(), &thin_pool.name);
            return Some(Problem::blocking(self.not_mounted(problem), self.resume(&node, &place)));
        }
        let over = |percent: Option<f64>, most| percent.is_some_and(|percent| percent >= most);
        // The kernel tells no percentages of one that has failed.
        let is_unknown = thin_pool.is_active && thin_pool.use_of_thin_pool().is_none();
        let has_failed = is_unknown || ["failed", "metadata_read_only"].contains(&thin_pool.health.as_str());
        let is_full =
            over(thin_pool.data_percent, thin.max_data) || over(thin_pool.metadata_percent, thin.max_metadata);
        if !has_failed && !is_full {
            return None;
        }
        let percent = |percent: Option<f64>| percent.map_or_else(|| "?".to_owned(), |percent| percent.to_string());
        let (data, metadata) = (percent(thin_pool.data_percent), percent(thin_pool.metadata_percent));
        let (max_data, max_metadata) = (thin.max_data, thin.max_metadata);
        let (problem, remedy) = if has_failed {
            let health = if thin_pool.health.is_empty() { "unknown" } else { &thin_pool.health };
            (
                format!("it has failed (health {health}, data {data} %, metadata {metadata} %)"),
                // A repair writes into as much as the metadata has now: of metadata that is full it fails.
                format!(
                    "unmount and lvchange -an its volumes and {place}; if its metadata was full, lvextend --poolmetadatasize \
                     +SIZE {place}; lvchange -ay {place}; if it fails still, lvchange -an {place} and lvconvert --repair {place}"
                ),
            )
        } else {
            (
                format!(
                    "data {data} % (from {max_data} % on nothing is extended), metadata {metadata} % (from \
                     {max_metadata} % on)"
                ),
                format!("lvextend -L +SIZE {place}, or lvextend --poolmetadatasize +SIZE {place} for its metadata"),
            )
        };
        let refusal = Refusal::ThinPoolCritical {
            thin_pool: place,
            problem,
            data_percent: data.into(),
            metadata_percent: metadata.into(),
            max_data_percent: max_data.to_string().into(),
            max_metadata_percent: max_metadata.to_string().into(),
        };
        Some(Problem::blocking(refusal, remedy))
    }

    fn unsupported_what(&self, volume: &Volume) -> String {
        let kind = if volume.has_role("thicksnapshot") { "thick snapshot" } else { &volume.segment_type };
        format!("a logical volume of type {kind} ({}/{})", self.group.name(), volume.name)
    }
}
