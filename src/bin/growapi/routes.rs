//! The calls: parse, ask the nodes, answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use growd::model::{Bytes as Size, JobKind, Reason, ShareId};
use growd::wire::proto::{self, ExtendShareRequest, Job, JobState, Share};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

use crate::action::Action;
use crate::api::{Api, Current};
use crate::caller::{Caller, REQUEST_ID, RequestIds, base_url};
use crate::identity::Role;
use crate::listing::{self, Listed, Query};
use crate::metrics::Metrics;
use crate::microversion::{self, Microversion};
use crate::nodes::{Failure, Place, RETRY_AFTER, Taken};
use crate::refusal::{Refusal, json_response};
use crate::view::{Details, summary};

/// The longest body that is read: that of the share API.
const BODY_MOST: usize = 114_688;
/// Jobs that one page of details asks for at once.
const JOBS_AT_ONCE: usize = 16;
/// How often a request is asked for with another id, when another one with the same id comes between each time.
const IDS_MOST: u32 = 3;
const OPENAPI: &str = include_str!("openapi.json");

/// Each with its methods; `openapi.json` describes them, and a test holds it to this list.
pub const ROUTES: [(&str, &str); 9] = [
    ("get", "/"),
    ("get", "/v2"),
    ("get", "/v2/"),
    ("get", "/openapi.json"),
    ("get", "/v2/{project_id}/shares"),
    ("get", "/v2/{project_id}/shares/detail"),
    ("get", "/v2/{project_id}/shares/{share_id}"),
    ("get", "/v2/{project_id}/shares/{share_id}/export_locations"),
    ("post", "/v2/{project_id}/shares/{share_id}/action"),
];

pub fn router(current: Current, metrics: Arc<Metrics>) -> Router {
    let [root, v2, v2_slash, openapi, shares, detail, share, exports, action] = ROUTES.map(|(_, path)| path);
    Router::new()
        .route(root, get(versions))
        .route(v2, get(versions))
        .route(v2_slash, get(versions))
        .route(openapi, get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route(shares, get(|caller, uri, path| list(caller, uri, path, false)))
        .route(detail, get(|caller, uri, path| list(caller, uri, path, true)))
        .route(share, get(show))
        .route(exports, get(export_locations))
        .route(action, post(act))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(metrics, around))
        .with_state(current)
}

/// Gives every request its id, and every answer that and the version; counts it and tells the log.
async fn around(State(metrics): State<Arc<Metrics>>, mut request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let ids = RequestIds::of(request.headers());
    let version = Microversion::asked(request.headers());
    // As much as the longest that leads anywhere has: no client may fill the log.
    let path: String = request.uri().path().chars().take(1024).collect();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("other".to_owned(), |path| path.as_str().to_owned());
    request.extensions_mut().insert(ids);
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::try_from(format!("req-{}", ids.id)) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Ok(version) = version {
        version.echo(response.headers_mut());
    }
    let took = begin.elapsed();
    metrics.answered(known(&method), &route, response.status(), took);
    let (status, milliseconds) = (response.status().as_u16(), took.as_millis());
    tracing::info!(request = %ids.id, %method, path, status, milliseconds, "answered");
    response
}

/// A method that clients may make up is one of few in the metrics.
fn known(method: &Method) -> &str {
    match method.as_str() {
        name @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => name,
        _ => "other",
    }
}

async fn versions(State(current): State<Current>, headers: HeaderMap) -> Response {
    json_response(StatusCode::OK, &microversion::document(&base_url(&current.get(), &headers)))
}

async fn wrong_method(_: Caller) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed for this resource.")
}

async fn no_such_path(_: Caller) -> Refusal {
    Refusal::not_found()
}

/// A path whose escapes are no UTF-8 names nothing.
type Of<T> = Result<Path<T>, axum::extract::rejection::PathRejection>;

fn named<T>(path: Of<T>) -> Result<T, Refusal> {
    path.map(|Path(names)| names).map_err(|_| Refusal::not_found())
}

async fn show(caller: Caller, path: Of<(String, String)>) -> Result<Response, Refusal> {
    let (project, share) = named(path)?;
    let found = find(&caller, &project, &share).await?;
    let share = found.0.json(&caller.base_url, &project, found.1.as_deref());
    Ok(json_response(StatusCode::OK, &json!({"share": share})))
}

async fn export_locations(caller: Caller, path: Of<(String, String)>) -> Result<Response, Refusal> {
    let (project, share) = named(path)?;
    find(&caller, &project, &share).await?;
    Ok(json_response(StatusCode::OK, &json!({"export_locations": []})))
}

/// A share that the caller may see, and the project it belongs to, where that is known.
async fn find(caller: &Caller, project: &str, share: &str) -> Result<(Details, Option<String>), Refusal> {
    caller.project(project)?;
    caller.role(Role::Reader)?;
    let id: ShareId = share.parse().map_err(|_| Refusal::not_found())?;
    let (place, share) = look(caller, project, id, None).await?;
    let owner = caller.api.owners.shown(&place, project).map(str::to_owned);
    let job = place.node.job_of(&share).await;
    let details = job.and_then(|job| Details::new(share, job)).map_err(|failure| failure.into_refusal(None))?;
    Ok((details, owner))
}

/// The share as its node tells it now, if the caller may see it. `asked` as in [`Failure::into_refusal`].
async fn look(caller: &Caller, project: &str, id: ShareId, asked: Option<u64>) -> Result<(Place, Share), Refusal> {
    let nodes = &caller.api.nodes;
    let is_anothers = nodes.known(id).is_some_and(|place| !caller.sees(project, &place));
    match nodes.share(id).await {
        Ok((place, share)) if caller.sees(project, &place) => Ok((place, share)),
        // What growd says of a share of another project is not for this one.
        Err(Failure::Refused(_)) if is_anothers => Err(Failure::unknown_share().into_refusal(asked)),
        Err(failure) => Err(failure.into_refusal(asked)),
        Ok(_) => Err(Failure::unknown_share().into_refusal(asked)),
    }
}

async fn list(caller: Caller, uri: Uri, path: Of<String>, detailed: bool) -> Result<Response, Refusal> {
    let project = named(path)?;
    caller.project(&project)?;
    caller.role(Role::Reader)?;
    let mut query = Query::parse(uri.query().unwrap_or_default())?;
    query.all_projects &= caller.is_admin();
    let Api { nodes, owners, .. } = &*caller.api;
    let base_url = &caller.base_url;
    let mut page = listing::page(nodes, owners, &project, &query).await?;
    let last = page.shares.last().map(|listed| listed.share.share_id.clone());

    let view = |Listed { node, share, details }: Listed| {
        let project = &project;
        async move {
            if !detailed {
                return Ok(summary(base_url, project, &share.share_id));
            }
            let place = Place::of(&node, &share);
            let details = match details {
                Some(details) => details,
                None => listing::details(&node, share).await?,
            };
            Ok(details.json(base_url, project, owners.shown(&place, project)))
        }
    };
    let mut views = Vec::new();
    let mut asked = stream::iter(std::mem::take(&mut page.shares)).map(view).buffered(JOBS_AT_ONCE);
    while let Some(view) = asked.next().await {
        match view {
            Ok(view) => views.push(view),
            Err(node) => {
                page.missing.insert(node);
            }
        }
    }
    let mut body = json!({"shares": views});
    if let Some(last) = last.filter(|_| page.more) {
        let href = format!("{base_url}{}?{}", uri.path(), query.behind(&last));
        body["shares_links"] = json!([{"rel": "next", "href": href}]);
    }
    let mut response = json_response(StatusCode::OK, &body);
    if let Some(warning) = page.warning().and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(header::WARNING, warning);
    }
    Ok(response)
}

/// The order of what is looked at is that of the share API: the body before the project of the path, the schema before
/// the role, and the share last.
async fn act(caller: Caller, path: Of<(String, String)>, request: Request) -> Result<Response, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.map(str::to_owned);
    let body = body(&caller, request.into_body()).await?;
    let action = Action::of_body(content_type.as_deref(), &body)?;
    let (project, share) = named(path)?;
    caller.project(&project)?;
    let size = action.new_size()?;
    caller.role(Role::Member)?;
    let id: ShareId = share.parse().map_err(|_| Failure::unknown_share().into_refusal(Some(size)))?;
    resize(&caller, &project, id, action.kind, size).await
}

/// Accepted means that the job is on the node's disk.
async fn resize(caller: &Caller, project: &str, id: ShareId, kind: JobKind, size: u64) -> Result<Response, Refusal> {
    let failed = |failure: Failure| failure.into_refusal(Some(size));
    let nodes = &caller.api.nodes;
    let mut request = ExtendShareRequest {
        share_id: id.to_string(),
        new_size_bytes: match (size, kind) {
            // growd does not take zero. No share is smaller than a byte or larger than the largest size, so these are
            // refused just as surely.
            (0, JobKind::Extend) => 1,
            (0, JobKind::Shrink) => Size::MAX_FILE.get(),
            (size, _) => Size::gib(size).get(),
        },
        ..ExtendShareRequest::default()
    };
    // A share that has moved is found again, once.
    for _ in 0..2 {
        let mut place = nodes.place(id).await.map_err(failed)?;
        // It may have moved from one project to another. What a place says growd goes by, but not whose a pool is.
        if !caller.sees(project, &place) || caller.sees_by_pool(&place) {
            place = look(caller, project, id, Some(size)).await?.0;
        }
        // An admin may ask for the share of any project; growd goes by what the place says.
        let of_place = if place.project.is_empty() { project } else { &place.project };
        of_place.clone_into(&mut request.project_id);
        if let Some(taken) = ask(caller, &place, id, kind, request.clone(), size).await? {
            let (request, node, job) = (caller.ids.id, &place.node.name, taken.job);
            tracing::info!(%request, share = %id, node, job = job.job_id, %kind, size, "accepted");
            return Ok(StatusCode::ACCEPTED.into_response());
        }
    }
    Err(failed(Failure::unknown_share()))
}

/// Asks with the request's own id, and where that has a job of an earlier request with the ids behind it.
async fn ask(
    caller: &Caller,
    place: &Place,
    id: ShareId,
    kind: JobKind,
    mut request: ExtendShareRequest,
    size: u64,
) -> Result<Option<Taken>, Refusal> {
    let failed = |failure: Failure| failure.into_refusal(Some(size));
    let ids = &caller.ids;
    request.request_id = Some(ids.id.to_string());
    let mut left = IDS_MOST;
    loop {
        let answer = caller.api.nodes.resize(kind, id, place, request.clone(), ids.traceparent).await;
        if left == 0 || !may_be_earlier(ids, &answer)? {
            return answer.map_err(failed);
        }
        left -= 1;
        let mut jobs = place.node.jobs_of(id).await.map_err(failed)?.into_iter();
        let newest = jobs.find(|job| ids.has_asked_with(&job.request_id));
        if let Some(job) = newest.clone().filter(|job| is_repeated(&request, kind, job)) {
            return Ok(Some(Taken { job, repeated: true }));
        }
        let newest = newest.map_or(request.share_id.clone(), |job| job.job_id);
        request.request_id = Some(ids.behind(&newest).to_string());
    }
}

/// Whether the answer may be about an earlier request: OpenStack's clients may use one id for a series of them.
///
/// # Errors
/// 503: the job has ended without success, and may be this very request's. To begin another would undo an admin's
/// cancellation.
fn may_be_earlier(ids: &RequestIds, answer: &Result<Option<Taken>, Failure>) -> Result<bool, Refusal> {
    match answer {
        _ if !ids.chosen_by_caller => Ok(false),
        Ok(Some(Taken { job, repeated: true })) if has_failed(job) => {
            let message = "The connection to the storage node broke; whether it took the request is not known.";
            Err(Refusal::unavailable(message, RETRY_AFTER))
        }
        Ok(Some(Taken { job, .. })) => Ok(has_failed(job) || job.state() == JobState::Succeeded),
        Ok(None) => Ok(false),
        Err(failure) => Ok(failure.has_reason(Reason::RequestIdReused)),
    }
}

fn has_failed(job: &Job) -> bool {
    matches!(job.state(), JobState::Failed | JobState::Cancelled)
}

/// Whether the request repeats the one of this job, the newest of its series: only a repetition is meant to be the same
/// job, and not of one that has ended without success.
fn is_repeated(request: &ExtendShareRequest, kind: JobKind, job: &Job) -> bool {
    let shrinks = job.kind() == proto::JobKind::Shrink;
    let same = shrinks == (kind == JobKind::Shrink) && job.requested_size_bytes == request.new_size_bytes;
    same && !has_failed(job)
}

/// The body, unless it is too long or takes too long.
async fn body(caller: &Caller, body: Body) -> Result<Bytes, Refusal> {
    let collected = Limited::new(body, BODY_MOST).collect();
    match tokio::time::timeout(caller.api.request_timeout, collected).await {
        Err(_) => {
            let message = "The request did not arrive in time.";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, message))
        }
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "Request is too large."))
        }
        Ok(Err(_)) => Err(Refusal::bad_request("Malformed request body")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_describes_every_call_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys().filter(|method| *method != "parameters") {
                described.insert((method.clone(), path.clone()));
            }
        }
        let routes = ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned()));
        assert_eq!(described, routes.collect());
    }
}
