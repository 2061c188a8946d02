//! The TCP listener: whoever has no certificate of the right authority stays outside, and what the others may call.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;

#[path = "support/scrape.rs"]
mod scrape;

use std::sync::Arc;

use access::refusals::{assert_refused, metadata};
use access::*;
use growd::wire::client::{self, Credentials};
use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use scrape::scrape;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio_rustls::{TlsConnector, rustls};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const ROLES: &str = "[access]\nreaders = [\"cn:reader\"]\noperators = [\"dns:api1.example\"]\n\
                     admins = [\"uri:spiffe://example/admin\"]\n";

struct Fixture {
    growd: Growd,
    authority: Authority,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let config = format!("{}{ROLES}{}", tcp(&authority.node(), &authority), pool("home"));
    Fixture { growd: Growd::start(dir, &config).await, authority }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// Connects as plain rustls does, and says one byte; what was agreed on, or why growd would not.
async fn shake_hands(
    growd: &Growd,
    own: Option<&Credentials>,
    ca: &Credentials,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ProtocolVersion, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&ca.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_file(&own.certificate).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&own.key).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(growd.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    // A client believes that the handshake of TLS 1.3 is done before growd has looked at its certificate.
    stream.read_u8().await.map_err(|error| error.to_string())?;
    Ok(stream.get_ref().1.protocol_version().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_certificate_of_the_authority_nobody_gets_in() {
    let Fixture { growd, authority } = fixture().await;
    let good = authority.client("reader");
    assert_eq!(growd.node(&good).await, Ok(()), "if the right one is not let in, this shows nothing");
    assert_eq!(shake_hands(&growd, Some(&good), &good, &[&version::TLS13]).await, Ok(ProtocolVersion::TLSv1_3));

    let none = shake_hands(&growd, None, &good, &[&version::TLS13]).await.unwrap_err();
    assert!(none.contains("CertificateRequired"), "{none}");

    let other = Authority::new(growd.dir.path(), "theirs");
    let unknown = Credentials { ca: good.ca.clone(), ..other.client("reader") };
    let expired = authority.client_with("expired", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let early = authority.client_with("early", |params| params.not_before = date_time_ymd(2999, 1, 1));
    let not_a_client = authority.sign("reader-server", ExtendedKeyUsagePurpose::ServerAuth, |_| {});
    for (credentials, alert) in [
        (&unknown, "UnknownCA"),
        (&expired, "CertificateExpired"),
        (&early, "CertificateExpired"),
        (&not_a_client, "UnsupportedCertificate"),
    ] {
        let refused = shake_hands(&growd, Some(credentials), &good, &[&version::TLS13]).await.unwrap_err();
        assert!(refused.contains(alert), "{alert} expected: {refused}");
        assert!(growd.node(credentials).await.is_err(), "{alert}");
    }
    let failed = |line: &serde_json::Value| {
        let fields = &line["fields"];
        let from_here = fields["who"].as_str().is_some_and(|who| who.starts_with("127.0.0.1:"));
        from_here && fields["message"] == "turned away: the TLS handshake failed" && fields["turned_away"] == "9"
    };
    growd.until_logged(failed).await;
    assert_eq!(growd.node(&good).await, Ok(()));
}

#[test]
fn a_certificate_that_has_expired_is_told_beforehand() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let told = |node: &Credentials| {
        let config = dir.path().join("check.toml");
        std::fs::write(&config, tcp(node, &authority).replace("{port}", "7070") + &pool("a")).unwrap();
        let mut growd = std::process::Command::new(env!("CARGO_BIN_EXE_growd"));
        let output = growd.args(["check-config", "--config"]).arg(config).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let old = authority.sign("old", ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    assert!(told(&old).contains("has expired"), "{}", told(&old));
    assert!(!told(&authority.node()).contains("has expired"), "{}", told(&authority.node()));
}

#[tokio::test(flavor = "multi_thread")]
async fn older_tls_and_no_tls_are_refused() {
    let Fixture { growd, authority } = fixture().await;
    let good = authority.client("reader");
    let old = shake_hands(&growd, Some(&good), &good, &[&version::TLS12]).await.unwrap_err();
    assert!(old.contains("ProtocolVersion"), "{old}");
    let both = shake_hands(&growd, Some(&good), &good, &[&version::TLS12, &version::TLS13]).await;
    assert_eq!(both, Ok(ProtocolVersion::TLSv1_3));

    // gRPC without TLS gets no answer, and neither does anything else.
    let plain = client::connect(&format!("http://{}", growd.address), None).await;
    if let Ok(channel) = plain {
        assert_eq!(reason(&node(&channel).await.unwrap_err()), "");
    }
    let mut tcp = TcpStream::connect(growd.address).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    // At most an alert of TLS: content type 21 and the version of its records.
    assert!(answer.is_empty() || answer.starts_with(&[21, 3]), "{answer:?}");
    growd.until_logged(|line| line["fields"]["error"].as_str().is_some_and(|error| error.contains("corrupt"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_a_certificate_give_its_role() {
    let Fixture { growd, authority } = fixture().await;
    let as_whom = async |credentials: Credentials| client::connect(&growd.https(), Some(&credentials)).await.unwrap();
    let reader = as_whom(authority.client("reader")).await;
    node(&reader).await.unwrap();
    let refused = extend(&reader).await;
    assert_refused(&refused, "FORBIDDEN");
    assert!(refused.message().contains("cn:reader from 127.0.0.1:"), "{refused:?}");
    let told = ["rpc", "role"].map(|key| metadata(&refused, key));
    assert_eq!(told, ["growd.v1.ShareService/ExtendShare", "operator"]);

    let operator = authority.client_with("api", |params| params.subject_alt_names = vec![dns("api1.example")]);
    let operator = as_whom(operator).await;
    node(&operator).await.unwrap();
    // It gets as far as the pool, which there is not.
    assert_eq!(reason(&extend(&operator).await), "NOT_MOUNTED");

    // The name that counts is another one, or in another place.
    let other_dns = authority.client_with("other", |params| params.subject_alt_names = vec![dns("api2.example")]);
    let dns_first = authority.client_with("reader", |params| params.subject_alt_names = vec![dns("x.example")]);
    let uri_first = authority.client_with("both", |params| {
        params.subject_alt_names = vec![dns("api1.example"), uri("spiffe://example/other")];
    });
    let not_the_uri = authority.client("spiffe://example/admin");
    for credentials in [other_dns, dns_first, uri_first, not_the_uri] {
        let channel = as_whom(credentials).await;
        assert_refused(&node(&channel).await.unwrap_err(), "FORBIDDEN");
    }
    let nameless = authority.client_with("nameless", |params| params.distinguished_name = Default::default());
    let channel = as_whom(nameless).await;
    assert_refused(&node(&channel).await.unwrap_err(), "UNAUTHENTICATED");
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_leaves_one_record_and_a_flood_leaves_few() {
    let Fixture { growd, authority } = fixture().await;
    let reader = client::connect(&growd.https(), Some(&authority.client("reader"))).await.unwrap();
    let admin = authority.client_with("x", |params| params.subject_alt_names = vec![uri("spiffe://example/admin")]);
    let admin = client::connect(&growd.https(), Some(&admin)).await.unwrap();
    extend(&admin).await;
    for _ in 0..100 {
        assert_eq!(reason(&extend(&reader).await), "FORBIDDEN");
    }
    let audit = growd.audit();
    let [refused, rest @ ..] = audit.as_slice() else { panic!("{audit:#?}") };
    assert!(refused["who"].as_str().unwrap().starts_with("uri:spiffe://example/admin from 127.0.0.1:"), "{refused}");
    let fields = ["change", "outcome", "reason", "share"].map(|field| refused[field].as_str().unwrap_or_default());
    assert_eq!(fields, ["extend", "refused", "NOT_MOUNTED", SHARE]);
    assert_eq!(refused["new_size"], 1 << 30);
    assert_eq!(rest.len(), 10, "{rest:#?}");
    for (index, record) in rest.iter().enumerate() {
        assert_eq!(record["turned_away"], (index + 1).to_string(), "{record}");
        assert_eq!(
            (&record["reason"], &record["rpc"]),
            (&"FORBIDDEN".into(), &"/growd.v1.ShareService/ExtendShare".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_each_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let (scraped, _reserved) = access::reserve_port();
    let ends = |year| {
        let node = authority.sign("node", ExtendedKeyUsagePurpose::ServerAuth, |params| {
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
            params.not_after = date_time_ymd(year, 1, 1);
        });
        tcp(&node, &authority)
    };
    let config = format!("{}[metrics]\nlisten = \"{scraped}\"\n{ROLES}{}", ends(2051), pool("a"));
    let growd = Growd::start(dir, &config).await;
    let reader = client::connect(&growd.https(), Some(&authority.client("reader"))).await.unwrap();
    for _ in 0..20 {
        assert_eq!(reason(&extend(&reader).await), "FORBIDDEN");
    }
    shake_hands(&growd, None, &authority.client("reader"), &[&version::TLS13]).await.unwrap_err();
    growd.until_logged(|line| line["fields"]["turned_away"] == "1" && line["fields"]["error"].is_string()).await;

    let text = scrape(scraped);
    for (reason, count) in [("FORBIDDEN", 20), ("HANDSHAKE", 1)] {
        let line = format!("growd_callers_turned_away_total{{reason=\"{reason}\"}} {count}");
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
    let expiry = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("growd_tls_certificate_expiry_timestamp_seconds "));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(expiry(&text), 2_556_144_000);
    // A renewed one is told of before anybody has connected.
    ends(2052);
    assert_eq!(expiry(&scrape(scraped)), 2_587_680_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growd_of_another_authority_or_name_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let elsewhere = authority.sign("elsewhere", ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.subject_alt_names = vec![dns("elsewhere.example")];
    });
    let config = format!("{}{ROLES}{}", tcp(&elsewhere, &authority), pool("home"));
    let growd = Growd::start(dir, &config).await;
    let error = growd.node(&authority.client("reader")).await.unwrap_err();
    assert!(error.contains("NotValidForName"), "{error}");
    let other = Authority::new(growd.dir.path(), "theirs");
    let error = growd.node(&Credentials { ca: other.ca(), ..authority.client("reader") }).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_it_is_loud_and_nobody_is_anybody() {
    let insecure = "[tcp]\nlisten = \"127.0.0.1:{port}\"\ninsecure = true\n";
    let growd = Growd::start(tempfile::tempdir().unwrap(), &format!("{insecure}{}", pool("home"))).await;
    growd
        .until_logged(|line| line["fields"]["message"].as_str().is_some_and(|text| text.starts_with("INSECURE")))
        .await;
    let channel = client::connect(&format!("http://{}", growd.address), None).await.unwrap();
    assert_refused(&node(&channel).await.unwrap_err(), "UNAUTHENTICATED");

    growd.configure(&format!("{insecure}[access]\nreaders = [\"anonymous\"]\n{}", pool("home")));
    assert!(growd.reload().await);
    node(&channel).await.unwrap();
    assert_refused(&extend(&channel).await, "UNAUTHENTICATED");
}
