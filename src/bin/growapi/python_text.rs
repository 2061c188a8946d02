//! JSON values as Python prints them, but for what is odd in numbers and texts: clients of the share API, and their tests,
//! know its error texts word by word.

use serde_json::Value;

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
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{}: {}", quoted(name), repr(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let escaped = text.chars().map(|c| match c {
        '\'' | '"' if c != quote => c.to_string(),
        _ => c.escape_debug().to_string(),
    });
    format!("{quote}{}{quote}", escaped.collect::<String>())
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
            ("-7", "-7", "-7"),
            ("[5, \"a\"]", "[5, 'a']", "[5, 'a']"),
            ("{}", "{}", "{}"),
            ("{\"a\": {\"b\": null}}", "{'a': {'b': None}}", "{'a': {'b': None}}"),
            ("\"abc\"", "'abc'", "abc"),
            ("\"it's\"", "\"it's\"", "it's"),
            ("\"'\\\"\"", "'\\'\"'", "'\""),
            ("\"a\\nb\\\\\"", "'a\\nb\\\\'", "a\nb\\"),
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!((repr(&value).as_str(), text(&value).as_str()), (repr_of, text_of), "{json}");
        }
    }
}
