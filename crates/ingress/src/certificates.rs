//! Secrets of TLS -> certificates, and which of them a client is shown.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use client::ObjectKey;
use k8s_openapi::api::core::v1::Secret;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::table::Table;

/// Certificates by host; wildcards by what follows `*.`.
#[derive(Debug, Default)]
pub struct Certificates {
    hosts: HashMap<Box<str>, Arc<CertifiedKey>>,
    wildcards: HashMap<Box<str>, Arc<CertifiedKey>>,
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

    /// The certificate of a host.
    pub fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        self.hosts.get(host).or_else(|| self.wildcards.get(host.split_once('.')?.1))
    }
}

/// Certificates that were read already, so that a change elsewhere reads none again.
#[derive(Default)]
pub struct Cache(HashMap<ObjectKey, (String, Result<Arc<CertifiedKey>, String>)>);

impl Cache {
    /// The certificate of a Secret.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn get(&mut self, secret: &Secret) -> Result<Arc<CertifiedKey>, String> {
        let key = ObjectKey::of(secret);
        let version = secret.metadata.resource_version.clone().unwrap_or_default();
        match self.0.get(&key) {
            Some((known, result)) if *known == version => result.clone(),
            _ => {
                let result = read(secret).map(Arc::new);
                self.0.insert(key, (version, result.clone()));
                result
            }
        }
    }

    /// Forgets those whose Secret is gone.
    pub fn retain(&mut self, there: impl Fn(&ObjectKey) -> bool) {
        self.0.retain(|key, _| there(key));
    }
}

fn read(secret: &Secret) -> Result<CertifiedKey, String> {
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
        Some(named.unwrap_or(&self.fallback).clone())
    }
}
