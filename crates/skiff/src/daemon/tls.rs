//! TLS settings from the cluster's authority: who is trusted and what is shown.

use std::sync::Arc;

use anyhow::Context;
use cluster::pki::{Authority, Identity};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &Authority) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).context("trust the cluster's authority")?;
    Ok(Arc::new(roots))
}

/// Shows `identity` and trusts servers of the cluster.
pub fn client(authority: &Authority, identity: &Identity) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots(authority)?);
    builder.with_client_auth_cert(identity.chain(), identity.key()).context("use a client certificate")
}

/// Shows `identity`; clients may have a certificate of the cluster, or none (tokens).
pub fn server(authority: &Authority, identity: &Identity) -> anyhow::Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider());
    let verifier = verifier.allow_unauthenticated().build().context("verify client certificates")?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_client_cert_verifier(verifier);
    builder.with_single_cert(identity.chain(), identity.key()).context("use a server certificate")
}
