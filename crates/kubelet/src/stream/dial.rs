//! Connections to a port of a Pod's localhost, made by a thread that enters the Pod's network namespace and ends: a
//! socket belongs to the namespace in which it was made, whichever thread uses it later.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::port_forward::Dial;
use crate::edge::Containers;

/// A listener whose queue is full answers late; nobody waits longer.
const CONNECT: Duration = Duration::from_secs(30);

/// Dials into the sandbox of one Pod.
pub struct Sandbox {
    /// Who knows its namespace.
    pub containers: Arc<dyn Containers>,
    /// The sandbox's id: the Pod's uid.
    pub id: String,
}

#[async_trait]
impl Dial for Sandbox {
    async fn dial(&self, port: u16) -> Result<TcpStream, String> {
        let id = &self.id;
        let netns = self.containers.sandbox_netns(id).await;
        let netns = netns.map_err(|e| format!("failed to find sandbox {id:?} in store: {e}"))?;
        let failed =
            |error: String| format!("failed to execute portforward in network namespace {id:?}: {error}");
        let (tx, rx) = oneshot::channel();
        let connect = move || {
            // The request may have been given up meanwhile.
            let _ = tx.send(connect(&netns, port));
        };
        let thread = std::thread::Builder::new().name("port-forward".into()).spawn(connect);
        thread.map_err(|e| failed(e.to_string()))?;
        let connected = rx.await.map_err(|e| failed(e.to_string()))?;
        let connected = connected.map_err(|e| {
            let Failed { four, six } = e;
            failed(format!(
                "failed to connect to localhost:{port} inside namespace {id:?}, IPv4: {four} IPv6 {six}"
            ))
        })?;
        connected
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(connected))
            .map_err(|e| failed(e.to_string()))
    }
}

/// Why neither family worked.
#[derive(Debug)]
struct Failed {
    four: String,
    six: String,
}

fn connect(netns: &OwnedFd, port: u16) -> Result<std::net::TcpStream, Failed> {
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|e| Failed { four: reason(e.into()), six: reason(e.into()) })?;
    let try_one = |address: SocketAddr, family: &str| {
        std::net::TcpStream::connect_timeout(&address, CONNECT)
            .map_err(|e| format!("dial {family} {address}: connect: {}", reason(e)))
    };
    try_one((Ipv4Addr::LOCALHOST, port).into(), "tcp4").or_else(|four| {
        try_one((Ipv6Addr::LOCALHOST, port).into(), "tcp6").map_err(|six| Failed { four, six })
    })
}

/// As Go says it: without the number.
fn reason(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A fresh network namespace and a listener in it; it lives as long as the descriptor.
    fn namespace() -> (OwnedFd, TcpListener) {
        let netns = testkit::netns::Netns::new();
        let listener = netns.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
        (netns.into(), listener)
    }

    #[test]
    fn the_connection_is_the_namespaces() {
        let (netns, listener) = namespace();
        let port = listener.local_addr().unwrap().port();
        let inside = std::thread::spawn(move || {
            let (mut connection, from) = listener.accept().unwrap();
            assert!(from.ip().is_loopback());
            connection.write_all(b"from inside").unwrap();
        });
        let mut text = String::new();
        let dialled = {
            let netns = netns.try_clone().unwrap();
            std::thread::spawn(move || connect(&netns, port)).join().unwrap()
        };
        dialled.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "from inside");
        inside.join().unwrap();
        let refused = std::thread::spawn(move || connect(&netns, port)).join().unwrap().unwrap_err();
        assert_eq!(refused.four, format!("dial tcp4 127.0.0.1:{port}: connect: connection refused"));
    }
}
