//! What the programs print. `println!` panics when it cannot write, and a reader such as `head` that has seen enough is no
//! error.

use std::io::{self, Write};

/// What is said of an error of [`write`] and [`ended`].
pub const UNWRITTEN: &str = "cannot write the output";

/// Writes a text out.
///
/// # Errors
/// As [`ended`].
pub fn write(mut to: impl Write, text: &str) -> io::Result<()> {
    ended(to.write_all(text.as_bytes()).and_then(|()| to.flush()))
}

/// How writing ended: well, when its reader is gone.
///
/// # Errors
/// All others.
pub fn ended(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}
