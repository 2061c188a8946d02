//! Device-mapper by system call: what a test does hundreds of times, or at a moment that matters, cannot wait for a
//! process. See linux/dm-ioctl.h.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

const SUSPEND: u32 = 1 << 1;
/// Does not wait for file systems on the device.
const SKIP_LOCKFS: u32 = 1 << 10;
const ROOM: usize = 128;

/// `struct dm_ioctl`.
#[repr(C)]
struct Head {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_and_padding: [u32; 2],
    device: u64,
    name: [u8; 128],
    uuid_and_padding: [u8; 136],
}
const _: () = assert!(size_of::<Head>() == 312);

/// What goes with a command: `struct dm_target_spec` and its parameters, or a sector (0) and a message.
#[repr(C)]
struct Request {
    head: Head,
    data: [u8; ROOM],
}
const _: () = assert!(size_of::<Request>() == 312 + ROOM);

nix::ioctl_readwrite!(suspend_or_resume, 0xfd, 6, Head);
nix::ioctl_readwrite!(load_table, 0xfd, 9, Head);
nix::ioctl_readwrite!(target_message, 0xfd, 14, Head);

type Command = unsafe fn(nix::libc::c_int, *mut Head) -> nix::Result<nix::libc::c_int>;

pub struct DeviceMapper(File);

impl DeviceMapper {
    pub fn new() -> Self {
        Self(OpenOptions::new().read(true).write(true).open("/dev/mapper/control").unwrap())
    }

    /// Gives a message to the only target of a device.
    pub fn message(&self, device: &str, text: &str) {
        let sector = 0_u64.to_ne_bytes();
        self.call(target_message, device, 0, &[&sector, text.as_bytes()]);
    }

    /// Makes a device another one, with one target. What its old table had in memory is forgotten.
    pub fn replace_table(&self, device: &str, sectors: u64, target: &str, parameters: &str) {
        let mut spec = [0; 40];
        spec[8..16].copy_from_slice(&sectors.to_ne_bytes());
        spec[24..24 + target.len()].copy_from_slice(target.as_bytes());
        self.call(load_table, device, 0, &[&spec, parameters.as_bytes()]);
        self.call(suspend_or_resume, device, SUSPEND | SKIP_LOCKFS, &[]);
        self.call(suspend_or_resume, device, 0, &[]);
    }

    fn call(&self, command: Command, device: &str, flags: u32, data: &[&[u8]]) {
        let mut request = Request {
            head: Head {
                version: [4, 0, 0],
                data_size: u32::try_from(size_of::<Request>()).unwrap(),
                data_start: u32::try_from(size_of::<Head>()).unwrap(),
                target_count: 1,
                open_count: 0,
                flags,
                event_and_padding: [0; 2],
                device: 0,
                name: [0; 128],
                uuid_and_padding: [0; 136],
            },
            data: [0; ROOM],
        };
        request.head.name[..device.len()].copy_from_slice(device.as_bytes());
        let data = data.concat();
        assert!(data.len() < ROOM, "the kernel looks for a NUL behind the text");
        request.data[..data.len()].copy_from_slice(&data);
        // SAFETY: the kernel reads and writes as many bytes as the head says, which is the size of the whole request; the
        // pointer is derived from all of it, and nothing else refers to it during the call.
        let done = unsafe { command(self.0.as_raw_fd(), (&raw mut request).cast::<Head>()) };
        done.unwrap_or_else(|error| panic!("device-mapper refuses a command for {device}: {error}"));
    }
}
