//! Towards the backend: limits, retries, names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

/// `$upstream_status` of the next line of the log.
fn said_of_upstream(world: &World) -> String {
    let line = world.lines.recv_timeout(LIMIT).unwrap();
    line.rsplit(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn proxy_body_size() {
    let mut world = world(&[("proxy-body-size", "10")]).await;
    assert_eq!(world.ask("h", "/").body("0123456789").send().await.told()["body"], "0123456789");
    assert_eq!(world.ask("h", "/").body("0123456789X").send().await.status, 413);
    let unknown = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n";
    assert!(world.raw(unknown).await.starts_with("HTTP/1.1 413 "));
    assert_eq!([(); 3].map(|()| said_of_upstream(&world)), ["200", "-", "-"], "the endpoint is not at fault");
    world.set(&[annotated(&[("proxy-body-size", "0")])]);
    assert_eq!(world.ask("h", "/").body("x".repeat(2 << 20)).send().await.status, 200);
}

#[tokio::test]
async fn proxy_read_timeout() {
    let silent = loopback().await;
    let address = silent.local_addr().unwrap();
    let mut world =
        World::start(&[annotated(&[("proxy-read-timeout", "1"), ("proxy-next-upstream-tries", "1")])]).await;
    world.change(|objects| service(objects, "a", &[address]));
    let start = Instant::now();
    assert_eq!(world.get("/").await.status, 504);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(said_of_upstream(&world), "504");
}

/// An address where connections are neither taken nor refused: whoever listens has all that it can hold.
fn full() -> (SocketAddr, impl Sized) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        held.push(stream);
        assert!(held.len() < 64, "the queue has no end");
    }
    (address, (listener, held))
}

#[tokio::test]
async fn proxy_connect_timeout() {
    let (address, _held) = full();
    let settings = [("proxy-connect-timeout", "1"), ("proxy-next-upstream-tries", "1")];
    let mut world = World::start(&[annotated(&settings)]).await;
    world.change(|objects| service(objects, "a", &[address]));
    let start = Instant::now();
    assert_eq!(world.get("/").await.status, 504);
    // The default is five seconds.
    assert!((1.0..5.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn proxy_next_upstream_timeout() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (one, two) = (silent(&asked).await, silent(&asked).await);
    for (within, endpoints) in [("0", 2), ("1", 1)] {
        let mut world = World::start(&[annotated(&[
            ("proxy-read-timeout", "1"),
            ("proxy-next-upstream", "timeout"),
            ("proxy-next-upstream-tries", "2"),
            ("proxy-next-upstream-timeout", within),
        ])])
        .await;
        world.change(|objects| service(objects, "a", &[one, two]));
        asked.store(0, Ordering::SeqCst);
        assert_eq!(world.get("/").await.status, 504);
        assert_eq!(asked.load(Ordering::SeqCst), endpoints, "within {within}");
    }
}

/// An endpoint that takes connections, counts them and says nothing.
async fn silent(asked: &Arc<AtomicUsize>) -> SocketAddr {
    let (listener, asked) = (loopback().await, asked.clone());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            asked.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn proxy_next_upstream_and_tries() {
    let (dead, _held) = nobody();
    let mut world = world(&[]).await;
    let good = echo("a").await;
    world.change(|objects| service(objects, "a", &[dead, good]));
    for _ in 0..4 {
        assert_eq!(world.get("/").await.service(), "a");
        // What never left can be sent again, whatever it is.
        assert_eq!(world.ask("h", "/").body("x").send().await.told()["body"], "x");
    }
    world.set(&[annotated(&[("proxy-next-upstream", "off"), ("load-balance", "round_robin")])]);
    world.change(|objects| service(objects, "a", &[dead]));
    assert_eq!(world.get("/").await.status, 502);
    // A status that is named goes to the next endpoint.
    let busy = canned(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    world.set(&[annotated(&[("proxy-next-upstream", "error http_503")])]);
    world.change(|objects| service(objects, "a", &[busy, good]));
    for _ in 0..4 {
        assert_eq!(world.get("/").await.service(), "a");
    }
    assert_eq!(world.metrics.text().matches("status=\"503\"").count(), 0);
}

#[tokio::test]
async fn upstream_vhost_x_forwarded_prefix_and_connection_proxy_header() {
    let world = world(&[
        ("upstream-vhost", "inner.$host"),
        ("x-forwarded-prefix", "/outer"),
        ("connection-proxy-header", "keep-alive"),
    ])
    .await;
    let answer = world.get("/").await;
    assert_eq!(answer.sent("host"), "inner.h");
    assert_eq!(answer.sent("x-forwarded-prefix"), "/outer");
    assert_eq!(answer.sent("connection"), "keep-alive");
    assert_eq!(answer.sent("x-forwarded-host"), "h");
}

#[tokio::test]
async fn service_upstream() {
    let world = world(&[("service-upstream", "true")]).await;
    let (table, _) = crate::build::table(&world.objects, &mut crate::state::State::default());
    let location = table.find("h", b"/").location().unwrap().clone();
    let addresses: Vec<String> = location.backend.addresses().map(ToString::to_string).collect();
    assert_eq!(addresses, ["127.0.0.1:8080"], "the Service's own address and port");
}

#[tokio::test]
async fn proxy_send_timeout_and_proxy_read_timeout_of_a_silent_tunnel() {
    let listener = loopback().await;
    let mut world = world(&[("proxy-send-timeout", "1"), ("proxy-read-timeout", "1")]).await;
    let address = listener.local_addr().unwrap();
    world.change(|objects| service(objects, "a", &[address]));
    let held = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0; 4096];
        let _ = stream.read(&mut some).await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: mine\r\nConnection: upgrade\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.read(&mut some).await
    });
    let start = Instant::now();
    // The defaults are a minute: longer than this waits for an end.
    let answer =
        world.raw(b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: mine\r\nConnection: upgrade\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && start.elapsed() >= Duration::from_secs(1), "{answer}");
    drop(held.await.unwrap());
}
