//! The HTTPS server: logs, exec and attach of real containers, over TLS from inside the node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{NODE_IP, Node};
use futures::{SinkExt, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

runtime::shim_in_tests!();

type Tls = Arc<rustls::ClientConfig>;

async fn send(tls: Tls, request: Request<Empty<bytes::Bytes>>) -> http::Response<hyper::body::Incoming> {
    let stream = TcpStream::connect((NODE_IP, 10250)).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(NODE_IP).unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

async fn get(tls: &Tls, path: &str) -> (u16, String) {
    let request = Request::get(path).header(header::HOST, NODE_IP).body(Empty::new()).unwrap();
    let response = send(tls.clone(), request).await;
    let status = response.status().as_u16();
    let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await.unwrap();
    (status, String::from_utf8_lossy(&body.unwrap().to_bytes()).into_owned())
}

/// What came over each channel until the server closed.
#[derive(Debug, Default)]
struct Heard {
    stdout: String,
    stderr: String,
    status: Value,
}

async fn stream(tls: &Tls, path: &str, sent: Vec<Vec<u8>>) -> Result<Heard, (u16, String)> {
    let request = Request::get(path)
        .header(header::HOST, NODE_IP)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
        .body(Empty::new())
        .unwrap();
    let response = send(tls.clone(), request).await;
    if response.status() != 101 {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        return Err((status, String::from_utf8_lossy(&body).into_owned()));
    }
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    for frame in sent {
        socket.send(Message::binary(frame)).await.unwrap();
    }
    let mut heard = Heard::default();
    let hear = async {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Binary(frame) = message else { continue };
            let text = String::from_utf8_lossy(&frame[1..]).into_owned();
            match frame[0] {
                1 => heard.stdout += &text,
                2 => heard.stderr += &text,
                3 => heard.status = serde_json::from_str(&text).unwrap(),
                other => panic!("channel {other}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hear).await.unwrap();
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_and_attach() {
    let node = Node::start().await;
    let script = "echo one; echo two >&2; sleep 1; echo three; trap 'exit 0' TERM; while read line; do echo got $line; done; \
        while :; do sleep 0.1; done";
    node.create(
        "p",
        json!({"terminationGracePeriodSeconds": 2, "containers": [
        {"name": "c", "image": "busybox", "command": ["sh", "-c", script], "stdin": true}]}),
    )
    .await;
    node.create("waits", json!({"containers": [{"name": "c", "image": "nowhere"}]})).await;
    node.ready("p").await;
    node.wait("waits", "waiting", |p| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    })
    .await;
    let (friend, stranger) = (node.pki.client(&["system:masters"]), node.pki.client(&["someone"]));
    let inside = node.inside.as_ref().unwrap().handle().clone();
    let test = async move {
        assert_eq!(get(&stranger, "/healthz").await, (200, "ok".into()));
        assert_eq!(get(&stranger, "/pods").await.0, 403);
        assert_eq!(get(&friend, "/nothing").await.0, 404);
        // Logs: the end of the log, following it until the container is gone, and what cannot be had.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(get(&friend, "/containerLogs/default/p/c").await, (200, "one\ntwo\nthree\n".into()));
        assert_eq!(get(&friend, "/containerLogs/default/p/c?tailLines=1").await.1, "three\n");
        assert_eq!(get(&friend, "/containerLogs/default/none/c").await.0, 404);
        let (status, text) = get(&friend, "/containerLogs/default/waits/c").await;
        assert_eq!(
            (status, text.as_str()),
            (400, "container \"c\" in pod \"waits\" is waiting to start: trying and failing to pull image")
        );
        let (status, text) = get(&friend, "/containerLogs/default/p/c?previous=true").await;
        assert_eq!(
            (status, text.as_str()),
            (400, "previous terminated container \"c\" in pod \"p\" not found")
        );
        // exec: output, exit codes, stdin with its end, a terminal with its size.
        let path = |command: &[&str], rest: &str| {
            let args: Vec<String> = command.iter().map(|a| format!("command={}", percent(a))).collect();
            format!("/exec/default/p/c?{}&{rest}", args.join("&"))
        };
        let both = "stdout=true&stderr=true";
        let heard = stream(&friend, &path(&["sh", "-c", "echo out; echo err >&2; exit 3"], both), vec![])
            .await
            .unwrap();
        assert_eq!((heard.stdout.as_str(), heard.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(heard.status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        let sent = vec![b"\x00hello\n".to_vec(), b"\xff\x00".to_vec()];
        let heard = stream(&friend, &path(&["cat"], "stdin=true&stdout=true"), sent).await.unwrap();
        assert_eq!((heard.stdout.as_str(), &heard.status["status"]), ("hello\n", &json!("Success")));
        let sent = vec![b"\x04{\"Width\":123,\"Height\":45}".to_vec(), b"\x00stty size; exit\n".to_vec()];
        let heard = stream(&friend, &path(&["sh"], "stdin=true&stdout=true&tty=true"), sent).await.unwrap();
        assert!(heard.stdout.contains("45 123"), "{heard:?}");
        let heard = stream(&friend, &path(&["/nope"], both), vec![]).await.unwrap();
        assert!(heard.status["message"].as_str().unwrap().contains("/nope"), "{heard:?}");
        let refused =
            stream(&friend, "/exec/default/p/other?command=x&stdout=true", vec![]).await.unwrap_err();
        assert_eq!(refused, (500, "container not found (\"other\")".into()));
        // Much output arrives whole.
        let heard = stream(&friend, &path(&["seq", "1", "50000"], both), vec![]).await.unwrap();
        assert_eq!(heard.stdout.lines().count(), 50000);
        // attach: what is written to the first process' stdin comes out of its stdout.
        let attached = tokio::spawn({
            let friend = friend.clone();
            async move {
                let sent = vec![b"\x00ping\n".to_vec()];
                stream(&friend, "/attach/default/p/c?stdin=true&stdout=true&stderr=true", sent).await.unwrap()
            }
        });
        let following = tokio::spawn({
            let friend = friend.clone();
            // From the beginning: what attach writes may come before or after this request.
            async move { get(&friend, "/containerLogs/default/p/c?follow=true").await.1 }
        });
        (attached, following, friend)
    };
    let (attached, following, friend) = inside.spawn(test).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let summary = inside.spawn(async move { get(&friend, "/stats/summary").await.1 }).await.unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let p = pods.iter().find(|p| p["podRef"]["name"] == "p").unwrap();
    assert!(p["containers"][0]["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{summary}");
    assert!(p["containers"][0]["cpu"]["usageNanoCores"].is_u64(), "{summary}");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0, "{summary}");
    node.delete("p").await;
    node.delete("waits").await;
    let heard = attached.await.unwrap();
    assert_eq!((heard.stdout.as_str(), &heard.status["status"]), ("got ping\n", &json!("Success")));
    assert_eq!(following.await.unwrap(), "one\ntwo\nthree\ngot ping\n");
    node.finish().await;
}

fn percent(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
