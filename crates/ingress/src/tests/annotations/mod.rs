//! Each annotation of tier 1 and 2, by name, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod answers;
mod balancing;
mod canary;
mod client_tls;
mod cors;
mod limits;
mod refused;
mod routing;
mod upstream;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{
    Answer, LIMIT, World, annotated, backend, config, echo, ingress, loopback, nobody, path, rule, secret,
    service, with,
};
use super::protocols::canned;
use crate::annotations::{Support, known};

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

#[test]
fn each_annotation_that_is_honoured_is_set_by_a_test_over_connections() {
    let tests = [
        include_str!("access.rs"),
        include_str!("answers.rs"),
        include_str!("balancing.rs"),
        include_str!("canary.rs"),
        include_str!("client_tls.rs"),
        include_str!("cors.rs"),
        include_str!("limits.rs"),
        include_str!("routing.rs"),
        include_str!("upstream.rs"),
        include_str!("../protocols.rs"),
        include_str!("../settings.rs"),
    ]
    .concat();
    for annotation in known().filter(|a| matches!(a.support, Support::Honoured | Support::Differs(_))) {
        let name = annotation.name;
        assert!(tests.contains(&format!("\"{name}\"")), "{name} is set by no test");
    }
}
