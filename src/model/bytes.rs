//! A size in bytes, and its text form: `2GiB`.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

/// A size in bytes.
///
/// Its text is exact: the largest binary unit that divides it (`2GiB`, `1536MiB`, `513B`), so that what is printed can
/// be typed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

const UNITS: [(&str, u32); 7] =
    [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Bytes {
    pub const ZERO: Self = Self(0);
    /// The largest size of a file, and so of a share: `loff_t` is signed.
    pub const MAX_FILE: Self = Self(i64::MAX as u64);

    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// Rounded down.
    pub const fn whole_gib(self) -> u64 {
        self.0 >> 30
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The least multiple of `unit` that is not less; saturates at the end of the type.
    pub const fn rounded_up_to(self, unit: u64) -> Self {
        Self(self.0.div_ceil(unit).saturating_mul(unit))
    }

    /// This size times a ratio, rounded down; saturates at the ends of the type.
    pub fn scaled(self, ratio: f64) -> Self {
        Self((self.0 as f64 * ratio) as u64)
    }

    /// For tables that people read: at most three digits before the point, one behind it (`1.5GiB`).
    pub fn rounded(self) -> String {
        match UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((unit, shift)) if *shift > 0 => {
                let value = self.0 as f64 / (1_u64 << shift) as f64;
                if value.fract() < 0.05 { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") }
            }
            _ => format!("{}B", self.0),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            let whole = self.0 >> shift;
            if whole > 0 && whole << shift == self.0 {
                return f.pad(&format!("{whole}{unit}"));
            }
        }
        f.pad("0B")
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::ZERO, Self::saturating_add)
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    #[error("{text:?} is not a size: write a number and a unit, such as 10GiB, 500MiB or 1.5TiB")]
    Form { text: String },
    #[error("{text:?} has no unit: write {text}GiB, or {text}B if bytes are meant")]
    NoUnit { text: String },
    #[error("{text:?} uses a decimal unit: sizes are binary here, write {binary:?} instead")]
    DecimalUnit { text: String, binary: String },
    #[error("{text:?} is not a whole number of bytes: write {near}, or use a smaller unit")]
    NotWhole { text: String, near: Bytes },
    #[error("{text:?} is above the largest size, {}B", Bytes::MAX_FILE.get())]
    TooLarge { text: String },
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let form = || ParseBytesError::Form { text: text.to_owned() };
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let unit = unit.trim_start();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || (fraction.is_empty() && number.contains('.')) {
            return Err(form());
        }
        if unit.is_empty() {
            return Err(ParseBytesError::NoUnit { text: text.to_owned() });
        }
        let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let letter = unit.strip_suffix(['B', 'b']).unwrap_or(unit).to_uppercase();
            return Err(match letter.as_str() {
                "K" | "M" | "G" | "T" | "P" | "E" => {
                    ParseBytesError::DecimalUnit { text: text.to_owned(), binary: format!("{number}{letter}iB") }
                }
                _ => form(),
            });
        };
        let too_large = || ParseBytesError::TooLarge { text: text.to_owned() };
        // Exact arithmetic: a size that a float would round must not become another size silently.
        let scale = 10_u128.checked_pow(fraction.len() as u32).ok_or_else(form)?;
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_large())?;
        let scaled = digits.checked_mul(1_u128 << shift).ok_or_else(too_large)?;
        let bytes = u64::try_from(scaled / scale).ok().filter(|bytes| *bytes <= Self::MAX_FILE.get());
        let bytes = bytes.ok_or_else(too_large)?;
        if scaled % scale != 0 {
            // The next whole number of the next smaller unit.
            let smaller = shift.saturating_sub(10);
            let near = (scaled >> smaller).div_ceil(scale).min(u128::from(Self::MAX_FILE.get()) >> smaller);
            let near = u64::try_from(near << smaller).map_or(Self::MAX_FILE, Self);
            return Err(ParseBytesError::NotWhole { text: text.to_owned(), near });
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_binary_units_and_refuses_the_rest_with_a_hint() {
        for (text, bytes) in [("2GiB", 2 << 30), ("1.5TiB", 3 << 39), ("500 MiB", 500 << 20), ("0B", 0), ("7B", 7)] {
            assert_eq!(text.parse(), Ok(Bytes::new(bytes)), "{text}");
        }
        for (text, hint) in [
            ("2GB", "write \"2GiB\""),
            ("2g", "write \"2GiB\""),
            ("10", "write 10GiB"),
            ("3.2GiB", "whole number of bytes: write 3277MiB,"),
            ("0.9999GiB", "write 1GiB,"),
            ("7.9999999999999999EiB", "write 8191PiB,"),
            ("0.3B", "write 1B,"),
            ("16EiB", "largest"),
            ("16.3EiB", "largest"),
            ("99999999999999999999999999999999999999999GiB", "largest"),
            ("-1GiB", "not a size"),
            ("1..5GiB", "not a size"),
            ("1.GiB", "not a size"),
            (".5GiB", "not a size"),
            ("", "not a size"),
            ("GiB", "not a size"),
            ("1giraffe", "not a size"),
        ] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn rounds_only_for_people() {
        assert_eq!(Bytes::new(1_610_612_737).rounded(), "1.5GiB");
        assert_eq!(Bytes::gib(2).rounded(), "2GiB");
        assert_eq!(Bytes::new(12).rounded(), "12B");
        assert_eq!(Bytes::new(1_610_612_737).to_string(), "1610612737B");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes in 0..=Bytes::MAX_FILE.get()) {
            let size = Bytes::new(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn a_fraction_is_exact_or_refused(
            whole in 0..10_000_u64, fraction in "[0-9]{1,12}", unit in prop::sample::select(&UNITS[..]),
        ) {
            let (name, shift) = unit;
            let text = format!("{whole}.{fraction}{name}");
            let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap());
            let parts = (u128::from(whole) * scale + fraction.parse::<u128>().unwrap()) << shift;
            match text.parse::<Bytes>() {
                Ok(size) => prop_assert_eq!(u128::from(size.get()) * scale, parts),
                Err(ParseBytesError::NotWhole { near, .. }) => {
                    prop_assert_ne!(parts % scale, 0);
                    prop_assert_eq!(near.to_string().parse(), Ok(near));
                }
                Err(ParseBytesError::TooLarge { .. }) => prop_assert!(parts / scale > u128::from(Bytes::MAX_FILE.get())),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9]{0,45}\\.?[0-9]{0,45} ?[EPTGMKi]{0,2}[Bb]?\\PC{0,2}") {
            if let Ok(size) = text.parse::<Bytes>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
        }
    }
}
