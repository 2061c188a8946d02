//! Messages of the contract as text for people. Pure: the time of day comes in as an argument.

pub mod detail;
pub mod list;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use growd::model::Bytes;
use prost_types::Timestamp;

/// What stands for a value that is not there.
const NONE: &str = "-";

/// `None` for times that RFC 3339 cannot write: before 1970, after 9999.
fn time(timestamp: &Timestamp) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = u64::try_from(timestamp.seconds).ok().filter(|seconds| *seconds < YEAR_10000)?;
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(UNIX_EPOCH + Duration::new(seconds, nanos))
}

fn utc(timestamp: Option<&Timestamp>) -> String {
    match timestamp.and_then(time) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => NONE.to_owned(),
    }
}

/// The largest unit that fits: `45s`, `3m`, `5h`, `12d`. A time ahead of this clock is `0s` old.
fn age(timestamp: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(then) = timestamp.and_then(time) else { return NONE.to_owned() };
    match now.duration_since(then).unwrap_or_default().as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `None` unless both ends are known.
fn duration(from: Option<&Timestamp>, to: Option<&Timestamp>) -> Option<String> {
    let took = time(to?)?.duration_since(time(from?)?).unwrap_or_default();
    Some(match took.as_millis() {
        millis @ 0..1_000 => format!("{millis}ms"),
        millis @ 1_000..60_000 => format!("{}.{}s", millis / 1_000, millis % 1_000 / 100),
        millis => humantime::format_duration(Duration::from_secs(u64::try_from(millis / 1_000).unwrap_or(u64::MAX)))
            .to_string(),
    })
}

/// The size that can be typed again, with a round figure where that is hard to read.
pub fn exact(bytes: u64) -> String {
    let size = Bytes::new(bytes);
    let (exact, rounded) = (size.to_string(), size.rounded());
    if exact == rounded { exact } else { format!("{exact} (about {rounded})") }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn at(seconds: i64, millis: i32) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: millis * 1_000_000 })
    }

    #[test]
    fn times_that_cannot_be_written_are_not() {
        assert_eq!(utc(at(1_700_000_000, 0).as_ref()), "2023-11-14T22:13:20Z");
        for timestamp in [None, at(-1, 0), at(i64::MAX, 0), at(0, -1), at(253_402_300_800, 0)] {
            assert_eq!(utc(timestamp.as_ref()), "-");
        }
    }

    #[test]
    fn ages_and_durations_have_one_readable_form() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, text) in [(999_999, "1s"), (999_000, "16m"), (990_000, "2h"), (0, "11d"), (2_000_000, "0s")] {
            assert_eq!(age(at(seconds, 0).as_ref(), now), text);
        }
        for (from, to, text) in [
            (at(5, 0), at(5, 12), Some("12ms")),
            (at(5, 0), at(7, 250), Some("2.2s")),
            (at(0, 0), at(3_725, 900), Some("1h 2m 5s")),
            (at(9, 0), at(5, 0), Some("0ms")),
            (at(5, 0), None, None),
        ] {
            assert_eq!(duration(from.as_ref(), to.as_ref()).as_deref(), text);
        }
    }

    #[test]
    fn a_size_that_is_hard_to_read_is_explained() {
        assert_eq!(exact(2 << 30), "2GiB");
        assert_eq!(exact(1_610_612_737), "1610612737B (about 1.5GiB)");
        assert_eq!(exact(0), "0B");
    }
}
