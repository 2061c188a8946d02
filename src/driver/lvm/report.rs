//! What `lvs` and `vgs` report, as `--nameprefixes` writes it: `LVM2_LV_NAME='a' LVM2_LV_SIZE='419430400'`.
//!
//! The shell of lvm takes no `--reportformat json`. This form is as exact: every value has its field's name, and lines
//! of other words are told from it.

use std::collections::HashMap;

use crate::model::{Bytes, Refusal};

/// One line of a report: fields by their names, as `lv_size`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Row(HashMap<String, String>);

const PREFIX: &str = "LVM2_";

/// The lines of a report among all that was printed.
pub fn rows(printed: &str) -> Vec<Row> {
    printed.lines().filter_map(row).collect()
}

/// Characters that are kept of what is for people: the end, where lvm says why it gave up.
pub const MOST_WORDS: usize = 1000;

/// What else was printed: warnings and errors, as one line for people. It goes into job records and messages, so it is
/// short and has nothing that a terminal would obey.
pub fn messages(printed: &str) -> String {
    let lines = printed.lines().filter(|line| row(line).is_none()).map(str::trim).filter(|line| !line.is_empty());
    let words = lines.collect::<Vec<_>>().join("; ");
    let from = words.char_indices().rev().nth(MOST_WORDS - 1).map_or(0, |(at, _)| at);
    words[from..].replace(char::is_control, "?")
}

fn row(line: &str) -> Option<Row> {
    let mut fields = HashMap::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (name, value) = rest.strip_prefix(PREFIX)?.split_once("='")?;
        // No value of the fields that growd asks for can hold a quote.
        let (value, after) = value.split_once('\'')?;
        if !after.is_empty() && !after.starts_with(' ') {
            return None;
        }
        fields.insert(name.to_ascii_lowercase(), value.to_owned());
        rest = after.trim_start();
    }
    (!fields.is_empty()).then_some(Row(fields))
}

impl Row {
    /// # Errors
    /// INTERNAL when the field is missing.
    pub fn text(&self, field: &str) -> Result<&str, Refusal> {
        let problem = || format!("the report of lvm has no field {field}");
        self.0.get(field).map(String::as_str).ok_or_else(|| Refusal::Internal { problem: problem() })
    }

    /// # Errors
    /// INTERNAL when the field is missing or no number.
    pub fn number<N: std::str::FromStr>(&self, field: &str) -> Result<N, Refusal> {
        self.text(field)?.parse().map_err(|_| self.nonsense(field))
    }

    fn nonsense(&self, field: &str) -> Refusal {
        let problem = format!("the report of lvm has {:?} as {field}", self.text(field).unwrap_or_default());
        Refusal::Internal { problem }
    }

    /// # Errors
    /// As [`Row::number`].
    pub fn bytes(&self, field: &str) -> Result<Bytes, Refusal> {
        self.number(field).map(Bytes::new)
    }

    /// A percentage, which is empty where there is none.
    ///
    /// # Errors
    /// As [`Row::number`]. NaN, which is below any limit, would pass for a thin pool with room.
    pub fn percent(&self, field: &str) -> Result<Option<f64>, Refusal> {
        if self.text(field)?.is_empty() {
            return Ok(None);
        }
        let percent = self.number(field)?;
        if (0.0..=100.0).contains(&percent) { Ok(Some(percent)) } else { Err(self.nonsense(field)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tells_rows_from_words() {
        let printed = "  WARNING: Device /dev/x not initialized.\n  \
                       LVM2_LV_NAME='a-b' LVM2_LV_SIZE='419430400' LVM2_ORIGIN='' LVM2_DATA_PERCENT='11.04'\n\
                       \n  Failed to find logical volume \"vg0/LVM2_X='y'\"\n  LVM2_LV_NAME='torn LVM2\n";
        let rows = rows(printed);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row.text("lv_name"), Ok("a-b"));
        assert_eq!(row.bytes("lv_size"), Ok(Bytes::mib(400)));
        assert_eq!(row.percent("origin"), Ok(None));
        assert_eq!(row.percent("data_percent"), Ok(Some(11.04)));
        for text in ["nan", "inf", "-0.1", "100.01", "x"] {
            let row = super::row(&format!("LVM2_DATA_PERCENT='{text}'")).unwrap();
            assert_eq!(
                row.percent("data_percent").unwrap_err().to_string(),
                format!("the report of lvm has {text:?} as data_percent")
            );
        }
        assert_eq!(row.text("vg_name").unwrap_err().to_string(), "the report of lvm has no field vg_name");
        assert_eq!(row.bytes("lv_name").unwrap_err().to_string(), "the report of lvm has \"a-b\" as lv_name");
        assert_eq!(
            messages(printed),
            "WARNING: Device /dev/x not initialized.; Failed to find logical volume \"vg0/LVM2_X='y'\"; \
             LVM2_LV_NAME='torn LVM2"
        );
    }

    #[test]
    fn what_is_for_people_is_short_and_plain() {
        let printed = format!("{}é\u{1b}[31m no\n", "é".repeat(5000));
        let words = messages(&printed);
        assert_eq!(words.chars().count(), MOST_WORDS);
        assert!(words.ends_with("éé?[31m no"), "{words}");
    }

    proptest! {
        #[test]
        fn never_panics(printed in "( |LVM2_|'|=|=')*.{0,20}( |LVM2_|'|=|='|\n){0,9}.{0,20}") {
            rows(&printed);
            messages(&printed);
        }
    }
}
