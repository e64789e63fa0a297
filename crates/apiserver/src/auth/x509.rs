//! Users by client certificate: the common name is the user, organizations are its groups.
//!
//! The chain is checked here against the cluster's client CA even though the TLS listener may have done so: who a
//! request comes from must not depend on how a listener was configured. Results are kept for a minute per
//! certificate, so keep-alive connections pay for one signature a minute.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::UserInfo;

const FRESH: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 1024;

/// Verifies client certificates against one CA.
pub struct Certificates {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    known: Mutex<HashMap<Vec<u8>, (Instant, UserInfo)>>,
}

impl Certificates {
    /// With the CA's certificates; none of them: no certificate is accepted.
    pub fn new(ca: &[CertificateDer<'static>]) -> Result<Self, String> {
        let known = Mutex::default();
        if ca.is_empty() {
            return Ok(Certificates { verifier: None, known });
        }
        let mut roots = RootCertStore::empty();
        for certificate in ca {
            roots.add(certificate.clone()).map_err(|e| format!("reading the client CA: {e}"))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| format!("reading the client CA: {e}"))?;
        Ok(Certificates { verifier: Some(verifier), known })
    }

    /// The user of a chain (leaf first); `None` for one that does not hold.
    pub fn user(&self, chain: &[CertificateDer<'static>]) -> Option<UserInfo> {
        let (leaf, intermediates) = chain.split_first()?;
        if let Some((checked, user)) = self.known.lock().get(leaf.as_ref())
            && checked.elapsed() < FRESH
        {
            return Some(user.clone());
        }
        let verifier = self.verifier.as_ref()?;
        if let Err(error) = verifier.verify_client_cert(leaf, intermediates, UnixTime::now()) {
            tracing::debug!(%error, "client certificate refused");
            return None;
        }
        let user = subject(leaf)?;
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(leaf.to_vec(), (Instant::now(), user.clone()));
        Some(user)
    }
}

/// The user a certificate names, whoever signed it.
fn subject(leaf: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let name = certificate.subject();
    let common = name.iter_common_name().next()?.as_str().ok()?;
    if common.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        name.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".into());
    let hash = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let id = ("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={hex}")]);
    Some(UserInfo { name: common.into(), uid: String::new(), groups, extra: BTreeMap::from([id]) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(ca: &CertifiedIssuer<'static, KeyPair>, cn: &str, org: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.distinguished_name.push(DnType::OrganizationName, org);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    #[test]
    fn user_from_certificate_of_our_ca_only() {
        let (ours, theirs) = (ca("ours"), ca("theirs"));
        let certificates = Certificates::new(&[ours.der().clone()]).unwrap();
        let user = certificates.user(&[client(&ours, "minikube-user", "system:masters")]).unwrap();
        assert_eq!(user.name, "minikube-user");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        assert!(certificates.user(&[client(&theirs, "minikube-user", "system:masters")]).is_none());
        assert!(certificates.user(&[]).is_none());
        assert!(Certificates::new(&[]).unwrap().user(&[client(&ours, "a", "b")]).is_none());
    }
}
