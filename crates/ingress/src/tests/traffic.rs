//! Real connections through the data plane: clients in front, small servers behind, all on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use client::ObjectKey;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::annotations::Settings;
use crate::certificates::{self, ByName, Certificates};
use crate::front::{self, Front, Limits};
use crate::proxy::Proxy;
use crate::table::{Backend, Builder, Location, PathType, Table};

const LIMIT: Duration = Duration::from_secs(20);

/// A controller's data plane without a controller.
struct Ingress {
    table: Arc<ArcSwap<Table>>,
    plain: SocketAddr,
    secure: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Ingress {
    async fn start(table: Table, limits: Limits) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(table));
        let fallback = certificates::fake().unwrap();
        let tls = front::acceptor(Arc::new(ByName { table: table.clone(), fallback })).unwrap();
        let (plain, secure) = (loopback().await, loopback().await);
        let proxy = Arc::new(Proxy::new(table.clone()));
        let stop = CancellationToken::new();
        let (plain_at, secure_at) = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
        let (s, p) = (stop.clone(), proxy);
        let serving = tokio::spawn(async move {
            let secure_front = Front { tls: Some(tls), port: 443 };
            tokio::join!(
                front::serve(plain, Front { tls: None, port: 80 }, p.clone(), limits, s.clone()),
                front::serve(secure, secure_front, p.clone(), limits, s.clone()),
            );
        });
        Self { table, plain: plain_at, secure: secure_at, stop, serving }
    }

    /// Sends bytes and reads until the connection ends.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.plain).await.unwrap();
        // The answer may come, and the connection end, before all is sent.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read =
            tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("an end in time");
        drop(read);
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes()).await
    }
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn table(settings: Settings, endpoints: &[SocketAddr]) -> Table {
    let backend = Backend::new(endpoints.iter().map(|e| e.to_string().parse().unwrap()).collect());
    let location = Location::new(ObjectKey::new("ns", "x"), Arc::new(backend), Arc::new(settings), false);
    let mut builder = Builder::default();
    builder.path("h", "/", PathType::Prefix, location);
    builder.finish(Certificates::default(), |_, why| panic!("{why}"))
}

/// A server that says what it was asked.
async fn echo() -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let text = format!(
                    "{} {} {:?}\n{}",
                    parts.method,
                    parts.uri,
                    parts.headers,
                    String::from_utf8_lossy(&body)
                );
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// A server that answers every connection with `answer` once it has read some bytes.
async fn canned(answer: &'static [u8]) -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 4096];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(answer).await;
                // Held open, so that an end is the ingress' doing.
                tokio::time::sleep(LIMIT).await;
            });
        }
    });
    address
}

/// A server that says when a request has arrived, and answers it when it may.
async fn held(arrived: Arc<Notify>, release: Arc<Notify>) -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 4096];
        assert!(stream.read(&mut some).await.unwrap() > 0);
        arrived.notify_one();
        release.notified().await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    address
}

/// An address where nobody listens: its port is held by a socket that does not.
fn nobody() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test]
async fn requests_reach_the_backend_as_they_were_and_say_who_asks() {
    let ingress = Ingress::start(table(Settings::default(), &[echo().await]), Limits::default()).await;
    let answer = ingress.raw(b"POST /a%20b?c=d HTTP/1.1\r\nHost: H:80\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nUser-Agent: me\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("POST /a%20b?c=d "), "{answer}");
    for part in ["\"host\": \"H:80\"", "\"x-real-ip\": \"127.0.0.1\"", "\"user-agent\": \"me\"", "\nhello"] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert!(!answer.contains("x-mine"), "{answer}");
    assert!(answer.contains("content-length: ") && answer.contains("date: ") && answer.contains("server: "));
}

#[tokio::test]
async fn unknown_hosts_bad_requests_and_dead_backends_have_their_codes() {
    let (dead, _held) = nobody();
    let none = Ingress::start(table(Settings::default(), &[]), Limits::default()).await;
    assert!(none.get("/").await.starts_with("HTTP/1.1 503 "));
    let one = Ingress::start(table(Settings::default(), &[dead]), Limits::default()).await;
    assert!(one.get("/").await.starts_with("HTTP/1.1 502 "));
    let slow = Settings { read_timeout: Duration::from_millis(100), ..Settings::default() };
    let silent = Ingress::start(table(slow, &[canned(b"").await]), Limits::default()).await;
    assert!(silent.get("/").await.starts_with("HTTP/1.1 504 "));
    for (request, code) in [
        ("GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n", "404"),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\nConnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", "400"),
        ("GET /../x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "400"),
        ("GET /%00 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "400"),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "405"),
    ] {
        let answer = one.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{request:?} {answer}");
    }
}

#[tokio::test]
async fn an_idempotent_request_is_tried_elsewhere() {
    let (dead, _held) = nobody();
    let ingress = Ingress::start(table(Settings::default(), &[dead, echo().await]), Limits::default()).await;
    for _ in 0..4 {
        assert!(ingress.get("/").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn smuggled_requests_do_not_reach_the_backend() {
    let ingress = Ingress::start(table(Settings::default(), &[echo().await]), Limits::default()).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX-Folded: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nBad Name: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    ] {
        let answer = ingress.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("hidden"), "{request:?}\n{answer}");
    }
}

#[tokio::test]
async fn headers_and_bodies_are_bounded() {
    let settings = Settings { body_size: Some(10), ..Settings::default() };
    let ingress = Ingress::start(table(settings, &[echo().await]), Limits::default()).await;
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let answer = ingress.raw(large.as_bytes()).await;
    // The kernel may take the answer away with what was not read.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: a\r\n".repeat(200));
    assert!(ingress.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let known = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 11\r\n\r\nhello world";
    assert!(ingress.raw(known).await.starts_with("HTTP/1.1 413 "));
    let unknown = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n";
    assert!(ingress.raw(unknown).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_not_waited_for() {
    let limits = Limits { headers_within: Duration::from_millis(100), ..Limits::default() };
    let ingress = Ingress::start(table(Settings::default(), &[]), limits).await;
    // Ends by the ingress' doing: the client's side stays open.
    assert!(!ingress.raw(b"GET / HTTP/1.1\r\nHost: h\r\nX: a").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let listener = loopback().await;
    let backend = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let text = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(text.contains("upgrade: websocket") && text.contains("connection: upgrade"), "{text}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let ingress = Ingress::start(table(Settings::default(), &[backend]), Limits::default()).await;
    let mut stream = TcpStream::connect(ingress.plain).await.unwrap();
    let request =
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");
}

#[tokio::test]
async fn a_body_streams_before_it_ends() {
    let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let ingress = Ingress::start(table(Settings::default(), &[canned(begun).await]), Limits::default()).await;
    let mut stream = TcpStream::connect(ingress.plain).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    let read = async {
        while !got.windows(5).any(|w| w == b"first") {
            got.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(LIMIT, read).await.expect("the first chunk before the last");
}

#[tokio::test]
async fn http2_over_tls_and_routes_that_change_under_a_connection() {
    let ingress = Ingress::start(table(Settings::default(), &[echo().await]), Limits::default()).await;
    let mut config = (*tls::unverified().unwrap()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(ingress.secure).await.unwrap();
    let name = ServerName::try_from("h").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let ask = || Request::get("https://h/x").body(Full::<Bytes>::default()).unwrap();
    let answer = sender.send_request(ask()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("\"x-forwarded-proto\": \"https\"") && text.contains("\"host\": \"h\""), "{text}");
    ingress.table.store(Arc::new(table(Settings::default(), &[])));
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    // The request that is under way when the controller stops is answered.
    let (arrived, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = held(arrived.clone(), release.clone()).await;
    ingress.table.store(Arc::new(table(Settings::default(), &[slow])));
    let last = tokio::spawn(sender.send_request(ask()));
    arrived.notified().await;
    ingress.stop.cancel();
    release.notify_one();
    assert_eq!(last.await.unwrap().unwrap().status(), StatusCode::OK);
    drop(sender);
    tokio::time::timeout(LIMIT, ingress.serving).await.expect("drained").unwrap();
}
