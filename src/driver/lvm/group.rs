//! One volume group, and the two shells of lvm through which it is asked and changed.
//!
//! Questions have a time limit and do not wait for LVM's locks, so that a change that is stuck hides nothing. A change
//! has no limit and is never killed; the next one of the same group waits for it, those of other groups do not.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::metadata;
use super::report::{self, Row};
use crate::driver::flight_recorder::FlightRecorder;
use crate::model::{PoolName, Refusal};
use crate::sys::lvm_shell::{Dying, Output, Shell, ShellError};

/// Physical volumes that are asked for the metadata. Each costs a question.
const MOST_DISKS: usize = 8;

/// Much longer than a report of a large group takes.
const QUESTION_LIMIT: Duration = Duration::from_secs(30);

pub struct VolumeGroup {
    name: String,
    /// `None` where lvm is not installed.
    program: Option<PathBuf>,
    recorder: Arc<FlightRecorder>,
    questions: Mutex<Line>,
    changes: Mutex<Line>,
    disks: Mutex<Disks>,
}

/// Nodes of the physical volumes, as LVM named them when it was asked last.
#[derive(Clone, Debug, Default, PartialEq)]
enum Disks {
    #[default]
    Unknown,
    /// All of them, each with metadata.
    Known(Vec<String>),
    /// The metadata cannot be had from them, until LVM is asked for the group again.
    Useless,
}

/// A shell that is started when it is needed.
#[derive(Default)]
struct Line {
    shell: Option<Shell>,
    /// One that was given up and may still be there, and when it was asked.
    dying: Option<(Instant, Dying)>,
}

impl VolumeGroup {
    pub fn new(name: String, program: Option<PathBuf>, recorder: Arc<FlightRecorder>) -> Self {
        Self {
            name,
            program,
            recorder,
            questions: Mutex::default(),
            changes: Mutex::default(),
            disks: Mutex::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rows of a report, and the words that came with them.
    ///
    /// # Errors
    /// NOT_MOUNTED without lvm; STUCK when it gives no answer in time; INTERNAL when it fails.
    pub fn ask(&self, pool: &PoolName, command: &str) -> Result<(Vec<Row>, String), Refusal> {
        let printed = self.question(pool, command)?;
        Ok((report::rows(&printed), report::messages(&printed)))
    }

    /// From the rows of a report of the group, one for each physical volume.
    pub fn learn_disks(&self, rows: &[Row]) {
        let disk = |row: &Row| {
            let name = row.text("pv_name").ok()?;
            // Of one that is missing there is no name. Without metadata nothing would tell that it is gone.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._:@-".contains(&byte);
            let is_usable = row.number::<u64>("pv_mda_used_count").is_ok_and(|count| count > 0);
            (is_usable && name.starts_with('/') && name.bytes().all(is_plain)).then(|| name.to_owned())
        };
        let disks: Option<Vec<String>> = rows.iter().map(disk).collect();
        *self.disks.lock() = match disks {
            Some(disks) if !disks.is_empty() => Disks::Known(disks),
            _ => Disks::Useless,
        };
    }

    /// Whether LVM has to be asked for the physical volumes before [`Self::metadata`].
    pub fn knows_no_disks(&self) -> bool {
        *self.disks.lock() == Disks::Unknown
    }

    /// For when there may be others. Whether any were known.
    pub fn forget_disks(&self) -> bool {
        matches!(mem::take(&mut *self.disks.lock()), Disks::Known(_))
    }

    /// The metadata that are the same on all physical volumes, and how many these are. `None` when only LVM can tell.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn metadata(&self, pool: &PoolName) -> Result<Option<(String, usize)>, Refusal> {
        let Disks::Known(disks) = self.disks.lock().clone() else { return Ok(None) };
        if disks.len() > MOST_DISKS {
            return Ok(None);
        }
        let mut agreed: Option<String> = None;
        for disk in &disks {
            // It takes no lock, but without the option the reports that the same shell gives afterwards would.
            let printed = self.question(pool, &format!("pvck --nolocking --dump metadata {disk}"))?;
            let Some(text) = metadata::dumped(&printed) else {
                *self.disks.lock() = Disks::Useless;
                return Ok(None);
            };
            match &agreed {
                // Something is being changed, or one of them has missed a change.
                Some(other) if other != text => return Ok(None),
                Some(_) => {}
                None => agreed = Some(text.to_owned()),
            }
        }
        Ok(agreed.map(|text| (text, disks.len())))
    }

    fn question(&self, pool: &PoolName, command: &str) -> Result<String, Refusal> {
        let mut line = self.questions.lock();
        // One that is stuck in the kernel would only be joined by the next, until the node is full of them.
        if let Some((asked, dying)) = &mut line.dying
            && dying.is_alive()
        {
            return Err(Refusal::Stuck { pool: pool.clone(), waited: asked.elapsed() });
        }
        match self.run(&mut line, pool, command, Some(QUESTION_LIMIT))? {
            Ok(Output { truncated: true, .. }) => {
                let problem = format!("{command}: lvm printed more than a report can have");
                Err(Refusal::Internal { problem })
            }
            // A shell keeps the form that it was started with, whatever its commands are told.
            Ok(output) if output.text.contains("\"report\": [") => {
                let problem = "lvm.conf has report/output_format=json, which growd cannot read".to_owned();
                Err(Refusal::Internal { problem })
            }
            Ok(output) => Ok(output.text),
            Err(ShellError::TimedOut(waited)) => Err(Refusal::Stuck { pool: pool.clone(), waited }),
            Err(error) => Err(Refusal::Internal { problem: format!("{command}: {error}") }),
        }
    }

    /// Runs a command that changes something to its end, however long it takes. What it says is for people: whether
    /// anything was changed is a question for the kernel.
    ///
    /// LVM looks at no device but the physical volumes, if they are known: in a large group it would look at each
    /// volume for others. It changes nothing when there are more of them than it is shown.
    ///
    /// # Errors
    /// NOT_MOUNTED without lvm, when nothing was changed.
    pub fn change(&self, pool: &PoolName, command: &str) -> Result<String, Refusal> {
        let command = match &*self.disks.lock() {
            Disks::Known(disks) => format!("{command} --config '{}'", filter(disks)),
            Disks::Unknown | Disks::Useless => command.to_owned(),
        };
        let mut line = self.changes.lock();
        Ok(match self.run(&mut line, pool, &command, None)? {
            Ok(output) => report::messages(&output.text),
            Err(error) => error.to_string(),
        })
    }

    fn run(
        &self,
        line: &mut Line,
        pool: &PoolName,
        command: &str,
        limit: Option<Duration>,
    ) -> Result<Result<Output, ShellError>, Refusal> {
        let not_installed =
            || Refusal::NotMounted { pool: pool.clone(), problem: "lvm is not installed on this node".to_owned() };
        let program = self.program.as_deref().ok_or_else(not_installed)?;
        let number = self.recorder.began(command);
        let answer = converse(line, program, command, limit);
        match &answer {
            Ok(output) => {
                let words = report::messages(metadata::without_metadata(&output.text));
                self.recorder.ended(number, "done", &words);
            }
            Err(error) => self.recorder.ended(number, &error.to_string(), ""),
        }
        Ok(answer)
    }
}

/// The setting of lvm.conf(5) that hides all other devices.
fn filter(disks: &[String]) -> String {
    let accept: Vec<String> = disks.iter().map(|disk| format!("\"a|^{}$|\",", disk.replace('.', "[.]"))).collect();
    format!("devices {{ filter = [{}\"r|.*|\"] }}", accept.concat())
}

fn converse(line: &mut Line, program: &Path, command: &str, limit: Option<Duration>) -> Result<Output, ShellError> {
    let kept = line.shell.take().and_then(|mut shell| (!shell.has_ended()).then_some(shell));
    let (mut shell, is_new) = match kept {
        Some(shell) => (shell, false),
        None => (Shell::start(program)?, true),
    };
    let asked = Instant::now();
    let greeted = if is_new { greet(&mut shell, program, limit) } else { Ok(()) };
    // Until it was told to change something, it can be killed.
    let may_change = greeted.is_ok() && limit.is_none();
    let answer = greeted.and_then(|()| shell.run(command, limit));
    match &answer {
        Ok(_) => line.shell = Some(shell),
        Err(error) => {
            let dying = if may_change { shell.leave() } else { shell.kill() };
            // Whoever looks what the node waits for needs the process.
            warn!(command, %error, pid = dying.pid(), "gave up a shell of lvm");
            line.dying = Some((asked, dying));
        }
    }
    answer
}

/// Waits until a new shell answers. Which lvm it is, is for whoever reads the log.
fn greet(shell: &mut Shell, program: &Path, limit: Option<Duration>) -> Result<(), ShellError> {
    let output = shell.run("version", limit.or(Some(QUESTION_LIMIT)))?;
    let version = output.text.lines().next().unwrap_or_default().trim();
    info!(program = %program.display(), version, "started a shell of lvm");
    Ok(())
}

/// The absolute path of lvm, from PATH or where administrators' tools are.
pub fn find_lvm() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join("lvm"))
        .find(|file| file.is_absolute() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::process::Command;

    /// An lvm that never answers.
    fn silent() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lvm");
        // By another process: nobody can start a file that the fork of one of our threads has open for writing.
        let write = "printf '#!/bin/sh\nexec sleep 1000\n' >$0 && chmod 755 $0";
        assert!(Command::new("sh").arg("-c").arg(write).arg(&program).status().unwrap().success());
        (folder, program)
    }

    #[test]
    fn a_shell_that_does_not_start_is_killed_and_remembered_until_it_is_gone() {
        let (_folder, program) = silent();
        let mut line = Line::default();
        let limit = Some(Duration::from_millis(50));
        assert!(matches!(converse(&mut line, &program, "vgs", limit), Err(ShellError::TimedOut(_))));
        let (_, mut dying) = line.dying.expect("it may be stuck");
        let begin = Instant::now();
        while dying.is_alive() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(line.shell.is_none());
    }

    #[test]
    fn who_asks_while_a_shell_is_stuck_does_not_wait() {
        let (_folder, program) = silent();
        let group = VolumeGroup::new("vg".to_owned(), Some(program.clone()), Arc::default());
        let pool: PoolName = "vols".parse().unwrap();
        // As one that was killed while it waits for a disk.
        let dying = Shell::start(&program).unwrap().leave();
        let pid = Pid::from_raw(dying.pid().try_into().unwrap());
        group.questions.lock().dying = Some((Instant::now(), dying));
        assert!(matches!(group.question(&pool, "vgs"), Err(Refusal::Stuck { .. })));
        assert!(group.recorder.commands().is_empty(), "it is not asked");
        kill(pid, Signal::SIGKILL).unwrap();
    }
}
