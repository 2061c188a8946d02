//! A program that dies at the nth moment of certain system calls: whenever one of its threads enters or leaves one. The
//! moments of all threads are counted together, where strace counts those of each thread by itself and so never reaches
//! the first of a thread that another was ahead of.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

/// A call by its name and number, and whether it counts with these registers.
pub type Call = (&'static str, i64, fn(&user_regs_struct) -> bool);

/// How a traced program has ended.
#[derive(Debug)]
pub enum End {
    /// At which call it was killed.
    Killed(&'static str),
    /// By itself, with this code.
    Exited(i32),
}

pub struct Traced {
    pub pid: Pid,
    /// The end of the program, and how often each call was entered or left until then.
    pub end: oneshot::Receiver<(End, BTreeMap<&'static str, usize>)>,
}

/// Starts a program that is killed at the nth moment, or never.
pub fn start(program: &Path, arguments: &[&str], calls: &'static [Call], nth: Option<usize>) -> Traced {
    // A shell that waits: it is traced before it becomes the program.
    let mut command = Command::new("sh");
    command
        .args(["-c", "read -r go && exec \"$@\"", "sh"])
        .arg(program)
        .args(arguments)
        .env("RUST_LOG", "warn,audit=off");
    let (tell_pid, pid) = mpsc::sync_channel(1);
    let (tell_end, end) = oneshot::channel();
    // Whoever traces a process is one thread, and only that one can wait for it.
    thread::spawn(move || {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).unwrap();
        ptrace::interrupt(pid).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        tell_pid.send(pid).unwrap();
        let end = follow(pid, calls, nth);
        // It has ended and was waited for, which this child does not know.
        let _ = child.wait();
        // The test may be over.
        let _ = tell_end.send(end);
    });
    Traced { pid: pid.recv().unwrap(), end }
}

fn follow(program: Pid, calls: &[Call], nth: Option<usize>) -> (End, BTreeMap<&'static str, usize>) {
    let (mut counts, mut moments, mut killed_at) = (BTreeMap::new(), 0, None);
    let mut has_begun = false;
    loop {
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap() {
            WaitStatus::Exited(pid, code) if pid == program => return (End::Exited(code), counts),
            WaitStatus::Signaled(pid, Signal::SIGKILL, _) if pid == program => {
                return (End::Killed(killed_at.expect("killed by nobody else")), counts);
            }
            WaitStatus::PtraceSyscall(thread) => {
                // What is dying has no registers any more.
                let call = ptrace::getregs(thread).ok().and_then(|registers| {
                    let number = i64::try_from(registers.orig_rax).ok();
                    calls.iter().find(|(_, call, counts)| number == Some(*call) && counts(&registers))
                });
                if let Some((name, ..)) = call.filter(|_| has_begun && killed_at.is_none()) {
                    moments += 1;
                    *counts.entry(*name).or_insert(0) += 1;
                    if nth == Some(moments) {
                        killed_at = Some(*name);
                        kill(program, Signal::SIGKILL).unwrap();
                        continue;
                    }
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, _, event) => {
                has_begun |= event == Event::PTRACE_EVENT_EXEC as i32;
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            _ => continue,
        };
        // It may have been killed meanwhile, which the next wait tells.
        let _ = ptrace::syscall(thread, signal);
    }
}
