//! What a certificate says: a client's, which has been verified before, what its holder is called, and growd's own until when it
//! is good.

use std::time::Duration;

use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::model::Identity;

/// Longer names are taken for none: they end up in records and logs.
const NAME_MOST: usize = 255;

/// The URIs of the subject alternative names; without any, the DNS names; without those, the common names (RFC 5280,
/// 4.2.1.6; that a common name counts last is RFC 6125, 6.4.4). Empty when there is none of them.
pub fn identities(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let usable =
        |name: &&str| (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    let uris: Vec<_> =
        certificate.valid_uri_names().filter(usable).map(|name| Identity::Uri(name.to_owned())).collect();
    if !uris.is_empty() {
        return uris;
    }
    // A pattern stands for many hosts and names none.
    let dns = certificate.valid_dns_names().filter(usable).filter(|name| !name.contains('*'));
    let dns: Vec<_> = dns.map(|name| Identity::Dns(name.to_ascii_lowercase())).collect();
    if !dns.is_empty() {
        return dns;
    }
    let names = common_names(certificate.subject()).unwrap_or_default().into_iter();
    let usable = |name: &&str| (1..=NAME_MOST).contains(&name.len()) && !name.contains(char::is_control);
    names.filter(usable).map(|name| Identity::Cn(name.to_owned())).collect()
}

/// When the certificate expires, in seconds since 1970. `None` when it is not well formed.
pub fn expires(certificate: &CertificateDer<'_>) -> Option<u64> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    // What is refused for its age is told with the time, and nothing is looked at before that.
    let (end, usage) = (UnixTime::since_unix_epoch(Duration::MAX), KeyUsage::server_auth());
    match certificate.verify_for_usage(&[], &[], &[], end, usage, None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
/// UTF8String and PrintableString: both are UTF-8 as they stand.
const STRINGS: [u8; 2] = [0x0c, 0x13];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The common names of a subject, the inside of its RDNSequence (RFC 5280, 4.1.2.4). `None` when it is not well formed.
fn common_names(mut subject: &[u8]) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    while !subject.is_empty() {
        let (tag, mut set, rest) = element(subject)?;
        subject = rest;
        (tag == SET).then_some(())?;
        while !set.is_empty() {
            let (tag, attribute, rest) = element(set)?;
            set = rest;
            (tag == SEQUENCE).then_some(())?;
            let (tag, kind, value) = element(attribute)?;
            (tag == OID).then_some(())?;
            let (tag, text, _) = element(value)?;
            if kind == COMMON_NAME && STRINGS.contains(&tag) {
                names.push(std::str::from_utf8(text).ok()?);
            }
        }
    }
    Some(names)
}

/// Tag and content of the first element of DER (X.690), and what follows it. Lengths have at most two bytes here.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    let (length, der) = match first {
        0..=0x7f => (usize::from(first), der),
        0x81 => der.split_first().map(|(length, der)| (usize::from(*length), der))?,
        0x82 => der.split_first_chunk().map(|(length, der)| (usize::from(u16::from_be_bytes(*length)), der))?,
        _ => return None,
    };
    let (content, rest) = der.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, SanType};

    fn named(cn: &[&str], sans: Vec<SanType>) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "An organization");
        for name in cn {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = sans;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        identities(certificate.der()).iter().map(Identity::to_string).collect()
    }

    #[test]
    fn uris_come_before_dns_names_and_those_before_common_names() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
        assert_eq!(named(&["c"], vec![dns("a.example"), uri("spiffe://x/1")]), ["uri:spiffe://x/1"]);
        assert_eq!(named(&["c"], vec![dns("A.example"), dns("b.example")]), ["dns:a.example", "dns:b.example"]);
        assert_eq!(named(&["an api, 1"], vec![]), ["cn:an api, 1"]);
        assert_eq!(named(&["c"], vec![dns("*.example")]), ["cn:c"]);
        assert_eq!(named(&["a\nb"], vec![]), [""; 0]);
        assert_eq!(named(&[&"long ".repeat(60)], vec![]), [""; 0]);
        assert_eq!(named(&[], vec![]), [""; 0]);
    }

    #[test]
    fn what_is_no_certificate_says_nothing() {
        let rubbish = CertificateDer::from_slice(b"rubbish");
        assert_eq!((identities(&rubbish), expires(&rubbish)), (Vec::new(), None));
    }

    /// As `date -u +%s -d` has it; from 2050 on the time is written otherwise.
    #[test]
    fn an_end_is_told_of_whatever_kind_of_certificate() {
        for (year, is_ca, end) in
            [(2020, IsCa::NoCa, 1_577_836_800), (2051, IsCa::Ca(BasicConstraints::Unconstrained), 2_556_144_000)]
        {
            let mut params = CertificateParams::default();
            (params.not_after, params.is_ca) = (rcgen::date_time_ymd(year, 1, 1), is_ca);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(expires(certificate.der()), Some(end), "{year}");
        }
    }

    proptest! {
        #[test]
        fn no_subject_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = common_names(&bytes);
        }
    }
}
