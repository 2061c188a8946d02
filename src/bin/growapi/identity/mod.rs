//! Who asks: the project and the role behind a token.

mod keystone;
mod token_file;

use anyhow::Result;
use axum::http::HeaderName;
use growd::config::IdentityConfig;
use sha2::{Digest, Sha256};

use crate::refusal::Refusal;
use keystone::Keystone;
use token_file::TokenFile;

pub const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What one may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Reader,
    /// Extends and shrinks.
    Member,
    /// Does so with the shares of every project.
    Admin,
}

impl Role {
    /// `None` for the roles of other services.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "reader" => Some(Self::Reader),
            "member" => Some(Self::Member),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub project: Project,
    /// `None`: may do nothing here.
    pub role: Option<Role>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Project {
    /// Whichever the path names.
    Any,
    Id(String),
}

pub enum Identity {
    Nobody,
    Tokens(TokenFile),
    Keystone(Box<Keystone>),
}

impl Identity {
    /// # Errors
    /// A file that the configuration names cannot be read or is wrong.
    pub fn new(config: &IdentityConfig) -> Result<Self> {
        Ok(match config {
            IdentityConfig::Nobody => Self::Nobody,
            IdentityConfig::TokenFile(path) => Self::Tokens(TokenFile::load(path)?),
            IdentityConfig::Keystone(config) => Self::Keystone(Box::new(Keystone::new(config)?)),
        })
    }

    /// # Errors
    /// 401; 503 when Keystone does not answer.
    pub async fn who(&self, token: Option<&[u8]>) -> Result<Who, Refusal> {
        // Nobody gives out any other, and Keystone would answer it in other ways than one that it does not know.
        let token = token.filter(|token| !token.is_empty() && token.iter().all(u8::is_ascii_graphic));
        let who = match (self, token) {
            (Self::Nobody, _) => Some(Who { project: Project::Any, role: Some(Role::Member) }),
            (_, None) => None,
            (Self::Tokens(tokens), Some(token)) => tokens.who(token),
            (Self::Keystone(keystone), Some(token)) => keystone.who(token).await.map_err(|error| {
                tracing::error!(problem = format!("{error:#}"), "Keystone cannot be asked about a token");
                Refusal::unavailable("The identity service is not reachable.", 5)
            })?,
        };
        who.ok_or_else(|| Refusal::unauthorized(self.challenge()))
    }

    fn challenge(&self) -> String {
        match self {
            Self::Keystone(keystone) => format!("Keystone uri=\"{}\"", keystone.auth_url()),
            Self::Nobody | Self::Tokens(_) => "X-Auth-Token realm=\"growapi\"".to_owned(),
        }
    }
}

/// What is kept of a token, on disk and in memory.
pub type TokenHash = [u8; 32];

/// Tokens are long and random, so that one round without salt is enough.
pub fn hash(token: &[u8]) -> TokenHash {
    Sha256::digest(token).into()
}

/// The hash as the token file has it.
pub fn hex(hash: &TokenHash) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::new(), |mut text, byte| {
        // To write to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
