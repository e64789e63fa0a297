//! The 25 scenarios of ingress-controller-conformance, by feature and name, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use super::harness::{World, backend, echo, ingress, path, read, rule, secret, service};
use crate::build::Ours;

/// Serves rules, and says who answers each host and path.
async fn answers(rules: &[Value], wanted: &[(&str, &str, &str)]) {
    let world = World::start(&[ingress("x", json!({"rules": rules}))]).await;
    world.fine();
    for (host, path, service) in wanted {
        assert_eq!(world.ask(host, path).send().await.service(), *service, "{host}{path}");
    }
}

// default_backend.feature

#[tokio::test]
async fn default_backend_scenario_an_ingress_with_no_rules_sends_all_requests_to_the_default_backend() {
    let world = World::start(&[ingress("only", json!({"defaultBackend": backend("a")}))]).await;
    for (method, host, path) in [
        ("GET", "my-host", "/"),
        ("GET", "", "/"),
        ("POST", "some-host", "/a"),
        ("PUT", "", "/resource"),
        ("DELETE", "some-host", "/resource"),
        ("PATCH", "my-host", "/resource"),
    ] {
        let answer = world.ask(host, path).method(method).header("User-Agent", "the-suite").send().await;
        let told = answer.told();
        assert_eq!((told["method"].as_str(), told["path"].as_str()), (Some(method), Some(path)));
        assert_eq!((told["proto"].as_str(), told["service"].as_str()), (Some("HTTP/1.1"), Some("a")));
        assert_eq!(answer.sent("user-agent"), "the-suite");
        for header in ["content-length", "date", "server"] {
            assert!(answer.headers.contains_key(header), "{header}");
        }
    }
}

// host_rules.feature

#[tokio::test]
async fn host_rules_scenario_exact_host_over_https_shows_the_certificate_of_the_secret() {
    let mut world = World::start(&[]).await;
    let made = rcgen::generate_simple_self_signed(["foo.bar.com".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    secret(
        &mut world.objects,
        "conformance-tls",
        &[("tls.crt", cert.as_bytes()), ("tls.key", key.as_bytes())],
    );
    world.set(&[ingress(
        "x",
        json!({
            "rules": [rule("foo.bar.com", &[path("/", "Prefix", "a")])],
            "tls": [{"hosts": ["foo.bar.com"], "secretName": "conformance-tls"}],
        }),
    )]);
    world.fine();
    // A client that trusts this certificate and no other.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let answer = world.ask("foo.bar.com", "/").shows(config).send().await;
    assert_eq!(answer.service(), "a");
    assert_eq!(answer.sent("host"), "foo.bar.com");
}

#[tokio::test]
async fn host_rules_scenario_exact_host_over_http_with_the_backend_port_by_name() {
    let named = json!({"service": {"name": "a", "port": {"name": "web"}}});
    let rules = [rule("foo.bar.com", &[json!({"path": "/", "pathType": "Prefix", "backend": named})])];
    answers(&rules, &[("foo.bar.com", "/", "a")]).await;
}

#[tokio::test]
async fn host_rules_scenario_an_exact_host_does_not_match_its_sibling() {
    let rules = [rule("foo.bar.com", &[path("/", "Prefix", "a")])];
    answers(&rules, &[("subdomain.bar.com", "/", "404")]).await;
}

#[tokio::test]
async fn host_rules_scenario_a_wildcard_host_matches_one_label() {
    let world =
        World::start(&[ingress("x", json!({"rules": [rule("*.foo.com", &[path("/", "Prefix", "a")])]}))])
            .await;
    assert_eq!(world.ask("bar.foo.com", "/").send().await.sent("host"), "bar.foo.com");
}

#[tokio::test]
async fn host_rules_scenario_a_wildcard_host_does_not_match_two_labels() {
    let rules = [rule("*.foo.com", &[path("/", "Prefix", "a")])];
    answers(&rules, &[("baz.bar.foo.com", "/", "404")]).await;
}

#[tokio::test]
async fn host_rules_scenario_a_wildcard_host_does_not_match_its_apex() {
    let rules = [rule("*.foo.com", &[path("/", "Prefix", "a")])];
    answers(&rules, &[("foo.com", "/", "404"), (".foo.com", "/", "404")]).await;
}

// ingress_class.feature

#[test]
fn ingress_class_scenario_an_unknown_ingress_class_is_ignored() {
    let ours = |without_class| Ours { controller: "k8s.io/ingress-nginx".into(), without_class };
    let class = |name: &str, controller: &str| {
        read::<IngressClass>(json!({"metadata": {"name": name}, "spec": {"controller": controller}}))
    };
    let classes = [class("nginx", "k8s.io/ingress-nginx"), class("other", "example.com/other")];
    let with = |class: Value, annotation: Value| {
        read::<Ingress>(json!({
            "metadata": {"name": "x", "annotations": {"kubernetes.io/ingress.class": annotation}},
            "spec": {"ingressClassName": class, "defaultBackend": backend("a")},
        }))
    };
    let plain = |class: &str| {
        read::<Ingress>(json!({"metadata": {"name": "x"}, "spec": {"ingressClassName": class}}))
    };
    assert!(ours(false).serves(&plain("nginx"), &classes));
    assert!(!ours(true).serves(&plain("other"), &classes));
    assert!(!ours(true).serves(&plain("unknown"), &classes));
    assert!(ours(false).serves(&with(Value::Null, json!("nginx")), &classes));
    assert!(!ours(true).serves(&with(Value::Null, json!("traefik")), &classes));
    let none = read::<Ingress>(json!({"metadata": {"name": "x"}, "spec": {}}));
    assert!(ours(true).serves(&none, &classes) && !ours(false).serves(&none, &classes));
}

// load_balancing.feature

#[tokio::test]
async fn load_balancing_scenario_requests_are_spread_over_all_endpoints() {
    let mut world = World::start(&[ingress("x", json!({"defaultBackend": backend("a")}))]).await;
    let mut endpoints = Vec::new();
    for _ in 0..10 {
        endpoints.push(echo("a").await);
    }
    world.change(|objects| service(objects, "a", &endpoints));
    let mut pods = HashSet::new();
    for _ in 0..100 {
        pods.insert(world.get("/").await.told()["pod"].to_string());
    }
    assert_eq!(pods.len(), 10);
}

// path_rules.feature

const EXACT: &str = "exact-path-rules";

async fn exact(wanted: &[(&str, &str)]) {
    let rules = [rule(EXACT, &[path("/foo", "Exact", "a")])];
    let wanted: Vec<_> = wanted.iter().map(|(path, service)| (EXACT, *path, *service)).collect();
    answers(&rules, &wanted).await;
}

#[tokio::test]
async fn path_rules_scenario_exact_matches_exactly() {
    exact(&[("/foo", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_exact_does_not_match_with_a_trailing_slash() {
    exact(&[("/foo/", "404")]).await;
}

#[tokio::test]
async fn path_rules_scenario_exact_is_case_sensitive() {
    exact(&[("/FOO", "404")]).await;
}

#[tokio::test]
async fn path_rules_scenario_exact_does_not_match_another_path() {
    exact(&[("/bar", "404")]).await;
}

async fn prefix(wanted: &[(&str, &str)]) {
    let rules = [
        rule("prefix-path-rules", &[path("/foo", "Prefix", "a")]),
        rule("segments", &[path("/aaa/bbb", "Prefix", "b"), path("/aaa", "Prefix", "c")]),
    ];
    let host = |path: &str| if path.starts_with("/aaa") { "segments" } else { "prefix-path-rules" };
    let wanted: Vec<_> = wanted.iter().map(|(path, service)| (host(path), *path, *service)).collect();
    answers(&rules, &wanted).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_matches_itself() {
    prefix(&[("/foo", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_matches_with_a_trailing_slash() {
    prefix(&[("/foo/", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_is_case_sensitive() {
    prefix(&[("/FOO", "404")]).await;
}

#[tokio::test]
async fn path_rules_scenario_of_prefixes_the_longest_wins() {
    prefix(&[("/aaa/bbb", "b")]).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_matches_what_is_below_it() {
    prefix(&[("/aaa/bbb/ccc", "b"), ("/aaa/ccc", "c")]).await;
}

#[tokio::test]
async fn path_rules_scenario_the_shorter_sibling_matches_where_the_longer_does_not() {
    prefix(&[("/aaa", "c"), ("/aaa/", "c")]).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_matches_no_part_of_a_segment() {
    prefix(&[("/aaaccc", "404")]).await;
}

#[tokio::test]
async fn path_rules_scenario_repeated_prefixes_route_to_the_first() {
    let rules = [rule("repeated", &[path("/foo", "Prefix", "a"), path("/foo", "Prefix", "b")])];
    answers(&rules, &[("repeated", "/foo", "a"), ("repeated", "/foo/bar", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_exact_beats_prefix() {
    let rules = [rule("mixed", &[path("/foo", "Prefix", "a"), path("/foo", "Exact", "b")])];
    answers(&rules, &[("mixed", "/foo", "b")]).await;
}

#[tokio::test]
async fn path_rules_scenario_prefix_beside_exact_still_matches_below() {
    let rules = [rule("mixed", &[path("/foo", "Prefix", "a"), path("/foo", "Exact", "b")])];
    answers(&rules, &[("mixed", "/foo/bar", "a"), ("mixed", "/foo/", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_a_prefix_with_a_trailing_slash_matches_with_and_without() {
    let rules = [rule("trailing", &[path("/aaa/bbb/", "Prefix", "a")])];
    answers(&rules, &[("trailing", "/aaa/bbb", "a"), ("trailing", "/aaa/bbb/", "a")]).await;
}

#[tokio::test]
async fn path_rules_scenario_an_exact_path_with_a_trailing_slash_does_not_match_without() {
    let rules = [rule("trailing", &[path("/foo/", "Exact", "a")])];
    answers(&rules, &[("trailing", "/foo", "404"), ("trailing", "/foo/", "a")]).await;
}
