//! What can be wrong with a share's quota, in words, each with the commands that heal it.
//!
//! The order matters: the first blocking problem is what an extend is refused with, and a later one often follows from
//! an earlier one.

use std::cell::LazyCell;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::driver::Problem;
use crate::driver::shell::Quoted;
use crate::model::{Bytes, PoolName, Reason, Refusal};
use crate::sys::file_system::Kind;
use crate::sys::fsxattr::Attributes;
use crate::sys::mountinfo;
use crate::sys::quotactl::{LIMIT_BLOCK, Quota, QuotaState};

/// All that was read of a share.
pub(super) struct Case<'a> {
    pub location: &'a Path,
    pub fd: BorrowedFd<'a>,
    pub kind: Kind,
    /// Whether it can be changed through its mount.
    pub writable: bool,
    pub state: QuotaState,
    pub attributes: Attributes,
    /// Another share with the same project.
    pub twin: Option<PathBuf>,
    /// `None` when there is no project to read it of, or when nothing is counted.
    pub quota: Option<Quota>,
}

/// Mount point and device for commands; words to fill in where they cannot be found.
struct Mount {
    point: String,
    device: String,
    /// Where else the file system is mounted: as long as it is, no mount of it is a fresh one.
    others: Vec<String>,
}

impl Mount {
    fn of(fd: BorrowedFd<'_>) -> Self {
        let found = mountinfo::read().and_then(|all| Ok((mountinfo::of_fd(&all, fd)?.clone(), all)));
        let Ok((mount, all)) = found else {
            return Self { point: "MOUNT_POINT".to_owned(), device: "DEVICE".to_owned(), others: Vec::new() };
        };
        let others = all.iter().filter(|other| other.device == mount.device && other.id != mount.id);
        Self {
            point: Quoted(&mount.mount_point).to_string(),
            device: Quoted(&mount.source).to_string(),
            // What was mounted last may be in what was mounted first.
            others: others.rev().map(|other| Quoted(&other.mount_point).to_string()).collect(),
        }
    }

    /// Mounts it afresh with project quotas besides the options that it has, and what is to be done before that.
    fn mount_afresh(&self, before: &str) -> String {
        let Self { point, device, others } = self;
        let first: String = others.iter().map(|other| format!("umount {other} && ")).collect();
        let again: String = others.iter().rev().map(|other| format!(", mount it again at {other}")).collect();
        format!(
            "o=$(findmnt -n -f -o OPTIONS -M {point}) && {first}umount {point} && {before}mount -o \"$o,prjquota\" {device} \
             {point}{again}"
        )
    }

    /// What is counted can be limited at any time. Otherwise XFS takes quota options only at a fresh mount, and ext4 needs its
    /// quota feature.
    fn turn_on(&self, kind: Kind, state: QuotaState) -> String {
        let Self { point, device, .. } = self;
        let fstab = "and put prjquota among its options in /etc/fstab";
        let tune = format!("tune2fs -O project,quota -Q prjquota {device}");
        match kind {
            Kind::Xfs if state.accounting => format!("xfs_quota -x -c \"enable -p\" {point}, {fstab}"),
            Kind::Ext4 if state.accounting => format!("quotaon -P {point}, {fstab}"),
            // Nobody unmounts that.
            Kind::Xfs if point == "/" => "boot with rootflags=prjquota among the kernel's parameters".to_owned(),
            Kind::Ext4 if point == "/" => format!("boot from another disk, {tune}, {fstab}"),
            Kind::Xfs => format!("{}, {fstab}", self.mount_afresh("")),
            Kind::Ext4 => format!("{}, {fstab}", self.mount_afresh(&format!("{tune} && "))),
        }
    }
}

/// How the quotas of the file system of an open file are turned on; `None` for that of the root directory, which nobody
/// unmounts.
pub(super) fn turn_on(fd: BorrowedFd<'_>, kind: Kind, state: QuotaState) -> Option<String> {
    let mount = Mount::of(fd);
    (mount.point != "/").then(|| mount.turn_on(kind, state))
}

/// An error has ended all writing to an ext4, which its mount need not show.
pub(super) fn stopped(pool: &PoolName) -> Refusal {
    let problem = "an error has stopped the journal of its file system (dmesg)".to_owned();
    Refusal::NotMounted { pool: pool.clone(), problem }
}

/// What heals that of the ext4 of an open file.
pub(super) fn start_again(fd: BorrowedFd<'_>) -> String {
    let Mount { point, device, .. } = Mount::of(fd);
    format!("umount {point} && e2fsck -f {device}, then mount it again")
}

/// What is wrong with the quotas of the file system that a pool or a share is on.
pub(super) fn not_enforced(location: &Path, fd: BorrowedFd<'_>, kind: Kind, state: QuotaState) -> Option<Problem> {
    let problem = match state {
        QuotaState { accounting: true, enforcement: true } => return None,
        QuotaState { accounting: true, .. } => "use is counted, but limits do not hold",
        QuotaState { .. } => "project quota is off on its file system",
    };
    let refusal = Refusal::QuotaNotEnforced { location: location.to_path_buf(), problem: problem.to_owned() };
    Some(Problem::blocking(refusal, Mount::of(fd).turn_on(kind, state)))
}

impl Case<'_> {
    pub fn problems(&self) -> Vec<Problem> {
        let mount = LazyCell::new(|| Mount::of(self.fd));
        let location = self.location.to_path_buf();
        let id = self.attributes.project_id;
        let mut problems = Vec::new();

        // ext4 has its quotas off as long as it is read-only.
        if self.writable {
            problems.extend(not_enforced(&location, self.fd, self.kind, self.state));
        }
        if id == 0 || !self.attributes.inherits {
            let problem = if id == 0 {
                "its files count for project 0".to_owned()
            } else {
                format!("new files do not inherit project {id}")
            };
            let refusal = Refusal::NoProjectId { location: location.clone(), problem };
            let project = if id == 0 { "UNUSED_ID".to_owned() } else { id.to_string() };
            problems.push(Problem::blocking(refusal, self.give_project(&mount, &project)));
        }
        if let Some(other) = self.twin.clone() {
            let refusal = Refusal::ProjectIdShared { location: location.clone(), project_id: id, other };
            let remedy = format!("give one of them an id of its own: {}", self.give_project(&mount, "UNUSED_ID"));
            problems.push(Problem::blocking(refusal, remedy));
        }
        if let Some(quota) = self.quota.filter(|quota| quota.hard == Bytes::ZERO) {
            let refusal = Refusal::Unlimited { location: location.clone(), quota: format!("project id {id}") };
            problems.push(Problem::blocking(refusal, self.set_limits(&mount, quota, None, quota.soft)));
        }
        if let Some(quota) = self.quota.filter(|quota| quota.soft != Bytes::ZERO && quota.soft < quota.hard) {
            let message = format!(
                "{} has a soft limit of {} below its hard limit of {}: writes fail there once the grace time is over",
                location.display(),
                quota.soft,
                quota.hard
            );
            let remedy = self.set_limits(&mount, quota, Some(quota.hard), Bytes::ZERO);
            problems.push(Problem::warning(Reason::SoftLimitFirst, message, remedy));
        }
        problems
    }

    fn give_project(&self, mount: &Mount, id: &str) -> String {
        let path = Quoted(self.location);
        match self.kind {
            Kind::Xfs => format!("xfs_quota -x -c \"project -s -p {path} {id}\" {}", mount.point),
            Kind::Ext4 => format!("chattr -R -p {id} +P {path}"),
        }
    }

    /// `None` is for the reader to choose, in KiB.
    fn set_limits(&self, mount: &Mount, quota: Quota, hard: Option<Bytes>, soft: Bytes) -> String {
        let blocks = |size: Bytes| size.get() / LIMIT_BLOCK;
        let hard = hard.map_or_else(|| "KIB".to_owned(), |hard| blocks(hard).to_string());
        let (id, soft, point, [inode_soft, inode_hard]) = (quota.id, blocks(soft), &mount.point, quota.inodes);
        match self.kind {
            Kind::Xfs => format!("xfs_quota -x -c \"limit -p bsoft={soft}k bhard={hard}k {id}\" {point}"),
            // It sets the limits of inodes as well.
            Kind::Ext4 => format!("setquota -P {id} {soft} {hard} {inode_soft} {inode_hard} {point}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_unmount_the_root_directory() {
        let root = Mount { point: "/".to_owned(), device: "/dev/sda1".to_owned(), others: Vec::new() };
        for kind in [Kind::Xfs, Kind::Ext4] {
            for accounting in [false, true] {
                let remedy = root.turn_on(kind, QuotaState { accounting, enforcement: false });
                assert!(!remedy.contains("umount"), "{remedy}");
            }
        }
    }
}
