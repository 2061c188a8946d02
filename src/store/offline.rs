//! Looking at a store while no daemon uses it: verify, export, set aside.
//!
//! sled writes when it opens, so both looks work on a copy and leave the store as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::files::{Files, remove_tree, sync_dir};
use super::open_error::OpenError;
use super::safety_copy;
use super::scan::scan_copy;
use crate::model::Job;

/// What a look at every record told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub jobs: usize,
    pub unfinished: usize,
    pub commit: u64,
    pub problems: usize,
    pub first_problem: Option<String>,
}

/// Reads every record of the store in a state directory and checks it; `each` sees every job that is right.
///
/// # Errors
/// When a daemon has the store, there is none, or its files cannot be copied. What is wrong inside is in the verdict.
pub fn verify(dir: &Path, each: impl FnMut(&Job)) -> Result<Verdict, OpenError> {
    let files = Files::new(dir);
    let _lock = files.lock()?;
    safety_copy::settle(&files)?;
    if !files.jobs().exists() {
        return Err(files.read_mark()?.map_or_else(|| none_in(dir), |mark| files.gone(mark)));
    }
    let scan = scan_copy(&files, each)?;
    let mut verdict = Verdict {
        jobs: scan.jobs.len(),
        unfinished: scan.unfinished.len(),
        commit: scan.commit,
        problems: scan.problems,
        first_problem: scan.first_problem.map(|(problem, _)| problem),
    };
    // Behind the scan: no damage of the mark keeps a job from being seen.
    if let Some(mark) = files.read_mark()?
        && mark > verdict.commit
    {
        verdict.problems += 1;
        let problem = format!("it ends with commit {}, and commit {mark} had been written", verdict.commit);
        verdict.first_problem.get_or_insert(problem);
    }
    Ok(verdict)
}

/// Moves the store and its mark into a directory of their own, so that the next start begins with an empty one.
///
/// # Errors
/// When a daemon has the store, there is none, or the files cannot be moved.
pub fn set_aside(dir: &Path) -> Result<PathBuf, OpenError> {
    let files = Files::new(dir);
    let _lock = files.lock()?;
    safety_copy::settle(&files)?;
    let parts: Vec<PathBuf> = [files.jobs(), files.mark()].into_iter().filter(|part| part.exists()).collect();
    if parts.is_empty() {
        return Err(none_in(dir));
    }
    // What a compaction that was killed has left is a copy of what is moved.
    remove_tree(&files.compacted())?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = dir.join(format!("set-aside-{seconds}"));
    fs::create_dir(&aside).map_err(|source| OpenError::io("cannot create", &aside, source))?;
    for part in parts {
        let target = aside.join(part.file_name().unwrap_or_default());
        fs::rename(&part, target).map_err(|source| OpenError::io("cannot move", &part, source))?;
    }
    sync_dir(&aside).map_err(|source| OpenError::io("cannot sync", &aside, source))?;
    sync_dir(dir).map_err(|source| OpenError::io("cannot sync", dir, source))?;
    Ok(aside)
}

fn none_in(dir: &Path) -> OpenError {
    OpenError::io("there is no job store in", dir, io::ErrorKind::NotFound.into())
}
