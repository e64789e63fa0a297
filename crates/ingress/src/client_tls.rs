//! Certificates of clients: asked for where an Ingress wants them, judged for each location.
//!
//! The handshake takes any certificate whose key the client has, because nginx answers a bad one with a page (400) and
//! not with a broken connection. Who vouches for it is asked afterwards, by the authority of the location, so that a
//! connection opened under another name gains nothing.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::upstream::tls::authorities;

/// What a connection with TLS has agreed on.
#[derive(Debug, Default)]
pub(crate) struct TlsPeer {
    /// The name that was asked for.
    pub name: Option<String>,
    /// The certificates that the client showed, its own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The client was asked for certificates.
    pub asked: bool,
    pub version: &'static str,
}

/// Who vouches for clients.
#[derive(Debug)]
pub(crate) struct Authority(Arc<dyn ClientCertVerifier>);

impl Authority {
    /// Reads `ca.crt` of a Secret.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(pem: &[u8], revoked: Option<&[u8]>) -> Result<Self, String> {
        use rustls::pki_types::CertificateRevocationListDer;
        use rustls::pki_types::pem::PemObject;
        let roots = Arc::new(authorities(pem)?);
        let provider = Arc::new(ring::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        if let Some(lists) = revoked {
            let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(lists).collect();
            builder = builder.with_crls(lists.map_err(|e| format!("ca.crl is no PEM: {e}"))?);
        }
        builder.build().map(Self).map_err(|e| format!("ca.crt: {e}"))
    }

    /// Whether a chain of certificates is vouched for, with at most `depth` between the client's own and the authority's.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, chain: &[CertificateDer<'_>], depth: u32) -> Result<(), String> {
        let (own, others) = chain.split_first().ok_or("no certificate")?;
        // Each vouches for the one before it (RFC 8446, 4.4.2): those that are left away are too far off.
        let within = others.len().min(usize::try_from(depth).unwrap_or(usize::MAX));
        let others = others.get(..within).unwrap_or_default();
        self.0.verify_client_cert(own, others, UnixTime::now()).map(drop).map_err(|e| e.to_string())
    }
}

/// What a certificate says of its owner.
#[derive(Debug)]
pub(crate) struct Owner {
    pub subject: String,
    pub issuer: String,
    pub common_name: String,
}

impl Owner {
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let common = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(Self {
            subject: backwards(&subject.to_string()),
            issuer: backwards(&parsed.issuer().to_string()),
            common_name: common.unwrap_or_default().to_owned(),
        })
    }
}

/// A name as RFC 2253 writes it, the most particular part first.
fn backwards(name: &str) -> String {
    let parts: Vec<&str> = name.split(", ").collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

/// Takes every certificate; the key must be the client's.
#[derive(Debug)]
pub(crate) struct AnyClient(CryptoProvider);

impl AnyClient {
    pub fn new() -> Self {
        Self(ring::default_provider())
    }
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
