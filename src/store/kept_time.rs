//! How long jobs have been kept, counted in time during which the store was open.
//!
//! A wall clock may jump to any time, also while growd runs, and a node may be off for months; neither may take history
//! away. So the store counts the time that it was open, by a clock that never jumps, and notes which job was the newest
//! at which time: whatever is not newer than the job of a note has been kept since that note.

use std::time::Duration;

use crate::model::JobId;

/// Notes in one age: a job may stay this part of the age longer than it has to.
const NOTES: u32 = 32;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptTime {
    /// For how long the store has been open, in all.
    pub open: Duration,
    /// Oldest first.
    pub notes: Vec<Note>,
}

/// The newest job that there was when the store had been open for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub at: Duration,
    pub newest: JobId,
}

impl KeptTime {
    /// More time has passed, and this is the newest job now.
    pub fn advance(&mut self, passed: Duration, newest: Option<JobId>, age: Duration) {
        self.open = self.open.saturating_add(passed);
        let last = self.notes.last();
        let is_due = last.is_none_or(|last| self.open.saturating_sub(last.at) >= age / NOTES);
        if let Some(newest) = newest.filter(|newest| is_due && last.is_none_or(|last| last.newest < *newest)) {
            self.notes.push(Note { at: self.open, newest });
        }
        // The youngest note that is old enough says all that those before it say.
        let old = self.old_enough(age);
        self.notes.drain(..old.saturating_sub(1));
    }

    /// The newest job that has been kept for this age.
    pub fn kept_for(&self, age: Duration) -> Option<JobId> {
        self.notes[..self.old_enough(age)].last().map(|note| note.newest)
    }

    fn old_enough(&self, age: Duration) -> usize {
        let until = self.open.checked_sub(age);
        self.notes.partition_point(|note| until.is_some_and(|until| note.at <= until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const AGE: Duration = Duration::from_secs(3200);

    fn id(n: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn a_job_is_old_when_the_store_was_open_for_the_age_since_it_came() {
        let mut kept_time = KeptTime::default();
        for second in 0..10_000_u32 {
            kept_time.advance(Duration::from_secs(1), Some(id(u128::from(second))), AGE);
            let old = kept_time.kept_for(AGE);
            // Job n came in second n: never too early, and at most a note too late.
            assert!(old.is_none_or(|old| old <= id(u128::from(second.saturating_sub(3199)))), "{second}: {old:?}");
            assert!(second < 3400 || old >= Some(id(u128::from(second - 3400))), "{second}: {old:?}");
            assert!(kept_time.notes.len() <= 34, "{kept_time:?}");
        }
    }

    #[test]
    fn without_new_jobs_nothing_is_noted_and_what_is_there_gets_old() {
        let mut kept_time = KeptTime::default();
        kept_time.advance(Duration::ZERO, None, AGE);
        assert_eq!(kept_time, KeptTime::default());
        for _ in 0..100 {
            kept_time.advance(AGE, Some(id(7)), AGE);
        }
        assert_eq!(kept_time.notes, [Note { at: AGE, newest: id(7) }]);
        assert_eq!(kept_time.kept_for(AGE), Some(id(7)));
        assert_eq!(kept_time.kept_for(Duration::MAX), None);
    }
}
