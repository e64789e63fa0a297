//! Routing on the table alone: what ingress-nginx does where networking.k8s.io/v1 leaves a choice, and who wins.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::harness::{backend, ingress, path, read, rule, secret, service, with};
use crate::build::{self, Objects, Problems};
use crate::state::State;
use crate::table::{Found, Table};

/// Every Service has two endpoints, and its address says its name.
fn objects(ingresses: &[Value]) -> Objects {
    let mut objects =
        Objects { ingresses: ingresses.iter().cloned().map(read).collect(), ..Objects::default() };
    for (i, name) in ["a", "b", "c", "d"].iter().enumerate() {
        let endpoints: [SocketAddr; 2] = [1, 2].map(|n| format!("10.0.{i}.{n}:3000").parse().unwrap());
        service(&mut objects, name, &endpoints);
    }
    objects
}

fn built(objects: &Objects) -> (Table, Problems) {
    build::table(objects, &mut State::default())
}

fn made(ingresses: &[Value]) -> (Table, Problems) {
    built(&objects(ingresses))
}

/// The Service that answers; `404`, or `503` for one without endpoints.
fn asked(table: &Table, host: &str, path: &str) -> String {
    match table.find(host, &crate::path::normal(path).unwrap()) {
        Found::Location(location) if location.backend.addresses().next().is_none() => "503".into(),
        Found::Location(location) => location.backend.service.clone(),
        Found::Moved(to) => format!("to {to}"),
        Found::Nothing => "404".into(),
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
    objects.slices.drain(..2);
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
        objects.slices.retain(|s| s.metadata.name.as_deref() != Some("a"));
        objects.slices.push(slice(first, second));
        let (table, _) = built(&objects);
        let location = table.find("h", b"/").location().unwrap();
        let found: Vec<String> = location.backend.addresses().map(ToString::to_string).collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn regular_expressions_rule_the_whole_host() {
    let rewritten = ingress(
        "x",
        json!({"rules": [rule("h", &[
            path("/api(/|$)(.*)", "ImplementationSpecific", "a"),
            path("/Plain", "Exact", "b"),
        ])]}),
    );
    let mut rewritten = with(rewritten, &[("rewrite-target", "/v2/$2")]);
    let (table, problems) = made(&[rewritten.clone()]);
    assert_eq!(problems, Problems::new());
    for (path, service, sent) in [
        ("/api/users/7", "a", "/v2/users/7"),
        ("/API", "a", "/v2/"),
        ("/plainly", "b", "/v2/"), // no longer exact, and without its second capture
    ] {
        assert_eq!(asked(&table, "h", path), service, "{path}");
        let location = table.find("h", path.as_bytes()).location().unwrap();
        assert_eq!(location.rewritten(path.as_bytes()).as_deref(), Some(sent.as_bytes()), "{path}");
    }
    assert_eq!(asked(&table, "h", "/apian"), "404");
    rewritten["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/api(");
    let (table, problems) = made(&[rewritten]);
    assert_eq!(asked(&table, "h", "/plain"), "b");
    assert!(problems.iter().any(|(_, why)| why.contains("/api(")), "{problems:?}");
}

#[test]
fn certificates_by_host_and_bad_ones_are_said() {
    let one = rcgen::generate_simple_self_signed(["foo.com".to_owned(), "*.bar.com".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["swapped.com".to_owned()]).unwrap();
    let pem = |c: &rcgen::CertifiedKey<rcgen::KeyPair>| (c.cert.pem(), c.signing_key.serialize_pem());
    let ((one_cert, one_key), (two_cert, _)) = (pem(&one), pem(&two));
    let tls = json!({
        "defaultBackend": backend("a"),
        "rules": [rule("a.bar.com", &[path("/", "Prefix", "a")]), rule("plain.com", &[path("/", "Prefix", "a")])],
        "tls": [
            {"hosts": ["foo.com"], "secretName": "good"}, {"hosts": ["*.bar.com"], "secretName": "good"},
            {"hosts": ["other.com"], "secretName": "good"},
            {"hosts": ["swapped.com"], "secretName": "swapped"}, {"hosts": ["junk.com"], "secretName": "junk"},
            {"hosts": ["gone.com"], "secretName": "gone"},
        ],
    });
    let mut objects = objects(&[ingress("x", tls)]);
    for (name, certificate, key) in [
        ("good", one_cert.as_bytes(), one_key.as_bytes()),
        ("swapped", two_cert.as_bytes(), one_key.as_bytes()),
        ("junk", b"junk", b"junk"),
    ] {
        secret(&mut objects, name, &[("tls.crt", certificate), ("tls.key", key)]);
    }
    let (table, problems) = built(&objects);
    for (host, found) in [
        ("foo.com", true),
        ("x.bar.com", true),
        ("x.y.bar.com", false),
        ("bar.com", false),
        ("other.com", false),
        ("swapped.com", false),
        ("junk.com", false),
    ] {
        assert_eq!(table.certificates.find(host).is_some(), found, "{host}");
    }
    let said: Vec<&str> = problems.iter().map(|(_, why)| why.as_str()).collect();
    for name in ["swapped", "junk", "gone", "does not name \"other.com\""] {
        assert!(said.iter().any(|why| why.contains(name)), "{name} in {said:?}");
    }
    let tls = |host| table.find(host, b"/").location().unwrap().tls;
    assert!(tls("a.bar.com") && !tls("plain.com"));
}
