//! Keystone, API v3: tokens are validated by it, and what it said is believed for a while.
//!
//! <https://docs.openstack.org/api-ref/identity/v3/>, "Password authentication with scoped authorization" and "Validate
//! and show information for token".

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use growd::config::KeystoneConfig;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::{AUTH_TOKEN, Project, Role, TokenHash, Who, hash};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A token with a large catalog has some hundred KiB; the catalog is not asked for.
const ANSWER_MOST: usize = 1 << 20;
/// Tokens that are remembered. Beyond it those whose time is over are dropped, then all.
const CACHE_MOST: usize = 100_000;
const SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");

pub struct Keystone {
    config: KeystoneConfig,
    password: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The token as which growapi asks. Held locked while a new one is fetched, so that one is fetched.
    service_token: tokio::sync::Mutex<Option<HeaderValue>>,
    /// Until when each is believed, by a clock that is not set back.
    known: Mutex<HashMap<TokenHash, (Who, Instant)>>,
}

struct Answer {
    status: StatusCode,
    subject_token: Option<HeaderValue>,
    body: Bytes,
}

impl Keystone {
    pub fn new(config: &KeystoneConfig) -> Result<Self> {
        let path = &config.password_file;
        let password = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // Questions are rare, and a connection that has waited for the next one may be closed when it comes.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector(config)?);
        Ok(Self {
            config: config.clone(),
            password: password.trim_end_matches(['\n', '\r']).to_owned(),
            client,
            service_token: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        })
    }

    pub fn auth_url(&self) -> &str {
        &self.config.auth_url
    }

    /// `None` for a token that is wrong, expired or revoked.
    ///
    /// # Errors
    /// Keystone cannot be asked.
    pub async fn who(&self, token: &[u8]) -> Result<Option<Who>> {
        let now = Instant::now();
        let hash = hash(token);
        if let Some((who, until)) = self.known.lock().get(&hash)
            && now < *until
        {
            return Ok(Some(who.clone()));
        }
        let Ok(subject) = HeaderValue::from_bytes(token) else { return Ok(None) };
        let answer = tokio::time::timeout(TIMEOUT, self.validate(&subject)).await;
        let Some(answer) = answer.with_context(|| format!("no answer within {TIMEOUT:?}"))?? else { return Ok(None) };
        let (who, expires) = described(&answer)?;
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            return Ok(None);
        }
        let until = now + left.min(self.config.cache);
        let mut known = self.known.lock();
        if known.len() >= CACHE_MOST {
            known.retain(|_, (_, until)| now < *until);
            if known.len() >= CACHE_MOST {
                known.clear();
            }
        }
        known.insert(hash, (who.clone(), until));
        Ok(Some(who))
    }

    /// What Keystone says of a token; `None` when it does not know it.
    async fn validate(&self, subject: &HeaderValue) -> Result<Option<Value>> {
        let mut used = None;
        for _ in 0..2 {
            let own = self.own_token(used.as_ref()).await?;
            let request =
                Request::builder().method(Method::GET).uri(format!("{}/auth/tokens?nocatalog", self.auth_url()));
            let request = request.header(AUTH_TOKEN, &own).header(SUBJECT_TOKEN, subject).body(Full::default())?;
            let answer = self.ask(request).await?;
            match answer.status {
                StatusCode::OK => return Ok(Some(serde_json::from_slice(&answer.body)?)),
                StatusCode::NOT_FOUND => return Ok(None),
                // The token of growapi itself has expired or was revoked.
                StatusCode::UNAUTHORIZED => used = Some(own),
                status => bail!("Keystone answers {status} to the validation of a token"),
            }
        }
        bail!("Keystone does not take the token that it has just given to {:?}", self.config.username)
    }

    /// The token as which growapi asks, another than the one that was of no use.
    async fn own_token(&self, useless: Option<&HeaderValue>) -> Result<HeaderValue> {
        let mut held = self.service_token.lock().await;
        if let Some(token) = held.as_ref().filter(|token| Some(*token) != useless) {
            return Ok(token.clone());
        }
        let config = &self.config;
        let user = json!({
            "name": config.username, "domain": {"name": config.user_domain}, "password": self.password,
        });
        let scope = json!({"project": {"name": config.project, "domain": {"name": config.project_domain}}});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let body = json!({"auth": {"identity": identity, "scope": scope}}).to_string();
        let request = Request::builder().method(Method::POST).uri(format!("{}/auth/tokens?nocatalog", self.auth_url()));
        let answer = self.ask(request.header(header::CONTENT_TYPE, "application/json").body(Full::from(body))?).await?;
        let token = answer
            .subject_token
            .filter(|_| answer.status == StatusCode::CREATED)
            .with_context(|| format!("Keystone answers {} to the password of {:?}", answer.status, config.username))?;
        Ok(held.insert(token).clone())
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let response = self.client.request(request).await.context("cannot reach Keystone")?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_MOST).collect().await.map_err(|error| anyhow!(error))?.to_bytes();
        Ok(Answer { status: parts.status, subject_token: parts.headers.get(SUBJECT_TOKEN).cloned(), body })
    }
}

/// Project and role of a validated token, and when it expires.
fn described(answer: &Value) -> Result<(Who, SystemTime)> {
    let token = &answer["token"];
    let expires = token["expires_at"].as_str().context("Keystone's answer has no expires_at")?;
    let expires = humantime::parse_rfc3339(expires).with_context(|| format!("expires_at is {expires:?}"))?;
    // A token that is scoped to no project fits no path.
    let project = token["project"]["id"].as_str().unwrap_or_default().to_owned();
    let roles = token["roles"].as_array().map(Vec::as_slice).unwrap_or_default();
    let role = roles.iter().filter_map(|role| Role::named(role["name"].as_str()?)).max();
    Ok((Who { project: Project::Id(project), role }, expires))
}

fn connector(config: &KeystoneConfig) -> Result<HttpsConnector<HttpConnector>> {
    let builder = HttpsConnectorBuilder::new();
    let provider = rustls::crypto::ring::default_provider();
    let builder = match &config.ca {
        None if config.auth_url.starts_with("https:") => {
            builder.with_provider_and_native_roots(provider).context("cannot read the system's certificates")?
        }
        // Plain HTTP needs none, and not every system has any.
        ca => {
            let roots = ca.as_deref().map_or_else(|| Ok(RootCertStore::empty()), roots)?;
            let config = rustls::ClientConfig::builder_with_provider(provider.into());
            let config = config.with_safe_default_protocol_versions().context("rustls has no protocol")?;
            builder.with_tls_config(config.with_root_certificates(roots).with_no_client_auth())
        }
    };
    Ok(builder.https_or_http().enable_http1().build())
}

fn roots(ca: &Path) -> Result<RootCertStore> {
    let failed = || format!("cannot read certificates from {}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(failed)? {
        roots.add(certificate.with_context(failed)?).with_context(failed)?;
    }
    if roots.is_empty() {
        bail!("{} has no certificates", ca.display());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_role_and_the_project_of_a_token_are_found() {
        let answer = |roles: &[&str], project: Value| {
            let roles: Vec<Value> = roles.iter().map(|name| json!({"id": "x", "name": name})).collect();
            json!({"token": {"roles": roles, "project": project, "expires_at": "2026-11-24T12:45:00.000000Z"}})
        };
        let project = json!({"id": "p1", "name": "one"});
        for (roles, role) in [
            (vec!["reader"], Some(Role::Reader)),
            (vec!["member", "reader"], Some(Role::Member)),
            (vec!["reader", "admin", "member"], Some(Role::Admin)),
            (vec!["load-balancer_member"], None),
            (vec![], None),
        ] {
            let (who, expires) = described(&answer(&roles, project.clone())).unwrap();
            assert_eq!(who, Who { project: Project::Id("p1".to_owned()), role });
            assert_eq!(humantime::format_rfc3339_seconds(expires).to_string(), "2026-11-24T12:45:00Z");
        }
        let (unscoped, _) = described(&answer(&["admin"], Value::Null)).unwrap();
        assert_eq!(unscoped.project, Project::Id(String::new()));
        assert!(described(&json!({"token": {}})).is_err());
        assert!(described(&json!([])).is_err());
    }
}
