//! Something that writes to a file all the time, and is never told anything but that there is no space.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const BLOCK: usize = 4096;

pub struct Writer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
    file: PathBuf,
}

impl Writer {
    /// Begins to write to a new file, so slowly that it fills nothing by itself.
    pub fn start(path: &Path) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (mut file, stop) = (File::create(path).unwrap(), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                // Full before the growth, and never anything else.
                match file.write(&[7; BLOCK]) {
                    Ok(length) => written += length as u64,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::StorageFull),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            file.sync_all().unwrap();
            written
        });
        Self { done, thread, file: path.to_owned() }
    }

    /// Bytes that it wrote, all of which are there.
    pub fn finish(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        let written = self.thread.join().unwrap();
        let mut content = Vec::new();
        File::open(self.file).unwrap().read_to_end(&mut content).unwrap();
        assert!(content.len() as u64 == written && content.iter().all(|byte| *byte == 7));
        written
    }
}
