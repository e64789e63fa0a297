//! The way from Pods to the host's resolvers.
//!
//! The caller makes the listening sockets inside the node's network namespace; everything is asked with sockets made
//! here, in the namespace of the runtime that polls this: the host's. So VPNs and a resolver on 127.0.0.53 serve Pods
//! as they serve every program of the host.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::respond::Responder;
use crate::server;

/// Relays questions to the servers in `resolv_conf`, which is read again when it changes, until `stop`.
///
/// # Errors
/// When the sockets cannot be used with this runtime.
pub async fn run(
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    resolv_conf: PathBuf,
    stop: CancellationToken,
) -> io::Result<()> {
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
    let responder = Responder::new(None, Config::relay(&resolv_conf));
    server::serve(vec![udp], vec![tcp], Arc::new(responder), stop).await;
    Ok(())
}
