//! The Python programs that `tests/venv` installs.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A program of the environment, with variables of its own: no setting of whoever runs the test counts.
/// Makes it when it is missing, which a lab node, without a network, cannot.
pub fn program(name: &str) -> Command {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("venv");
    if std::env::var_os("GROWD_LAB").is_none() {
        let status = Command::new(Path::new(REPOSITORY).join("tests/venv")).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "tests/venv fails; it says why above");
    }
    let wanted = std::fs::read(file("requirements.txt")).unwrap();
    let made = std::fs::read(venv.join("requirements.txt")).ok();
    assert!(made == Some(wanted), "{} is missing or older than its list. Type: tests/venv", venv.display());
    let mut command = Command::new(venv.join("bin").join(name));
    let path = format!("{}:/usr/bin:/bin", venv.join("bin").display());
    command.env_clear().env("PATH", path).env("HOME", std::env::temp_dir());
    command.env("LC_ALL", "C.UTF-8").env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    command
}

/// A file beside the list.
pub fn file(name: &str) -> PathBuf {
    Path::new(REPOSITORY).join("tests/growapi").join(name)
}

/// What a program printed; one that fails is a failure of the test.
#[track_caller]
pub fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Both streams of a program.
pub fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|stream| String::from_utf8_lossy(stream).into_owned()).concat()
}
