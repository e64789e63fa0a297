//! Secrets of TLS -> certificates, and which of them a client is shown.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::client_tls::AnyClient;
use crate::table::Table;

/// Certificates by host; wildcards by what follows `*.`.
#[derive(Debug, Default)]
pub struct Certificates {
    hosts: HashMap<Box<str>, Arc<CertifiedKey>>,
    wildcards: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// For those who ask for none of these names.
    pub(crate) otherwise: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Shows `certificate` to those who ask for `host`, unless it has one.
    pub fn add(&mut self, host: &str, certificate: &Arc<CertifiedKey>) {
        let host = host.to_ascii_lowercase();
        let (map, name) = match host.strip_prefix("*.") {
            Some(rest) => (&mut self.wildcards, rest),
            None => (&mut self.hosts, host.as_str()),
        };
        map.entry(name.into()).or_insert_with(|| certificate.clone());
    }

    /// Ends of validity by host, in seconds since 1970.
    pub(crate) fn ends(&self) -> Vec<(String, i64)> {
        let wild = self.wildcards.iter().map(|(rest, key)| (format!("*.{rest}"), key));
        let all = self.hosts.iter().map(|(host, key)| (host.to_string(), key)).chain(wild);
        all.filter_map(|(host, key)| Some((host, end(key.end_entity_cert().ok()?)?))).collect()
    }

    /// The certificate of a host.
    pub fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        self.hosts.get(host).or_else(|| self.wildcards.get(host.split_once('.')?.1))
    }
}

/// The certificate of a Secret.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn read(secret: &Secret) -> Result<CertifiedKey, String> {
    let data = |name: &str| {
        let found = secret.data.as_ref().and_then(|data| data.get(name));
        found.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("has no {name}"))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(data("tls.crt")?).collect();
    let chain = chain.map_err(|e| format!("tls.crt is no PEM: {e}"))?;
    if chain.is_empty() {
        return Err("tls.crt has no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(data("tls.key")?).map_err(|e| format!("tls.key: {e}"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|e| e.to_string())
}

/// The certificate for names that have none, made anew by each process; nobody vouches for it.
///
/// # Errors
/// When none can be made.
pub fn fake() -> Result<Arc<CertifiedKey>, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = rcgen::CertificateParams::new(vec!["ingress.local".to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Acme Co");
    let name = "Kubernetes Ingress Controller Fake Certificate";
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let der = PrivateKeyDer::try_from(key.serialize_der())?;
    let chain = vec![certificate.der().clone()];
    Ok(Arc::new(CertifiedKey::from_der(chain, der, &ring::default_provider())?))
}

/// Whether a certificate names a host, or all that a wildcard host stands for (RFC 6125, 6.4); as ingress-nginx, by its
/// common name as well.
pub(crate) fn names(key: &CertifiedKey, host: &str) -> bool {
    let Some(Ok((_, parsed))) = key.end_entity_cert().ok().map(|der| X509Certificate::from_der(der)) else {
        return false;
    };
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative =
        alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
    common.chain(alternative).any(|name| stands_for(name, host))
}

/// Whether a name of a certificate is a host's.
fn stands_for(name: &str, host: &str) -> bool {
    let same = name.eq_ignore_ascii_case(host);
    let wild = name.strip_prefix("*.").zip(host.split_once('.'));
    same || wild.is_some_and(|(rest, (label, of))| label != "*" && rest.eq_ignore_ascii_case(of))
}

fn end(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The settings of TLS that listeners use: for all, and for those who are asked for certificates.
#[derive(Debug, Clone)]
pub(crate) struct Acceptors {
    plain: Arc<ServerConfig>,
    asking: Arc<ServerConfig>,
    versions: (bool, bool, bool),
}

impl Acceptors {
    /// TLS with the certificate of whomever a client asks for; `versions` are TLS 1.2, TLS 1.3 and HTTP/2.
    ///
    /// # Errors
    /// A crypto provider without what TLS needs.
    pub fn new(certificates: Arc<ByName>, versions: (bool, bool, bool)) -> Result<Self, rustls::Error> {
        let (tls12, tls13, http2) = versions;
        let mut wanted: Vec<&SupportedProtocolVersion> = Vec::new();
        wanted.extend(tls12.then_some(&rustls::version::TLS12));
        wanted.extend(tls13.then_some(&rustls::version::TLS13));
        let tickets = ring::Ticketer::new()?;
        // Ours to choose among suites that are all good: SHA-256 is in the processor, SHA-384 is not, and it is what a
        // handshake's keys are made with.
        let mut provider = ring::default_provider();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let make = |asks: bool| {
            let builder = ServerConfig::builder_with_provider(provider.clone());
            let builder = builder.with_protocol_versions(&wanted)?;
            let builder = match asks {
                true => builder.with_client_cert_verifier(Arc::new(AnyClient::new())),
                false => builder.with_no_client_auth(),
            };
            let mut config = builder.with_cert_resolver(certificates.clone());
            if http2 {
                config.alpn_protocols.push(b"h2".to_vec());
            }
            config.alpn_protocols.push(b"http/1.1".to_vec());
            if !asks {
                config.ticketer = tickets.clone();
            }
            config.ignore_client_order = true;
            config.max_early_data_size = 0;
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        Ok(Self { plain: make(false)?, asking: make(true)?, versions })
    }

    /// Whether they are made for these versions.
    pub fn are(&self, versions: (bool, bool, bool)) -> bool {
        self.versions == versions
    }

    /// The settings for a client.
    pub fn of(&self, asks: bool) -> Arc<ServerConfig> {
        if asks { self.asking.clone() } else { self.plain.clone() }
    }
}

/// Chooses by the name a client asks for (RFC 6066), out of the newest table.
#[derive(Debug)]
pub(crate) struct ByName {
    pub table: Arc<ArcSwap<Table>>,
    pub fallback: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let named = hello.server_name().and_then(|name| table.certificates.find(&name.to_ascii_lowercase()));
        Some(named.or(table.certificates.otherwise.as_ref()).unwrap_or(&self.fallback).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_certificates() {
        for (name, host, fits) in [
            ("a.example", "a.example", true),
            ("A.example", "a.Example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", "example", false),
            ("*.example", "*.example", true),
            ("*.example", "*.b.example", false),
            ("a.example", "*.example", false),
        ] {
            assert_eq!(stands_for(name, host), fits, "{name} {host}");
        }
    }
}
