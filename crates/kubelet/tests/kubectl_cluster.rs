//! The whole way: the real kubectl, the API server, the agent's HTTPS server, a real Pod. One kubectl per generation of
//! stream protocols.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod common;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use client::{Client, kubectls};
use common::Node;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::json;

runtime::shim_in_tests!();

/// A door to the API server from the host: plain HTTP, everyone is admin. It works on the node's threads, as the real
/// server does, so that it reaches the agent.
fn door(node: &Node) -> Client {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let api = node.client.clone();
    node.inside.as_ref().unwrap().spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((connection, _)) = listener.accept().await {
            let api = api.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let api = api.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes().to_vec();
                    let answer = api.send(http::Request::from_parts(parts, body.into())).await;
                    Ok::<_, Infallible>(answer.unwrap_or_else(|error| {
                        let body = kube::client::Body::from(error.to_string().into_bytes());
                        http::Response::builder().status(502).body(body).unwrap()
                    }))
                }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .with_upgrades();
            tokio::spawn(async move {
                let _ = served.await;
            });
        }
    });
    Client::new(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reaches_into_a_pod() {
    let node = Node::start().await;
    let web = json!({"terminationGracePeriodSeconds": 0, "containers": [{
        "name": "web", "image": "busybox", "stdin": true,
        "command": ["sh", "-c", "httpd -p 127.0.0.1:8080 -h /www; exec cat"],
    }]});
    node.create("web", web).await;
    node.ready("web").await;
    let client = door(&node);
    let checks = tokio::task::spawn_blocking(move || {
        for kubectl in kubectls() {
            exec(&client, &kubectl);
            copy(&client, &kubectl);
            attach(&client, &kubectl);
            forward(&client, &kubectl);
        }
    });
    checks.await.unwrap();
    node.delete("web").await;
    node.finish().await;
}

fn exec(client: &Client, kubectl: &str) {
    let out = client.kubectl(kubectl, &["exec", "web", "--", "sh", "-c", "hostname; echo e >&2; exit 3"]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "web\n", "{kubectl}: {stderr}");
    assert_eq!(stderr, "e\ncommand terminated with exit code 3\n", "{kubectl}");
    assert_eq!(out.status.code(), Some(3), "{kubectl}");
    let out = client.kubectl(kubectl, &["exec", "web", "--", "no-such-program"]);
    assert!(!out.status.success() && !out.stderr.is_empty(), "{kubectl}: {out:?}");
}

fn copy(client: &Client, kubectl: &str) {
    let (there, back) = (client.home.path().join("there"), client.home.path().join("back"));
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(&there, &sent).unwrap();
    let out = client.kubectl(kubectl, &["cp", there.to_str().unwrap(), "web:/tmp/file"]);
    assert!(out.status.success(), "{kubectl}: {out:?}");
    let out = client.kubectl(kubectl, &["cp", "web:/tmp/file", back.to_str().unwrap()]);
    assert!(out.status.success(), "{kubectl}: {out:?}");
    assert!(std::fs::read(&back).unwrap() == sent, "{kubectl}: the file came back changed");
}

fn attach(client: &Client, kubectl: &str) {
    let mut child = client.command(kubectl, &["attach", "-i", "web"]).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut got = [0; 6];
    // The container's cat echoes what comes once the streams are joined.
    let reader = std::thread::spawn(move || stdout.read_exact(&mut got).map(|()| got));
    stdin.write_all(b"hello\n").unwrap();
    for _ in 0..1000 {
        if reader.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(&reader.join().unwrap().unwrap(), b"hello\n", "{kubectl}");
}

fn forward(client: &Client, kubectl: &str) {
    let forward = client.forward(kubectl, "web", 8080);
    for _ in 0..3 {
        let mut connection = forward.connect();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\r\n\r\nhello\n"), "{kubectl}: {text:?}");
    }
    let forward = client.forward(kubectl, "web", 9);
    assert_eq!(forward.connect().read(&mut [0; 10]).unwrap_or(0), 0);
    let stderr = forward.stderr(Duration::from_secs(10));
    assert!(stderr.contains("error forwarding port 9 to pod web_default, uid "), "{kubectl}: {stderr}");
}
