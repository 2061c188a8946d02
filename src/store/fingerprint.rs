//! Whether the database is byte for byte what growd has left in order: then nothing has happened to it since that a copy
//! would have to be kept for. Damage that was on the disk before is found as any other, by a start that has no copy. What a
//! growd of another format has left will be refused, so there must be a copy.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crc32fast::Hasher;

use super::files::Files;
use super::record::FORMATS;

/// Notes what the database is now, durably. Nobody may write to it any more.
///
/// # Errors
/// When the database cannot be read, or the note not be written.
pub fn note(files: &Files) -> io::Result<()> {
    files.replace(&files.left(), &text(&files.jobs())?)
}

/// Whether the database is as it was noted. What cannot be read is not.
pub fn is_as_noted(files: &Files) -> bool {
    let noted = fs::read_to_string(files.left());
    noted.is_ok_and(|noted| text(&files.jobs()).is_ok_and(|now| now == noted))
}

/// Removes the note of a database that will be written to: it would be read at the next start for nothing.
///
/// # Errors
/// Those of unlink(2).
pub fn forget(files: &Files) -> io::Result<()> {
    match fs::remove_file(files.left()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn text(jobs: &Path) -> io::Result<String> {
    let mut sum = Hasher::new();
    add(jobs, &mut sum)?;
    Ok(format!("formats {FORMATS}; crc32 {:08x}\n", sum.finalize()))
}

/// Adds the names, the sizes and what is in the files of a directory tree, in the order of their names.
fn add(dir: &Path, sum: &mut Hasher) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut chunk = vec![0; 1 << 18];
    for entry in entries {
        sum.update(entry.file_name().as_encoded_bytes());
        if entry.file_type()?.is_dir() {
            add(&entry.path(), sum)?;
            continue;
        }
        let mut file = File::open(entry.path())?;
        sum.update(&file.metadata()?.len().to_le_bytes());
        loop {
            let length = file.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            sum.update(&chunk[..length]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let (db, blob) = (files.jobs().join("db"), files.jobs().join("blobs/7"));
        fs::create_dir_all(files.jobs().join("blobs")).unwrap();
        fs::write(&db, "one").unwrap();
        assert!(!is_as_noted(&files), "there is no note");

        for change in [
            &|| fs::write(&db, "two").unwrap(),
            &|| fs::write(&blob, "").unwrap(),
            &|| fs::write(&blob, "x").unwrap(),
            &|| fs::rename(&blob, files.jobs().join("blobs/8")).unwrap(),
            &|| File::options().append(true).open(&db).unwrap().set_len(4).unwrap(),
            &|| fs::remove_file(&db).unwrap(),
        ] as [&dyn Fn(); _]
        {
            note(&files).unwrap();
            assert!(is_as_noted(&files));
            change();
            assert!(!is_as_noted(&files));
        }
        note(&files).unwrap();
        let noted = fs::read_to_string(files.left()).unwrap();
        fs::write(files.left(), noted.replace(FORMATS, "1, 5")).unwrap();
        assert!(!is_as_noted(&files), "a growd of another format has left it");
        forget(&files).unwrap();
        forget(&files).unwrap();
        assert!(!is_as_noted(&files));
    }
}
