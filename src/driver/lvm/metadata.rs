//! The metadata of a volume group, which LVM writes as text: what they say of an ordinary volume.
//!
//! Before `lvs` reads them it looks at every block device of the node, which in a group of a thousand volumes takes as
//! long as a change. `pvck --dump metadata`, pvck(8), looks at one physical volume alone. So the usual case is answered
//! from the metadata: a linear or striped volume in a group without damage. Of all else, and of whatever is not
//! understood, the answer is `None`, and `lvs` is asked. The text has the form of the files of vgcfgbackup(8).

use super::SECTOR;
use super::rounding::Rounding;
use super::volume::{Group, Volume};
use crate::model::Bytes;

/// The line before and behind the metadata.
const FRAME: &str = "\n  ---\n";

/// The metadata in what `pvck --dump metadata` printed, unless it complained of anything.
pub fn dumped(printed: &str) -> Option<&str> {
    let (told, rest) = printed.split_once(FRAME)?;
    let (text, end) = rest.rsplit_once(FRAME)?;
    let is_whole = told.starts_with("  metadata text at ") && !told.contains('\n') && end.is_empty();
    is_whole.then_some(text)
}

/// What was printed besides metadata.
pub fn without_metadata(printed: &str) -> &str {
    printed.split_once(FRAME).map_or(printed, |(told, _)| told)
}

/// One volume group.
pub struct Metadata<'a> {
    section: Section<'a>,
    /// `None` for one that lacks anything, or that not this node alone decides on.
    pub group: Option<Group>,
}

impl<'a> Metadata<'a> {
    pub fn read(text: &'a str, group: &str) -> Option<Self> {
        let root = Section::read(&mut Words(text), 0)?;
        let known = root.one("contents")? == "Text Format Volume Group" && root.one("version")? == "1";
        let (_, section) = root.sections.into_iter().find(|(name, _)| *name == group)?;
        known.then(|| Self { group: ordinary_group(&section), section })
    }

    /// How many physical volumes it has.
    pub fn disks(&self) -> Option<usize> {
        Some(self.section.section("physical_volumes")?.sections.len())
    }

    fn volumes(&self) -> Option<&[(&'a str, Section<'a>)]> {
        Some(&self.section.section("logical_volumes")?.sections)
    }

    /// The volumes that are not part of others, as far as `lvs` would say the same.
    pub fn names(&self) -> Option<Vec<&'a str>> {
        self.group?;
        let mut names = Vec::new();
        for (name, volume) in self.volumes()? {
            if volume.list("status")?.contains(&"VISIBLE") {
                names.push(*name);
            }
        }
        Some(names)
    }

    /// A thick volume that is in use by no other, in a group that lacks nothing, and what device-mapper knows it by.
    /// Only the kernel knows whether it is active: it is said to be.
    pub fn ordinary(&self, name: &str) -> Option<(Volume, String)> {
        let group = self.group?;
        let bytes = |extents: u64| Some(Bytes::new(extents.checked_mul(group.extent.get())?));
        let volumes = self.volumes()?;
        let mut others = volumes.iter().filter(|(other, _)| *other != name).flat_map(|(_, other)| &other.sections);
        let (_, volume) = volumes.iter().find(|(own, _)| *own == name)?;
        let is_plain = volume.list("status")? == ["READ", "WRITE", "VISIBLE"] && volume.list("flags")?.is_empty();
        if !is_plain || others.any(|(_, segment)| segment.values.iter().any(|(_, value)| value.contains(&name))) {
            return None;
        }
        let mut size: u64 = 0;
        let mut stripes = 0;
        for (_, segment) in &volume.sections {
            // They are in the order of the volume, and the last one is what the next is made like.
            if segment.one("type")? != "striped" || segment.number("start_extent")? != size {
                return None;
            }
            size = size.checked_add(segment.number("extent_count")?)?;
            stripes = segment.number("stripe_count")?;
        }
        let segment_type = if stripes == 1 { "linear" } else { "striped" };
        let mapper_uuid = format!("LVM-{}", [self.section.one("id")?, volume.one("id")?].concat().replace('-', ""));
        let ordinary = Volume {
            name: name.to_owned(),
            size: bytes(size)?,
            is_active: true,
            is_locked: false,
            health: String::new(),
            role: "public".to_owned(),
            segment_type: segment_type.to_owned(),
            rounding: Rounding::of(segment_type, group.extent, stripes, stripes, 1),
            thin_pool: None,
            data_percent: None,
            metadata_percent: None,
            is_merging: false,
            is_partial: false,
        };
        Some((ordinary, mapper_uuid))
    }
}

fn ordinary_group(section: &Section<'_>) -> Option<Group> {
    let usual = |status: &&str| ["RESIZEABLE", "READ", "WRITE"].contains(status);
    let is_shared = section.list("system_id").is_some() || section.list("lock_type").is_some();
    if is_shared || !section.list("status")?.iter().all(usual) || !section.list("flags")?.is_empty() {
        return None;
    }
    let disks = section.section("physical_volumes")?;
    let (mut extents, mut allocatable): (u64, u64) = (0, 0);
    for (_, disk) in &disks.sections {
        // One that is missing has a flag.
        if !disk.list("flags")?.is_empty() {
            return None;
        }
        extents = extents.checked_add(disk.number("pe_count")?)?;
        if takes_more(disk)? {
            allocatable = allocatable.checked_add(disk.number("pe_count")?)?;
        }
    }
    let mut taken: u64 = 0;
    for (_, volume) in &section.section("logical_volumes")?.sections {
        if volume.sections.len() as u64 != volume.number("segment_count")? {
            return None;
        }
        for (_, segment) in &volume.sections {
            taken = taken.checked_add(extents_of(segment, disks)?)?;
        }
    }
    let extent = section.number("extent_size")?.checked_mul(SECTOR)?;
    let bytes = |extents: u64| Some(Bytes::new(extents.checked_mul(extent)?));
    let free = bytes(allocatable.checked_sub(taken)?)?;
    Some(Group { size: bytes(extents)?, free, extent: Bytes::new(extent) })
}

/// Whether volumes may be put on a physical volume: `pvchange -xn` forbids it, as before one is taken away.
fn takes_more(disk: &Section<'_>) -> Option<bool> {
    match disk.list("status")? {
        ["ALLOCATABLE"] => Some(true),
        [] => Some(false),
        _ => None,
    }
}

/// How much a segment takes of the physical volumes that take more. Those that lie on other volumes take nothing
/// themselves.
fn extents_of(segment: &Section<'_>, disks: &Section<'_>) -> Option<u64> {
    let is_disk = |name: &str| disks.section(name).is_some();
    match segment.one("type")? {
        "striped" => {
            let (stripes, extents) = (segment.list("stripes")?, segment.number("extent_count")?);
            let count = segment.number("stripe_count")?;
            if count == 0 || extents % count > 0 || stripes.len() as u64 != count.checked_mul(2)? {
                return None;
            }
            let mut taken: u64 = 0;
            for name in stripes.iter().step_by(2) {
                if takes_more(disks.section(name)?)? {
                    taken = taken.checked_add(extents / count)?;
                }
            }
            Some(taken)
        }
        kind if ["snapshot", "thin", "thin-pool"].contains(&kind) || kind.starts_with("raid") => {
            let mut values = segment.values.iter().flat_map(|(_, value)| value);
            (!values.any(|value| is_disk(value))).then_some(0)
        }
        _ => None,
    }
}

#[derive(Default)]
struct Section<'a> {
    values: Vec<(&'a str, Vec<&'a str>)>,
    sections: Vec<(&'a str, Section<'a>)>,
}

impl<'a> Section<'a> {
    /// Up to its closing brace, or at the outermost depth the end of the text.
    fn read(words: &mut Words<'a>, depth: u8) -> Option<Self> {
        let mut section = Self::default();
        loop {
            let name = match words.next() {
                None if depth == 0 => return Some(section),
                Some("}") if depth > 0 => return Some(section),
                name => name?,
            };
            match words.next()? {
                // Deeper than any group has it.
                "{" if depth < 8 => section.sections.push((name, Self::read(words, depth + 1)?)),
                "=" => section.values.push((name, words.value()?)),
                _ => return None,
            }
        }
    }

    fn section(&self, name: &str) -> Option<&Self> {
        self.sections.iter().find(|(own, _)| *own == name).map(|(_, section)| section)
    }

    fn list(&self, name: &str) -> Option<&[&'a str]> {
        self.values.iter().find(|(own, _)| *own == name).map(|(_, value)| value.as_slice())
    }

    fn one(&self, name: &str) -> Option<&'a str> {
        let [value] = self.list(name)? else { return None };
        Some(value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.one(name)?.parse().ok()
    }
}

/// What is left of a text, word by word: names, numbers, strings and single signs.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start();
            let Some(comment) = self.0.strip_prefix('#') else { break };
            self.0 = comment.split_once('\n').map_or("", |(_, rest)| rest);
        }
        if let Some(string) = self.0.strip_prefix('"') {
            // What is escaped is in descriptions, which nobody reads here.
            let mut escaped = false;
            let end = string.find(|character| {
                let ends = character == '"' && !escaped;
                escaped = character == '\\' && !escaped;
                ends
            })?;
            self.0 = &string[end + 1..];
            return Some(&string[..end]);
        }
        let ends = |character: char| character.is_whitespace() || "{}[]=,#\"".contains(character);
        let end = match self.0.find(ends).unwrap_or(self.0.len()) {
            0 => self.0.chars().next()?.len_utf8(),
            end => end,
        };
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(word)
    }
}

impl<'a> Words<'a> {
    fn value(&mut self) -> Option<Vec<&'a str>> {
        let is_list = self.0.trim_start().starts_with('[');
        let first = self.next()?;
        if !is_list {
            return Some(vec![first]);
        }
        let mut values = Vec::new();
        loop {
            let is_string = self.0.trim_start().starts_with('"');
            match self.next()? {
                "]" if !is_string => return Some(values),
                "," if !is_string => {}
                value => values.push(value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03.16 wrote it, shortened.
    const TEXT: &str = r#"vg {
id = "qnnDg2-qKvi-3qGJ-2E8Y-0bZt-4wsE-x8z9oY"
seqno = 4
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
metadata_copies = 0

physical_volumes {

pv0 {
id = "8gvcSN-vEPE-MyVv-BDbD-9HCV-9OHk-kgIeaN"
device = "/dev/ubda"

status = ["ALLOCATABLE"]
flags = []
dev_size = 8388608
pe_start = 2048
pe_count = 1023
}
}

logical_volumes {

a-b {
id = "jZqHX2-3o5P-9tDh-3lMv-sHYv-hXTL-hb7h5u"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
creation_time = 1732489500	# 2024-11-24
creation_host = "lab"
segment_count = 2

segment1 {
start_extent = 0
extent_count = 100

type = "striped"
stripe_count = 1	# linear

stripes = [
"pv0", 0
]
}
segment2 {
start_extent = 100
extent_count = 6

type = "striped"
stripe_count = 2
stripe_size = 128

stripes = [
"pv0", 200,
"pv0", 300
]
}
}

thin {
id = "kZqHX2-3o5P-9tDh-3lMv-sHYv-hXTL-hb7h5u"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1

segment1 {
start_extent = 0
extent_count = 5000

type = "thin"
thin_pool = "pool"
transaction_id = 0
device_id = 1
}
}
}

}
# Generated by LVM2 version 2.03.16(2) (2022-05-18): Tue Nov 24 23:05:00 2026

contents = "Text Format Volume Group"
version = 1

description = "Write from lvcreate -n \"a\\b\" vg."

creation_host = "lab"	# Linux lab 6.1
creation_time = 1732489500	# Tue Nov 24 23:05:00 2026

"#;

    fn read(text: &str, name: &str) -> Option<(Volume, String)> {
        Metadata::read(text, "vg")?.ordinary(name)
    }

    #[test]
    fn reads_a_volume() {
        let (volume, mapper_uuid) = read(TEXT, "a-b").unwrap();
        let extents = |count: u64| Bytes::new(count * (4 << 20));
        assert_eq!((volume.size, volume.segment_type.as_str()), (extents(106), "striped"));
        assert_eq!(volume.rounding.unwrap().unit, extents(2));
        let space = |text: &str| Metadata::read(text, "vg").unwrap().group.map(|group| (group.size, group.free));
        assert_eq!(space(TEXT), Some((extents(1023), extents(1023 - 106))));
        assert_eq!(space(&TEXT.replace("[\"ALLOCATABLE\"]", "[]")), Some((extents(1023), Bytes::ZERO)));
        assert_eq!(mapper_uuid, "LVM-qnnDg2qKvi3qGJ2E8Y0bZt4wsEx8z9oYjZqHX23o5P9tDh3lMvsHYvhXTLhb7h5u");
        let metadata = Metadata::read(TEXT, "vg").unwrap();
        assert_eq!((metadata.disks(), metadata.names()), (Some(1), Some(vec!["a-b", "thin"])));
        let hidden = TEXT.replacen(", \"VISIBLE\"]", "]", 1);
        assert_eq!(Metadata::read(&hidden, "vg").unwrap().names(), Some(vec!["thin"]));
    }

    #[test]
    fn takes_a_dump_without_complaints_alone() {
        let head = "  metadata text at 4096 crc 0x1 # vgname vg seqno 4";
        let printed = format!("{head}\n  ---\n{TEXT}\n  ---\n");
        assert_eq!(dumped(&printed), Some(TEXT));
        assert_eq!(without_metadata(&printed), head);
        for odd in [
            format!("  CHECK: metadata text crc expected 0x2\n{printed}"),
            format!("{printed}  CHECK: more\n"),
            printed.trim_end().to_owned(),
            "  zero metadata copies\n".to_owned(),
        ] {
            assert_eq!(dumped(&odd), None, "{odd}");
        }
    }

    #[test]
    fn leaves_to_lvs_what_is_not_ordinary() {
        assert_eq!(read(TEXT, "other"), None);
        assert_eq!(read(TEXT, "thin"), None);
        for (what, instead) in [
            ("thin_pool = \"pool\"", "external_origin = \"a-b\""),
            ("thin_pool = \"pool\"", "pool = \"pv0\""),
            ("type = \"thin\"", "type = \"mirror\""),
            ("flags = []\ndev_size", "flags = [\"MISSING\"]\ndev_size"),
            ("[\"ALLOCATABLE\"]", "[\"OTHER\"]"),
            ("\"WRITE\"]\nflags = []\nextent", "\"WRITE\", \"EXPORTED\"]\nflags = []\nextent"),
            ("flags = []\nextent_size", "flags = [\"NEW\"]\nextent_size"),
            ("format = \"lvm2\"", "lock_type = \"dlm\""),
            ("format = \"lvm2\"", "system_id = \"other\""),
            ("\"VISIBLE\"]\nflags = []\ncreation", "\"VISIBLE\", \"LOCKED\"]\nflags = []\ncreation"),
            ("pe_count = 1023", "pe_count = 105"),
            ("pe_count = 1023", "pe_count = 99999999999999999999"),
            ("extent_size = 8192", "extent_size = 9223372036854775808"),
            ("segment_count = 2", "segment_count = 3"),
            ("start_extent = 100", "start_extent = 101"),
            ("stripe_count = 2", "stripe_count = 3"),
            ("\"pv0\", 300", "\"thin\", 300"),
            ("version = 1", "version = 2"),
            ("contents", "content"),
        ] {
            assert!(TEXT.contains(what), "{what}");
            assert_eq!(read(&TEXT.replace(what, instead), "a-b"), None, "{what} as {instead}");
        }
    }

    #[test]
    fn leaves_to_lvs_what_is_cut_off_anywhere() {
        let end = TEXT.find("version = 1").unwrap();
        for cut in 0..end {
            assert_eq!(read(&TEXT[..cut], "a-b"), None, "{cut}");
        }
    }
}
