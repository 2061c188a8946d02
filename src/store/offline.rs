//! Looking at a store while no daemon uses it: verify, export, set aside.
//!
//! sled writes when it opens, so both looks work on a copy and leave the store as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::files::{Files, copy_tree, sync_dir};
use super::open::{OpenError, Scan, database};
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
    let looked_at = files.dir().join("jobs.looked-at");
    let discard = || match fs::remove_dir_all(&looked_at) {
        Err(error) if looked_at.exists() => Err(OpenError::io("cannot remove", &looked_at, error)),
        _ => Ok(()),
    };
    discard()?;
    let verdict = copy_tree(&files.jobs(), &looked_at)
        .map_err(|source| OpenError::io("cannot copy the store for a look at it", &files.jobs(), source))
        .and_then(|()| look(&files, &looked_at, each));
    discard()?;
    verdict
}

fn look(files: &Files, copy: &Path, each: impl FnMut(&Job)) -> Result<Verdict, OpenError> {
    let db = match database(copy) {
        Ok(db) => db,
        Err(problem) => return Ok(Verdict { problems: 1, first_problem: Some(problem), ..Verdict::default() }),
    };
    let scan = Scan::of(&db, each);
    let mut verdict = Verdict {
        jobs: scan.index.len(),
        unfinished: scan.unfinished.len(),
        commit: scan.commit,
        problems: scan.problems,
        first_problem: scan.first_problem.map(|(problem, _)| problem),
    };
    if let Some(mark) = files.read_mark()?
        && mark.commit > verdict.commit
    {
        verdict.problems += 1;
        let problem = format!("it ends with commit {}, and commit {} had been written", verdict.commit, mark.commit);
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
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = dir.join(format!("set-aside-{seconds}"));
    fs::create_dir(&aside).map_err(|source| OpenError::io("cannot create", &aside, source))?;
    let parts = [files.before_open(), files.jobs(), files.mark()];
    for part in parts.iter().filter(|part| part.exists()) {
        let target = aside.join(part.file_name().unwrap_or_default());
        fs::rename(part, target).map_err(|source| OpenError::io("cannot move", part, source))?;
    }
    sync_dir(dir).map_err(|source| OpenError::io("cannot sync", dir, source))?;
    Ok(aside)
}
