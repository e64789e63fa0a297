//! Paths, redirects, names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn rewrite_target_with_captures() {
    let rules = json!({"rules": [rule("h", &[path("/api(/|$)(.*)", "ImplementationSpecific", "a")])]});
    let world = World::start(&[with(ingress("x", rules), &[("rewrite-target", "/v2/$2")])]).await;
    assert_eq!(world.get("/api/users/7?x=1").await.told()["path"], "/v2/users/7?x=1");
    assert_eq!(world.get("/API").await.told()["path"], "/v2/");
    assert_eq!(world.get("/other").await.status, 404);
}

#[tokio::test]
async fn use_regex_is_for_the_whole_host_and_without_case() {
    let one =
        ingress("x", json!({"rules": [rule("h", &[path("/[a-z]+/x", "ImplementationSpecific", "a")])]}));
    let two = ingress("y", json!({"rules": [rule("h", &[path("/plain", "Exact", "b")])]}));
    let world = World::start(&[with(one, &[("use-regex", "true")]), two]).await;
    for (path, service) in [("/abc/x", "a"), ("/ABC/xyz", "a"), ("/plainly", "b"), ("/12/x", "404")] {
        assert_eq!(world.get(path).await.service(), service, "{path}");
    }
}

#[tokio::test]
async fn ssl_redirect_where_the_host_has_tls() {
    let mut world = World::start(&[ingress("x", tls_of("h"))]).await;
    redirects(&world.get("/a/?b=c").await, 308, "https://h/a/?b=c");
    redirects(&world.get("/a/").await, 308, "https://h/a");
    assert_eq!(world.ask("h", "/").tls().send().await.service(), "a");
    assert_eq!(world.get("/.well-known/acme-challenge").await.status, 308, "the location is /");
    world.set(&[with(ingress("x", tls_of("h")), &[("ssl-redirect", "false")])]);
    assert_eq!(world.get("/").await.service(), "a");
    world.set(&[with(ingress("x", tls_of("h")), &[("preserve-trailing-slash", "true")])]);
    redirects(&world.get("/a/").await, 308, "https://h/a/");
}

#[tokio::test]
async fn force_ssl_redirect_without_tls() {
    let world = world(&[("force-ssl-redirect", "true")]).await;
    redirects(&world.ask("h:8080", "/x").send().await, 308, "https://h/x");
}

#[tokio::test]
async fn app_root() {
    let world = world(&[("app-root", "/app1")]).await;
    redirects(&world.get("/").await, 302, "http://h/app1");
    assert_eq!(world.get("/app1").await.service(), "a");
}

#[tokio::test]
async fn permanent_redirect_and_temporal_redirect() {
    let to = "https://new.example$request_uri";
    let mut world = world(&[("permanent-redirect", to)]).await;
    redirects(&world.get("/a?b=c").await, 301, "https://new.example/a?b=c");
    world.set(&[annotated(&[("permanent-redirect", to), ("permanent-redirect-code", "308")])]);
    redirects(&world.get("/").await, 308, "https://new.example/");
    world.set(&[annotated(&[("temporal-redirect", "https://x.example/")])]);
    redirects(&world.get("/a").await, 302, "https://x.example/");
    world
        .set(&[annotated(&[("temporal-redirect", "https://x.example/"), ("temporal-redirect-code", "307")])]);
    redirects(&world.get("/a").await, 307, "https://x.example/");
}

#[tokio::test]
async fn server_alias() {
    let other = ingress("y", json!({"rules": [rule("taken", &[path("/", "Prefix", "b")])]}));
    let world = World::start(&[annotated(&[("server-alias", "h.example, *.h.example,taken")]), other]).await;
    for (host, service) in
        [("h.example", "a"), ("x.h.example", "a"), ("h", "a"), ("taken", "b"), ("x", "404")]
    {
        assert_eq!(world.ask(host, "/").send().await.service(), service, "{host}");
    }
}

#[tokio::test]
async fn from_to_www_redirect() {
    let plain = ingress("x", json!({"rules": [rule("one.example", &[path("/", "Prefix", "a")])]}));
    let www = ingress("y", json!({"rules": [rule("www.two.example", &[path("/", "Prefix", "b")])]}));
    let on = [("from-to-www-redirect", "true")];
    let world = World::start(&[with(plain, &on), with(www, &on)]).await;
    redirects(&world.ask("www.one.example", "/x?y").send().await, 308, "http://one.example/x?y");
    redirects(&world.ask("two.example", "/").send().await, 308, "http://www.two.example");
    redirects(&world.ask("two.example", "/a/").send().await, 308, "http://www.two.example/a");
    assert_eq!(world.ask("one.example", "/").send().await.service(), "a");
}

#[tokio::test]
async fn relative_redirects() {
    let world = world(&[("app-root", "/app1"), ("relative-redirects", "true")]).await;
    redirects(&world.get("/").await, 302, "/app1");
}
