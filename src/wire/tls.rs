//! TLS of the TCP listener: version 1.3 only, and every client shows a certificate.
//!
//! A connection keeps the configuration that it began with; each new one gets what the files hold by then.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, version};
use tracing::{info, warn};

use super::certificate;
use super::log_limit::LogLimit;
use crate::model::Credentials;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("{} holds an authority that cannot be used", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("{} holds no usable authorities", path.display())]
    Authorities { path: PathBuf, source: VerifierBuilderError },
    #[error("{} and {} are no certificate and its key", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

pub struct Tls(Mutex<Loaded>);

struct Loaded {
    files: Credentials,
    /// As the files were when they were read; `None` when that has failed since.
    stamps: Option<Stamps>,
    config: Arc<ServerConfig>,
    /// When the first of growd's own certificates expires.
    expires: u64,
    failures: LogLimit,
}

impl Tls {
    /// # Errors
    /// [`TlsError`].
    pub fn load(files: Credentials) -> Result<Self, TlsError> {
        Ok(Self(Mutex::new(Loaded::read(files)?)))
    }

    /// Other files from now on.
    ///
    /// # Errors
    /// [`TlsError`]; then nothing changes.
    pub fn replace(&self, files: Credentials) -> Result<(), TlsError> {
        let loaded = Loaded::read(files)?;
        *self.0.lock() = loaded;
        Ok(())
    }

    /// For the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.read_again().config)
    }

    /// When the first of growd's own certificates expires, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.read_again().expires
    }

    /// Files that cannot be used leave everything as it was, and are tried again.
    fn read_again(&self) -> MutexGuard<'_, Loaded> {
        let mut loaded = self.0.lock();
        if loaded.stamps != Some(stamps(&loaded.files)) {
            match Loaded::read(loaded.files.clone()) {
                Ok(new) => {
                    info!(certificate = %new.files.certificate.display(), "the TLS files have changed and were read");
                    *loaded = new;
                }
                Err(error) => {
                    loaded.stamps = None;
                    if let Some(count) = loaded.failures.count() {
                        let error = chain(&error);
                        warn!(error, %count, "the TLS files have changed and cannot be used: the earlier ones stay");
                    }
                }
            }
        }
        loaded
    }
}

impl Loaded {
    fn read(files: Credentials) -> Result<Self, TlsError> {
        // First, so that what changes from here on is read again.
        let stamps = stamps(&files);
        let (config, expires) = server_config(&files)?;
        Ok(Self { files, stamps: Some(stamps), config, expires, failures: LogLimit::default() })
    }
}

/// With the time when the first of growd's own certificates expires.
fn server_config(files: &Credentials) -> Result<(Arc<ServerConfig>, u64), TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.ca)? {
        let path = files.ca.clone();
        roots.add(authority).map_err(|source| TlsError::Authority { path, source })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let path = files.ca.clone();
    let verifier = verifier.map_err(|source| TlsError::Authorities { path, source })?;
    let pair = |source| TlsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Read { path: files.key.clone(), source })?;
    let own = certificates(&files.certificate)?;
    let expires = own.iter().filter_map(certificate::expires).min().unwrap_or_default();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not show its certificate again, which may have expired since.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((Arc::new(config), expires))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

/// What tells one state of a file from the next.
type Stamps = [Option<(u64, u64, i64, i64)>; 3];

fn stamps(files: &Credentials) -> Stamps {
    let stamp = |path: &Path| -> io::Result<_> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec()))
    };
    [&files.certificate, &files.key, &files.ca].map(|path| stamp(path).ok())
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
