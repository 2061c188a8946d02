//! The size of a mounted file system as its own tools tell it.

use std::path::Path;

use super::{lab, text};

/// In bytes, by the name of its kind.
pub fn size_by_tool(kind: &str, node: &Path, mount_point: &Path) -> u64 {
    let mount_point = text(mount_point);
    match kind {
        "xfs" => {
            let told = lab::run("xfs_io", &["-r", "-c", "statfs", mount_point]);
            number(&told, "geom.bsize =") * number(&told, "geom.datablocks =")
        }
        "ext4" => {
            let told = lab::run("dumpe2fs", &["-h", text(node)]);
            number(&told, "Block size:") * number(&told, "Block count:")
        }
        "btrfs" => number(&lab::run("btrfs", &["filesystem", "show", "--raw", mount_point]), "size "),
        other => panic!("no size of {other}"),
    }
}

/// The number behind a name.
fn number(told: &str, name: &str) -> u64 {
    let at = told.find(name).unwrap_or_else(|| panic!("no {name:?} in {told}")) + name.len();
    let digits: String = told[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
