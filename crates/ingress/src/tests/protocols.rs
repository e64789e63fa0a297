//! What is spoken in front and behind: HTTP/2, HTTPS, gRPC, WebSocket; streams, drains, and what is written down.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::harness::{Answer, LIMIT, World, annotated, echo, loopback, secret, service, told};

/// A connection that has agreed on HTTP/2.
pub async fn http2_stream(world: &World) -> TlsStream<TcpStream> {
    tls_stream(world, b"h2").await
}

/// A connection that has agreed on this protocol.
pub async fn tls_stream(world: &World, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut config = (*tls::unverified().unwrap()).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(world.secure).await.unwrap();
    let name = ServerName::try_from("h").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// A client of HTTP/2.
pub async fn sender<B>(world: &World) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let io = TokioIo::new(http2_stream(world).await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A server that answers every connection with `answer` once it has read some bytes, and closes it.
pub async fn canned(answer: &'static [u8]) -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 4096];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

pub async fn behind(pairs: &[(&str, &str)], endpoints: &[SocketAddr]) -> World {
    let mut world = World::start(&[annotated(pairs)]).await;
    world.change(|objects| service(objects, "a", endpoints));
    world.fine();
    world
}

#[tokio::test]
async fn requests_reach_the_backend_as_they_were_and_say_who_asks() {
    let world = World::start(&[annotated(&[])]).await;
    let request = b"POST /a%20b?c=d HTTP/1.1\r\nHost: H:80\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nUser-Agent: me\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = super::harness::Answer::parse(&world.raw(request).await);
    let told = answer.told();
    assert_eq!((told["path"].as_str(), told["body"].as_str()), (Some("/a%20b?c=d"), Some("hello")));
    for (name, value) in [
        ("host", "H:80"),
        ("x-real-ip", "127.0.0.1"),
        ("user-agent", "me"),
        ("x-mine", ""),
        ("x-scheme", "http"),
    ] {
        assert_eq!(answer.sent(name), value, "{name}");
    }
    assert_eq!(answer.sent("x-request-id").len(), 32);
}

#[tokio::test]
async fn a_body_streams_before_it_ends_both_ways() {
    let listener = loopback().await;
    let world = behind(&[], &[listener.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(world.plain).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        .await
        .unwrap();
    let mut backend = listener.accept().await.unwrap().0;
    until(&mut backend, b"3\r\none\r\n").await;
    backend.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    until(&mut client, b"first").await;
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    until(&mut backend, b"3\r\ntwo\r\n0\r\n\r\n").await;
    backend.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    until(&mut client, b"second\r\n0\r\n\r\n").await;
}

/// Reads until some bytes have come.
pub async fn until(stream: &mut (impl AsyncRead + Unpin), wanted: &[u8]) {
    let mut got = Vec::new();
    let read = async {
        while !got.windows(wanted.len()).any(|w| w == wanted) {
            got.push(stream.read_u8().await.unwrap());
        }
    };
    let came = tokio::time::timeout(LIMIT, read).await;
    assert!(came.is_ok(), "{:?} in {:?}", String::from_utf8_lossy(wanted), String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn connections_to_the_backend_are_kept_and_a_closed_one_is_not_used() {
    let listener = loopback().await;
    let world = behind(&[], &[listener.local_addr().unwrap()]).await;
    let answers = tokio::spawn(async move {
        let mut served = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..3 {
                until(&mut stream, b"\r\n\r\n").await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                served.push(stream.peer_addr().unwrap());
            }
            // Closed while it is idle.
        }
        served
    });
    for _ in 0..6 {
        assert_eq!(world.get("/").await.body, "ok");
    }
    let served = answers.await.unwrap();
    assert!(served[0] == served[2] && served[3] == served[5] && served[0] != served[3]);
}

#[tokio::test]
async fn an_idempotent_request_is_sent_again_when_its_connection_breaks() {
    let good = echo("a").await;
    let world = behind(&[], &[canned(b"").await, good]).await;
    for _ in 0..4 {
        assert_eq!(world.get("/").await.service(), "a");
    }
    // One that is not idempotent and was sent is not.
    let world = behind(&[], &[canned(b"").await]).await;
    assert_eq!(world.ask("h", "/").body("x").send().await.status, 502);
}

#[tokio::test]
async fn http2_in_front_and_routes_that_change_under_a_connection() {
    let mut world = World::start(&[annotated(&[])]).await;
    let mut sender = sender::<Full<Bytes>>(&world).await;
    let ask = || Request::post("https://h/x").body(Full::from("text")).unwrap();
    let answer = sender.send_request(ask()).await.unwrap();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        (&told["headers"]["x-forwarded-proto"], &told["headers"]["host"]),
        (&"https".into(), &"h".into())
    );
    assert_eq!((&told["body"], &told["proto"]), (&"text".into(), &"HTTP/1.1".into()));
    world.change(|objects| service(objects, "a", &[]));
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_request_under_way_when_the_controller_stops_is_answered() {
    let listener = loopback().await;
    let mut world = behind(&[], &[listener.local_addr().unwrap()]).await;
    let mut sender = sender::<Empty<Bytes>>(&world).await;
    let last = tokio::spawn(sender.send_request(Request::get("https://h/").body(Empty::new()).unwrap()));
    let mut backend = listener.accept().await.unwrap().0;
    world.stop.closing.cancel();
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!(last.await.unwrap().unwrap().status(), StatusCode::OK);
    drop(sender);
    let serving = std::mem::replace(&mut world.serving, tokio::spawn(async {}));
    tokio::time::timeout(LIMIT, serving).await.expect("drained").unwrap();
}

#[tokio::test]
async fn whoever_is_served_while_the_controller_leaves_is_sent_elsewhere() {
    let world = World::start(&[annotated(&[])]).await;
    let mut stream = TcpStream::connect(world.plain).await.unwrap();
    let mut sender = sender::<Empty<Bytes>>(&world).await;
    let ask = || Request::get("https://h/").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), StatusCode::OK);
    world.stop.leaving.cancel();
    // HTTP/1.1: by the answer, and only then is the connection closed; new connections are served.
    let told = async {
        loop {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"}") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "an answer");
            }
            let answer = Answer::parse(&String::from_utf8_lossy(&answer));
            assert_eq!(answer.service(), "a");
            if answer.header("connection") == "close" {
                return stream.read_buf(&mut Vec::new()).await.unwrap();
            }
        }
    };
    assert_eq!(tokio::time::timeout(LIMIT, told).await.expect("told in time"), 0);
    assert_eq!(world.get("/").await.service(), "a");
    // HTTP/2: at once, by GOAWAY.
    let gone = async {
        while sender.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("gone in time");
}

#[tokio::test]
async fn websocket_with_a_real_client() {
    let listener = loopback().await;
    let mut world = behind(&[], &[listener.local_addr().unwrap()]).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let stream = TcpStream::connect(world.plain).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async("ws://h/chat", stream).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    for text in ["there", "and back"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), text);
    }
    // A controller that stops waits for it.
    world.stop.closing.cancel();
    while TcpStream::connect(world.plain).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    socket.send(Message::text("still")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "still");
    assert!(!world.serving.is_finished());
    socket.close(None).await.unwrap();
    drop(socket);
    let serving = std::mem::replace(&mut world.serving, tokio::spawn(async {}));
    tokio::time::timeout(LIMIT, serving).await.expect("drained").unwrap();
}

#[tokio::test]
async fn websocket_over_http2_by_extended_connect() {
    let listener = loopback().await;
    let world = behind(&[], &[listener.local_addr().unwrap()]).await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let message = socket.next().await.unwrap().unwrap();
        socket.send(message).await.unwrap();
    });
    let mut sender = sender::<Empty<Bytes>>(&world).await;
    let mut request = Request::connect("https://h/chat").body(Empty::new()).unwrap();
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    // The server says in its settings that it can; they may not be here yet.
    let answer = super::harness::LIMIT;
    let answer = tokio::time::timeout(answer, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.send_request(request).await
    });
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(stream, role, None).await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "hello");
}

/// A certificate for a name, and the settings of a server that shows it.
fn server_tls(name: &str, protocol: &[u8]) -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config =
        config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn backend_protocol_https_and_proxy_ssl() {
    let (pem, acceptor) = server_tls("inner.example", b"http/1.1");
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| told("tls", address, request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let on = ("backend-protocol", "HTTPS");
    let mut world = behind(&[on], &[address]).await;
    assert_eq!(world.ask("h", "/").body("text").send().await.told()["body"], "text");
    secret(&mut world.objects, "ca", &[("ca.crt", pem.as_bytes())]);
    let verified = [on, ("proxy-ssl-secret", "ns/ca"), ("proxy-ssl-verify", "on")];
    world.set(&[annotated(&[&verified[..], &[("proxy-ssl-name", "inner.example")]].concat())]);
    world.fine();
    assert_eq!(world.get("/").await.service(), "tls");
    world.set(&[annotated(&[&verified[..], &[("proxy-ssl-name", "other.example")]].concat())]);
    assert_eq!(world.get("/").await.status, 502, "another name than its certificate's");
}

// gRPC

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone)]
struct Shout;

type Texts = Pin<Box<dyn Stream<Item = Result<Text, tonic::Status>> + Send>>;

/// Says everything louder as it comes; "end" is an error with a message.
impl tonic::server::StreamingService<Text> for Shout {
    type Response = Text;
    type ResponseStream = Texts;
    type Future = std::future::Ready<Result<tonic::Response<Texts>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Text>>) -> Self::Future {
        let louder = request.into_inner().map(|text| match text?.text.as_str() {
            "end" => Err(tonic::Status::not_found("no more")),
            other => Ok(Text { text: other.to_uppercase() }),
        });
        std::future::ready(Ok(tonic::Response::new(Box::pin(louder))))
    }
}

async fn grpc_server(tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    let answer = |request: Request<Incoming>| async {
        let codec = tonic_prost::ProstCodec::<Text, Text>::default();
        Ok::<_, Infallible>(tonic::server::Grpc::new(codec).streaming(Shout, request).await)
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = match tls {
                    None => builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await,
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await
                    }
                };
            });
        }
    });
    address
}

/// A conversation of a tonic client through the ingress; the last word of the server.
async fn conversation(world: &World) -> tonic::Status {
    let secure = world.secure;
    let connector = tower::service_fn(move |_: http::Uri| async move {
        let mut config = (*tls::unverified().unwrap()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(secure).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("h").unwrap(), stream).await?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://h");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let (say, words) = tokio::sync::mpsc::channel(4);
    let words = tokio_stream::wrappers::ReceiverStream::new(words);
    let path = http::uri::PathAndQuery::from_static("/test.Shout/Talk");
    let codec = tonic_prost::ProstCodec::<Text, Text>::default();
    let opened = client.streaming(tonic::Request::new(words), path, codec);
    let mut answers = tokio::time::timeout(LIMIT, opened).await.unwrap().unwrap().into_inner();
    for word in ["hello", "again"] {
        // Each is answered before the next is said.
        say.send(Text { text: word.into() }).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().text, word.to_uppercase());
    }
    say.send(Text { text: "end".into() }).await.unwrap();
    answers.message().await.unwrap_err()
}

#[tokio::test]
async fn backend_protocol_grpc_with_a_real_client_and_trailers() {
    let world = behind(&[("backend-protocol", "GRPC")], &[grpc_server(None).await]).await;
    let last = conversation(&world).await;
    assert_eq!((last.code(), last.message()), (tonic::Code::NotFound, "no more"));
}

#[tokio::test]
async fn backend_protocol_grpcs() {
    let (_, acceptor) = server_tls("inner.example", b"h2");
    let world = behind(&[("backend-protocol", "GRPCS")], &[grpc_server(Some(acceptor)).await]).await;
    assert_eq!(conversation(&world).await.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn trailers_of_http1_pass() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n";
    let world = behind(&[], &[canned(answer).await]).await;
    let mut sender = sender::<Empty<Bytes>>(&world).await;
    let answer = sender.send_request(Request::get("https://h/").body(Empty::new()).unwrap()).await.unwrap();
    let all = answer.into_body().collect().await.unwrap();
    assert_eq!(all.trailers().unwrap()["x-sum"], "7");
    assert_eq!(all.to_bytes(), "hello");
}

#[tokio::test]
async fn metrics_under_the_names_of_ingress_nginx() {
    let world = World::start(&[annotated(&[])]).await;
    world.get("/").await;
    world.get("/?status=418").await;
    let text = loop {
        let text = world.metrics.text();
        if text.contains("status=\"418\"") {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let labels = "namespace=\"ns\",ingress=\"x\",service=\"a\",host=\"h\",path=\"/\",canary=\"\",method=\"GET\",status=\"200\"";
    for line in [
        format!("nginx_ingress_controller_requests{{{labels}}} 1"),
        format!("nginx_ingress_controller_request_duration_seconds_count{{{labels}}} 1"),
        format!("nginx_ingress_controller_response_duration_seconds_count{{{labels}}} 1"),
        format!("nginx_ingress_controller_response_size_count{{{labels}}} 1"),
        format!("nginx_ingress_controller_request_size_count{{{labels}}} 1"),
        "nginx_ingress_controller_nginx_process_connections_total{state=\"accepted\"} 2".to_owned(),
        "nginx_ingress_controller_nginx_process_requests_total 2".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn a_rolling_update_of_the_backend_loses_no_request() {
    let mut world = World::start(&[annotated(&[])]).await;
    let done = Arc::new(Notify::new());
    let (plain, finished) = (world.plain, done.clone());
    let load = tokio::spawn(async move {
        let stream = TcpStream::connect(plain).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (mut count, finished) = (0, finished.notified());
        tokio::pin!(finished);
        loop {
            let request = Request::get("/").header("host", "h").body(Empty::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.unwrap();
            count += 1;
            if futures::poll!(&mut finished).is_ready() {
                return count;
            }
        }
    });
    // Pods that come, serve, and go with their connections, some before the slices say so.
    let mut old = None;
    for round in 0..20 {
        let (address, stop) = mortal().await;
        if round % 2 == 0 {
            world.change(|objects| service(objects, "a", &[address]));
            drop(old.replace(stop));
        } else {
            world.change(|objects| service(objects, "a", &[address]));
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(old.replace(stop));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done.notify_one();
    assert!(load.await.unwrap() > 20);
}

/// A server that ends like a Pod: it closes what is idle, and listens no more, when the token is dropped.
async fn mortal() -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    let token = tokio_util::sync::CancellationToken::new();
    let guard = token.clone().drop_guard();
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                () = token.cancelled() => return,
            };
            let token = token.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| told("a", address, request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => {}
                    () = token.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            });
        }
    });
    (address, guard)
}
