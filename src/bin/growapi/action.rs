//! The body of an action: which it is, and the size that it names. Pure, so that every row of what clients may send is
//! a test of one line.

use growd::model::JobKind;
use serde_json::Value;

use crate::python_text::{repr, text};
use crate::refusal::Refusal;

/// The largest size, in GiB.
const MOST: u64 = i32::MAX as u64;

/// An action that exists, with an argument that is not checked yet.
#[derive(Debug)]
pub struct Action {
    pub kind: JobKind,
    name: String,
    argument: Value,
}

impl Action {
    /// Takes the names of all microversions at each of them.
    ///
    /// # Errors
    /// 400: no body that is JSON with one action that exists.
    pub fn of_body(content_type: Option<&str>, body: &[u8]) -> Result<Self, Refusal> {
        let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim);
        if body.is_empty() || !media_type.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) {
            return Err(no_such("None"));
        }
        let malformed = || Refusal::bad_request("Malformed request body");
        let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Err(malformed()) };
        let mut fields = fields.into_iter();
        let (Some((name, argument)), None) = (fields.next(), fields.next()) else { return Err(malformed()) };
        let kind = match name.as_str() {
            "os-extend" | "extend" => JobKind::Extend,
            "os-shrink" | "shrink" => JobKind::Shrink,
            _ => return Err(no_such(&name)),
        };
        Ok(Self { kind, name, argument })
    }

    /// The size that is asked for, in GiB. Properties of other versions of the API, such as `force`, have no effect.
    ///
    /// # Errors
    /// 400: the argument does not fit its schema.
    pub fn new_size(&self) -> Result<u64, Refusal> {
        let Value::Object(fields) = &self.argument else {
            return Err(invalid(
                &self.name,
                &self.argument,
                &format!("{} is not of type 'object'", repr(&self.argument)),
            ));
        };
        let Some(size) = fields.get("new_size") else {
            return Err(invalid(&self.name, &self.argument, "'new_size' is a required property"));
        };
        let refuse = |problem: &str| Err(invalid("new_size", size, &format!("{} {problem}", repr(size))));
        match size {
            Value::String(digits) if digits.is_empty() => refuse("should be non-empty"),
            Value::String(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                refuse("does not match '^[0-9]*$'")
            }
            Value::String(digits) => match digits.parse() {
                Ok(size) if size <= MOST => Ok(size),
                _ => {
                    let number = digits.trim_start_matches('0');
                    Err(invalid("new_size", size, &format!("{number} is greater than the maximum of {MOST}")))
                }
            },
            Value::Number(number) => match (number.as_u64(), number.as_f64()) {
                (Some(size), _) if size <= MOST => Ok(size),
                (_, Some(float)) if float.fract() != 0.0 => refuse("is not of type 'integer', 'string'"),
                (_, Some(float)) if float < 0.0 => refuse("is less than the minimum of 0"),
                // A whole number with a point is one all the same.
                (_, Some(float)) if float <= MOST as f64 => Ok(float as u64),
                _ => refuse(&format!("is greater than the maximum of {MOST}")),
            },
            _ => refuse("is not of type 'integer', 'string'"),
        }
    }
}

fn no_such(name: &str) -> Refusal {
    Refusal::bad_request(format!("There is no such action: {name}"))
}

fn invalid(field: &str, value: &Value, problem: &str) -> Refusal {
    let value = text(value);
    Refusal::bad_request(format!("Invalid input for field/attribute {field}. Value: {value}. {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Option<&str> = Some("application/json");

    fn parsed(content_type: Option<&str>, body: &[u8]) -> Result<u64, String> {
        let action = Action::of_body(content_type, body).map_err(|refusal| refusal.message)?;
        action.new_size().map_err(|refusal| {
            assert_eq!(refusal.status.as_u16(), 400);
            refusal.message
        })
    }

    #[test]
    fn whole_numbers_are_sizes_however_they_are_written() {
        for (size, expected) in [
            ("3", 3),
            ("\"3\"", 3),
            ("3.0", 3),
            ("0", 0),
            ("-0", 0),
            ("\"0003\"", 3),
            ("3e0", 3),
            ("2147483647", 2_147_483_647),
        ] {
            for name in ["os-extend", "extend", "os-shrink", "shrink"] {
                let body = format!("{{\"{name}\": {{\"new_size\": {size}, \"force\": true}}}}");
                assert_eq!(parsed(JSON, body.as_bytes()), Ok(expected), "{body}");
            }
        }
        let body = br#"{"os-extend": {"new_size": 3}}"#;
        assert_eq!(parsed(Some("Application/JSON; charset=utf-8"), body), Ok(3));
    }

    #[test]
    fn no_other_size_passes_and_each_is_refused_in_the_words_of_the_api() {
        let types = "is not of type 'integer', 'string'";
        let digits = "does not match '^[0-9]*$'";
        let most = "is greater than the maximum of 2147483647";
        for (size, value, problem) in [
            ("-1", "-1", "-1 is less than the minimum of 0".to_owned()),
            ("-1.0", "-1.0", "-1.0 is less than the minimum of 0".to_owned()),
            ("2147483648", "2147483648", format!("2147483648 {most}")),
            ("99999999999999999999", "1e+20", format!("1e+20 {most}")),
            ("1e300", "1e+300", format!("1e+300 {most}")),
            ("\"2147483648\"", "2147483648", format!("2147483648 {most}")),
            ("\"99999999999999999999\"", "99999999999999999999", format!("99999999999999999999 {most}")),
            ("1.5", "1.5", format!("1.5 {types}")),
            ("-0.5", "-0.5", format!("-0.5 {types}")),
            ("null", "None", format!("None {types}")),
            ("true", "True", format!("True {types}")),
            ("[5]", "[5]", format!("[5] {types}")),
            ("{}", "{}", format!("{{}} {types}")),
            ("\"abc\"", "abc", format!("'abc' {digits}")),
            ("\"-1\"", "-1", format!("'-1' {digits}")),
            ("\"2.5\"", "2.5", format!("'2.5' {digits}")),
            ("\" 3\"", " 3", format!("' 3' {digits}")),
            ("\"+3\"", "+3", format!("'+3' {digits}")),
            ("\"\u{663}\"", "\u{663}", format!("'\u{663}' {digits}")),
            ("\"\"", "", "'' should be non-empty".to_owned()),
        ] {
            let body = format!("{{\"os-extend\": {{\"new_size\": {size}}}}}");
            let expected = format!("Invalid input for field/attribute new_size. Value: {value}. {problem}");
            assert_eq!(parsed(JSON, body.as_bytes()), Err(expected), "{body}");
        }
    }

    #[test]
    fn the_argument_is_an_object_with_a_size() {
        for (argument, value, problem) in [
            ("{}", "{}", "'new_size' is a required property"),
            ("{\"size\": 3}", "{'size': 3}", "'new_size' is a required property"),
            ("null", "None", "None is not of type 'object'"),
            ("5", "5", "5 is not of type 'object'"),
            ("[]", "[]", "[] is not of type 'object'"),
            ("\"3\"", "3", "'3' is not of type 'object'"),
        ] {
            for name in ["os-extend", "extend"] {
                let body = format!("{{\"{name}\": {argument}}}");
                let expected = format!("Invalid input for field/attribute {name}. Value: {value}. {problem}");
                assert_eq!(parsed(JSON, body.as_bytes()), Err(expected), "{body}");
            }
        }
    }

    #[test]
    fn what_is_no_action_is_refused_as_that() {
        let malformed = Err("Malformed request body".to_owned());
        let bodies: [&[u8]; 11] = [
            b"{}",
            b"[]",
            b"5",
            b"null",
            b"{\"os-extend\": {\"new_size\": 3}, \"x\": 1}",
            b"{\"os-extend\": ",
            b"{'os-extend': {}}",
            b"{\"os-extend\": {\"new_size\": NaN}}",
            b"{\"os-extend\": {\"new_size\": 1e999}}",
            b"{\"os-extend\": {\"new_size\": 3}} x",
            b"{\"os-extend\": {\"new_size\": \"\xff\"}}",
        ];
        for body in bodies {
            assert_eq!(parsed(JSON, body), malformed, "{}", String::from_utf8_lossy(body));
        }
        let deep = format!("{{\"os-extend\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(parsed(JSON, deep.as_bytes()), malformed);
        let none = Err("There is no such action: None".to_owned());
        assert_eq!(parsed(JSON, b""), none);
        for content_type in [None, Some(""), Some("text/plain"), Some("application/xml"), Some("application/jsonx")] {
            assert_eq!(parsed(content_type, b"{\"os-extend\": {\"new_size\": 3}}"), none, "{content_type:?}");
        }
        assert_eq!(parsed(JSON, b"{\"os-foo\": {}}"), Err("There is no such action: os-foo".to_owned()));
    }
}
