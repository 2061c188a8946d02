//! Microversions: which one a request asks for, and the documents by which clients find out what there is.
//!
//! The calls that growapi has are the same at all of them, so the version is only checked and echoed.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::refusal::Refusal;

const OWN_HEADER: HeaderName = HeaderName::from_static("x-openstack-manila-api-version");
/// The header that all OpenStack services share: `shared-file-system 2.6`, several separated by commas.
const COMMON_HEADER: HeaderName = HeaderName::from_static("openstack-api-version");
const SERVICE_TYPE: &str = "shared-file-system";

const MINIMUM: Microversion = Microversion { major: 2, minor: 0 };
const MAXIMUM: Microversion = Microversion { major: 2, minor: 99 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Microversion {
    major: u32,
    minor: u32,
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Microversion {
    /// # Errors
    /// 400: a text that is no version. 406: a version that is not served.
    pub fn asked(headers: &HeaderMap) -> Result<Self, Refusal> {
        let own = headers.get(OWN_HEADER).map(|value| value.to_str().unwrap_or("?").trim().to_owned());
        let Some(text) = own.or_else(|| common(headers)) else { return Ok(MINIMUM) };
        if text == "latest" {
            return Ok(MAXIMUM);
        }
        let version = parse(&text).ok_or_else(|| {
            let form = "of invalid format. Must be of format MajorNum.MinorNum.";
            Refusal::bad_request(format!("API Version String {text} is {form}"))
        })?;
        if (MINIMUM..=MAXIMUM).contains(&version) {
            return Ok(version);
        }
        let range = format!("Minimum is {MINIMUM} and maximum is {MAXIMUM}.");
        let message = format!("Version {text} is not supported by the API. {range}");
        Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, message))
    }

    /// Tells in the answer which version it is of, and that another could be answered otherwise.
    pub fn echo(self, headers: &mut HeaderMap) {
        for (name, value) in [(OWN_HEADER, self.to_string()), (COMMON_HEADER, format!("{SERVICE_TYPE} {self}"))] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        headers.append(header::VARY, HeaderValue::from_static("X-OpenStack-Manila-API-Version, OpenStack-API-Version"));
    }
}

/// The version that the common header names for this service.
fn common(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(COMMON_HEADER).iter().filter_map(|value| value.to_str().ok());
    let mut services = values.flat_map(|value| value.split(',')).filter_map(|part| part.trim().split_once(' '));
    services.find(|(service, _)| *service == SERVICE_TYPE).map(|(_, version)| version.trim().to_owned())
}

/// `None` for anything but two numbers without superfluous zeros.
fn parse(text: &str) -> Option<Microversion> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        // A number that does not fit is far above what is served.
        (digits && (part == "0" || !part.starts_with('0'))).then(|| part.parse().unwrap_or(u32::MAX))
    };
    let (major, minor) = text.split_once('.')?;
    Some(Microversion { major: number(major).filter(|major| *major > 0)?, minor: number(minor)? })
}

/// The version document, the same at `/` and at `/v2`.
pub fn document(base_url: &str) -> Value {
    json!({"versions": [{
        "id": "v2.0",
        "status": "CURRENT",
        "version": MAXIMUM.to_string(),
        "min_version": MINIMUM.to_string(),
        "updated": "2015-08-27T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{base_url}/v2/")}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.share+json;version=1"}],
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&'static str, &str)]) -> Result<String, (u16, String)> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let version = Microversion::asked(&headers.collect());
        version.map(|version| version.to_string()).map_err(|refusal| (refusal.status.as_u16(), refusal.message))
    }

    #[test]
    fn both_headers_are_read_and_no_header_is_the_minimum() {
        let own = "x-openstack-manila-api-version";
        let common = "openstack-api-version";
        for (headers, version) in [
            (vec![], "2.0"),
            (vec![(own, "2.6")], "2.6"),
            (vec![(own, "2.99")], "2.99"),
            (vec![(own, "latest")], "2.99"),
            (vec![(common, "shared-file-system 2.98")], "2.98"),
            (vec![(common, "compute 2.1, shared-file-system 2.7")], "2.7"),
            (vec![(common, "compute 2.100")], "2.0"),
            (vec![(own, "2.6"), (common, "shared-file-system 2.7")], "2.6"),
        ] {
            assert_eq!(asked(&headers), Ok(version.to_owned()), "{headers:?}");
        }
    }

    #[test]
    fn versions_out_of_range_are_406_and_other_texts_400() {
        let own = "x-openstack-manila-api-version";
        for version in ["2.100", "1.0", "3.0", "2.99999999999"] {
            let range = "Minimum is 2.0 and maximum is 2.99.";
            let message = format!("Version {version} is not supported by the API. {range}");
            assert_eq!(asked(&[(own, version)]), Err((406, message)));
        }
        for version in ["abc", "2.01", "2", "2.", ".1", "0.1", "02.1", "2.1.1", "-2.1", "2. 1", "", "2.x"] {
            let form = "of invalid format. Must be of format MajorNum.MinorNum.";
            assert_eq!(asked(&[(own, version)]), Err((400, format!("API Version String {version} is {form}"))));
        }
    }
}
