//! What an API server is told at start.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

/// Settings of one API server.
#[derive(Clone)]
pub struct Config {
    /// Address in Service default/kubernetes' endpoints; where nodes and Pods reach this server.
    pub advertise_address: IpAddr,
    /// Port there.
    pub advertise_port: u16,
    /// Service addresses, such as `10.96.0.0/12`, one range per IP family, the main family first; its first address is the
    /// `kubernetes` Service's.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// Node ports, upstream's 30000-32767.
    pub node_ports: RangeInclusive<u16>,
    /// How far NetworkPolicies are enforced; who makes one that may not be is warned.
    pub policies: Enforcement,
    /// CA of client certificates, DER.
    pub client_ca: Vec<CertificateDer<'static>>,
    /// Private key of ServiceAccount tokens, PKCS#8 PEM, ECDSA P-256.
    pub service_account_key: String,
    /// Issuer and default audience of ServiceAccount tokens.
    pub service_account_issuer: String,
    /// How to reach kubelets (client certificate included) for logs, exec, attach, port-forward and proxy.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// The audit log, if there is to be one.
    pub audit: Option<crate::audit::Settings>,
}

impl Config {
    /// Address and port of this server, as a URL has them.
    pub fn advertised(&self) -> std::net::SocketAddr {
        (self.advertise_address, self.advertise_port).into()
    }
}

/// How far this cluster enforces NetworkPolicies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// Wherever a Pod's packets go.
    Full,
    /// Where they pass the node, which a CNI plugin may lead them around.
    Partial,
    /// Nowhere.
    Off,
}
