//! Which endpoint a request goes to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

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

#[tokio::test]
async fn session_cookie_conditional_samesite_none() {
    let settings = [
        ("affinity", "cookie"),
        ("session-cookie-samesite", "None"),
        ("session-cookie-conditional-samesite-none", "true"),
    ];
    let world = world(&settings).await;
    // Chrome before 67 takes a cookie with SameSite=None for a broken one.
    for (agent, said) in [("Chrome/60.0", false), ("Chrome/120.0", true)] {
        let answer = world.ask("h", "/").header("User-Agent", agent).send().await;
        assert_eq!(answer.header("set-cookie").contains("SameSite=None"), said, "{agent}");
    }
}
