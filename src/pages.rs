//! Man pages and shell completions of a program, made from its own description of its command line. The command that
//! writes them is hidden: only who makes a package needs it.

use std::fs;
use std::io;
use std::path::Path;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, Parser};
use clap_complete::{Shell, generate_to};

/// Reads the command line. Of one without a command clap tells which there are, hidden ones as well; here those are not told.
///
/// # Errors
/// When it is wrong, and when it asks for help or the version.
pub fn parse<P: Parser>() -> Result<P, clap::Error> {
    let untold = |mut error: clap::Error| {
        if let Some(ContextValue::Strings(mut names)) = error.remove(ContextKind::ValidSubcommand) {
            let program = P::command();
            names.retain(|name| !program.find_subcommand(name).is_some_and(Command::is_hide_set));
            error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(names));
        }
        error
    };
    P::try_parse().map_err(untold)
}

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
