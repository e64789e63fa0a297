//! Certificates of clients: asked for where an Ingress wants them, judged for each location.
//!
//! The handshake takes any certificate whose key the client has, because nginx answers a bad one with a page (400) and
//! not with a broken connection. Who vouches for it is asked afterwards, by the authority of the location, so that a
//! connection opened under another name gains nothing.
//!
//! Certificates of version 1, as `openssl x509 -req` makes them unless it is told of extensions, are taken where the
//! authority itself has signed them: webpki, which judges all others, knows version 3 only (RFC 5280).

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::RawPublicKeyEntity;
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

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
pub(crate) struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Vec<CertificateDer<'static>>,
    revokes: bool,
}

impl Authority {
    /// Reads `ca.crt` of a Secret.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(pem: &[u8], revoked: Option<&[u8]>) -> Result<Self, String> {
        let roots = Arc::new(authorities(pem)?);
        let provider = Arc::new(ring::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        if let Some(lists) = revoked {
            let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(lists).collect();
            builder = builder.with_crls(lists.map_err(|e| format!("ca.crl is no PEM: {e}"))?);
        }
        let verifier = builder.build().map_err(|e| format!("ca.crt: {e}"))?;
        let certificates: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
        let certificates = certificates.map_err(|e| format!("ca.crt is no PEM: {e}"))?;
        Ok(Self { verifier, certificates, revokes: revoked.is_some() })
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
        match X509Certificate::from_der(own) {
            Ok((_, old)) if old.version() == X509Version::V1 && old.extensions().is_empty() => {
                self.judge_old(&old)
            }
            _ => {
                let judged = self.verifier.verify_client_cert(own, others, UnixTime::now());
                judged.map(drop).map_err(|e| e.to_string())
            }
        }
    }

    /// Whether the authority itself has signed a certificate that cannot say what it is for, nor who else has.
    fn judge_old(&self, own: &X509Certificate<'_>) -> Result<(), String> {
        if self.revokes {
            return Err("a certificate of version 1 cannot be looked up in ca.crl".into());
        }
        if !own.validity().is_valid() {
            return Err("invalid peer certificate: Expired".into());
        }
        if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(&own.signature_algorithm.algorithm) {
            return Err("invalid peer certificate: signed with SHA-1".into());
        }
        let signed = self.certificates.iter().any(|authority| {
            let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
            let may = authority.is_ca() || authority.version() == X509Version::V1;
            may && authority.validity().is_valid()
                && authority.subject().as_raw() == own.issuer().as_raw()
                && own.verify_signature(Some(authority.public_key())).is_ok()
        });
        if signed { Ok(()) } else { Err("invalid peer certificate: UnknownIssuer".into()) }
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

const BAD_SIGNATURE: Error = Error::InvalidCertificate(CertificateError::BadSignature);

/// The key of a certificate of any version.
fn key<'a>(certificate: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw))
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
        let key = key(certificate)?;
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
        let mut known = self.0.signature_verification_algorithms.mapping.iter();
        let (_, algorithms) = known.find(|(scheme, _)| *scheme == signature.scheme).ok_or(BAD_SIGNATURE)?;
        let signed = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            key.verify_signature(*algorithm, message, signature.signature()).is_ok()
        };
        if algorithms.iter().any(signed) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(BAD_SIGNATURE)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key(certificate)?, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
