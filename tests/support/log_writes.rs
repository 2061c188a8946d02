//! A disk whose writes and flushes are recorded by dm-log-writes, and other disks brought to any state that a power cut
//! could have left on it.
//!
//! The log (drivers/md/dm-log-writes.c) begins with a sector that holds the number of entries. Each entry is a sector
//! with its header and, unless it is a mark or a discard, the data. A write stands there only once it is durable for
//! certain: before the flush that was sent after it had ended, or, with FUA, by itself. So what lies between two flushes
//! is what a power cut before the second may have left out, in any choice.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::device_mapper::DeviceMapper;
use super::support::lab;
use super::support::mapped_disk::remove_device;

/// "jshwfsj" with its bytes turned round, as the kernel writes it.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const HEADER: usize = 32;

/// Size of the recorded disk: XFS takes no less than 300 MiB.
const DISK_SECTORS: u64 = 320 << 11;
const LOG_SECTORS: u64 = 3 << 21;
const THROWAWAY_SECTORS: u64 = 1 << 20;

/// One thing that happened to the disk.
pub struct Entry {
    /// Where on the disk, in bytes.
    at: u64,
    length: usize,
    /// Where in the log the data is.
    data_at: u64,
    flags: u64,
    mark: Option<String>,
}

impl Entry {
    /// Ends what a power cut may still leave out.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// Durable by itself.
    pub fn is_fua(&self) -> bool {
        self.flags & FUA != 0
    }

    pub fn mark(&self) -> Option<&str> {
        self.mark.as_deref()
    }

    pub fn is_write(&self) -> bool {
        self.length > 0
    }
}

/// The mark that the kernel makes at the end of a recording.
const LAST_MARK: &str = "dm-log-writes-end";

/// What was recorded, in the order in which it became durable.
pub struct Log {
    device: File,
    pub entries: Vec<Entry>,
}

impl Log {
    fn read(path: &Path) -> Self {
        let device = File::open(path).unwrap();
        let head = sector_at(&device, 0);
        let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((number(&head, 0), number(&head, 8)), (MAGIC, VERSION), "not a log of dm-log-writes");
        let unit = u64::from(u32::from_le_bytes(head[24..28].try_into().unwrap()));
        assert_eq!(unit, SECTOR, "sectors of the log");
        let mut next = SECTOR;
        let mut entries = Vec::new();
        for _ in 0..number(&head, 16) {
            let header = sector_at(&device, next);
            let [sector, sectors, flags, data] = [0, 8, 16, 24].map(|at| number(&header, at));
            assert_eq!(flags & DISCARD, 0, "nothing here mounts with discard, and this reader does not know it");
            let mark = (flags & MARK != 0).then(|| {
                let text = &header[HEADER..HEADER + usize::try_from(data).unwrap()];
                String::from_utf8(text.to_vec()).unwrap()
            });
            let length = usize::try_from(sectors * SECTOR).unwrap();
            if mark.as_deref() != Some(LAST_MARK) {
                entries.push(Entry { at: sector * SECTOR, length, data_at: next + SECTOR, flags, mark });
            }
            next += SECTOR + sectors * SECTOR;
        }
        Self { device, entries }
    }

    /// Does to a disk what the entry has done to the recorded one.
    pub fn apply(&self, entry: &Entry, disk: &File) {
        if entry.is_write() {
            let mut data = vec![0; entry.length];
            self.device.read_exact_at(&mut data, entry.data_at).unwrap();
            disk.write_all_at(&data, entry.at).unwrap();
        }
    }
}

fn sector_at(device: &File, at: u64) -> [u8; 512] {
    let mut sector = [0; 512];
    device.read_exact_at(&mut sector, at).unwrap();
    sector
}

fn dmsetup(arguments: &[&str]) {
    // There is no udev in the lab: dmsetup makes the nodes itself.
    lab::run("env", &[&["DM_DISABLE_UDEV=1", "dmsetup"], arguments].concat());
}

/// The disk that is recorded: a part of `ubdd`, with its log on `ubdc`.
pub struct RecordedDisk;

impl RecordedDisk {
    const NAME: &str = "recorded";

    /// The disk, not yet recorded.
    pub fn prepare() -> Self {
        dmsetup(&["create", "log", "--table", &format!("0 {LOG_SECTORS} linear /dev/ubdc 0")]);
        dmsetup(&["create", Self::NAME, "--table", &format!("0 {DISK_SECTORS} linear /dev/ubdd 0")]);
        Self
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(Self::NAME)
    }

    /// Brings another disk to the state of this one, and records all that happens to this one from now on. It must not
    /// be mounted.
    pub fn record(&self, copy: &ReplayedDisk) {
        self.each_part(copy, |at, here, there| {
            if here != there {
                copy.disk.write_all_at(here, at).unwrap();
            }
        });
        copy.disk.sync_data().unwrap();
        let table = format!("0 {DISK_SECTORS} log-writes /dev/ubdd /dev/mapper/log");
        dmsetup(&["reload", Self::NAME, "--table", &table]);
        dmsetup(&["suspend", Self::NAME]);
        dmsetup(&["resume", Self::NAME]);
    }

    /// Ends the recording of a disk that is not mounted any more.
    pub fn recording(&self) -> Log {
        dmsetup(&["reload", Self::NAME, "--table", &format!("0 {DISK_SECTORS} linear /dev/ubdd 0")]);
        dmsetup(&["suspend", Self::NAME]);
        dmsetup(&["resume", Self::NAME]);
        Log::read(Path::new("/dev/mapper/log"))
    }

    /// Panics unless another disk has become what this one is: the log is whole, and was read right.
    pub fn assert_same(&self, copy: &ReplayedDisk) {
        self.each_part(copy, |at, here, there| assert!(here == there, "the replayed disk differs at byte {at}"));
    }

    fn each_part(&self, copy: &ReplayedDisk, mut look: impl FnMut(u64, &[u8], &[u8])) {
        const PART: u64 = 1 << 20;
        let disk = File::open(self.path()).unwrap();
        let (mut here, mut there) = (vec![0; PART as usize], vec![0; PART as usize]);
        for at in (0..DISK_SECTORS * SECTOR).step_by(PART as usize) {
            disk.read_exact_at(&mut here, at).unwrap();
            copy.disk.read_exact_at(&mut there, at).unwrap();
            look(at, &here, &there);
        }
    }
}

impl Drop for RecordedDisk {
    fn drop(&mut self) {
        remove_device(Self::NAME);
        remove_device("log");
    }
}

/// The disk that follows the log: `ubdb`. It is never mounted itself.
pub struct ReplayedDisk {
    disk: File,
    mapper: DeviceMapper,
}

impl ReplayedDisk {
    const COPY: &str = "copy";

    pub fn new() -> Self {
        let table = format!("0 {THROWAWAY_SECTORS} linear /dev/ubdc {LOG_SECTORS}");
        dmsetup(&["create", "throwaway", "--table", &table]);
        dmsetup(&["create", Self::COPY, "--table", &format!("0 {DISK_SECTORS} linear /dev/ubdb 0")]);
        let disk = OpenOptions::new().read(true).write(true).open("/dev/ubdb").unwrap();
        Self { disk, mapper: DeviceMapper::new() }
    }

    pub fn apply(&self, log: &Log, entry: &Entry) {
        log.apply(entry, &self.disk);
    }

    /// A writable copy of the disk on which more of the log was applied, until the next one is made; the disk stays as it
    /// is. Nobody may use the last copy any more.
    pub fn copy(&self, log: &Log, more: &[&Entry]) -> PathBuf {
        // The copy reads below the page cache of this disk.
        self.disk.sync_data().unwrap();
        // Something else in between: from a snapshot that is there a new one would take over what was written to it.
        self.mapper.replace_table(Self::COPY, DISK_SECTORS, "linear", "/dev/ubdb 0");
        self.mapper.replace_table(Self::COPY, DISK_SECTORS, "snapshot", "/dev/ubdb /dev/mapper/throwaway N 8");
        let path = Path::new("/dev/mapper").join(Self::COPY);
        let copy = OpenOptions::new().write(true).open(&path).unwrap();
        more.iter().for_each(|entry| log.apply(entry, &copy));
        copy.sync_data().unwrap();
        path
    }
}

impl Drop for ReplayedDisk {
    fn drop(&mut self) {
        remove_device(Self::COPY);
        remove_device("throwaway");
    }
}

/// Writes marks into the log of the recorded disk.
pub struct Marker(DeviceMapper);

impl Marker {
    pub fn new() -> Self {
        Self(DeviceMapper::new())
    }

    /// What the log holds before the mark was durable before this was called.
    pub fn mark(&self, text: &str) {
        self.0.message(RecordedDisk::NAME, &format!("mark {text}"));
    }
}
