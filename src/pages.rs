//! Man pages and shell completions of a program, made from its own description of its command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};

/// Writes man pages into `man/` of a directory and completions for bash, zsh and fish into folders of those names, and
/// makes the folders.
///
/// # Errors
/// Those of making files.
pub fn write(program: &Command, directory: &Path) -> io::Result<()> {
    let man = directory.join("man");
    fs::create_dir_all(&man)?;
    // Built here, since only the built command knows the arguments that its verbs share.
    clap_mangen::generate_to(program.clone(), &man)?;
    for (shell, folder) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let folder = directory.join(folder);
        fs::create_dir_all(&folder)?;
        generate_to(shell, &mut program.clone(), program.get_name(), folder)?;
    }
    Ok(())
}
