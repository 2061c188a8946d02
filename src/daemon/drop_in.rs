//! What the unit must let growd do beyond what every growd does: a drop-in for growd.service, made from the configuration.
//!
//! The unit makes the whole file system read-only for growd (`ProtectSystem=strict`), and to set a quota or to grow a
//! file system is to write to its mount, in the eyes of the kernel. What is mounted while growd runs is writable until
//! growd starts again; what is named here is so always. What is being mounted just while systemd makes growd's view may be
//! missed, so the unit waits for what is mounted at each boot.
//!
//! Whole mounts are named. Of a folder in one systemd would make a mount in growd's view, which would hold the file system
//! there when everybody else has it unmounted, and growd would go on looking at it, whatever is mounted in its place.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::{Backend, Config, LvmConfig};
use crate::driver::lvm::doubled;
use crate::sys::mountinfo::{self, Mount};

/// Folders that the unit hides with `ProtectHome=yes`.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// The unit's `StateDirectory`.
const STATE: &str = "/var/lib/growd";

/// The text of the drop-in. Shares on volumes and images are mounted anywhere; the folders where they are mounted now are
/// named, since more of them will be mounted beside.
///
/// # Errors
/// Those of reading `/proc/self/mountinfo`.
pub fn drop_in(config: &Config) -> std::io::Result<String> {
    Ok(text(config, &mountinfo::read()?, backing_file))
}

fn text(config: &Config, mounts: &[Mount], backing_file: impl Fn(&Path) -> Option<PathBuf>) -> String {
    let mut text = "# Made by `growd check-config --drop-in`: what growd needs of its unit by the configuration.\n\
        [Service]\n"
        .to_owned();
    let places = places(config, mounts, backing_file);
    for (place, what) in &places {
        // A pool that is not mounted yet does not keep growd from starting.
        let _ = writeln!(text, "# {what}\nReadWritePaths={}", escaped(&format!("-{}", place.display())));
    }
    let addresses: Vec<IpAddr> =
        [config.metrics, config.tcp.as_ref().map(|tcp| tcp.address)].iter().flatten().map(SocketAddr::ip).collect();
    let is_local = config.traces.iter().map(|url| is_local(url)).chain(addresses.iter().map(IpAddr::is_loopback));
    // The unit has no network at all.
    if let Some(all_local) = is_local.reduce(|one, other| one && other) {
        let others = if all_local { "localhost" } else { "any" };
        let _ = writeln!(
            text,
            "# [tcp], [metrics], [traces]\nPrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6\n\
             IPAddressAllow={others}"
        );
    }
    let files = config.tcp.iter().filter_map(|tcp| tcp.tls.as_ref());
    let mut files = files.flat_map(|files| [&files.certificate, &files.key, &files.ca]);
    let is_hidden = |path: &PathBuf| HOMES.iter().any(|home| path.starts_with(home));
    if places.iter().any(|(place, _)| is_hidden(place)) || files.any(is_hidden) {
        text.push_str("ProtectHome=no\n");
    }
    // Who exports spans connects once there are some.
    let must_bind = addresses.iter().any(|address| !address.is_loopback() && !address.is_unspecified());
    text + &unit_section(places.iter().filter_map(|(place, _)| holder(place, mounts)), must_bind)
}

/// What growd writes to beyond what the unit allows already, each once and with what it is for.
fn places(
    config: &Config,
    mounts: &[Mount],
    backing_file: impl Fn(&Path) -> Option<PathBuf>,
) -> Vec<(PathBuf, String)> {
    let mut places = Vec::new();
    if !config.state_dir.starts_with(STATE) {
        places.push((config.state_dir.clone(), "state_dir".to_owned()));
    }
    for pool in &config.pools {
        let directories = pool.backend.directories();
        let is_on_share = |mount: &&Mount| match &pool.backend {
            Backend::ProjectQuota { .. } | Backend::Btrfs { .. } => false,
            Backend::Image { .. } => {
                backing_file(&mount.source).is_some_and(|file| directories.iter().any(|place| file.starts_with(place)))
            }
            Backend::Lvm(lvm) => is_volume_of(&mount.source, lvm),
        };
        let mut of_pool = folders(mounts.iter().filter(is_on_share));
        of_pool.extend(directories.iter().map(|place| (*place).to_owned()));
        let of_pool = of_pool.iter().map(|place| holder(place, mounts).unwrap_or(place).to_owned());
        places.extend(of_pool.map(|place| (place, format!("pool {}", pool.name))));
    }
    let mut seen = BTreeSet::new();
    places.retain(|(place, _)| seen.insert(place.clone()));
    places
}

/// What growd waits for: the mounts that its places are on, and the network where it has an address of its own.
fn unit_section<'a>(mount_points: impl Iterator<Item = &'a Path>, must_bind: bool) -> String {
    let mut section = String::new();
    let units: BTreeSet<String> = mount_points.map(mount_unit).collect();
    if !units.is_empty() {
        let units = units.into_iter().collect::<Vec<_>>().join(" ");
        let _ = writeln!(section, "# One that does not come holds growd up until systemd gives it up.\nAfter={units}");
    }
    if must_bind {
        section.push_str(
            "# growd does not start without its address.\n\
             Wants=network-online.target\nAfter=network-online.target\n",
        );
    }
    if section.is_empty() { section } else { "[Unit]\n".to_owned() + &section }
}

/// Where the file system is mounted that a path is on, unless that is the root.
fn holder<'a>(place: &Path, mounts: &'a [Mount]) -> Option<&'a Path> {
    let points = mounts.iter().map(|mount| mount.mount_point.as_path()).filter(|point| place.starts_with(point));
    points.max_by_key(|point| point.as_os_str().len()).filter(|point| *point != Path::new("/"))
}

/// The unit of a mount, named as in systemd.unit(5) under "String Escaping for Inclusion in Unit Names".
fn mount_unit(mount_point: &Path) -> String {
    let mut name = String::new();
    for (index, byte) in mount_point.as_os_str().as_bytes().iter().skip(1).enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(*byte)),
            _ => drop(write!(name, "\\x{byte:02x}")),
        }
    }
    name + ".mount"
}

/// Whether a URL names this node by its loopback address; a name would have to be looked up elsewhere.
fn is_local(url: &str) -> bool {
    ["http://127.", "http://[::1]"].iter().any(|local| url.starts_with(local))
}

/// The folders that these are mounted in; one that is mounted just below the root stands for itself.
fn folders<'a>(mounts: impl Iterator<Item = &'a Mount>) -> BTreeSet<PathBuf> {
    let folder = |mount: &Mount| match mount.mount_point.parent() {
        Some(parent) if parent != Path::new("/") => parent.to_owned(),
        _ => mount.mount_point.clone(),
    };
    mounts.map(folder).collect()
}

/// `/dev/mapper/vg0-share--ID`: a hyphen in a name is written twice, one between two names once.
fn is_volume_of(source: &Path, lvm: &LvmConfig) -> bool {
    let group = format!("/dev/mapper/{}-", doubled(&lvm.volume_group));
    let Some(volume) = source.to_str().and_then(|source| source.strip_prefix(&group)) else { return false };
    let volume = volume.replace("--", "-");
    lvm.volume.share_of(&volume).is_some() || lvm.shares.iter().any(|(_, name)| *name == volume)
}

/// The file on a loop device.
fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_str().filter(|name| name.starts_with("loop"))?;
    let file = fs::read_to_string(format!("/sys/class/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(file.trim_end_matches('\n')))
}

/// A word as systemd.syntax(7) and systemd.unit(5) want it: with blanks and quotes in double quotes, per cent doubled.
fn escaped(word: &str) -> String {
    let plain = word.replace('%', "%%");
    if plain.contains([' ', '"', '\'', '\\']) {
        return format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, point: &str) -> Mount {
        Mount {
            id: 1,
            parent: 1,
            device: 1,
            root: "/".into(),
            mount_point: point.into(),
            filesystem: "xfs".into(),
            source: source.into(),
            all_read_only: false,
            by_copy: false,
        }
    }

    #[test]
    fn every_pool_is_named_once_with_the_folders_of_its_mounts() {
        let config = r#"
            state_dir = "/data/growd"
            [[pool]]
            name = "home"
            driver = "project-quota"
            path = "/srv/my 100%/{share_id}"
            [[pool]]
            name = "vols"
            driver = "lvm"
            volume_group = "vg-0"
            volume = "share-{share_id}"
            [[pool]]
            name = "thin"
            driver = "lvm"
            volume_group = "vg-0"
            volume = "thin-{share_id}"
            thin_pool = "pool0"
            [[pool]]
            name = "images"
            driver = "image"
            path = "/srv/images/{share_id}.img"
            [[share]]
            id = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a12"
            pool = "vols"
            volume = "old"
        "#;
        let config = Config::parse(config, "growd.toml").unwrap();
        let id = "6d0ad3f4--7c5e--4c0e--9a3e--0c2d2f7c9a11";
        let mounts = [
            mount(&format!("/dev/mapper/vg--0-share--{id}"), "/vols/a"),
            mount("/dev/mapper/vg--0-old", "/old"),
            mount(&format!("/dev/mapper/vg--0-thin--{id}"), "/vols/b"),
            mount("/dev/mapper/vg--0-root", "/"),
            mount(&format!("/dev/mapper/vg--1-share--{id}"), "/other/a"),
            mount("/dev/sdb", "/srv/my 100%"),
            mount("/dev/sdc", "/srv"),
            mount("/dev/loop7", "/images/a"),
            mount("/dev/loop8", "/iso/a"),
        ];
        let backing = |source: &Path| (source == Path::new("/dev/loop7")).then(|| PathBuf::from("/srv/images/x.img"));
        let expected = "# Made by `growd check-config --drop-in`: what growd needs of its unit by the configuration.\n\
            [Service]\n\
            # state_dir\nReadWritePaths=-/data/growd\n\
            # pool home\nReadWritePaths=\"-/srv/my 100%%\"\n\
            # pool vols\nReadWritePaths=-/old\n\
            # pool vols\nReadWritePaths=-/vols\n\
            # pool images\nReadWritePaths=-/images\n\
            # pool images\nReadWritePaths=-/srv\n\
            [Unit]\n# One that does not come holds growd up until systemd gives it up.\nAfter=old.mount srv-my\\x20100\\x25.mount srv.mount\n";
        assert_eq!(text(&config, &mounts, backing), expected);
    }

    #[test]
    fn mounts_are_named_as_systemd_names_them() {
        for (point, unit) in [
            ("/srv/home", "srv-home.mount"),
            ("/.a/.b", "\\x2ea-.b.mount"),
            ("/with-hyphen/ü:_1", "with\\x2dhyphen-\\xc3\\xbc:_1.mount"),
        ] {
            assert_eq!(mount_unit(Path::new(point)), unit);
        }
    }

    #[test]
    fn a_port_needs_a_network() {
        let pool = "[[pool]]\nname = \"a\"\ndriver = \"btrfs\"\npath = \"/a/{share_id}\"\n";
        let tcp = "[tcp]\nlisten = \"[::]:7070\"\ninsecure = true\n";
        for (table, expected) in [("", false), ("[metrics]\n", true), (tcp, true)] {
            let config = Config::parse(&format!("{table}{pool}"), "growd.toml").unwrap();
            let text = text(&config, &[], |_| None);
            assert_eq!(
                text.contains("PrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6\n"),
                expected,
                "{text}"
            );
            assert_eq!(text.contains("IPAddressAllow=any"), table.contains("::"), "{text}");
        }
        assert!(is_local("http://127.0.0.1:4317") && is_local("http://[::1]:4317"));
        assert!(!is_local("http://collector:4317") && !is_local("http://10.0.0.1:4317"));
    }

    /// growd starts before there is an address, and ten starts that fail are the last.
    #[test]
    fn an_address_of_the_network_is_waited_for() {
        let pool = "[[pool]]\nname = \"a\"\ndriver = \"btrfs\"\npath = \"/a/{share_id}\"\n";
        for (table, expected) in [
            ("[tcp]\nlisten = \"192.0.2.7:7070\"\ninsecure = true\n", true),
            ("[metrics]\nlisten = \"[2001:db8::7]:9420\"\n", true),
            ("[tcp]\nlisten = \"0.0.0.0:7070\"\ninsecure = true\n[metrics]\n", false),
            ("[tcp]\nlisten = \"[::]:7070\"\ninsecure = true\n", false),
        ] {
            let config = Config::parse(&format!("{table}{pool}"), "growd.toml").unwrap();
            let text = text(&config, &[mount("/dev/sdb", "/a")], |_| None);
            let waits = "Wants=network-online.target\nAfter=network-online.target\n";
            assert!(text.contains("\nAfter=a.mount\n"), "{text}");
            assert_eq!(text.ends_with(waits), expected, "{text}");
            assert_eq!(text.matches("[Unit]").count(), 1, "{text}");
        }
    }

    #[test]
    fn shares_below_home_are_seen() {
        let config = "[[pool]]\nname = \"home\"\ndriver = \"btrfs\"\npath = \"/home/shares/{share_id}\"\n";
        let config = Config::parse(config, "growd.toml").unwrap();
        let text = text(&config, &[], |_| None);
        assert!(text.ends_with("ReadWritePaths=-/home/shares\nProtectHome=no\n"), "{text}");
    }

    #[test]
    fn certificates_of_root_are_seen() {
        for (key, seen) in [("/etc/growd/node.key", false), ("/root/node.key", true)] {
            let config = format!(
                "[tcp]\nlisten = \"127.0.0.1:7070\"\ncertificate = \"/c\"\nkey = \"{key}\"\nclient_ca = \"/ca\"\n\
                 [[pool]]\nname = \"a\"\ndriver = \"btrfs\"\npath = \"/a/{{share_id}}\"\n"
            );
            let text = text(&Config::parse(&config, "growd.toml").unwrap(), &[], |_| None);
            assert_eq!(text.contains("ProtectHome=no\n"), seen, "{text}");
        }
    }
}
