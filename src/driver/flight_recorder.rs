//! The last commands that growd gave to tools of the host, and those at work, for whoever has to find out what went
//! wrong.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use crate::model::CommandRecord;

/// Commands that are kept.
const KEPT: usize = 64;
/// Bytes of a command's output that are kept: its end.
const MOST_OUTPUT: usize = 2 << 10;

#[derive(Default)]
pub struct FlightRecorder {
    commands: Mutex<Commands>,
}

#[derive(Default)]
struct Commands {
    begun: u64,
    last: VecDeque<Entry>,
}

struct Entry {
    number: u64,
    begun: Instant,
    record: CommandRecord,
}

impl FlightRecorder {
    /// Gives the number of the command, by which [`FlightRecorder::ended`] must follow.
    pub fn began(&self, command: &str) -> u64 {
        let mut commands = self.commands.lock();
        commands.begun += 1;
        let number = commands.begun;
        if commands.last.len() >= KEPT {
            // The one that is stuck is what everybody will look for.
            let ended = commands.last.iter().position(|entry| entry.record.took.is_some());
            if let Some(ended) = ended {
                commands.last.remove(ended);
            }
        }
        let record = CommandRecord {
            command: command.to_owned(),
            started_at: SystemTime::now(),
            took: None,
            outcome: String::new(),
            output: String::new(),
        };
        commands.last.push_back(Entry { number, begun: Instant::now(), record });
        number
    }

    /// What is asked again and again, with the same answer, takes the place of one command: all else is kept for longer.
    pub fn ended(&self, number: u64, outcome: &str, output: &str) {
        let mut commands = self.commands.lock();
        let Some(entry) = commands.last.iter_mut().find(|entry| entry.number == number) else { return };
        entry.record.took = Some(entry.begun.elapsed());
        outcome.clone_into(&mut entry.record.outcome);
        tail(output).clone_into(&mut entry.record.output);
        let CommandRecord { command, outcome, output, .. } = entry.record.clone();
        commands.last.retain(|Entry { number: other, record, .. }| {
            *other == number || (&record.command, &record.outcome, &record.output) != (&command, &outcome, &output)
        });
    }

    /// The oldest first.
    pub fn commands(&self) -> Vec<CommandRecord> {
        self.commands.lock().last.iter().map(|entry| entry.record.clone()).collect()
    }
}

fn tail(output: &str) -> &str {
    let output = output.trim_end();
    let mut from = output.len().saturating_sub(MOST_OUTPUT);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    &output[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_ones_and_those_at_work() {
        let recorder = FlightRecorder::default();
        let stuck = recorder.began("lvextend stuck");
        for number in 0..2 * KEPT {
            let number = recorder.began(&format!("lvs {number}"));
            recorder.ended(number, "done", &"é".repeat(2000));
        }
        let commands = recorder.commands();
        let texts: Vec<&str> = commands.iter().map(|command| command.command.as_str()).collect();
        assert_eq!((texts.len(), texts[0], texts[1]), (KEPT, "lvextend stuck", "lvs 65"));
        assert_eq!(commands[0].took, None);
        assert!(commands[1..].iter().all(|command| command.took.is_some() && command.output.len() <= MOST_OUTPUT));
        recorder.ended(stuck, "done", "at last");
        assert_eq!(recorder.commands()[0].output, "at last");
    }

    #[test]
    fn what_is_asked_again_and_again_takes_one_place() {
        let recorder = FlightRecorder::default();
        let run = |command, output| recorder.ended(recorder.began(command), "done", output);
        run("lvextend", "");
        recorder.began("vgs");
        for output in ["missing", "there"] {
            (0..KEPT).for_each(|_| run("vgs", output));
        }
        let commands = recorder.commands();
        let told: Vec<_> = commands.iter().map(|record| (record.command.as_str(), record.output.as_str())).collect();
        assert_eq!(told, [("lvextend", ""), ("vgs", ""), ("vgs", "missing"), ("vgs", "there")]);
    }
}
