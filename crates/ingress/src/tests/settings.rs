//! What the ConfigMap of the controller says, followed live.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{LIMIT, SETTINGS, World, annotated, config, ingress, path, rule};

async fn world(data: &[(&str, &str)]) -> World {
    let mut world = World::start(&[annotated(&[])]).await;
    world.change(|objects| config(objects, SETTINGS, data));
    world.fine();
    world
}

#[tokio::test]
async fn defaults_of_annotations_change_under_open_routes() {
    let mut world = world(&[("proxy-body-size", "4")]).await;
    assert_eq!(world.ask("h", "/").body("12345").send().await.status, 413);
    world.change(|objects| config(objects, SETTINGS, &[("proxy-body-size", "5")]));
    assert_eq!(world.ask("h", "/").body("12345").send().await.status, 200);
    world.set(&[annotated(&[("proxy-body-size", "1")])]);
    assert_eq!(
        world.ask("h", "/").body("12345").send().await.status,
        413,
        "an Ingress's own counts for more"
    );
}

#[tokio::test]
async fn use_proxy_protocol() {
    let world = world(&[("use-proxy-protocol", "true")]).await;
    let request =
        "PROXY TCP4 203.0.113.7 192.0.2.1 4000 80\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = super::harness::Answer::parse(&world.raw(request.as_bytes()).await);
    assert_eq!(
        (answer.sent("x-real-ip").as_str(), answer.sent("x-forwarded-for").as_str()),
        ("203.0.113.7", "203.0.113.7")
    );
    assert_eq!(
        world.raw(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await,
        "",
        "whoever does not speak it is shown out"
    );
}

#[tokio::test]
async fn use_forwarded_headers_and_compute_full_forwarded_for() {
    let world = world(&[("use-forwarded-headers", "true"), ("compute-full-forwarded-for", "true")]).await;
    let answer = world
        .ask("h", "/")
        .header("X-Forwarded-For", "203.0.113.7")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "public.example")
        .send()
        .await;
    assert_eq!(answer.sent("x-real-ip"), "203.0.113.7");
    assert_eq!(answer.sent("x-forwarded-for"), "203.0.113.7, 127.0.0.1");
    assert_eq!(answer.sent("x-forwarded-proto"), "https");
    assert_eq!(answer.sent("x-forwarded-host"), "public.example");
}

#[tokio::test]
async fn log_format_upstream_and_nginx_and_json() {
    let mut world = world(&[]).await;
    world.ask("h", "/a?b=c").header("User-Agent", "one\"two").header("Referer", "http://r/").send().await;
    let line = world.lines.recv_timeout(LIMIT).unwrap();
    for part in [
        "127.0.0.1 - - [",
        "] \"GET /a?b=c HTTP/1.1\" 200 ",
        " \"http://r/\" \"one\\x22two\" ",
        " [ns-a-8080] [] 127.0.0.1:",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let json = r#"{"host":"$host","status":$status,"agent":"$http_user_agent","time":$request_time}"#;
    world.change(|objects| {
        config(objects, SETTINGS, &[("log-format-upstream", json), ("log-format-escape-json", "true")]);
    });
    world.ask("h", "/?status=418").header("User-Agent", "one\"two\\").send().await;
    let line: Value = serde_json::from_str(&world.lines.recv_timeout(LIMIT).unwrap()).unwrap();
    assert_eq!(
        (&line["host"], &line["status"], &line["agent"]),
        (&json!("h"), &json!(418), &json!("one\"two\\"))
    );
    world.change(|objects| config(objects, SETTINGS, &[("disable-access-log", "true")]));
    world.get("/").await;
    assert!(world.lines.recv_timeout(Duration::from_millis(50)).is_err());
}

#[tokio::test]
async fn hsts_headers_codes_and_blocks() {
    let mut world = World::start(&[]).await;
    config(&mut world.objects, "more", &[("X-Added", "1")]);
    config(&mut world.objects, "told", &[("X-Told", "$host")]);
    config(
        &mut world.objects,
        SETTINGS,
        &[
            ("hsts-max-age", "60"),
            ("http-redirect-code", "301"),
            ("add-headers", "ns/more"),
            ("proxy-set-headers", "ns/told"),
            ("hide-headers", "X-Powered-By"),
            ("block-user-agents", "evil,~*^bad"),
            ("limit-req-status-code", "429"),
        ],
    );
    let spec = json!({"rules": [rule("h", &[path("/", "Prefix", "a")])], "tls": [{"hosts": ["h"]}]});
    world.set(&[
        ingress("x", spec),
        super::harness::with(
            ingress("y", json!({"rules": [rule("limited", &[path("/", "Prefix", "a")])]})),
            &[("limit-rpm", "1"), ("limit-burst-multiplier", "1")],
        ),
    ]);
    world.fine();
    assert_eq!(world.get("/").await.status, 301);
    let answer = world.ask("h", "/?header=X-Powered-By:php").tls().send().await;
    assert_eq!(answer.header("strict-transport-security"), "max-age=60; includeSubDomains");
    assert_eq!((answer.header("x-added"), answer.sent("x-told").as_str()), ("1", "h"));
    assert_eq!(answer.header("x-powered-by"), "");
    for (agent, status) in [("evil", 403), ("BadBot", 403), ("good", 200)] {
        assert_eq!(
            world.ask("h", "/").header("User-Agent", agent).tls().send().await.status,
            status,
            "{agent}"
        );
    }
    let mut last = 0;
    for _ in 0..3 {
        last = world.ask("limited", "/").send().await.status;
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn global_auth_url_and_enable_global_auth() {
    let (dead, _held) = super::harness::nobody();
    let mut world = World::start(&[annotated(&[])]).await;
    let url = format!("http://{dead}/");
    world.change(|objects| config(objects, SETTINGS, &[("global-auth-url", &url)]));
    assert_eq!(world.get("/").await.status, 500);
    world.set(&[annotated(&[("enable-global-auth", "false")])]);
    assert_eq!(world.get("/").await.status, 200);
}

#[tokio::test]
async fn ssl_protocols_and_use_http2() {
    let world = world(&[("ssl-protocols", "TLSv1.3"), ("use-http2", "false")]).await;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12]);
    let old =
        config.unwrap().dangerous().with_custom_certificate_verifier(tls::anyone()).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(world.secure).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("h").unwrap();
    assert!(tokio_rustls::TlsConnector::from(std::sync::Arc::new(old)).connect(name, stream).await.is_err());
    assert_eq!(world.ask("h", "/").tls().send().await.service(), "a");
}

#[tokio::test]
async fn what_the_configmap_cannot_have_is_said() {
    let mut world = World::start(&[annotated(&[])]).await;
    world.change(|objects| config(objects, SETTINGS, &[("http-snippet", "x"), ("proxy-body-size", "big")]));
    let said: Vec<&str> = world.problems.iter().map(|(_, why)| why.as_str()).collect();
    assert!(
        said.iter().any(|s| s.contains("http-snippet")) && said.iter().any(|s| s.contains("proxy-body-size")),
        "{said:?}"
    );
    assert_eq!(world.get("/").await.service(), "a");
}
