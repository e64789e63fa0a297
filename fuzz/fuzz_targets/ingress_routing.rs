//! Routing: paths have no tricks left when they are matched, and hosts and paths are matched as networking.k8s.io/v1
//! describes it, which a second, slower reading of that text says too.
#![no_main]

use ingress::build::{Objects, table};
use ingress::state::State;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::json;

/// Hosts and paths of few letters, so that they meet.
fn word(picks: &[u8], letters: &[&str]) -> String {
    picks.iter().map(|pick| letters[usize::from(*pick) % letters.len()]).collect()
}

fn host(pick: u8) -> &'static str {
    ["", "a.test", "b.test", "*.test", "*.b.test", "x.b.test", "test"][usize::from(pick) % 7]
}

/// Whether a rule's path is the request's, and how much of it.
fn matched(exact: bool, path: &str, asked: &str) -> Option<usize> {
    if exact {
        return (path == asked).then_some(usize::MAX);
    }
    let path: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let asked: Vec<&str> = asked.split('/').filter(|s| !s.is_empty()).collect();
    asked.starts_with(&path).then_some(path.len())
}

libfuzzer_sys::fuzz_target!(|input: (&str, Vec<(u8, bool, [u8; 4])>, u8, Vec<u8>)| {
    let (text, rules, asked_host, asked_path) = input;
    if let Some(normal) = ingress::path::normal(text) {
        assert!(normal.starts_with(b"/") && !normal.contains(&0));
        let mut segments = normal.split(|b| *b == b'/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            assert!(segment != b"." && segment != b"..");
            assert!(!segment.is_empty() || segments.peek().is_none());
        }
    }
    let letters = ["/", "/a", "/b", "b", "", "a/"];
    let rules: Vec<(String, bool, String)> = (rules.into_iter().take(16))
        .map(|(h, exact, p)| {
            (host(h).to_owned(), exact, format!("/{}", word(&p, &letters).trim_start_matches('/')))
        })
        // Empty segments are refused when an Ingress is written.
        .filter(|(_, _, path)| !path.contains("//"))
        .collect();
    let all: Vec<serde_json::Value> = (rules.iter().enumerate())
        .map(|(i, (host, exact, path))| {
            let backend = json!({"service": {"name": format!("s{i}"), "port": {"number": 80}}});
            let kind = if *exact { "Exact" } else { "Prefix" };
            let mut rule = json!({"http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}});
            if !host.is_empty() {
                rule["host"] = json!(host);
            }
            rule
        })
        .collect();
    let ingress: Ingress =
        serde_json::from_value(json!({"metadata": {"name": "x", "namespace": "ns"}, "spec": {"rules": all}}))
            .expect("an Ingress");
    let objects = Objects { ingresses: vec![ingress.into()], ..Default::default() };
    let (table, _) = table(&objects, &mut State::default());
    let path = format!("/{}", word(&asked_path[..asked_path.len().min(12)], &letters));
    let Some(normal) = ingress::path::normal(&path) else { return };
    let name = match host(asked_host).strip_prefix("*.") {
        Some(rest) => format!("y.{rest}"),
        None => host(asked_host).to_owned(),
    };
    let found = table.find(&name, &normal).location().map(|location| location.backend.service.clone());

    let named = |wanted: &str| rules.iter().any(|(host, _, _)| host == wanted);
    let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
    let served = match wildcard {
        _ if named(&name) => name.clone(),
        Some(wildcard) if named(&wildcard) => wildcard,
        _ => String::new(),
    };
    let asked = std::str::from_utf8(&normal).expect("text");
    let mut best: Option<(usize, usize)> = None;
    for (i, (host, exact, path)) in rules.iter().enumerate() {
        if *host == served
            && let Some(length) = matched(*exact, path, asked)
            && best.is_none_or(|(most, _)| length > most)
        {
            best = Some((length, i));
        }
    }
    assert_eq!(found, best.map(|(_, i)| format!("s{i}")), "{name} {asked} of {rules:?}");
});
