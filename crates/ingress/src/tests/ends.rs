//! Ends and silences: clients that go, that speak too soon, that do not read; what is closed, and what is not cut off.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{LIMIT, SETTINGS, World, config, loopback};
use super::protocols::{behind, tls_stream, until};

/// A client that has asked, and the backend that has read it.
async fn asked(request: &[u8]) -> (World, TcpStream, TcpStream) {
    let listener = loopback().await;
    let world = behind(&[], &[listener.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(world.plain).await.unwrap();
    client.write_all(request).await.unwrap();
    let mut backend = listener.accept().await.unwrap().0;
    until(&mut backend, b"\r\n\r\n").await;
    (world, client, backend)
}

#[tokio::test]
async fn a_client_that_goes_away_is_not_waited_for() {
    let listener = loopback().await;
    let world = behind(&[], &[listener.local_addr().unwrap()]).await;
    for begun in [false, true] {
        let plain = TcpStream::connect(world.plain).await.unwrap();
        goes_away(plain, &listener, begun).await;
        goes_away(tls_stream(&world, b"http/1.1").await, &listener, begun).await;
    }
}

/// Asks and goes, before the answer or in its middle; the backend is told by the end of its connection.
async fn goes_away(mut client: impl AsyncRead + AsyncWrite + Unpin, listener: &TcpListener, begun: bool) {
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut backend = listener.accept().await.unwrap().0;
    until(&mut backend, b"\r\n\r\n").await;
    if begun {
        backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").await.unwrap();
        until(&mut client, b"first").await;
    }
    drop(client);
    let end = tokio::time::timeout(LIMIT, backend.read(&mut [0])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "begun {begun}: {end:?}");
}

#[tokio::test]
async fn a_request_that_comes_while_another_waits_is_answered_after_it() {
    let (_world, mut client, mut backend) = asked(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    // Bytes of a request are no end, however long they lie there.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for body in ["one", "two"] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{body}");
        backend.write_all(answer.as_bytes()).await.unwrap();
        until(&mut client, body.as_bytes()).await;
        if body == "one" {
            until(&mut backend, b"\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn an_answer_arrives_whole_whatever_its_client_says_meanwhile() {
    const LENGTH: usize = 4 << 20;
    let (_world, mut client, mut backend) =
        asked(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    client.write_all(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let answering = tokio::spawn(async move {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        backend.write_all(head.as_bytes()).await.unwrap();
        backend.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        backend
    });
    let mut all = Vec::new();
    let mut some = vec![0; 64 << 10];
    loop {
        // Slower than the answer comes, so that much of it still waits when the connection is closed.
        tokio::time::sleep(Duration::from_millis(2)).await;
        match client.read(&mut some).await.unwrap() {
            0 => break,
            read => all.extend_from_slice(&some[..read]),
        }
    }
    assert_eq!(all.iter().filter(|byte| **byte == b'x').count(), LENGTH);
    drop(answering.await.unwrap());
}

#[tokio::test]
async fn a_client_that_neither_reads_nor_stays_is_not_waited_for() {
    let (_world, mut client, mut backend) = asked(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    backend.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let full = async { while backend.write_all(&[b'x'; 64 << 10]).await.is_ok() {} };
    let stuck = tokio::time::timeout(Duration::from_millis(300), full).await;
    assert!(stuck.is_err(), "all of it went although nobody reads");
    client.shutdown().await.unwrap();
    let told = async { while backend.write_all(&[b'x'; 64 << 10]).await.is_ok() {} };
    tokio::time::timeout(LIMIT, told).await.expect("the backend is told");
}

#[tokio::test]
async fn what_cannot_go_on_asks_nobody() {
    // Whoever looked for an endpoint first would answer 503.
    let mut world = behind(&[], &[]).await;
    world.change(|objects| config(objects, SETTINGS, &[("compute-full-forwarded-for", "true")]));
    let asked = b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: \xff\r\nConnection: close\r\n\r\n";
    let answer = world.raw(asked).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_tunnel_of_which_one_side_has_ended_still_carries_the_other() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly";
    let (_world, mut client, mut backend) = asked(request).await;
    let changed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst";
    backend.write_all(changed).await.unwrap();
    until(&mut client, b"first").await;
    until(&mut backend, b"early").await;
    client.shutdown().await.unwrap();
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    backend.write_all(b"last").await.unwrap();
    until(&mut client, b"last").await;
}
