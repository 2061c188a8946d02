//! What is known of a request before its call is looked at: its id, its version, who asks.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use growd::model::{ProjectLabel, RequestId, TraceParent};
use uuid::Uuid;

use crate::api::{Api, Current};
use crate::identity::{AUTH_TOKEN, Project, Role, Who};
use crate::microversion::Microversion;
use crate::nodes::Place;
use crate::refusal::Refusal;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");

/// By what a request is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestIds {
    /// The caller's own where that is a UUID, or `req-` and a UUID, as OpenStack's are.
    pub id: RequestId,
    pub chosen_by_caller: bool,
    /// The span that it was called from; growapi makes none of its own and hands it on.
    pub traceparent: Option<TraceParent>,
}

impl RequestIds {
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let id = given.and_then(|text| text.strip_prefix("req-").unwrap_or(text).parse().ok());
        let traceparent = headers.get(TraceParent::HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { id: id.unwrap_or_else(Self::fresh), chosen_by_caller: id.is_some(), traceparent }
    }

    /// The id by which to ask where this one already has a job of an earlier request: behind the newest such job of the
    /// share, or behind the share when it has none. Always the same one, so that its repetition is recognised as well.
    pub fn behind(&self, newest: &str) -> RequestId {
        let (_, hash) = Uuid::new_v5(self.id.as_uuid(), newest.as_bytes()).as_u64_pair();
        RequestId::from_uuid(Uuid::from_u64_pair(self.first_half_behind(), hash))
    }

    /// Whether the id is this one, or one behind it.
    pub fn has_asked_with(&self, id: &str) -> bool {
        let is_behind = |id: &RequestId| id.as_uuid().as_u64_pair().0 == self.first_half_behind();
        id.parse().is_ok_and(|id| id == self.id || is_behind(&id))
    }

    /// Of all ids behind this one. From the whole of it: the ids of a client that counts begin alike.
    fn first_half_behind(&self) -> u64 {
        Uuid::new_v5(self.id.as_uuid(), &[]).as_u64_pair().0
    }

    fn fresh() -> RequestId {
        RequestId::from_uuid(Uuid::new_v4())
    }
}

/// A request whose token and version are right.
pub struct Caller {
    pub api: Arc<Api>,
    pub who: Who,
    pub ids: RequestIds,
    /// What links begin with.
    pub base_url: String,
}

impl Caller {
    /// The project of the path, when it is the token's and growd can be asked with it.
    ///
    /// # Errors
    /// 400.
    pub fn project(&self, of_path: &str) -> Result<(), Refusal> {
        let own = !matches!(&self.who.project, Project::Id(id) if id != of_path);
        let fit = of_path.parse::<ProjectLabel>().is_ok();
        if own && fit { Ok(()) } else { Err(Refusal::bad_request("Malformed request url")) }
    }

    /// # Errors
    /// 403.
    pub fn role(&self, least: Role) -> Result<(), Refusal> {
        if self.who.role >= Some(least) { Ok(()) } else { Err(Refusal::forbidden()) }
    }

    /// Whether the caller, who asks for this project, may see what is there.
    pub fn sees(&self, project: &str, place: &Place) -> bool {
        self.is_admin() || self.api.owners.owns(project, place)
    }

    /// Whether nothing but the pool says that the caller may see what is there.
    pub fn sees_by_pool(&self, place: &Place) -> bool {
        !self.is_admin() && self.api.owners.go_by_pool(place)
    }

    pub fn is_admin(&self) -> bool {
        self.who.role == Some(Role::Admin)
    }
}

impl FromRequestParts<Current> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, current: &Current) -> Result<Self, Refusal> {
        let api = current.get();
        let token = parts.headers.get(AUTH_TOKEN).map(|value| value.as_bytes());
        let who = api.identity.who(token).await?;
        Microversion::asked(&parts.headers)?;
        let ids = parts.extensions.get().copied().unwrap_or_else(|| RequestIds::of(&parts.headers));
        let base_url = base_url(&api, &parts.headers);
        Ok(Self { api, who, ids, base_url })
    }
}

/// What links begin with: as configured, or as the client has reached growapi.
pub fn base_url(api: &Api, headers: &HeaderMap) -> String {
    let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    api.public_url.clone().unwrap_or_else(|| format!("http://{}", host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_a_uuid_is_the_callers() {
        let id = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
        let ids = |value: &str| RequestIds::of(&[(REQUEST_ID, value.parse().unwrap())].into_iter().collect());
        for text in [id.to_owned(), format!("req-{id}")] {
            let expected = RequestIds { id: id.parse().unwrap(), chosen_by_caller: true, traceparent: None };
            assert_eq!(ids(&text), expected);
        }
        for text in ["", "req-", "7", "req-req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11"] {
            assert!(!ids(text).chosen_by_caller, "{text}");
        }
        let series = ids(id);
        let (second, third) = (series.behind("a"), series.behind("b"));
        assert!(second != third && second != series.id && second == series.behind("a"));
        for id in [series.id, second, third] {
            assert!(series.has_asked_with(&id.to_string()), "{id}");
        }
        for id in ["", &RequestIds::fresh().to_string()] {
            assert!(!series.has_asked_with(id), "{id}");
        }
        assert_ne!(RequestIds::of(&HeaderMap::new()).id, RequestIds::of(&HeaderMap::new()).id);
    }
}
