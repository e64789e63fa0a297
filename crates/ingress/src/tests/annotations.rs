//! Each annotation of tier 1 and 2, by name, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{
    Answer, World, annotated, backend, config, echo, ingress, loopback, nobody, path, rule, secret, service,
    with,
};

async fn world(pairs: &[(&str, &str)]) -> World {
    let world = World::start(&[annotated(pairs)]).await;
    world.fine();
    world
}

#[track_caller]
fn redirects(answer: &Answer, code: u16, to: &str) {
    assert_eq!((answer.status, answer.header("location")), (code, to), "{answer:?}");
}

fn tls_of(host: &str) -> Value {
    json!({"rules": [rule(host, &[path("/", "Prefix", "a")])], "tls": [{"hosts": [host]}]})
}

// Paths, redirects, names

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
    redirects(&world.ask("two.example", "/").send().await, 308, "http://www.two.example/");
    assert_eq!(world.ask("one.example", "/").send().await.service(), "a");
}

#[tokio::test]
async fn relative_redirects() {
    let world = world(&[("app-root", "/app1"), ("relative-redirects", "true")]).await;
    redirects(&world.get("/").await, 302, "/app1");
}

// Towards the backend

#[tokio::test]
async fn proxy_body_size() {
    let mut world = world(&[("proxy-body-size", "10")]).await;
    assert_eq!(world.ask("h", "/").body("0123456789").send().await.told()["body"], "0123456789");
    assert_eq!(world.ask("h", "/").body("0123456789X").send().await.status, 413);
    let unknown = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n";
    assert!(world.raw(unknown).await.starts_with("HTTP/1.1 413 "));
    world.set(&[annotated(&[("proxy-body-size", "0")])]);
    assert_eq!(world.ask("h", "/").body("x".repeat(2 << 20)).send().await.status, 200);
}

#[tokio::test]
async fn proxy_read_timeout() {
    let silent = loopback().await;
    let address = silent.local_addr().unwrap();
    let mut world =
        World::start(&[annotated(&[("proxy-read-timeout", "1"), ("proxy-next-upstream-tries", "1")])]).await;
    world.change(|objects| service(objects, "a", &[address]));
    let start = Instant::now();
    assert_eq!(world.get("/").await.status, 504);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn proxy_next_upstream_timeout() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (one, two) = (silent(&asked).await, silent(&asked).await);
    for (within, endpoints) in [("0", 2), ("1", 1)] {
        let mut world = World::start(&[annotated(&[
            ("proxy-read-timeout", "1"),
            ("proxy-next-upstream", "timeout"),
            ("proxy-next-upstream-tries", "2"),
            ("proxy-next-upstream-timeout", within),
        ])])
        .await;
        world.change(|objects| service(objects, "a", &[one, two]));
        asked.store(0, Ordering::SeqCst);
        assert_eq!(world.get("/").await.status, 504);
        assert_eq!(asked.load(Ordering::SeqCst), endpoints, "within {within}");
    }
}

/// An endpoint that takes connections, counts them and says nothing.
async fn silent(asked: &Arc<AtomicUsize>) -> SocketAddr {
    let (listener, asked) = (loopback().await, asked.clone());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            asked.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn proxy_next_upstream_and_tries() {
    let (dead, _held) = nobody();
    let mut world = world(&[]).await;
    let good = echo("a").await;
    world.change(|objects| service(objects, "a", &[dead, good]));
    for _ in 0..4 {
        assert_eq!(world.get("/").await.service(), "a");
        // What never left can be sent again, whatever it is.
        assert_eq!(world.ask("h", "/").body("x").send().await.told()["body"], "x");
    }
    world.set(&[annotated(&[("proxy-next-upstream", "off"), ("load-balance", "round_robin")])]);
    world.change(|objects| service(objects, "a", &[dead]));
    assert_eq!(world.get("/").await.status, 502);
    // A status that is named goes to the next endpoint.
    let busy = canned(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    world.set(&[annotated(&[("proxy-next-upstream", "error http_503")])]);
    world.change(|objects| service(objects, "a", &[busy, good]));
    for _ in 0..4 {
        assert_eq!(world.get("/").await.service(), "a");
    }
    assert_eq!(world.metrics.text().matches("status=\"503\"").count(), 0);
}

/// A server that answers every connection with `answer` once it has read some bytes.
async fn canned(answer: &'static [u8]) -> std::net::SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 4096];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

#[tokio::test]
async fn upstream_vhost_x_forwarded_prefix_and_connection_proxy_header() {
    let world = world(&[
        ("upstream-vhost", "inner.$host"),
        ("x-forwarded-prefix", "/outer"),
        ("connection-proxy-header", "keep-alive"),
    ])
    .await;
    let answer = world.get("/").await;
    assert_eq!(answer.sent("host"), "inner.h");
    assert_eq!(answer.sent("x-forwarded-prefix"), "/outer");
    assert_eq!(answer.sent("connection"), "keep-alive");
    assert_eq!(answer.sent("x-forwarded-host"), "h");
}

#[tokio::test]
async fn service_upstream() {
    let world = world(&[("service-upstream", "true")]).await;
    let (table, _) = crate::build::table(&world.objects, &mut crate::state::State::default());
    let location = table.find("h", b"/").location().unwrap().clone();
    let addresses: Vec<String> = location.backend.addresses().map(ToString::to_string).collect();
    assert_eq!(addresses, ["127.0.0.1:8080"], "the Service's own address and port");
}

// Balancing

async fn pods(world: &World, count: usize, host: &str, path: &str) -> HashMap<String, usize> {
    let mut pods = HashMap::new();
    for _ in 0..count {
        *pods.entry(world.ask(host, path).send().await.told()["pod"].to_string()).or_default() += 1;
    }
    pods
}

async fn three(world: &mut World) {
    let endpoints = [echo("a").await, echo("a").await, echo("a").await];
    world.change(|objects| service(objects, "a", &endpoints));
}

#[tokio::test]
async fn load_balance_by_each_algorithm_uses_all() {
    for algorithm in ["round_robin", "least_conn", "ewma"] {
        let mut world = world(&[("load-balance", algorithm)]).await;
        three(&mut world).await;
        assert_eq!(pods(&world, 60, "h", "/").await.len(), 3, "{algorithm}");
    }
}

#[tokio::test]
async fn upstream_hash_by_and_subset() {
    let mut world = world(&[("upstream-hash-by", "$arg_user")]).await;
    three(&mut world).await;
    let mut all = HashSet::new();
    for user in 0..20 {
        let pods = pods(&world, 4, "h", &format!("/?user={user}")).await;
        assert_eq!(pods.len(), 1, "a key has one endpoint");
        all.extend(pods.into_keys());
    }
    assert_eq!(all.len(), 3);
    world.set(&[annotated(&[
        ("upstream-hash-by", "$arg_user"),
        ("upstream-hash-by-subset", "true"),
        ("upstream-hash-by-subset-size", "2"),
    ])]);
    assert_eq!(pods(&world, 12, "h", "/?user=1").await.len(), 2);
}

#[tokio::test]
async fn affinity_by_cookie_with_its_attributes() {
    let mut world = world(&[
        ("affinity", "cookie"),
        ("session-cookie-name", "route"),
        ("session-cookie-max-age", "600"),
        ("session-cookie-expires", "600"),
        ("session-cookie-samesite", "Strict"),
        ("session-cookie-path", "/app"),
        ("session-cookie-domain", "h.example"),
        ("session-cookie-secure", "true"),
    ])
    .await;
    three(&mut world).await;
    let first = world.get("/").await;
    let cookie = first.header("set-cookie").to_owned();
    for part in [
        "route=",
        "; Path=/app",
        "; Domain=h.example",
        "; Max-Age=600",
        "; Expires=",
        "; Secure",
        "; HttpOnly",
        "; SameSite=Strict",
    ] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    for _ in 0..8 {
        let again = world.ask("h", "/").header("Cookie", &cookie).send().await;
        assert_eq!(again.told()["pod"], first.told()["pod"]);
        assert_eq!(again.header("set-cookie"), "");
    }
    // A cookie of nobody's is replaced.
    let strange = world.ask("h", "/").header("Cookie", "route=x").send().await;
    assert!(strange.header("set-cookie").starts_with("route="));
}

#[tokio::test]
async fn session_cookie_change_on_failure() {
    let (dead, _held) = nobody();
    for (change, moved) in [("false", false), ("true", true)] {
        let mut world = world(&[("affinity", "cookie"), ("session-cookie-change-on-failure", change)]).await;
        let good = echo("a").await;
        world.change(|objects| service(objects, "a", &[dead, good]));
        let mut cookies = Vec::new();
        for _ in 0..20 {
            let first = world.get("/").await;
            assert_eq!(first.service(), "a");
            cookies.push(first.header("set-cookie").split(';').next().unwrap().to_owned());
        }
        let mut again = Vec::new();
        for cookie in &cookies {
            again.push(world.ask("h", "/").header("Cookie", cookie).send().await);
        }
        assert!(again.iter().all(|answer| answer.service() == "a"));
        assert_eq!(again.iter().any(|answer| !answer.header("set-cookie").is_empty()), moved, "{change}");
    }
}

#[tokio::test]
async fn affinity_mode_persistent() {
    let on = [("affinity", "cookie"), ("affinity-mode", "persistent")];
    let mut world = world(&on).await;
    let (one, two) = (echo("a").await, echo("a").await);
    world.change(|objects| service(objects, "a", &[one]));
    let first = world.get("/").await;
    let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
    // Another endpoint takes nobody away.
    world.change(|objects| service(objects, "a", &[one, two]));
    for _ in 0..6 {
        let again = world.ask("h", "/").header("Cookie", &cookie).send().await;
        assert_eq!(again.told()["pod"], one.to_string());
    }
    // Its own is gone: a new one, and a new cookie.
    world.change(|objects| service(objects, "a", &[two]));
    let moved = world.ask("h", "/").header("Cookie", &cookie).send().await;
    assert!(
        moved.told()["pod"] == two.to_string() && moved.header("set-cookie").starts_with("INGRESSCOOKIE=")
    );
}

// Canary

async fn canary(pairs: &[(&str, &str)]) -> World {
    let main = annotated(&[]);
    let second = ingress("canary", json!({"rules": [rule("h", &[path("/", "Prefix", "b")])]}));
    let world = World::start(&[main, with(with(second, &[("canary", "true")]), pairs)]).await;
    world.fine();
    world
}

async fn asked(world: &World, name: &str, value: &str) -> String {
    world.ask("h", "/").header(name, value).send().await.service()
}

#[tokio::test]
async fn canary_by_header() {
    let world = canary(&[("canary-by-header", "X-Canary"), ("canary-weight", "0")]).await;
    assert_eq!(asked(&world, "X-Canary", "always").await, "b");
    assert_eq!(asked(&world, "X-Canary", "never").await, "a");
    assert_eq!(asked(&world, "X-Canary", "other").await, "a");
    assert_eq!(world.get("/").await.service(), "a");
}

#[tokio::test]
async fn canary_by_header_value_and_pattern() {
    let world = canary(&[("canary-by-header", "X-Region"), ("canary-by-header-value", "north")]).await;
    assert_eq!(asked(&world, "X-Region", "north").await, "b");
    assert_eq!(asked(&world, "X-Region", "always").await, "a");
    let world = canary(&[("canary-by-header", "X-Region"), ("canary-by-header-pattern", "^(no|so)")]).await;
    assert_eq!(asked(&world, "X-Region", "south").await, "b");
    assert_eq!(asked(&world, "X-Region", "west").await, "a");
}

#[tokio::test]
async fn canary_by_cookie() {
    let world = canary(&[("canary-by-cookie", "preview")]).await;
    assert_eq!(asked(&world, "Cookie", "x=1; preview=always").await, "b");
    assert_eq!(asked(&world, "Cookie", "preview=never").await, "a");
}

#[tokio::test]
async fn canary_weight_and_weight_total() {
    let world = canary(&[("canary-weight", "500"), ("canary-weight-total", "1000")]).await;
    let mut canaries = 0;
    for _ in 0..100 {
        canaries += usize::from(world.get("/").await.service() == "b");
    }
    assert!((20..=80).contains(&canaries), "{canaries}");
    let all = canary(&[("canary-weight", "100")]).await;
    assert_eq!(all.get("/").await.service(), "b");
}

#[tokio::test]
async fn affinity_canary_behavior_sticky() {
    let main = annotated(&[("affinity", "cookie")]);
    let second = ingress("canary", json!({"rules": [rule("h", &[path("/", "Prefix", "b")])]}));
    let second = with(second, &[("canary", "true"), ("canary-weight", "50")]);
    let world = World::start(&[main, second]).await;
    let first = world.get("/").await;
    let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
    for _ in 0..12 {
        assert_eq!(asked(&world, "Cookie", &cookie).await, first.service());
    }
}

#[tokio::test]
async fn a_canary_without_its_main_is_said() {
    let alone = with(
        ingress("canary", json!({"rules": [rule("h", &[path("/", "Prefix", "b")])]})),
        &[("canary", "true")],
    );
    let world = World::start(&[alone]).await;
    assert!(world.problems.iter().any(|(_, why)| why.contains("canary")), "{:?}", world.problems);
    assert_eq!(world.get("/").await.status, 404);
}

// CORS

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

// Who may come in

#[tokio::test]
async fn whitelist_allowlist_and_denylist_source_range() {
    for name in ["whitelist-source-range", "allowlist-source-range"] {
        assert_eq!(world(&[(name, "10.0.0.0/8,127.0.0.1")]).await.get("/").await.status, 200);
        assert_eq!(world(&[(name, "10.0.0.0/8")]).await.get("/").await.status, 403);
    }
    assert_eq!(world(&[("denylist-source-range", "127.0.0.0/8")]).await.get("/").await.status, 403);
    assert_eq!(world(&[("denylist-source-range", "10.0.0.0/8")]).await.get("/").await.status, 200);
}

const USERS: &[u8] = b"alice:{PLAIN}secret\n";
/// `alice:secret` and `alice:wrong`.
const RIGHT: &str = "Basic YWxpY2U6c2VjcmV0";
const WRONG: &str = "Basic YWxpY2U6d3Jvbmc=";

async fn guarded(pairs: &[(&str, &str)], data: &[(&str, &[u8])]) -> World {
    let mut world = World::start(&[]).await;
    secret(&mut world.objects, "users", data);
    let on = [("auth-type", "basic"), ("auth-secret", "users"), ("auth-realm", "Members only")];
    world.set(&[annotated(&[&on[..], pairs].concat())]);
    world.fine();
    world
}

async fn authorized(world: &World, header: &str) -> Answer {
    world.ask("h", "/").header("Authorization", header).send().await
}

#[tokio::test]
async fn auth_type_basic_auth_secret_and_auth_realm() {
    let mut world = guarded(&[], &[("auth", USERS)]).await;
    let stranger = world.get("/").await;
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, "Basic realm=\"Members only\""));
    assert_eq!(authorized(&world, WRONG).await.status, 401);
    assert_eq!(authorized(&world, RIGHT).await.service(), "a");
    world.change(|objects| secret(objects, "users", &[("auth", b"bob:{PLAIN}x\n")]));
    assert_eq!(authorized(&world, RIGHT).await.status, 401, "the Secret has changed");
    world.change(|objects| objects.secrets.clear());
    assert_eq!(authorized(&world, RIGHT).await.status, 503, "without users nobody is let in");
    assert!(world.problems.iter().any(|(_, why)| why.contains("auth-secret")));
}

#[tokio::test]
async fn auth_secret_type_auth_map() {
    let world = guarded(&[("auth-secret-type", "auth-map")], &[("alice", b"{PLAIN}secret")]).await;
    assert_eq!(authorized(&world, RIGHT).await.service(), "a");
    assert_eq!(authorized(&world, WRONG).await.status, 401);
}

#[tokio::test]
async fn satisfy_any() {
    let here =
        guarded(&[("satisfy", "any"), ("whitelist-source-range", "127.0.0.1")], &[("auth", USERS)]).await;
    assert_eq!(here.get("/").await.service(), "a", "the right address is enough");
    let there =
        guarded(&[("satisfy", "any"), ("whitelist-source-range", "10.0.0.1")], &[("auth", USERS)]).await;
    assert_eq!(there.get("/").await.status, 401);
    assert_eq!(authorized(&there, RIGHT).await.service(), "a", "the right password is enough");
}

/// An authority: lets in whoever sends `x-pass: yes`, and says what it was told.
async fn authority() -> std::net::SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let field = |name: &str| {
                    let line = head.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
                    line.unwrap_or_default().to_owned()
                };
                let status = match field("x-pass").as_str() {
                    "yes" => "200 OK",
                    "no" => "403 Forbidden",
                    "broken" => "500 Oops",
                    _ => "401 Unauthorized\r\nWWW-Authenticate: Bearer",
                };
                let method = head.split(' ').next().unwrap();
                let told =
                    [method.to_owned(), field("x-original-url"), field("x-original-method"), field("x-mine")]
                        .join("|");
                let answer = format!(
                    "HTTP/1.1 {status}\r\nX-User: alice\r\nX-Told: {told}\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn auth_url_and_auth_response_headers() {
    let url = format!("http://{}/check", authority().await);
    let world = world(&[("auth-url", &url), ("auth-response-headers", "X-User, X-Told")]).await;
    let stranger = world.get("/").await;
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, "Bearer"));
    let passed =
        |value: &'static str| world.ask("h", "/p?q").header("X-Pass", value).header("X-User", "forged");
    let good = passed("yes").body("text").send().await;
    assert_eq!((good.sent("x-user").as_str(), good.told()["body"].as_str()), ("alice", Some("text")));
    assert_eq!(good.sent("x-told"), "get|http://h/p?q|post|");
    assert_eq!(good.header("set-cookie"), "session=1");
    assert_eq!(passed("no").send().await.status, 403);
    assert_eq!(passed("broken").send().await.status, 500);
}

#[tokio::test]
async fn auth_signin_and_its_redirect_parameter() {
    let url = format!("http://{}/", authority().await);
    let mut world = world(&[("auth-url", &url), ("auth-signin", "https://sso.example/start")]).await;
    redirects(&world.get("/p?q=1").await, 302, "https://sso.example/start?rd=http://h%2Fp%3Fq%3D1");
    world.set(&[annotated(&[
        ("auth-url", &url),
        ("auth-signin", "https://sso.example/start?app=1"),
        ("auth-signin-redirect-param", "back"),
    ])]);
    redirects(&world.get("/").await, 302, "https://sso.example/start?app=1&back=http://h%2F");
}

#[tokio::test]
async fn auth_method_auth_proxy_set_headers_and_auth_always_set_cookie() {
    let url = format!("http://{}/", authority().await);
    let mut world = World::start(&[]).await;
    config(&mut world.objects, "told", &[("X-Mine", "from-config")]);
    world.set(&[annotated(&[
        ("auth-url", &url),
        ("auth-method", "POST"),
        ("auth-proxy-set-headers", "told"),
        ("auth-response-headers", "X-Told"),
        ("auth-always-set-cookie", "true"),
    ])]);
    world.fine();
    let good = world.ask("h", "/").header("X-Pass", "yes").send().await;
    assert_eq!(good.sent("x-told"), "post|http://h/|get|from-config");
    let teapot = world.ask("h", "/?status=418").header("X-Pass", "yes").send().await;
    assert_eq!((teapot.status, teapot.header("set-cookie")), (418, "session=1"));
}

#[tokio::test]
async fn an_authority_that_does_not_answer_lets_nobody_in() {
    let (dead, _held) = nobody();
    let world = world(&[("auth-url", &format!("http://{dead}/"))]).await;
    assert_eq!(world.get("/").await.status, 500);
}

// Limits

#[tokio::test]
async fn limit_rps_and_limit_burst_multiplier() {
    let world = world(&[("limit-rps", "2"), ("limit-burst-multiplier", "3")]).await;
    let mut good = 0;
    for _ in 0..30 {
        good += usize::from(world.get("/").await.status == 200);
    }
    assert!((7..=12).contains(&good), "{good}");
    assert_eq!(world.get("/").await.status, 503);
}

#[tokio::test]
async fn limit_rpm_and_limit_whitelist() {
    let world_of = |free: &'static str| async move {
        world(&[("limit-rpm", "1"), ("limit-burst-multiplier", "1"), ("limit-whitelist", free)]).await
    };
    let counted = world_of("10.0.0.0/8").await;
    let codes = [counted.get("/").await.status, counted.get("/").await.status, counted.get("/").await.status];
    assert_eq!(codes, [200, 200, 503]);
    let free = world_of("127.0.0.0/8").await;
    for _ in 0..5 {
        assert_eq!(free.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn limit_connections() {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    let mut world = world(&[("limit-connections", "1")]).await;
    world.change(|objects| service(objects, "a", &[address]));
    let held = tokio::spawn({
        let plain = world.plain;
        async move {
            let mut stream = TcpStream::connect(plain).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            stream
        }
    });
    let _first = listener.accept().await.unwrap();
    assert_eq!(world.get("/").await.status, 503);
    drop(held.await.unwrap());
    // The place is free again once the client has gone.
    world.change(|objects| service(objects, "a", &[]));
    let mut last = 0;
    for _ in 0..200 {
        last = world.get("/").await.status;
        let good = echo("a").await;
        world.change(|objects| service(objects, "a", &[good]));
        if last == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(last, 200);
}

#[tokio::test]
async fn limit_rate_and_limit_rate_after() {
    let body = "x".repeat(6 << 10);
    let world = world(&[("limit-rate", "4"), ("limit-rate-after", "2")]).await;
    let start = Instant::now();
    let answer = world.ask("h", "/").body(body.clone()).send().await;
    assert_eq!(answer.told()["body"].as_str().map(str::len), Some(6 << 10));
    assert!(start.elapsed() >= Duration::from_millis(500), "4 of 6 KiB at 4 KiB/s: {:?}", start.elapsed());
}

// Answers

#[tokio::test]
async fn custom_http_errors_and_default_backend() {
    let mut world = world(&[("custom-http-errors", "404,503"), ("default-backend", "d")]).await;
    let taken = world.ask("h", "/x?status=404").header("Accept", "text/html").send().await;
    assert_eq!(taken.status, 404, "the default backend chooses the status: {taken:?}");
    let told: Value = serde_json::from_str(&taken.body).unwrap();
    assert_eq!(told["service"], "d");
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

// Certificates of clients

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A client with a certificate for this name.
    fn client(&self, name: &str) -> Arc<rustls::ClientConfig> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.dangerous().with_custom_certificate_verifier(tls::anyone());
        let key = key.serialize_der().try_into().unwrap();
        Arc::new(config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap())
    }
}

async fn mutual(pairs: &[(&str, &str)], authority: &Authority) -> World {
    let mut world = World::start(&[]).await;
    secret(&mut world.objects, "ca", &[("ca.crt", authority.pem.as_bytes())]);
    let on = [("auth-tls-secret", "ns/ca")];
    let this = with(ingress("x", tls_of("h")), &[&on[..], pairs].concat());
    let open = ingress("y", json!({"rules": [rule("open", &[path("/", "Prefix", "b")])]}));
    world.set(&[this, open]);
    world.fine();
    world
}

#[tokio::test]
async fn auth_tls_secret_verify_client_and_pass_certificate_to_upstream() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let world =
        mutual(&[("auth-tls-pass-certificate-to-upstream", "true"), ("auth-tls-verify-depth", "2")], &ours)
            .await;
    assert_eq!(world.ask("h", "/").tls().send().await.status, 400);
    assert_eq!(world.ask("h", "/").shows(theirs.client("alice")).send().await.status, 400);
    let good =
        world.ask("h", "/").header("ssl-client-verify", "forged").shows(ours.client("alice")).send().await;
    assert_eq!(good.sent("ssl-client-verify"), "SUCCESS");
    assert_eq!(good.sent("ssl-client-subject-dn"), "CN=alice");
    assert!(good.sent("ssl-client-issuer-dn").contains("CN=ours"));
    assert!(good.sent("ssl-client-cert").starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
    // A connection that was opened under another name has shown nothing.
    assert_eq!(world.ask("h", "/").sni("open").tls().send().await.status, 421);
    assert_eq!(world.ask("open", "/").tls().send().await.service(), "b");
}

#[tokio::test]
async fn auth_tls_verify_client_optional_and_optional_no_ca() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let world = mutual(&[("auth-tls-verify-client", "optional")], &ours).await;
    assert_eq!(world.ask("h", "/").tls().send().await.sent("ssl-client-verify"), "NONE");
    assert_eq!(world.ask("h", "/").shows(theirs.client("x")).send().await.status, 400);
    let lax = mutual(&[("auth-tls-verify-client", "optional_no_ca")], &ours).await;
    let told = lax.ask("h", "/").shows(theirs.client("x")).send().await.sent("ssl-client-verify");
    assert!(told.starts_with("FAILED:"), "{told}");
}

#[tokio::test]
async fn auth_tls_error_page_and_auth_tls_match_cn() {
    let ours = Authority::new("ours");
    let world = mutual(
        &[("auth-tls-error-page", "https://help.example/"), ("auth-tls-match-cn", "CN=(alice|bob)")],
        &ours,
    )
    .await;
    redirects(&world.ask("h", "/").tls().send().await, 302, "https://help.example/");
    assert_eq!(world.ask("h", "/").shows(ours.client("bob")).send().await.service(), "a");
    assert_eq!(world.ask("h", "/").shows(ours.client("mallory")).send().await.status, 403);
}

// What is not honoured

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
