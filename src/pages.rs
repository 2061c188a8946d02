//! Man pages and shell completions of a program, made from its own description of its command line. What asks for them is
//! no part of that, since only who makes a package needs it: `PROGRAM pages DIRECTORY`.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};

/// How writing them went; `None` when the command line does not ask for them.
pub fn asked_for<P: CommandFactory>() -> Option<ExitCode> {
    let mut words = env::args_os().skip(1);
    let directory = words.next().filter(|word| word == "pages").and(words.next())?;
    let written = write(&P::command(), Path::new(&directory));
    Some(match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a stderr the exit code is all that can be said.
            let _ = writeln!(io::stderr(), "cannot write the pages: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Man pages go into `man/` of the directory, completions for bash, zsh and fish into folders of those names.
fn write(program: &Command, directory: &Path) -> io::Result<()> {
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
