//! What becomes of answers, logs and copies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn custom_http_errors_and_default_backend() {
    let mut world = world(&[("custom-http-errors", "404,503"), ("default-backend", "d")]).await;
    let taken = world.ask("h", "/x?status=404").header("Accept", "text/html").send().await;
    assert_eq!(taken.status, 404, "the default backend chooses the status: {taken:?}");
    let told: Value = serde_json::from_str(&taken.body).unwrap();
    assert_eq!((&told["service"], &told["path"]), (&json!("d"), &json!("/?status=404")));
    for (name, value) in [
        ("x-code", "404"),
        ("x-format", "text/html"),
        ("x-original-uri", "/x?status=404"),
        ("x-namespace", "ns"),
        ("x-ingress-name", "x"),
        ("x-service-name", "a"),
        ("x-service-port", "8080"),
    ] {
        assert_eq!(told["headers"][name], value, "{name}");
    }
    assert_eq!(world.get("/?status=418").await.status, 418);
    // And where the Service has no endpoints.
    world.change(|objects| service(objects, "a", &[]));
    let answer = world.get("/").await;
    assert_eq!((answer.service().as_str(), answer.sent("x-code").as_str()), ("d", "503"));
}

#[tokio::test]
async fn custom_headers() {
    let mut world = World::start(&[]).await;
    config(&mut world.objects, "headers", &[("X-Frame-Options", "DENY")]);
    world.set(&[annotated(&[("custom-headers", "ns/headers")])]);
    world.fine();
    assert_eq!(world.get("/").await.header("x-frame-options"), "DENY");
}

#[tokio::test]
async fn proxy_cookie_domain_proxy_cookie_path_and_proxy_redirect() {
    let world = world(&[
        ("proxy-cookie-domain", "inner.example outer.example"),
        ("proxy-cookie-path", "/app/ /"),
        ("proxy-redirect-from", "http://inner.example/"),
        ("proxy-redirect-to", "https://outer.example/"),
    ])
    .await;
    let cookie = "header=Set-Cookie:a%3D1%3B%20Domain%3Dinner.example%3B%20Path%3D/app/x";
    let location = "header=Location:http%3A//inner.example/y";
    let answer = world.get(&format!("/?{cookie}&{location}&status=302")).await;
    assert_eq!(answer.header("set-cookie"), "a=1; Domain=outer.example; Path=/x");
    assert_eq!(answer.header("location"), "https://outer.example/y");
}

#[tokio::test]
async fn enable_access_log() {
    let world = world(&[("enable-access-log", "false")]).await;
    world.get("/").await;
    assert!(world.lines.recv_timeout(Duration::from_millis(50)).is_err());
}

#[tokio::test]
async fn mirror_target_mirror_host_and_mirror_request_body() {
    let listener = loopback().await;
    let target = format!("http://{}/copy$request_uri", listener.local_addr().unwrap());
    let mut world = world(&[("mirror-target", &target), ("mirror-host", "copy.example")]).await;
    let copied = async |world: &World| {
        let (answer, accepted) = tokio::join!(world.ask("h", "/x").body("hello").send(), listener.accept());
        assert_eq!(answer.told()["body"], "hello", "the copy changes nothing");
        let mut stream = accepted.unwrap().0;
        let mut got = String::new();
        while !got.contains("\r\n\r\n") || got.contains("chunked") && !got.contains("\r\n0\r\n") {
            let mut some = [0; 4096];
            let read = stream.read(&mut some).await.unwrap();
            got.push_str(&String::from_utf8_lossy(&some[..read]));
        }
        got
    };
    let got = copied(&world).await;
    assert!(got.starts_with("POST /copy/x HTTP/1.1\r\n") && got.contains("hello"), "{got}");
    assert!(got.to_ascii_lowercase().contains("host: copy.example"), "{got}");
    world.set(&[annotated(&[("mirror-target", &target), ("mirror-request-body", "off")])]);
    assert!(!copied(&world).await.contains("hello"));
}

#[tokio::test]
async fn disable_proxy_intercept_errors() {
    for (off, service) in [("false", "d"), ("true", "a")] {
        let settings = [
            ("custom-http-errors", "404"),
            ("default-backend", "d"),
            ("disable-proxy-intercept-errors", off),
        ];
        let answer = world(&settings).await.get("/?status=404").await;
        assert_eq!((answer.status, answer.service().as_str()), (404, service));
    }
}
