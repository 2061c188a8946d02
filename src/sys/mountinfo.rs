//! Where a file system is mounted and from which device: `/proc/self/mountinfo`, see proc(5).
//!
//! The parser is pure and takes any bytes: a line that it does not understand is skipped, since newer kernels may add
//! to the format.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::dev_t;
use nix::sys::stat::{fstat, makedev};

use super::errno;

/// One mount, as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u32,
    /// The mount that it is on; one that is not listed for the topmost.
    pub parent: u32,
    /// `st_dev` of the files in it.
    pub device: dev_t,
    /// Which directory of the file system is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    /// `xfs`, `ext4`.
    pub filesystem: OsString,
    /// The block device, for a file system that has one.
    pub source: PathBuf,
    /// Whether nothing can be written through any mount of its file system. Else this mount may be read-only all the same.
    pub all_read_only: bool,
    /// Whether ext4 goes by a copy of its superblock, as the option `sb=` has it.
    pub by_copy: bool,
}

/// The mounts that there are now.
///
/// # Errors
/// Those of reading `/proc`.
pub fn read() -> Result<Vec<Mount>, Errno> {
    Ok(parse(&fs::read("/proc/self/mountinfo").map_err(errno)?).collect())
}

/// The mount of the file system that holds an open file: of its root directory, if that is mounted anywhere.
///
/// # Errors
/// `ENOENT` when there is none, as for a file on a mount that was detached, and those of reading `/proc`.
pub fn of_fd<'m>(mounts: &'m [Mount], fd: BorrowedFd<'_>) -> Result<&'m Mount, Errno> {
    find(mounts, fstat(fd)?.st_dev, &path_of(fd)?).ok_or(Errno::ENOENT)
}

/// Where an open file is now, by a path without symbolic links. The kernel has it in memory.
///
/// # Errors
/// Those of reading `/proc`.
pub fn path_of(fd: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(errno)
}

/// The mount that a path without symbolic links leads to; mounts that others cover are passed by. Only the table is asked,
/// so that no disk can hang. `None` when none that is listed has the path, as where the root directory is no mount.
pub fn above<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    let on_the_way: Vec<&Mount> = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point)).collect();
    // Of those on one mount, the path comes first to that whose mount point is the shortest, and leaves for it.
    let first = |is_next: &dyn Fn(&Mount) -> bool| {
        let next = on_the_way.iter().copied().filter(|mount| is_next(mount));
        next.min_by_key(|mount| mount.mount_point.components().count())
    };
    let is_listed = |id: u32| on_the_way.iter().any(|mount| mount.id == id);
    let top = first(&|mount| mount.parent == mount.id || !is_listed(mount.parent));
    let on = |below: &&Mount| first(&|mount| mount.parent == below.id && mount.id != below.id);
    // As many steps as there are mounts: a table of nonsense has no end.
    std::iter::successors(top, on).take(on_the_way.len()).last()
}

/// The mount of a device that shows the most of it. Of several it is the nearest above the path, and of those at one
/// mount point the last, which is on top.
///
/// A bind mount may be nearer, such as the one that systemd makes for each of a service's `ReadWritePaths=`. But it is
/// not what is in fstab, and its top directory may have a quota of its own.
pub fn find<'m>(mounts: &'m [Mount], device: dev_t, path: &Path) -> Option<&'m Mount> {
    mounts.iter().filter(|mount| mount.device == device).max_by_key(|mount| {
        let length = |path: &Path| path.components().count();
        let nearness = path.starts_with(&mount.mount_point).then(|| length(&mount.mount_point));
        (Reverse(length(&mount.root)), nearness)
    })
}

/// Reads all lines that are well formed.
pub fn parse(text: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (id, parent) = (text()?.parse().ok()?, text()?.parse().ok()?);
    let (major, minor) = text()?.split_once(':')?;
    // makedev() of 32-bit halves cannot lose anything.
    let device = makedev(major.parse::<u32>().ok()?.into(), minor.parse::<u32>().ok()?.into());
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let _options = fields.next()?;
    // Any number of optional fields, ended by a hyphen.
    fields.find(|field| *field == b"-")?;
    let filesystem = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    // The first of them says `ro` or `rw`, before the options of its kind.
    let mut options = fields.next().unwrap_or_default().split(|byte| *byte == b',');
    let all_read_only = options.next() == Some(b"ro");
    let by_copy = options.any(|option| option.starts_with(b"sb="));
    let (root, mount_point, source) = (root.into(), mount_point.into(), source.into());
    Some(Mount { id, parent, device, root, mount_point, filesystem, source, all_read_only, by_copy })
}

/// Undoes the kernel's escapes: a space is `\040`, a tab `\011`, a line feed `\012`, a backslash `\134`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        (rest, _) = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *first == b'\\' => {
                (tail, bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')))
            }
            _ => (tail, bytes.push(*first)),
        };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    const TEXT: &[u8] = br"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 98:0 / /srv rw,noatime shared:2 master:1 - xfs /dev/ubda rw,prjquota
37 22 98:0 /in /srv/with\040space\134 rw - xfs /dev/ubda rw,prjquota
nonsense
38 22 98:x / /x rw - xfs /dev/x rw
39 22 0:5 / /dev rw - devtmpfs udev rw
";

    #[test]
    fn reads_what_proc_5_describes() {
        let mounts: Vec<_> = parse(TEXT).collect();
        assert_eq!(mounts.len(), 4);
        assert_eq!(
            mounts[2],
            Mount {
                id: 37,
                parent: 22,
                device: makedev(98, 0),
                root: "/in".into(),
                mount_point: r"/srv/with space\".into(),
                filesystem: "xfs".into(),
                source: "/dev/ubda".into(),
                all_read_only: false,
                by_copy: false,
            }
        );
        for (options, told) in [
            ("ro - xfs a rw,prjquota", (false, false)),
            ("ro - xfs a ro,prjquota", (true, false)),
            ("rw - ext4 a rw,sb=131072,errors=continue", (false, true)),
        ] {
            let line = format!("40 22 8:1 / /srv {options}");
            assert_eq!(parse(line.as_bytes()).next().map(|mount| (mount.all_read_only, mount.by_copy)), Some(told));
        }
    }

    #[test]
    fn finds_the_mount_of_the_whole_device_that_is_nearest() {
        let twice = b"40 22 98:0 / /srv/deep rw - xfs /dev/ubda rw\n41 22 98:0 / /mnt rw - xfs /dev/ubda rw\n";
        let find = |device, path: &str| {
            let mounts: Vec<Mount> = parse(TEXT).chain(parse(twice)).collect();
            find(&mounts, device, Path::new(path)).map(|mount| mount.mount_point.clone())
        };
        assert_eq!(find(makedev(98, 0), "/srv/shares"), Some("/srv".into()));
        assert_eq!(find(makedev(98, 0), r"/srv/with space\/shares"), Some("/srv".into()));
        assert_eq!(find(makedev(98, 0), "/srv/deep/shares"), Some("/srv/deep".into()));
        assert_eq!(find(makedev(8, 1), "/srv/shares"), Some("/".into()));
        assert_eq!(find(makedev(8, 2), "/srv/shares"), None);
    }

    #[test]
    fn a_path_leads_to_what_covers_it() {
        let deep = b"40 36 8:3 / /srv/a rw - ext4 a rw\n41 40 8:4 / /srv/a/b rw - ext4 b rw\n";
        let over = b"42 40 8:5 / /srv/a rw - ext4 c rw\n43 42 8:6 / /srv/a rw - ext4 d rw\n";
        let device = |text: &[&[u8]], path: &str| {
            let mounts: Vec<_> = text.iter().copied().flat_map(parse).collect();
            above(&mounts, Path::new(path)).map(|mount| mount.device)
        };
        for (path, found) in [
            ("/", (8, 1)),
            ("/srvc", (8, 1)),
            ("/srv", (98, 0)),
            ("/srv/shares/a", (98, 0)),
            (r"/srv/with space\/shares", (98, 0)),
            ("/srv/a/b/c", (8, 4)),
            ("/dev", (0, 5)),
        ] {
            assert_eq!(device(&[TEXT, deep], path), Some(makedev(found.0, found.1)), "{path}");
        }
        // They lie on the first, one on the other, and hide what is mounted in it.
        assert_eq!(device(&[TEXT, deep, over], "/srv/a/b/c"), Some(makedev(8, 6)));
        // Below a root directory that is no mount.
        assert_eq!(device(&[deep], "/srv"), None);
        assert_eq!(device(&[deep], "/srv/a/b"), Some(makedev(8, 4)));
        // Nonsense has an end.
        let ring = b"1 2 8:1 / / rw - ext4 a rw\n2 1 8:2 / / rw - ext4 a rw\n3 3 8:3 / / rw - ext4 a rw\n";
        assert_eq!(device(&[ring], "/srv"), Some(makedev(8, 3)));
    }

    #[test]
    fn finds_the_mount_of_an_open_file() {
        let proc = fs::File::open("/proc").unwrap();
        assert_eq!(of_fd(&read().unwrap(), proc.as_fd()).unwrap().mount_point, Path::new("/proc"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            parse(&bytes).count();
        }

        #[test]
        fn any_mounts_have_one_above_or_none(numbers in prop::collection::vec((0_u32..5, 0_u32..5, 0_usize..4), 0..8)) {
            let mount = |(id, parent, depth): (u32, u32, usize)| {
                let mount_point = PathBuf::from(format!("/{}", "a/".repeat(depth)));
                let (root, filesystem, source) = ("/".into(), "xfs".into(), "/dev/a".into());
                Mount { id, parent, device: 1, root, mount_point, filesystem, source, all_read_only: false, by_copy: false }
            };
            let mounts: Vec<_> = numbers.into_iter().map(mount).collect();
            let found = above(&mounts, Path::new("/a/a/b"));
            prop_assert!(found.is_none_or(|mount| Path::new("/a/a/b").starts_with(&mount.mount_point)));
        }

        #[test]
        fn never_panics_on_near_misses(line in r"1 1 [0-9:]{1,12} [/\\0-9]{0,6} [/\\0-9]{0,6} rw( -)? x.{0,4}") {
            parse(line.as_bytes()).count();
        }

        #[test]
        fn unescapes_what_the_kernel_escapes(name: Vec<u8>) {
            let mut escaped = Vec::new();
            for byte in &name {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    _ => escaped.push(*byte),
                }
            }
            prop_assert_eq!(unescape(&escaped).into_vec(), name);
        }
    }
}
