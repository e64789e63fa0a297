//! A second backend for some of the requests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

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

#[tokio::test]
async fn affinity_canary_behavior() {
    let main = |pairs: &[(&str, &str)]| with(annotated(&[("affinity", "cookie")]), pairs);
    let second = |weight: &str| {
        let spec = json!({"rules": [rule("h", &[path("/", "Prefix", "b")])]});
        with(ingress("canary", spec), &[("canary", "true"), ("canary-weight", weight)])
    };
    let mut world = World::start(&[main(&[]), second("0")]).await;
    let first = world.get("/").await;
    assert_eq!(first.service(), "a");
    let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
    for (behavior, service) in [("sticky", "a"), ("legacy", "b")] {
        world.set(&[main(&[("affinity-canary-behavior", behavior)]), second("100")]);
        assert_eq!(asked(&world, "Cookie", &cookie).await, service, "{behavior}");
    }
}
