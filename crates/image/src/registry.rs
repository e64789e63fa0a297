//! Where an image may be fetched from: the registry named in it, and the mirrors that the user configured.
//!
//! ```yaml
//! registries:
//!   docker.io:
//!     mirrors: ["http://localhost:5000", "https://mirror.example"]   # tried in order, then the registry itself
//!   registry.example:5000:
//!     insecure: true                # HTTPS with any certificate, else HTTP
//!   private.example:
//!     caFile: /etc/ssl/private-ca.pem
//! dockerConfig: /home/me/.docker/config.json
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};

/// How registries are reached. The default: no mirrors, HTTPS everywhere but on the loopback, no host credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Per registry, by the host (and port) that image names carry.
    pub registries: BTreeMap<String, Registry>,
    /// A Docker configuration file whose credentials serve every pull; see [`crate::host_docker_config`].
    pub docker_config: Option<PathBuf>,
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registry {
    /// Base addresses (`https://host[:port]` or `http://host[:port]`) tried before the registry itself.
    pub mirrors: Vec<String>,
    /// Accept any certificate, and plain HTTP when HTTPS does not answer.
    pub insecure: bool,
    /// A PEM file with certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl RegistryConfig {
    /// Reads the configuration from YAML (or JSON, which is YAML).
    pub fn from_yaml(text: &str) -> Result<Self> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        for (name, registry) in &config.registries {
            for mirror in &registry.mirrors {
                parse_mirror(mirror).ok_or_else(|| {
                    Error::Config(format!("mirror {mirror:?} of {name} is no http(s)://host"))
                })?;
            }
        }
        Ok(config)
    }

    /// The places to ask for an image of `registry`, in order.
    pub(crate) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let of = |host: &str| self.registries.get(host).cloned().unwrap_or_default();
        let own = of(registry);
        let mut endpoints = Vec::new();
        for (tls, host) in own.mirrors.iter().filter_map(|mirror| parse_mirror(mirror)) {
            let settings = of(host);
            endpoints.push(Endpoint {
                host: host.to_owned(),
                mirror: true,
                scheme: if tls { Scheme::Https { verify: !settings.insecure } } else { Scheme::Http },
                ca_file: settings.ca_file,
            });
        }
        let insecure = own.insecure || is_loopback(registry);
        let schemes = if insecure {
            &[Scheme::Https { verify: false }, Scheme::Http][..]
        } else {
            &[Scheme::Https { verify: true }]
        };
        endpoints.extend(schemes.iter().map(|&scheme| Endpoint {
            host: registry.to_owned(),
            mirror: false,
            scheme,
            ca_file: own.ca_file.clone(),
        }));
        endpoints
    }
}

fn parse_mirror(url: &str) -> Option<(bool, &str)> {
    let (tls, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://")?),
    };
    let host = rest.trim_end_matches('/');
    (!host.is_empty() && !host.contains('/')).then_some((tls, host))
}

/// Docker, too, takes registries on the loopback as insecure.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https { verify: bool },
    Http,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub host: String,
    /// It stands in for another registry: what goes wrong here is no verdict about the image.
    pub mirror: bool,
    pub scheme: Scheme,
    pub ca_file: Option<PathBuf>,
}

impl Endpoint {
    /// A client for this place. Blocking: reads certificates.
    pub fn client(&self) -> Result<oci_client::Client> {
        let mut config = ClientConfig {
            user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")),
            connect_timeout: Some(std::time::Duration::from_secs(15)),
            read_timeout: Some(std::time::Duration::from_secs(60)),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        match self.scheme {
            Scheme::Https { verify } => config.accept_invalid_certificates = !verify,
            Scheme::Http => {
                config.protocol = ClientProtocol::Http;
                // No TLS will be spoken: without this, a host without any CA file could not even use a local registry.
                config.accept_invalid_certificates = true;
            }
        }
        if let Some(file) = &self.ca_file {
            let data = std::fs::read(file).at("read", file)?;
            let encoding = CertificateEncoding::Pem;
            config.extra_root_certificates.push(Certificate { encoding, data });
        }
        oci_client::Client::try_from(config)
            .map_err(|e| Error::Config(format!("client for {}: {}", self.host, crate::error::chain(&e))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let config = RegistryConfig::from_yaml(
            "registries:\n  docker.io:\n    mirrors: ['http://m1:5000/', 'https://m2']\n  m2: {insecure: true}\n",
        )
        .unwrap();
        let endpoints = config.endpoints("docker.io");
        let seen: Vec<_> = endpoints.iter().map(|e| (e.host.as_str(), e.scheme, e.mirror)).collect();
        assert_eq!(
            seen,
            [
                ("m1:5000", Scheme::Http, true),
                ("m2", Scheme::Https { verify: false }, true),
                ("docker.io", Scheme::Https { verify: true }, false)
            ]
        );
    }

    #[test]
    fn loopback_falls_back_to_http() {
        for host in ["localhost:5000", "127.0.0.2:80"] {
            let schemes: Vec<_> =
                RegistryConfig::default().endpoints(host).iter().map(|e| e.scheme).collect();
            assert_eq!(schemes, [Scheme::Https { verify: false }, Scheme::Http], "{host}");
        }
        assert_eq!(RegistryConfig::default().endpoints("example.com").len(), 1);
    }

    #[test]
    fn bad_configurations_are_refused() {
        for bad in [
            "registries: {docker.io: {mirrors: ['ftp://x']}}",
            "registries: {docker.io: {mirrors: ['m1:5000']}}",
            "registries: {docker.io: {unknown: 1}}",
            "[]",
        ] {
            assert!(matches!(RegistryConfig::from_yaml(bad), Err(Error::Config(_))), "{bad}");
        }
    }
}
