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
    Answer, World, annotated, backend, config, echo, ingress, loopback, nobody, path, rule, secret, service,
    with,
};
use super::protocols::canned;

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
