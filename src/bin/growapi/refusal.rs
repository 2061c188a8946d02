//! Why a request has no result: the status, the text, and the wrapper of the share API around both.
//!
//! Clients look for the text inside the wrapper and lose the text of any other body.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u64>,
    /// Value of WWW-Authenticate.
    pub challenge: Option<String>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None, challenge: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn unauthorized(challenge: String) -> Self {
        let message = "The request you have made requires authentication.";
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Access was denied to this resource.")
    }

    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "The resource could not be found.")
    }

    pub fn unavailable(message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    fn body(&self) -> Value {
        let code = self.status.as_u16();
        if self.status == StatusCode::UNAUTHORIZED {
            return json!({"error": {"code": code, "title": "Unauthorized", "message": self.message}});
        }
        json!({wrapper(self.status): {"code": code, "message": self.message}})
    }
}

fn wrapper(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "badRequest",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "itemNotFound",
        StatusCode::METHOD_NOT_ALLOWED => "badMethod",
        StatusCode::CONFLICT => "conflictingRequest",
        StatusCode::PAYLOAD_TOO_LARGE => "overLimit",
        StatusCode::SERVICE_UNAVAILABLE => "serviceUnavailable",
        _ => "computeFault",
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            // The rest of the body is not waited for.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

pub fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_wrapper_that_clients_look_into() {
        for (code, name) in [
            (400, "badRequest"),
            (403, "forbidden"),
            (404, "itemNotFound"),
            (405, "badMethod"),
            (406, "computeFault"),
            (408, "computeFault"),
            (409, "conflictingRequest"),
            (413, "overLimit"),
            (500, "computeFault"),
            (501, "computeFault"),
            (502, "computeFault"),
            (503, "serviceUnavailable"),
            (504, "computeFault"),
        ] {
            let refusal = Refusal::new(StatusCode::from_u16(code).unwrap(), "why");
            assert_eq!(refusal.body(), json!({name: {"code": code, "message": "why"}}));
        }
        let unauthorized = Refusal::unauthorized("Keystone uri=\"http://k\"".to_owned()).into_response();
        assert_eq!(unauthorized.headers()[header::WWW_AUTHENTICATE], "Keystone uri=\"http://k\"");
    }
}
