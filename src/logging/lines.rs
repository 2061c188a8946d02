//! The lines of the log on stderr, which nobody may be reading: a full pipe holds up whoever writes to it, and growd with
//! every job and caller. So what there is no room for is lost, and told of as soon as there is room again.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// PIPE_BUF of `linux/limits.h`: what a pipe takes at once when poll(2) says that it has room.
const AT_ONCE: usize = 4096;

pub struct Lines {
    pub are_json: bool,
    /// Since something was written.
    pub lost: u64,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 && put(self.told().as_bytes()) {
            self.lost = 0;
        }
        if self.lost > 0 || !put(line) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The first of what was lost may be there in part.
    fn told(&self) -> String {
        let lost = self.lost;
        match self.are_json {
            true => {
                format!("\n{{\"level\":\"WARN\",\"fields\":{{\"message\":\"lines are lost here\",\"lost\":{lost}}}}}\n")
            }
            false => format!("\n WARN {lost} lines are lost here: nobody read the log\n"),
        }
    }
}

/// Whether there was room for it. What stderr does not take for other reasons is nobody's to hear of.
fn put(text: &[u8]) -> bool {
    let mut stderr = io::stderr().lock();
    text.chunks(AT_ONCE).all(|part| {
        let has_room = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) != Ok(0);
        if has_room {
            let _ = stderr.write_all(part);
        }
        has_room
    })
}
