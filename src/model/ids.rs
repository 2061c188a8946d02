//! Ids and names. Each is checked where it is made, so that a value of the type is always well formed.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Characters of a refused text that are repeated.
const SHOWN_MOST: usize = 100;

/// Why a text is not the id or name that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct InvalidName {
    text: String,
    expected: &'static str,
}

impl InvalidName {
    pub fn new(text: &str, expected: &'static str) -> Self {
        Self { text: shortened(text), expected }
    }
}

/// What of a refused text is repeated: it goes into logs, and into answers whose length clients limit.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            /// Takes the hyphenated form only: an id is part of paths and keys, so it has one spelling.
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match Uuid::try_parse(text) {
                    Ok(uuid) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(Self(uuid)),
                    _ => Err(InvalidName::new(text, $expected)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_id!(
    /// A share, as the API tier names it.
    ShareId,
    "a UUID"
);
uuid_id!(
    /// A job: a UUIDv7, so that ids sort by the time of acceptance.
    JobId,
    "the UUID of a job"
);
uuid_id!(
    /// What the caller chose to make its request repeatable.
    RequestId,
    "a UUID"
);

/// Name of a pool: a letter or digit, then letters, digits, `-` and `_`; up to 63 in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

impl PoolName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let fits = (1..=63).contains(&text.len());
        if fits && text.chars().all(legal) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            Ok(Self(text.to_owned()))
        } else {
            let expected = "a pool name (a letter or digit, then letters, digits, '-' or '_', up to 63)";
            Err(InvalidName::new(text, expected))
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

/// The API tier's project of a request: a label for audit and filters. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectLabel(String);

impl ProjectLabel {
    /// Of a job that was accepted before: what is taken as a label may have been more then.
    pub const fn of_record(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for ProjectLabel {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // Escaped would be what cannot be seen, turns the text around or ends the line, and an accent without a letter, as
        // well as quotes, and the joiners that Persian, Hindi and emoji are written with.
        let joiners = ['\u{200c}', '\u{200d}'];
        let bare = text.replace(['"', '\'', '\\', joiners[0], joiners[1]], "x");
        if text.chars().count() <= 255 && bare.escape_debug().eq(bare.chars()) && !text.starts_with(joiners) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new(text, "a project label (up to 255 printable characters)"))
        }
    }
}

impl From<ProjectLabel> for String {
    fn from(label: ProjectLabel) -> Self {
        label.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let hyphenated = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
        assert_eq!(hyphenated.parse::<ShareId>().unwrap().to_string(), hyphenated);
        assert_eq!(hyphenated.to_uppercase().parse::<ShareId>().unwrap().to_string(), hyphenated);
        for text in ["", "../..", "6d0ad3f47c5e4c0e9a3e0c2d2f7c9a11", "{6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11}", "x"] {
            assert!(text.parse::<ShareId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!("home-1_a".parse::<PoolName>().is_ok());
        for text in ["", "-a", "a/b", "a b", &"a".repeat(64)] {
            assert!(text.parse::<PoolName>().is_err(), "{text}");
        }
        for text in
            ["", "Abteilung Süd", "Su\u{308}d", "हिन्दी", "می\u{200c}خواهم", "👩\u{200d}🔧", "部門 🗄", "\"it's\" \\"]
        {
            assert!(text.parse::<ProjectLabel>().is_ok(), "{text}");
        }
        for hidden in ['\n', '\u{1b}', '\u{85}', '\u{a0}', '\u{200b}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{feff}'] {
            for text in [format!("a{hidden}b"), hidden.to_string()] {
                assert!(text.parse::<ProjectLabel>().is_err(), "{text:?}");
            }
        }
        for begun_wrong in ["\u{200c}a", "\u{200d}", "\u{308}u"] {
            assert!(begun_wrong.parse::<ProjectLabel>().is_err(), "{begun_wrong:?}");
        }
    }

    #[test]
    fn what_is_refused_is_not_repeated_at_length() {
        let long = "ü".repeat(50_000);
        let errors = [
            long.parse::<JobId>().unwrap_err(),
            long.parse::<PoolName>().unwrap_err(),
            long.parse::<ProjectLabel>().unwrap_err(),
        ];
        for error in errors {
            let told = error.to_string();
            assert!(told.starts_with(&format!("\"{}…\" is not ", "ü".repeat(100))), "{told}");
        }
        let whole = "-".repeat(100);
        assert!(whole.parse::<PoolName>().unwrap_err().to_string().starts_with(&format!("{whole:?} is not ")));
    }
}
