//! The cluster's private certificate authority and what it has signed.
//!
//! Made at the first start, kept in the profile's `pki/` (mode 0600). The authority lives ten years, leaf certificates
//! one; those are made anew at each start, because making one takes less than a millisecond and keeps addresses true.
//! Keys are ECDSA P-256. Subjects follow kubeadm (CN is the user, O its groups), so RBAC's default bindings apply.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::{Error, Result, files};

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Key, PKCS#8 PEM.
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    /// The chain to present in TLS.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    /// The key for TLS.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// Who a certificate speaks for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Common name: the user.
    pub user: &'a str,
    /// Organisations: its groups.
    pub groups: &'a [&'a str],
}

/// The cluster's certificate authority and the key of its ServiceAccount tokens.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's certificate, PEM: `certificate-authority-data` and `kube-root-ca.crt`.
    pub certificate_pem: String,
    /// The same, DER.
    pub certificate: CertificateDer<'static>,
    /// Key that signs ServiceAccount tokens, PKCS#8 PEM, ECDSA P-256.
    pub service_account_key_pem: String,
}

fn fail(subject: &str) -> impl FnOnce(rcgen::Error) -> Error + '_ {
    move |e| Error::Certificate { subject: subject.to_owned(), reason: e.to_string() }
}

impl Authority {
    /// Reads the authority below `dir`, or makes it there.
    ///
    /// # Errors
    /// When the files cannot be read, written or parsed: a damaged authority is never replaced, since every
    /// certificate and token of the cluster hangs on it.
    pub fn open(dir: &Path) -> Result<Self> {
        let (ca_crt, ca_key, sa_key) = (dir.join("ca.crt"), dir.join("ca.key"), dir.join("sa.key"));
        if files::read_if_there(&ca_crt)?.is_none() {
            let key = KeyPair::generate().map_err(fail("the authority"))?;
            let certificate = authority_params().self_signed(&key).map_err(fail("the authority"))?;
            let signer = KeyPair::generate().map_err(fail("service accounts"))?;
            files::write_atomically(&sa_key, signer.serialize_pem().as_bytes(), 0o600)?;
            files::write_atomically(&ca_key, key.serialize_pem().as_bytes(), 0o600)?;
            // Last: its presence says that the others are complete.
            files::write_atomically(&ca_crt, certificate.pem().as_bytes(), 0o644)?;
        }
        let read = |path: &Path| std::fs::read_to_string(path).map_err(files::at("read", path));
        let (certificate_pem, key_pem, service_account_key_pem) =
            (read(&ca_crt)?, read(&ca_key)?, read(&sa_key)?);
        let malformed = |path: &Path, reason: String| Error::Malformed { path: path.to_owned(), reason };
        let key = KeyPair::from_pem(&key_pem).map_err(|e| malformed(&ca_key, e.to_string()))?;
        let certificate = parse_certificate(&certificate_pem).map_err(|e| malformed(&ca_crt, e))?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|e| malformed(&ca_crt, e.to_string()))?;
        Ok(Self { issuer, certificate_pem, certificate, service_account_key_pem })
    }

    /// A client certificate: kubectl's, a node's, the API server's towards nodes.
    ///
    /// # Errors
    /// When signing fails.
    pub fn client(&self, subject: Subject<'_>) -> Result<Identity> {
        self.issue(subject, &[], &[], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// A server certificate for names and addresses; nodes use theirs as client certificate as well.
    ///
    /// # Errors
    /// When signing fails or a name is not a DNS name.
    pub fn server(&self, subject: Subject<'_>, names: &[String], addresses: &[IpAddr]) -> Result<Identity> {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(subject, names, addresses, &usages)
    }

    fn issue(
        &self,
        subject: Subject<'_>,
        names: &[String],
        addresses: &[IpAddr],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Identity> {
        let mut params = CertificateParams::new(names.to_vec()).map_err(fail(subject.user))?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.user);
        for group in subject.groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, Duration::days(365));
        let key = KeyPair::generate().map_err(fail(subject.user))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fail(subject.user))?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        })
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "skiff-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, Duration::days(3650));
    params
}

/// From a day ago, for clocks that disagree.
fn valid_for(params: &mut CertificateParams, time: Duration) {
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + time;
}

fn parse_certificate(pem: &str) -> std::result::Result<CertificateDer<'static>, String> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_authority_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        let again = Authority::open(dir.path()).unwrap();
        assert_eq!(first.certificate_pem, again.certificate_pem);
        assert_eq!(first.service_account_key_pem, again.service_account_key_pem);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join("ca.key"), "broken").unwrap();
        assert!(matches!(Authority::open(dir.path()), Err(Error::Malformed { .. })));
    }

    #[test]
    fn tls_accepts_what_it_signed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let address: IpAddr = [192, 168, 49, 2].into();
        let server = authority
            .server(Subject { user: "kube-apiserver", groups: &[] }, &["kubernetes".into()], &[address])
            .unwrap();
        let client = authority.client(Subject { user: "admin", groups: &["system:masters"] }).unwrap();

        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots.clone()),
            provider.clone(),
        )
        .build()
        .unwrap();
        let server_config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(server.chain(), server.key())
            .unwrap();
        let client_config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(client.chain(), client.key())
            .unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client_config), address.into()).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(server_config)).unwrap();
        for _ in 0..4 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
    }
}
