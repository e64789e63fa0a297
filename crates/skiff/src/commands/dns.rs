//! `skiff dns`: what the coredns Pod runs.

use std::net::IpAddr;

use clap::Args;

/// Options of the DNS server; the add-on's Deployment sets them.
#[derive(Debug, Args)]
pub struct Options {
    /// The cluster's domain.
    #[arg(long, default_value = cluster::CLUSTER_DOMAIN)]
    zone: String,
    /// Where to listen.
    #[arg(long, default_value = "::")]
    address: IpAddr,
}
