//! How many files growd may have open at once, connections among them.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises RLIMIT_NOFILE to `wanted`, or as near to it as the hard limit is, and gives what it is then. Service managers
/// start programs with a limit of 1024, since select(2) knows no more, and leave it to them to ask for more. Nothing is
/// ever lowered. See getrlimit(2).
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = wanted.clamp(soft, hard);
    if raised > soft {
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
    }
    Ok(raised)
}
