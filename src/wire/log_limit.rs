//! Counts what others make happen, and says which of it the log is told of: whoever knocks all the time must not fill it.

use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many are told of in each window.
const TOLD_MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// One kind of it.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    window: Option<Instant>,
    told: u32,
    untold: u64,
    total: u64,
}

/// What a line in the log says beside the case itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Count {
    /// Since the start, this one included.
    pub total: u64,
    /// Of those, how many were not told of since the last line.
    pub untold: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.untold {
            0 => write!(f, "{}", self.total),
            untold => write!(f, "{}, {untold} of them not told of", self.total),
        }
    }
}

impl LogLimit {
    /// Counts one; `Some` when it shall be told of.
    pub fn count(&self) -> Option<Count> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<Count> {
        let mut counts = self.0.lock();
        counts.total += 1;
        if counts.window.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            (counts.window, counts.told) = (Some(now), 0);
        }
        if counts.told == TOLD_MOST {
            counts.untold += 1;
            return None;
        }
        counts.told += 1;
        Some(Count { total: counts.total, untold: std::mem::take(&mut counts.untold) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_of_ten_times_a_minute() {
        let (kind, begin) = (LogLimit::default(), Instant::now());
        let told = (0..1000).filter_map(|_| kind.count_at(begin)).count();
        assert_eq!(told, 10);
        assert_eq!(kind.count_at(begin + Duration::from_secs(59)), None);
        let next = kind.count_at(begin + WINDOW);
        assert_eq!(next, Some(Count { total: 1002, untold: 991 }));
        assert_eq!(kind.count_at(begin + WINDOW), Some(Count { total: 1003, untold: 0 }));
    }
}
