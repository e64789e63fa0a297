//! The scenarios of ingress-controller-conformance that are about routing, on the table; by its features' names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod traffic;

use std::collections::HashSet;
use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use crate::build::{self, Objects, Ours, Problems};
use crate::certificates::Cache;
use crate::table::Table;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 8080}}})
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": backend(service)})
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

fn ingress(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})
}

/// Every Service has two endpoints, and its address says its name.
fn objects(ingresses: &[Value]) -> Objects {
    let mut objects =
        Objects { ingresses: ingresses.iter().cloned().map(read).collect(), ..Objects::default() };
    for (i, name) in ["a", "b", "c", "d"].iter().enumerate() {
        let service: Arc<Service> = read(json!({
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"ports": [{"name": "web", "port": 8080}, {"name": "other", "port": 81}]},
        }));
        objects.services.insert(ObjectKey::of(&*service), service);
        objects.slices.push(read::<EndpointSlice>(json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": 3000}],
            "endpoints": [{"addresses": [format!("10.0.{i}.1")]}, {"addresses": [format!("10.0.{i}.2")]}],
        })));
    }
    objects
}

fn made(ingresses: &[Value]) -> (Table, Problems) {
    build::table(&objects(ingresses), &mut Cache::default())
}

/// The Service that answers; `404`, or `503` for one without endpoints.
fn asked(table: &Table, host: &str, path: &str) -> String {
    let Some(location) = table.find(host, &crate::path::normal(path).unwrap()) else { return "404".into() };
    match location.backend.pick() {
        None => "503".into(),
        Some(endpoint) => {
            let number: usize = endpoint.as_str().split('.').nth(2).unwrap().parse().unwrap();
            assert!(endpoint.as_str().ends_with(":3000"), "{endpoint}");
            ["a", "b", "c", "d"][number].into()
        }
    }
}

#[track_caller]
fn routes(ingresses: &[Value], wanted: &[(&str, &str, &str)]) {
    let (table, problems) = made(ingresses);
    assert_eq!(problems, Problems::new());
    for (host, path, service) in wanted {
        assert_eq!(asked(&table, host, path), *service, "{host}{path}");
    }
}

#[test]
fn default_backend_gets_every_host_and_path() {
    let only = ingress("only", json!({"defaultBackend": backend("a")}));
    routes(
        &[only],
        &[("my-host", "/", "a"), ("my-host", "/sub/path", "a"), ("", "/x", "a"), ("x.y", "/a/b", "a")],
    );
}

#[test]
fn host_rules_exact_and_wildcard() {
    let hosts = ingress(
        "hosts",
        json!({"rules": [
            rule("foo.bar.com", &[path("/", "Prefix", "a")]),
            rule("*.foo.com", &[path("/", "Prefix", "b")]),
        ]}),
    );
    routes(
        &[hosts],
        &[
            ("foo.bar.com", "/", "a"),
            ("subdomain.bar.com", "/", "404"), // a sibling
            ("bar.foo.com", "/", "b"),         // one label
            ("baz.bar.foo.com", "/", "404"),   // two labels
            ("foo.com", "/", "404"),           // the apex
        ],
    );
}

#[test]
fn host_rules_backend_port_by_name() {
    let named = |port: &str| {
        let backend = json!({"service": {"name": "a", "port": {"name": port}}});
        ingress(
            "x",
            json!({"rules": [rule("h", &[json!({"path": "/", "pathType": "Exact", "backend": backend})])]}),
        )
    };
    routes(&[named("web")], &[("h", "/", "a")]);
    routes(&[named("nothing")], &[("h", "/", "503")]);
}

#[test]
fn ingress_class_unknown_is_ignored() {
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

#[test]
fn load_balancing_touches_all_endpoints() {
    let (table, _) = made(&[ingress("only", json!({"defaultBackend": backend("a")}))]);
    let backend = &table.find("h", b"/").unwrap().backend;
    let touched: HashSet<&str> = (0..10).map(|_| backend.pick().unwrap().as_str()).collect();
    assert_eq!(touched, HashSet::from(["10.0.0.1:3000", "10.0.0.2:3000"]));
}

#[test]
fn path_rules_exact() {
    let exact = ingress("x", json!({"rules": [rule("exact", &[path("/foo", "Exact", "a")])]}));
    routes(
        &[exact],
        &[
            ("exact", "/foo", "a"),
            ("exact", "/foo/", "404"),
            ("exact", "/FOO", "404"),
            ("exact", "/bar", "404"),
        ],
    );
}

#[test]
fn path_rules_prefix() {
    let prefix = ingress(
        "x",
        json!({"rules": [
            rule("prefix", &[path("/foo", "Prefix", "a")]),
            rule("segments", &[path("/aaa", "Prefix", "a"), path("/aaa/bbb", "Prefix", "b")]),
            rule("repeat", &[path("/foo", "Prefix", "c"), path("/foo", "Prefix", "d")]),
        ]}),
    );
    routes(
        &[prefix],
        &[
            ("prefix", "/foo", "a"),
            ("prefix", "/foo/", "a"),
            ("prefix", "/FOO", "404"),
            ("segments", "/aaa/bbb", "b"), // the longest wins
            ("segments", "/aaa/bbb/ccc", "b"),
            ("segments", "/aaa", "a"),
            ("segments", "/aaa/ccc", "a"),  // the shorter sibling
            ("segments", "/aaaccc", "404"), // no part of a segment
            ("repeat", "/foo", "c"),
        ],
    );
}

#[test]
fn path_rules_mixed_and_trailing_slash() {
    let mixed = ingress(
        "x",
        json!({"rules": [
            rule("mixed", &[path("/foo", "Prefix", "a"), path("/foo", "Exact", "b")]),
            rule("slash", &[path("/aaa/bbb/", "Prefix", "c"), path("/foo/", "Exact", "d")]),
        ]}),
    );
    routes(
        &[mixed],
        &[
            ("mixed", "/foo", "b"),
            ("mixed", "/foo/x", "a"),
            ("slash", "/aaa/bbb", "c"),
            ("slash", "/aaa/bbb/", "c"),
            ("slash", "/foo/", "d"),
            ("slash", "/foo", "404"),
        ],
    );
}

#[test]
fn implementation_specific_is_text_as_in_nginx() {
    let text = ingress(
        "x",
        json!({"rules": [rule("h", &[path("/foo", "ImplementationSpecific", "a"), path("/foo/bar", "Prefix", "b")])]}),
    );
    routes(
        &[text],
        &[("h", "/foobar", "a"), ("h", "/foo/x", "a"), ("h", "/foo/bar", "b"), ("h", "/fo", "404")],
    );
}

#[test]
fn no_host_means_the_hosts_that_no_rule_names() {
    let both = ingress(
        "x",
        json!({"rules": [
            json!({"http": {"paths": [path("/", "Prefix", "a")]}}),
            rule("named", &[path("/x", "Exact", "b")]),
        ]}),
    );
    routes(&[both], &[("any", "/y", "a"), ("named", "/x", "b"), ("named", "/y", "404")]);
}

#[test]
fn a_default_backend_beside_rules_takes_what_they_leave() {
    let both = ingress(
        "x",
        json!({"defaultBackend": backend("c"), "rules": [rule("h", &[path("/x", "Exact", "a")])]}),
    );
    routes(&[both], &[("h", "/x", "a"), ("h", "/y", "c"), ("elsewhere", "/", "404")]);
}

#[test]
fn the_older_ingress_wins_and_both_share_a_host() {
    let of_age = |name: &str, service: &str, year: u32| {
        let mut this = ingress(
            name,
            json!({"rules": [rule("h", &[path("/", "Prefix", service), path(&format!("/{name}"), "Exact", service)])]}),
        );
        this["metadata"]["creationTimestamp"] = json!(format!("{year}-01-01T00:00:00Z"));
        this
    };
    routes(
        &[of_age("young", "a", 2025), of_age("old", "b", 2020)],
        &[("h", "/", "b"), ("h", "/young", "a"), ("h", "/old", "b")],
    );
}

#[test]
fn endpoints_that_are_not_ready_get_nothing() {
    let mut objects = objects(&[ingress("only", json!({"defaultBackend": backend("a")}))]);
    let slice = |first: Value, second: Value| {
        read::<EndpointSlice>(json!({
            "metadata": {"name": "a", "namespace": "ns", "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4", "ports": [{"name": "web", "port": 3000}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": first},
                {"addresses": ["10.0.0.2"], "conditions": second}],
        }))
    };
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let dead = json!({"ready": false, "serving": false});
    for (first, second, wanted) in [
        (json!({"ready": true}), dead.clone(), vec!["10.0.0.1:3000"]),
        (json!({"ready": true}), leaving.clone(), vec!["10.0.0.1:3000"]),
        (leaving, dead.clone(), vec!["10.0.0.1:3000"]),
        (dead.clone(), dead, vec![]),
    ] {
        objects.slices[0] = slice(first, second);
        let (table, _) = build::table(&objects, &mut Cache::default());
        assert_eq!(table.find("h", b"/").unwrap().backend.endpoints, wanted);
    }
}

#[test]
fn regular_expressions_rule_the_whole_host() {
    let mut rewritten = ingress(
        "x",
        json!({"rules": [rule("h", &[
            path("/api(/|$)(.*)", "ImplementationSpecific", "a"),
            path("/Plain", "Exact", "b"),
        ])]}),
    );
    rewritten["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/rewrite-target": "/v2/$2"});
    let (table, problems) = made(&[rewritten.clone()]);
    assert_eq!(problems, Problems::new());
    for (path, service, sent) in [
        ("/api/users/7", "a", "/v2/users/7"),
        ("/API", "a", "/v2/"),
        ("/plainly", "b", "/v2/"), // no longer exact, and without its second capture
    ] {
        assert_eq!(asked(&table, "h", path), service, "{path}");
        let location = table.find("h", path.as_bytes()).unwrap();
        assert_eq!(location.rewritten(path.as_bytes()).as_deref(), Some(sent.as_bytes()), "{path}");
    }
    assert_eq!(asked(&table, "h", "/apian"), "404");
    rewritten["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/api(");
    let (table, problems) = made(&[rewritten]);
    assert_eq!(asked(&table, "h", "/plain"), "b");
    assert!(problems.iter().any(|(_, why)| why.contains("/api(")), "{problems:?}");
}

fn secret(name: &str, certificate: &[u8], key: &[u8]) -> Arc<Secret> {
    let data = [("tls.crt", certificate), ("tls.key", key)];
    let data = data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes.to_vec()))).into();
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.namespace = Some("ns".into());
    secret.metadata.name = Some(name.into());
    Arc::new(secret)
}

#[test]
fn certificates_by_host_and_bad_ones_are_said() {
    let one = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["y".to_owned()]).unwrap();
    let pem = |c: &rcgen::CertifiedKey<rcgen::KeyPair>| (c.cert.pem(), c.signing_key.serialize_pem());
    let ((one_cert, one_key), (two_cert, _)) = (pem(&one), pem(&two));
    let tls = json!({
        "defaultBackend": backend("a"),
        "rules": [rule("a.bar.com", &[path("/", "Prefix", "a")]), rule("plain.com", &[path("/", "Prefix", "a")])],
        "tls": [
            {"hosts": ["foo.com"], "secretName": "good"}, {"hosts": ["*.bar.com"], "secretName": "good"},
            {"hosts": ["swapped.com"], "secretName": "swapped"}, {"hosts": ["junk.com"], "secretName": "junk"},
            {"hosts": ["gone.com"], "secretName": "gone"},
        ],
    });
    let mut objects = objects(&[ingress("x", tls)]);
    for secret in [
        secret("good", one_cert.as_bytes(), one_key.as_bytes()),
        secret("swapped", two_cert.as_bytes(), one_key.as_bytes()),
        secret("junk", b"junk", b"junk"),
    ] {
        objects.secrets.insert(ObjectKey::of(&*secret), secret);
    }
    let (table, problems) = build::table(&objects, &mut Cache::default());
    for (host, found) in [
        ("foo.com", true),
        ("x.bar.com", true),
        ("x.y.bar.com", false),
        ("bar.com", false),
        ("swapped.com", false),
        ("junk.com", false),
    ] {
        assert_eq!(table.certificates.find(host).is_some(), found, "{host}");
    }
    let said: Vec<&str> = problems.iter().map(|(_, why)| why.as_str()).collect();
    for name in ["swapped", "junk", "gone"] {
        assert!(said.iter().any(|why| why.contains(name)), "{name} in {said:?}");
    }
    assert!(table.find("a.bar.com", b"/").unwrap().tls && !table.find("plain.com", b"/").unwrap().tls);
}
