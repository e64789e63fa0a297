//! The way of a node other than the first to the API server: HTTPS with a client certificate of the component's user.

use std::net::Ipv4Addr;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::API_PORT;
use cluster::pki::{Authority, Subject};
use kube::Client;
use kube::config::{AuthInfo, Config};

/// A client of the API server on `server` that speaks as `user`.
///
/// # Errors
/// When its certificate cannot be made or used.
pub fn client(authority: &Authority, server: Ipv4Addr, user: &str) -> anyhow::Result<Client> {
    let groups: &[&str] = &["system:masters"];
    let identity = authority.client(Subject { user, groups })?;
    let url = format!("https://{server}:{API_PORT}").parse().context("the API server's address")?;
    let mut config = Config::new(url);
    config.root_cert = Some(vec![authority.certificate.to_vec()]);
    let data = |pem: &str| Some(STANDARD.encode(pem));
    config.auth_info = AuthInfo {
        client_certificate_data: data(&identity.certificate_pem),
        client_key_data: data(&identity.key_pem).map(Into::into),
        ..AuthInfo::default()
    };
    Client::try_from(config).with_context(|| format!("make the client of {user}"))
}
