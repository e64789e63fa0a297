//! Requests that mean harm, and what becomes of them: a clear status or the door, and no harm to anybody else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Answer, SETTINGS, World, annotated, config, ingress, path, rule, secret};
use super::protocols::{http2_stream, sender};

async fn world() -> World {
    World::start(&[annotated(&[("proxy-body-size", "1k")])]).await
}

async fn status(world: &World, request: &str) -> u16 {
    Answer::parse(&world.raw(request.as_bytes()).await).status
}

#[tokio::test]
async fn smuggled_requests_do_not_reach_the_backend() {
    let world = world().await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";
    for (what, head, body) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n", "abcd"),
        ("a list of lengths", "Content-Length: 4, 5\r\n", "abcd"),
        ("a signed length", "Content-Length: +4\r\n", "abcd"),
        ("TE.TE", "Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("TE.TE", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("TE.TE", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("obs-fold", "X-Folded: a\r\n b\r\n", ""),
        ("a space before the colon", "Content-Length : 4\r\n", "abcd"),
        ("a name with a space", "Bad Name: a\r\n", ""),
        ("NUL in a value", "X: a\0b\r\n", ""),
        ("a bare CR", "X: a\rContent-Length: 4\r\n", ""),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n{body}{hidden}");
        let answer = world.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("hidden"), "{what}: {answer}");
    }
    // Of two ways to frame the chunks count and the connection ends (RFC 9112, 6.1), whatever the length claims.
    for (what, head, body) in [
        ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n{body}{hidden}");
        let answer = world.raw(request.as_bytes()).await;
        assert!(answer.matches("HTTP/1.1").count() <= 2 && !answer.contains("/hidden"), "{what}: {answer}");
    }
    // A bare LF ends a line for us as for nginx; the backend is sent lines with CR LF, so there is nothing to smuggle.
    let answer = Answer::parse(&world.raw(b"GET /x HTTP/1.1\nHost: h\nConnection: close\n\n").await);
    assert_eq!((answer.status, answer.told()["path"].as_str()), (200, Some("/x")));
}

#[tokio::test]
async fn headers_and_bodies_are_bounded() {
    let world = world().await;
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let answer = world.raw(large.as_bytes()).await;
    // The kernel may take the answer away with what was not read.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: a\r\n".repeat(200));
    assert!(world.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "a".repeat(100_000));
    let answer = world.raw(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(world.ask("h", "/").body("x".repeat(1025)).send().await.status, 413);
    assert_eq!(world.get("/").await.status, 200, "others are served");
}

#[tokio::test]
async fn paths_with_tricks_are_matched_by_what_they_mean() {
    let rules =
        json!({"rules": [rule("h", &[path("/public", "Prefix", "a"), path("/admin", "Prefix", "b")])]});
    let world = World::start(&[ingress("x", rules)]).await;
    for (sent, answered) in [
        ("/public/../admin", "b"),
        ("/public/..%2fadmin", "b"),
        ("/public/%2e%2e/admin", "b"),
        ("//admin", "b"),
        ("/public//../admin/", "b"),
        ("/%61dmin", "b"),
        ("/public/x", "a"),
        ("/..", "400"),
        ("/public/../../admin", "400"),
        ("/%00", "400"),
        ("/public%2f..%2f..%2fx", "400"),
    ] {
        assert_eq!(world.get(sent).await.service(), answered, "{sent}");
    }
}

#[tokio::test]
async fn hosts_that_are_none_and_methods_that_are_none() {
    let world = world().await;
    for (request, code) in [
        ("GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\nConnection: close\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h@evil\r\nConnection: close\r\n\r\n", 400),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 405),
        ("nonsense\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01", 0),
    ] {
        let found = status(&world, request).await;
        assert!(found == code || code == 0 && found == 400, "{request:?}: {found}");
    }
}

#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    let mut world = world().await;
    world.change(|objects| {
        config(objects, SETTINGS, &[("client-header-timeout", "1"), ("client-body-timeout", "1")]);
    });
    // Headers without an end: closed by the ingress, while the client's side stays open.
    let answer = world.raw(b"GET / HTTP/1.1\r\nHost: h\r\nX: a").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A body that does not come.
    let answer = world.raw(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // A handshake that does not come holds nobody up.
    let _silent = TcpStream::connect(world.secure).await.unwrap();
    assert_eq!(world.ask("h", "/").tls().send().await.status, 200);
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// Floods a connection with what `next` makes; the bytes that come back until it ends, or `None` if it stays.
async fn flood(world: &World, count: u32, next: impl Fn(u32) -> Vec<u8>) -> Option<Vec<u8>> {
    let stream = http2_stream(world).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(4, 0, 0, &[]));
    write.write_all(&start).await.unwrap();
    let writing = async {
        for i in 0..count {
            if write.write_all(&next(i)).await.is_err() {
                break;
            }
        }
        let _ = write.flush().await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut got = Vec::new();
        let _ = read.read_to_end(&mut got).await;
        got
    };
    tokio::select! {
        () = writing => None,
        got = reading => Some(got),
        () = tokio::time::sleep(Duration::from_secs(15)) => None,
    }
}

/// GET https://h/ in HPACK (RFC 7541) without compression of the host.
const GET: &[u8] = &[0x82, 0x87, 0x84, 0x41, 0x01, b'h'];

/// Whether a GOAWAY with an error was among the bytes.
fn shown_out(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        if head[3] == 7 && after.get(4..8).is_some_and(|code| code != [0; 4]) {
            return true;
        }
        rest = after.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn http2_rapid_reset_ends_its_connection_and_no_other() {
    let world = world().await;
    let got = flood(&world, 20_000, |i| {
        let stream = 2 * i + 1;
        [frame(1, 5, stream, GET), frame(3, 0, stream, &8u32.to_be_bytes())].concat()
    });
    let got = got.await.expect("the connection ends");
    assert!(got.is_empty() || shown_out(&got), "no reason was given");
    assert_eq!(world.ask("h", "/").tls().send().await.status, 200);
}

#[tokio::test]
async fn http2_continuation_flood_ends_its_connection_and_no_other() {
    let world = world().await;
    let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7e][..], &[b'a'; 16_000]].concat();
    let got = flood(&world, 20_000, |i| match i {
        0 => frame(1, 1, 1, GET),
        _ => frame(9, 0, 1, &field[..16_000]),
    });
    got.await.expect("the connection ends");
    assert_eq!(world.ask("h", "/").tls().send().await.status, 200);
}

#[tokio::test]
async fn http2_settings_and_ping_floods_cost_their_sender_only() {
    let world = world().await;
    let before = memory();
    // Answers that nobody reads are not heaped up: the sender is read no faster than it reads.
    let stream = http2_stream(&world).await;
    let (_read, mut write) = tokio::io::split(stream);
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(4, 0, 0, &[]));
    write.write_all(&start).await.unwrap();
    let floods = async {
        for _ in 0..200_000 {
            let both = [frame(4, 0, 0, &[]), frame(6, 0, 0, &[0; 8])].concat();
            if write.write_all(&both).await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), floods).await;
    assert_eq!(world.ask("h", "/").tls().send().await.status, 200);
    assert!(memory() < before + (64 << 10), "{before} KiB, then {} KiB", memory());
}

/// Resident memory of this process in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_name_of_tls_is_not_a_host() {
    let two = ingress("y", json!({"rules": [rule("other", &[path("/", "Prefix", "b")])]}));
    let world = World::start(&[annotated(&[]), two]).await;
    assert_eq!(world.ask("other", "/").sni("h").tls().send().await.service(), "b", "the host decides");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_shown_and_is_told() {
    let mut world = World::start(&[]).await;
    let made = rcgen::generate_simple_self_signed(["*.good.example".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    secret(&mut world.objects, "s", &[("tls.crt", cert.as_bytes()), ("tls.key", key.as_bytes())]);
    let hosts = ["a.good.example", "bad.example"];
    let spec = json!({
        "rules": hosts.map(|host| rule(host, &[path("/", "Prefix", "a")])),
        "tls": [{"hosts": hosts, "secretName": "s"}],
    });
    world.set(&[ingress("x", spec)]);
    let told: Vec<&str> = world.problems.iter().map(|(_, why)| why.as_str()).collect();
    let why = "Secret \"s\": its certificate does not name \"bad.example\"; the default certificate is shown instead";
    assert_eq!(told, [why]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    // Only this certificate is trusted, so whoever answers has shown it.
    assert_eq!(world.ask("a.good.example", "/").shows(config).send().await.service(), "a");
    assert_eq!(world.ask("bad.example", "/").tls().send().await.service(), "a", "served all the same");
}

#[tokio::test]
async fn bad_secrets_close_what_they_guard_and_nothing_else() {
    let mut world = World::start(&[]).await;
    secret(
        &mut world.objects,
        "junk",
        &[("tls.crt", b"junk"), ("tls.key", b"junk"), ("ca.crt", b"junk"), ("auth", b"")],
    );
    let of = |name: &str, pairs: &[(&str, &str)]| {
        let spec = json!({
            "rules": [rule(name, &[path("/", "Prefix", "a")])],
            "tls": [{"hosts": [name], "secretName": "junk"}],
        });
        super::harness::with(ingress(name, spec), &[&[("ssl-redirect", "false")], pairs].concat())
    };
    world.set(&[
        of("plain", &[]),
        of("mutual", &[("auth-tls-secret", "ns/junk")]),
        of("basic", &[("auth-type", "basic"), ("auth-secret", "junk")]),
        of(
            "backend",
            &[("backend-protocol", "HTTPS"), ("proxy-ssl-secret", "ns/junk"), ("proxy-ssl-verify", "on")],
        ),
        annotated(&[]),
    ]);
    for (host, status) in [("plain", 200), ("mutual", 503), ("basic", 401), ("backend", 503), ("h", 200)] {
        assert_eq!(world.ask(host, "/").send().await.status, status, "{host}: {:?}", world.problems);
    }
    assert!(world.problems.len() >= 5, "{:?}", world.problems);
}

#[tokio::test]
async fn a_backend_that_talks_nonsense_is_502_and_others_are_served() {
    for answer in [
        &b"nonsense\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"",
    ] {
        let backend = super::protocols::canned(answer).await;
        let mut world = world().await;
        world.change(|objects| super::harness::service(objects, "a", &[backend]));
        let found = world.ask("h", "/").body("x").send().await.status;
        assert_eq!(found, StatusCode::BAD_GATEWAY.as_u16(), "{:?}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn thousands_of_ingresses() {
    let all: Vec<_> = (0..3_000)
        .map(|i| {
            let rules: Vec<_> =
                (0..3).map(|p| path(&format!("/p{p}"), "Prefix", ["a", "b", "c"][p])).collect();
            ingress(&format!("i{i}"), json!({"rules": [rule(&format!("h{i}.example"), &rules)]}))
        })
        .collect();
    let world = World::start(&all).await;
    world.fine();
    for i in [0, 1_500, 2_999] {
        assert_eq!(world.ask(&format!("h{i}.example"), "/p1/x").send().await.service(), "b");
    }
    let mut sender = sender(&world).await;
    let request = http::Request::get("https://h7.example/p2")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
}
