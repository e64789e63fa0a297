//! Requests that lead to a kubelet: a small stand-in answers with what it was asked, and echoes upgraded bytes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use http::Method;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Reads a request head; the bytes up to the empty line.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut out = Vec::new();
    while !out.ends_with(b"\r\n\r\n") {
        out.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(out).unwrap()
}

/// Answers plain requests with their first line and upgrades with an echo, over TLS.
async fn kubelet(f: &common::Fixture) -> u16 {
    let (_, _, certificate, key) = f.pki.issue("node", &[], &["127.0.0.1"]);
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(tcp).await.unwrap();
                let request = head(&mut stream).await;
                if request.to_lowercase().contains("upgrade: spdy/3.1") {
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..n]).await.unwrap();
                        stream.flush().await.unwrap();
                    }
                    return;
                }
                let line = request.lines().next().unwrap();
                if line.contains("previous=true") {
                    let answer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nno such container\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return stream.shutdown().await.unwrap();
                }
                if line.starts_with("GET /stats/summary HTTP") {
                    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", summary());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return stream.shutdown().await.unwrap();
                }
                let secret = if request.to_lowercase().contains("authorization:") { " LEAK" } else { "" };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n{line}{secret}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    port
}

/// What the stand-in measures: itself and the container of Pod `p`.
fn summary() -> Value {
    let cpu = |nanos: u64| json!({"time": "2026-01-02T03:04:05Z", "usageNanoCores": nanos});
    json!({"node": {"cpu": cpu(1_500_000), "memory": {"workingSetBytes": 4096}},
        "pods": [{"podRef": {"namespace": "default", "name": "p"}, "containers": [
            {"name": "a", "cpu": cpu(250_000_000), "memory": {"workingSetBytes": 10_240}}]}]})
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A Pod with two containers on a node whose kubelet is the stand-in, and one that has no node.
async fn cluster() -> common::Fixture {
    let f = common::start().await;
    let port = kubelet(&f).await;
    let node = json!({"metadata": {"name": "n1"}});
    assert_eq!(f.post("/api/v1/nodes", &node).await.code, 201);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(f.patch("/api/v1/nodes/n1/status", "application/merge-patch+json", &status).await.code, 200);
    assert_eq!(
        f.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
            .await
            .code,
        201
    );
    for (name, containers) in [
        ("p", json!([{"name": "a", "image": "i"}])),
        ("two", json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}])),
        ("lost", json!([{"name": "a", "image": "i"}])),
    ] {
        assert_eq!(
            f.post(PODS, &json!({"metadata": {"name": name}, "spec": {"containers": containers}})).await.code,
            201
        );
        if name != "lost" {
            let binding = json!({"metadata": {"name": name}, "target": {"name": "n1"}});
            assert_eq!(f.post(&format!("{PODS}/{name}/binding"), &binding).await.code, 201);
        }
    }
    f
}

#[tokio::test]
async fn logs_and_node_proxy() {
    let f = cluster().await;
    let text = |got: common::Got| String::from_utf8(got.bytes.to_vec()).unwrap();
    let log = f
        .send(
            Method::GET,
            &format!("{PODS}/p/log?follow=true&tailLines=3"),
            &[("authorization", "Bearer x")],
            "",
        )
        .await;
    assert_eq!(text(log), "GET /containerLogs/default/p/a?follow=true&tailLines=3 HTTP/1.1");
    let b = f.get(&format!("{PODS}/two/log?container=b")).await;
    assert_eq!(text(b), "GET /containerLogs/default/two/b HTTP/1.1");
    let which = f.get(&format!("{PODS}/two/log")).await;
    assert_eq!(
        which.status(),
        (400, "a container name must be specified for pod two, choose one of: [a b]".into())
    );
    let previous = f.get(&format!("{PODS}/p/log?previous=true")).await;
    assert_eq!(previous.status(), (400, "no such container".into()));
    let none = f.get(&format!("{PODS}/two/log?container=z")).await;
    assert_eq!(none.status(), (400, "container z is not valid for pod two".into()));
    let lost = f.get(&format!("{PODS}/lost/log")).await;
    assert_eq!((lost.code, lost.bytes.len()), (200, 0));
    assert_eq!(f.get(&format!("{PODS}/nope/log")).await.code, 404);
    let stats = f.get("/api/v1/nodes/n1/proxy/stats/summary?x=1").await;
    assert_eq!(text(stats), "GET /stats/summary?x=1 HTTP/1.1");
    let bare = f.get("/api/v1/nodes/n1/proxy?x=1").await;
    assert_eq!((bare.code, bare.headers["location"].to_str().unwrap()), (301, "/api/v1/nodes/n1/proxy/?x=1"));
    let exec = f.post(&format!("{PODS}/lost/exec?command=ls"), &Value::Null).await;
    assert_eq!(exec.status(), (400, "pod lost does not have a host assigned".into()));
    assert_eq!(f.delete(&format!("{PODS}/p/log"), None).await.code, 405);
}

#[tokio::test]
async fn figures_come_from_the_kubelets() {
    let f = cluster().await;
    let metrics = "/apis/metrics.k8s.io/v1beta1";
    let groups = f.get("/apis").await.json();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "metrics.k8s.io"));
    let nodes = f.get(&format!("{metrics}/nodes")).await.json();
    assert_eq!((&nodes["kind"], nodes["items"].as_array().unwrap().len()), (&json!("NodeMetricsList"), 1));
    let node = f.get(&format!("{metrics}/nodes/n1")).await.json();
    assert_eq!(node["usage"], json!({"cpu": "1500000n", "memory": "4Ki"}));
    assert_eq!((&node["timestamp"], &node["kind"]), (&json!("2026-01-02T03:04:05Z"), &json!("NodeMetrics")));
    let pods = f.get(&format!("{metrics}/pods")).await.json();
    assert_eq!(pods["items"].as_array().unwrap().len(), 1, "Pods without figures are left out: {pods}");
    let expected = json!([{"name": "a", "usage": {"cpu": "250000000n", "memory": "10Ki"}}]);
    assert_eq!(pods["items"][0]["containers"], expected);
    let of = |query: &str| format!("{metrics}/namespaces/default/pods{query}");
    assert_eq!(f.get(&of("/p")).await.json()["containers"], expected);
    assert_eq!(f.get(&of("?labelSelector=no%3Dne")).await.json()["items"], json!([]));
    assert_eq!(
        f.get(&of("?fieldSelector=metadata.name%3Dp")).await.json()["items"].as_array().unwrap().len(),
        1
    );
    let text = "pods.metrics.k8s.io \"two\" not found".to_owned();
    assert_eq!(f.get(&of("/two")).await.status(), (404, text));
    assert_eq!(f.get(&of("?watch=true")).await.code, 405);
    assert_eq!(f.delete(&of("/p"), None).await.code, 405);
}

#[tokio::test]
async fn a_node_that_is_down_is_said_to_be() {
    let f = cluster().await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    f.patch("/api/v1/nodes/n1/status", "application/merge-patch+json", &status).await;
    let (code, text) = f.get(&format!("{PODS}/p/log")).await.status();
    assert_eq!(code, 503);
    assert!(text.starts_with("error trying to reach service: dial 127.0.0.1:"), "{text}");
}

#[tokio::test]
async fn upgraded_bytes_pass_untouched() {
    let mut f = cluster().await;
    f.serve(0).await;
    let (_, _, certificate, key) = f.pki.issue("admin", &["system:masters"], &[]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(f.pki.ca.clone()).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let tcp = TcpStream::connect(f.address.unwrap()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let request = format!(
        "POST {PODS}/p/exec?command=sh&stdin=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await.to_lowercase();
    assert!(
        answer.starts_with("http/1.1 101") && answer.contains("x-stream-protocol-version: v4"),
        "{answer}"
    );
    let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await?;
        write.flush().await.map(|()| write)
    });
    let mut got = vec![0; sent.len()];
    read.read_exact(&mut got).await.unwrap();
    assert_eq!(got, sent);
    drop(writer.await.unwrap().unwrap());
}
