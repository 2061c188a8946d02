//! The store as a start finds it. sled changes what it opens, and a store that is damaged must stay as it is: so a copy is
//! kept until everything has been checked, and is put back when anything is wrong.
//!
//! The copy is not durable, so after a power cut it is worth nothing: its name tells the boot that it was made in. A start
//! that was killed in the middle has left it, and the next one of the same boot puts it back. After a power cut in the
//! middle the store is what sled's own recovery makes of it, as after any other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{Files, copy_tree, remove_tree, sync_dir, sync_tree};
use super::open_error::OpenError;

const PREFIX: &str = "jobs.original-";

/// Makes the copy, after [`settle`]; there is none of a store that is new.
///
/// # Errors
/// When there is no room for it, or a file cannot be read.
pub fn keep(files: &Files) -> Result<(), OpenError> {
    if !files.jobs().exists() {
        return Ok(());
    }
    let (copy, begun) = (copy_of_boot(files)?, files.looked_at());
    let copied = copy_tree(&files.jobs(), &begun).and_then(|()| fs::rename(&begun, &copy));
    copied.or_else(|source| remove_tree(&begun).and(Err(files.no_copy(source))))
}

/// Has the store as it was when the copy was made, if there is one.
///
/// # Errors
/// When the copy cannot be written to the disk or put in place; it stays then.
pub fn put_back(files: &Files) -> Result<(), OpenError> {
    let copy = copy_of_boot(files)?;
    if !copy.exists() {
        return Ok(());
    }
    let (jobs, changed) = (files.jobs(), files.looked_at());
    // On disk before the other goes. Between the two renames there is no store, and the next start goes on from there.
    let put_back = sync_tree(&copy).and_then(|()| rename_what_is_there(&jobs, &changed));
    put_back
        .and_then(|()| fs::rename(&copy, &jobs))
        .and_then(|()| sync_dir(files.dir()))
        .map_err(|source| OpenError::io("cannot put back", &jobs, source))?;
    remove_tree(&changed)
}

/// Leaves the copy to be removed: what is in the store now is right, and will be written to.
///
/// # Errors
/// Those of rename(2).
pub fn retire(files: &Files) -> Result<(), OpenError> {
    let copy = copy_of_boot(files)?;
    rename_what_is_there(&copy, &files.looked_at()).map_err(|source| OpenError::io("cannot rename", &copy, source))
}

/// Puts back what a start that was killed has left, and removes other leftovers.
///
/// # Errors
/// When files cannot be read, moved or removed.
pub fn settle(files: &Files) -> Result<(), OpenError> {
    let dir = files.dir();
    remove_tree(&files.looked_at())?;
    let copy = copy_of_boot(files)?;
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(|source| OpenError::io("cannot read", dir, source))? {
        let path = entry.path();
        if path == copy || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if files.jobs().exists() {
            remove_tree(&path)?;
        } else {
            // Of before a power cut in the middle of putting it back: on disk before the store went.
            fs::rename(&path, &copy).map_err(|source| OpenError::io("cannot rename", &path, source))?;
        }
    }
    put_back(files)
}

fn copy_of_boot(files: &Files) -> Result<PathBuf, OpenError> {
    let of_boot = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = fs::read_to_string(of_boot).map_err(|source| OpenError::io("cannot read", of_boot, source))?;
    Ok(files.dir().join(format!("{PREFIX}{}", boot.trim())))
}

fn rename_what_is_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory with a store of one file.
    fn state() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        fs::create_dir(files.jobs()).unwrap();
        write(&files, "as it was");
        (dir, files)
    }

    fn write(files: &Files, text: &str) {
        fs::write(files.jobs().join("db"), text).unwrap();
    }

    /// What the store holds, when nothing else is there.
    fn alone(files: &Files) -> String {
        let names: Vec<_> = fs::read_dir(files.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["jobs"]);
        fs::read_to_string(files.jobs().join("db")).unwrap()
    }

    #[test]
    fn what_is_wrong_with_a_store_does_not_change_it() {
        let (_dir, files) = state();
        keep(&files).unwrap();
        write(&files, "changed");
        put_back(&files).unwrap();
        assert_eq!(alone(&files), "as it was");
    }

    #[test]
    fn a_start_that_was_killed_has_changed_nothing() {
        let (_dir, files) = state();
        keep(&files).unwrap();
        write(&files, "changed");
        settle(&files).unwrap();
        assert_eq!(alone(&files), "as it was");
    }

    #[test]
    fn a_copy_is_put_back_whenever_a_start_was_killed_at_it() {
        type Done = fn(&Files, &PathBuf);
        let steps: [Done; 3] = [
            |_, _| {},
            |files, _| fs::rename(files.jobs(), files.looked_at()).unwrap(),
            |files, copy| fs::rename(copy, files.jobs()).unwrap(),
        ];
        for killed_after in 1..=steps.len() {
            for power_cut in [false, true] {
                let (_dir, files) = state();
                keep(&files).unwrap();
                let mut copy = copy_of_boot(&files).unwrap();
                write(&files, "changed");
                steps[..killed_after].iter().for_each(|step| step(&files, &copy));
                if power_cut && copy.exists() {
                    let before = std::mem::replace(&mut copy, files.dir().join(format!("{PREFIX}of-another-boot")));
                    fs::rename(before, &copy).unwrap();
                }
                settle(&files).unwrap();
                let kept = if power_cut && killed_after == 1 { "changed" } else { "as it was" };
                assert_eq!(alone(&files), kept, "killed after step {killed_after}, power cut: {power_cut}");
            }
        }
    }

    #[test]
    fn a_store_that_was_found_to_be_right_is_never_set_back() {
        let (_dir, files) = state();
        keep(&files).unwrap();
        retire(&files).unwrap();
        write(&files, "committed since");
        settle(&files).unwrap();
        assert_eq!(alone(&files), "committed since");
    }

    #[test]
    fn a_copy_of_before_a_power_cut_is_worth_nothing() {
        let (_dir, files) = state();
        keep(&files).unwrap();
        fs::rename(copy_of_boot(&files).unwrap(), files.dir().join(format!("{PREFIX}of-another-boot"))).unwrap();
        write(&files, "what sled makes of it");
        settle(&files).unwrap();
        assert_eq!(alone(&files), "what sled makes of it");
    }

    #[test]
    fn a_new_store_has_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        keep(&files).unwrap();
        retire(&files).unwrap();
        put_back(&files).unwrap();
        assert!(!files.jobs().exists());
    }
}
