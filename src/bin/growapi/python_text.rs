//! JSON values as Python prints them: clients of the share API, and their tests, know its error texts word by word.

use std::fmt::Write;

use serde_json::{Number, Value};

/// `str(value)`.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number_text(number),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{}: {}", quoted(name), repr(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

fn number_text(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_text(float),
        _ => number.to_string(),
    }
}

/// The shortest digits that give the same number, with an exponent below -4 and from 16 on.
fn float_text(float: f64) -> String {
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = float.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\\' => quoted.push_str("\\\\"),
            c if c == quote => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => {
                // To write to a string cannot fail.
                let _ = write!(quoted, "\\x{:02x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_in_python() {
        for (json, repr_of, text_of) in [
            ("null", "None", "None"),
            ("true", "True", "True"),
            ("1.5", "1.5", "1.5"),
            ("3.0", "3.0", "3.0"),
            ("1e16", "1e+16", "1e+16"),
            ("123456789012345.5", "123456789012345.5", "123456789012345.5"),
            ("0.00001", "1e-05", "1e-05"),
            ("-7", "-7", "-7"),
            ("[5, \"a\"]", "[5, 'a']", "[5, 'a']"),
            ("{}", "{}", "{}"),
            ("{\"a\": {\"b\": null}}", "{'a': {'b': None}}", "{'a': {'b': None}}"),
            ("\"abc\"", "'abc'", "abc"),
            ("\"it's\"", "\"it's\"", "it's"),
            ("\"'\\\"\"", "'\\'\"'", "'\""),
            ("\"a\\nb\\\\\\u0001\"", "'a\\nb\\\\\\x01'", "a\nb\\\u{1}"),
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!((repr(&value).as_str(), text(&value).as_str()), (repr_of, text_of), "{json}");
        }
    }
}
