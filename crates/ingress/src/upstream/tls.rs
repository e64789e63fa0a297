//! TLS towards backends: encrypted in any case, verified where an Ingress says so (`proxy-ssl-*`).

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::annotations::upstream::{BackendTls, Protocol};

/// What a Secret holds under a key.
type Data<'d, 'a> = &'d dyn Fn(&str) -> Option<&'a [u8]>;

/// How an endpoint is greeted.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub config: Arc<ClientConfig>,
    /// The name that is asked for and verified; without one, the endpoint's address.
    pub name: Option<ServerName<'static>>,
}

impl Greeting {
    /// The greeting for these settings; `data` is the Secret of `proxy-ssl-secret`.
    ///
    /// # Errors
    /// What is wrong with the Secret.
    pub fn new<'a>(
        settings: &BackendTls,
        protocol: Protocol,
        data: Option<Data<'_, 'a>>,
    ) -> Result<Self, String> {
        let own = data.filter(|data| data("tls.crt").is_some());
        let mut config = match (settings.verify, own) {
            (false, None) => (*tls::unverified().map_err(|e| e.to_string())?).clone(),
            (verify, own) => {
                let provider = Arc::new(ring::default_provider());
                let builder =
                    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
                let builder = builder.map_err(|e| e.to_string())?;
                let roots = match data.and_then(|data| data("ca.crt")) {
                    Some(pem) => authorities(pem)?,
                    None if verify => {
                        return Err("proxy-ssl-verify needs a proxy-ssl-secret with ca.crt".into());
                    }
                    None => RootCertStore::empty(),
                };
                let builder = builder.with_root_certificates(roots);
                let mut config = match own {
                    Some(data) => {
                        let (chain, key) = identity(data)?;
                        builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
                    }
                    None => builder.with_no_client_auth(),
                };
                if !verify {
                    let anyone = tls::anyone();
                    config.dangerous().set_certificate_verifier(anyone);
                }
                config
            }
        };
        config.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::Http => vec![b"http/1.1".to_vec()],
        };
        let name = settings.name.clone().map(ServerName::try_from).transpose();
        Ok(Self {
            config: Arc::new(config),
            name: name.map_err(|_| "proxy-ssl-name is no name of a server")?,
        })
    }
}

/// The authorities of a PEM file.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("ca.crt is no PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("ca.crt: {e}"))?;
    }
    match roots.is_empty() {
        true => Err("ca.crt has no certificate".into()),
        false => Ok(roots),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity<'a>(data: &dyn Fn(&str) -> Option<&'a [u8]>) -> Result<Identity, String> {
    let pem = |name: &str| data(name).ok_or_else(|| format!("has no {name}"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem("tls.crt")?).collect();
    let chain = chain.map_err(|e| format!("tls.crt is no PEM: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(pem("tls.key")?).map_err(|e| format!("tls.key: {e}"))?;
    Ok((chain, key))
}
