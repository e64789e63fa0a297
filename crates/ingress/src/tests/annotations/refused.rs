//! What is not honoured, and says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn snippets_are_refused_with_what_to_use_instead() {
    for name in ["configuration-snippet", "server-snippet", "stream-snippet"] {
        let world = World::start(&[annotated(&[(name, "more_set_headers \"X: 1\";")])]).await;
        let (_, why) = world.problems.first().unwrap();
        assert!(why.contains(name) && why.contains("use "), "{why}");
        assert_eq!(world.get("/").await.service(), "a", "and change nothing");
    }
}

#[tokio::test]
async fn guards_that_cannot_be_had_close_the_ingress() {
    for (name, value) in [
        ("enable-modsecurity", "true"),
        ("auth-type", "digest"),
        ("whitelist-source-range", "10.0.0.0/99"),
        ("limit-rps", "many"),
        ("auth-url", "nowhere"),
        ("auth-tls-match-cn", "x"),
        ("auth-something-new", "x"),
        ("backend-protocol", "FCGI"),
    ] {
        let world = World::start(&[annotated(&[(name, value)])]).await;
        assert_eq!(world.get("/").await.status, 503, "{name}");
        assert!(world.problems.iter().any(|(_, why)| why.contains(name)), "{name}: {:?}", world.problems);
    }
}

#[tokio::test]
async fn default_backend_of_the_spec_keeps_its_annotations() {
    let world = World::start(&[with(
        ingress("x", json!({"defaultBackend": backend("a")})),
        &[("x-forwarded-prefix", "/p")],
    )])
    .await;
    assert_eq!(world.get("/").await.sent("x-forwarded-prefix"), "/p");
}
