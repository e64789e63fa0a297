//! Cross-origin requests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn enable_cors() {
    let world = world(&[("enable-cors", "true")]).await;
    let preflight = world.ask("h", "/").method("OPTIONS").header("Origin", "https://o.example").send().await;
    assert_eq!(preflight.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, PUT, POST, DELETE, PATCH, OPTIONS"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "1728000"),
    ] {
        assert_eq!(preflight.header(name), value, "{name}");
    }
    assert!(preflight.header("access-control-allow-headers").contains("Authorization"));
    let plain = world.ask("h", "/").header("Origin", "https://o.example").send().await;
    assert_eq!((plain.service().as_str(), plain.header("access-control-allow-origin")), ("a", "*"));
}

#[tokio::test]
async fn cors_allow_origin_methods_headers_credentials_expose_and_max_age() {
    let world = world(&[
        ("enable-cors", "true"),
        ("cors-allow-origin", "https://one.example, https://*.two.example:8443"),
        ("cors-allow-methods", "GET, PUT"),
        ("cors-allow-headers", "X-One"),
        ("cors-allow-credentials", "false"),
        ("cors-expose-headers", "X-Two"),
        ("cors-max-age", "60"),
    ])
    .await;
    for (origin, allowed) in [
        ("https://one.example", true),
        ("https://x.two.example:8443", true),
        ("https://x.two.example", false),
        ("https://evil.example", false),
        ("https://one.example.evil.example", false),
        ("https://evil/.two.example:8443", false),
    ] {
        let answer = world.ask("h", "/").header("Origin", origin).send().await;
        assert_eq!(answer.header("access-control-allow-origin"), if allowed { origin } else { "" });
        assert_eq!(answer.header("access-control-expose-headers"), if allowed { "X-Two" } else { "" });
        let preflight = world.ask("h", "/").method("OPTIONS").header("Origin", origin).send().await;
        assert_eq!(preflight.status, if allowed { 204 } else { 200 }, "{origin}");
        if allowed {
            assert_eq!(preflight.header("access-control-allow-methods"), "GET, PUT");
            assert_eq!(preflight.header("access-control-allow-headers"), "X-One");
            assert_eq!(preflight.header("access-control-allow-credentials"), "");
            assert_eq!(preflight.header("access-control-max-age"), "60");
        }
    }
}
