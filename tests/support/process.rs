//! What a process takes of the node, as /proc tells; see proc_pid_status(5).

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::fmt;
use std::fs;

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory, and the most that there ever was of it, in KiB.
    pub resident: u64,
    pub peak: u64,
    pub threads: u64,
    pub files: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        Self { resident: field("VmRSS"), peak: field("VmHWM"), threads: field("Threads"), files }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let Self { resident, peak, threads, files } = *self;
        write!(f, "{:.1} MiB resident, {:.1} MiB at most, ", mib(resident), mib(peak))?;
        write!(f, "{threads} threads, {files} files")
    }
}
