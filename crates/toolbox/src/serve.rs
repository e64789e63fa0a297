//! `serve [--http PORT] [--tcp PORT] [--udp PORT]`: says who answered and who asked; TCP and UDP send back what comes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::small::{own_name, terminated};
use crate::{Error, Result};

/// An echo server. HTTP answers with the Pod's name, both addresses, the request line and the headers.
#[derive(Debug, Parser)]
#[command(name = "serve", no_binary_name = true)]
struct Options {
    /// HTTP port, 0 for none.
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// TCP echo port, 0 for none.
    #[arg(long, default_value_t = 0)]
    tcp: u16,
    /// UDP echo port, 0 for none.
    #[arg(long, default_value_t = 0)]
    udp: u16,
}

/// Serves until it is told to end.
pub fn run(args: &[String]) -> Result<()> {
    let options = Options::try_parse_from(args).map_err(|e| Error::Usage(e.to_string()))?;
    crate::block_on(async {
        if options.http != 0 {
            tokio::spawn(accept(listen(options.http).await?, http));
        }
        if options.tcp != 0 {
            tokio::spawn(accept(listen(options.tcp).await?, tcp));
        }
        if options.udp != 0 {
            let socket = UdpSocket::bind(any(options.udp)).await;
            tokio::spawn(udp(
                socket.map_err(|e| Error::io(format!("listen on udp port {}", options.udp), e))?
            ));
        }
        println!("{} serves http {} tcp {} udp {}", own_name(), options.http, options.tcp, options.udp);
        terminated().await;
        Ok(())
    })
}

fn any(port: u16) -> SocketAddr {
    // Where the kernel has no IPv6 the IPv4 wildcard is all there is.
    let v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    if v6 { ([0u16; 8], port).into() } else { ([0u8; 4], port).into() }
}

/// A socket for every address of the machine.
pub(crate) async fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(any(port)).await.map_err(|e| Error::io(format!("listen on port {port}"), e))
}

/// Hands each connection to a task of its own.
pub(crate) async fn accept<F>(listener: TcpListener, handle: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(handle(stream, peer))),
            // Out of descriptors: let running connections end before trying again.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

async fn http(stream: TcpStream, peer: SocketAddr) {
    let local = stream.local_addr().map_or_else(|_| String::new(), |a| canonical(a).to_string());
    let service = service_fn(move |request: Request<Incoming>| {
        let text = describe(&request, &local, peer);
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    // A client that breaks off is its own business.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn describe(request: &Request<Incoming>, local: &str, peer: SocketAddr) -> String {
    let mut text = format!("Hostname: {}\nServer: {local}\nClient: {}\n\n", own_name(), canonical(peer));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} {} {:?}", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn tcp(mut stream: TcpStream, _peer: SocketAddr) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn udp(socket: UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], peer).await;
        }
    }
}
