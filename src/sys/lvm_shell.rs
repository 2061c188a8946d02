//! A shell of lvm(8), kept open: commands are written to it line by line.
//!
//! Starting `lvm` costs more than what it does then: reading its libraries and configuration takes most of the time of
//! an `lvs`, and half of that of an `lvextend`. The shell has started already.
//!
//! It prints no exit code, so nobody may conclude from its words what was done: whoever changes a volume asks the kernel
//! for its size afterwards. What it prints is for people, except the lines of a report, which have a form of their own.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};

/// More than any report has; what comes beyond it is not kept.
const MOST_OUTPUT: usize = 4 << 20;

/// More than the line with the marker has.
const MOST_LINE: usize = 1 << 10;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("lvm cannot be started: {0}")]
    Start(io::Error),
    #[error("lvm did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("lvm ended in the middle of a command: {0:?}")]
    Ended(String),
    #[error("the pipe to lvm failed: {0}")]
    Pipe(io::Error),
}

/// What a command printed, to stdout and stderr in the order of its writing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    /// It printed more than is kept.
    pub truncated: bool,
}

pub struct Shell {
    child: Process,
    input: ChildStdin,
    output: io::PipeReader,
    commands: u64,
}

/// Nobody may ask for its end any more, as when its volume group is configured no longer; it leaves no zombie all the same.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), self.0.id().try_into()) {
            // It ends when its input does, or when the command at work has. Without a thread it stays a zombie.
            let wait = move || waitpid(Pid::from_raw(pid), None);
            drop(thread::Builder::new().name("reaper".to_owned()).spawn(wait));
        }
    }
}

impl Shell {
    /// # Errors
    /// [`ShellError::Start`].
    pub fn start(program: &Path) -> Result<Self, ShellError> {
        let (output, printed) = io::pipe().map_err(ShellError::Start)?;
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            // The history that the shell writes at its end would go to the home directory.
            .env("HOME", "/dev/null")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(printed.try_clone().map_err(ShellError::Start)?)
            .stderr(printed);
        let ignore_what_growd_suffers = || {
            // growd may be killed in the middle of a command, which must still run to its end: no Ctrl-C and no hang-up
            // reaches another session, and a write to the closed pipe fails instead of killing.
            setsid()?;
            // SAFETY: no handler is installed.
            unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
            Ok(())
        };
        // SAFETY: between fork and exec it calls setsid(2) and sigaction(2) alone, which are async-signal-safe.
        unsafe { command.pre_exec(ignore_what_growd_suffers) };
        let mut child = command.spawn().map_err(ShellError::Start)?;
        let input = child.stdin.take().ok_or_else(|| ShellError::Start(io::Error::other("it has no stdin")))?;
        Ok(Self { child: Process(child), input, output, commands: 0 })
    }

    /// Whether somebody killed it while it waited for a command.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.0.try_wait(), Ok(None))
    }

    /// Runs one command to its end, or until the limit is reached; without a limit it waits for ever.
    ///
    /// # Errors
    /// After any error the shell is of no more use: a command may still be running in it.
    pub fn run(&mut self, command: &str, limit: Option<Duration>) -> Result<Output, ShellError> {
        debug_assert!(!command.contains('\n'));
        // The end is seen by the complaint about a command that there is not: both streams are one pipe, so it comes
        // behind all that the command before it printed.
        self.commands += 1;
        let marker = format!("growd-end-{}-{}", std::process::id(), self.commands);
        let deadline = limit.map(|limit| Instant::now() + limit);
        self.input.write_all(format!("{command}\n{marker}\n").as_bytes()).map_err(ShellError::Pipe)?;
        let mut printed = Vec::new();
        let mut truncated = false;
        let mut looked_at: usize = 0;
        loop {
            // The marker's line may have come in part.
            if let Some(end) = end_of(&printed, looked_at.saturating_sub(MOST_LINE), &marker) {
                printed.truncate(end);
                return Ok(Output { text: String::from_utf8_lossy(&printed).into_owned(), truncated });
            }
            if printed.len() > MOST_OUTPUT {
                truncated = true;
                printed.drain(..printed.len() - MOST_LINE);
            }
            looked_at = printed.len();
            self.wait(deadline, limit)?;
            let mut chunk = [0; 64 << 10];
            match self.output.read(&mut chunk).map_err(ShellError::Pipe)? {
                0 => {
                    let last = &printed[printed.len().saturating_sub(MOST_LINE)..];
                    return Err(ShellError::Ended(String::from_utf8_lossy(last).trim().to_owned()));
                }
                read => printed.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Until there is something to read.
    fn wait(&self, deadline: Option<Instant>, limit: Option<Duration>) -> Result<(), ShellError> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // Rounded up: a wait of 0 ms would spin.
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => match limit {
                    Some(limit) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                        return Err(ShellError::TimedOut(limit));
                    }
                    _ => {}
                },
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(ShellError::Pipe(errno.into())),
            }
        }
    }

    /// Kills the shell: for one that was asked a question only.
    pub fn kill(mut self) -> Dying {
        // It may have ended on its own.
        let _ = self.child.0.kill();
        Dying(self.child)
    }

    /// Lets go of a shell whose command may change something: it runs to its end.
    pub fn leave(self) -> Dying {
        Dying(self.child)
    }
}

/// A shell that has been told to end, and may be stuck in the kernel.
pub struct Dying(Process);

impl Dying {
    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.0.try_wait(), Ok(None))
    }

    /// Process id, for whoever looks at it.
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }
}

/// Where the line with the marker starts, which is looked for behind `from`.
fn end_of(printed: &[u8], from: usize, marker: &str) -> Option<usize> {
    let at = from + printed[from..].windows(marker.len()).position(|window| window == marker.as_bytes())?;
    // The line must be whole, or its rest would be taken for the next command's.
    printed[at..].contains(&b'\n').then(|| printed[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Another shell that complains about a command that there is not.
    fn sh() -> Shell {
        Shell::start(Path::new("/bin/sh")).unwrap()
    }

    fn text(shell: &mut Shell, command: &str) -> String {
        shell.run(command, Some(Duration::from_secs(60))).unwrap().text
    }

    #[test]
    fn gives_each_command_its_own_words() {
        let mut shell = sh();
        assert_eq!(text(&mut shell, "echo '  one'; echo oh >&2"), "  one\noh\n");
        assert_eq!(text(&mut shell, ":"), "");
        assert_eq!(text(&mut shell, "echo '  two'; echo oh >&2"), "  two\noh\n");
        // What has no line feed shares its line with the marker, and goes with it.
        assert_eq!(text(&mut shell, "printf x"), "");
        assert_eq!(text(&mut shell, "echo three"), "three\n");
    }

    #[test]
    fn keeps_a_bounded_part_of_a_flood() {
        let mut shell = sh();
        let output = shell.run("yes rubbish | head -c 20000000", Some(Duration::from_secs(120))).unwrap();
        assert!(output.truncated);
        assert!(output.text.len() <= MOST_OUTPUT + (64 << 10));
        assert_eq!(text(&mut shell, "echo hi"), "hi\n");
    }

    #[test]
    fn tells_a_hang_from_an_end() {
        let mut shell = sh();
        let error = shell.run("exec sleep 1000", Some(Duration::from_millis(50))).unwrap_err();
        assert!(matches!(error, ShellError::TimedOut(_)), "{error}");
        shell.kill();
        let error = sh().run("echo last words; exit 3", None).unwrap_err();
        assert!(matches!(&error, ShellError::Ended(words) if words == "last words"), "{error}");
        assert!(matches!(Shell::start(Path::new("/nonexistent/lvm")), Err(ShellError::Start(_))));
    }

    #[test]
    fn a_shell_that_nobody_needs_ends_and_leaves_no_zombie() {
        let shell = sh();
        let process = format!("/proc/{}", shell.child.0.id());
        assert!(Path::new(&process).exists());
        drop(shell);
        let begin = Instant::now();
        while Path::new(&process).exists() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it stays");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_command_goes_on_when_growd_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let done = folder.path().join("done");
        let mut shell = sh();
        let work = format!("sleep 2; echo into a closed pipe; echo and more >&2; echo ok >{}", done.display());
        let error = shell.run(&work, Some(Duration::from_millis(1))).unwrap_err();
        assert!(matches!(error, ShellError::TimedOut(_)));
        // As when growd is killed: both pipes are closed.
        let mut dying = shell.leave();
        while dying.is_alive() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fs::read_to_string(done).unwrap(), "ok\n");
    }
}
