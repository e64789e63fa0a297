//! What the proxy says of its health: for itself on port 10256, and for each Service that asks load balancers to probe its
//! nodes (`healthCheckNodePort`) on a port of its own. Metrics and mode are on port 10249 of the node's loopback.
//!
//! Paths, texts and meaning are kube-proxy's: `/healthz` fails while changes wait for the kernel too long and on a node
//! that is about to go (KEP-3836), `/livez` only for the first; a Service's port says 200 while an endpoint on this node
//! is ready.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::ObjectKey;
use client::pages::{self, Page};
use http::StatusCode;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::metrics::{Metrics, Probe};

/// The port of `/healthz` and `/livez`, on all of the node's addresses.
pub const HEALTH_PORT: u16 = 10256;
/// The port of `/metrics` and `/proxyMode`, on the node's loopback.
pub const METRICS_PORT: u16 = 10249;
/// Changes that wait longer are a sign of illness.
const PATIENCE: Duration = Duration::from_secs(60);
/// When a port that somebody else has is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What a Service's health check must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Its `healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local: usize,
}

struct State {
    /// The rules are in the kernel.
    synced: bool,
    /// Since when a change waits for the kernel.
    waiting: Option<Instant>,
    /// When the rules were last known to be up to date.
    updated: Timestamp,
    /// The node is not about to go.
    eligible: bool,
    local: HashMap<ObjectKey, usize>,
}

impl State {
    fn healthy(&self) -> bool {
        self.synced && self.waiting.is_none_or(|since| since.elapsed() < PATIENCE)
    }
}

/// The proxy's health, shared with those who serve it.
#[derive(Clone)]
pub(crate) struct Health {
    state: Arc<Mutex<State>>,
    metrics: Arc<Metrics>,
}

fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S.%N +0000 UTC").to_string()
}

impl Health {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let state = State {
            synced: false,
            waiting: None,
            updated: Timestamp::now(),
            eligible: true,
            local: HashMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), metrics }
    }

    /// A change waits for the kernel.
    pub(crate) fn wait(&self) {
        self.state.lock().waiting.get_or_insert_with(Instant::now);
    }

    /// All changes are in the kernel.
    pub(crate) fn up_to_date(&self) {
        let mut state = self.state.lock();
        (state.synced, state.waiting, state.updated) = (true, None, Timestamp::now());
    }

    /// Whether the node stays.
    pub(crate) fn set_eligible(&self, eligible: bool) {
        self.state.lock().eligible = eligible;
    }

    fn page(&self, path: &str) -> Page {
        let probe = match path {
            "/healthz" => Probe::Healthz,
            "/livez" => Probe::Livez,
            _ => return Page::missing(),
        };
        let state = self.state.lock();
        let now = Timestamp::now();
        let well = state.healthy() && (state.eligible || matches!(probe, Probe::Livez));
        self.metrics.probed(probe, well);
        // As upstream: who is healthy is up to date now.
        let updated = if state.healthy() { now } else { state.updated };
        let text = json!({
            "lastUpdated": shown(updated), "currentTime": shown(now), "nodeEligible": state.eligible,
        });
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Page { kind: "application/json", ..sniffless(Page::text(status, text.to_string())) }
    }

    fn check(&self, service: &ObjectKey) -> Page {
        let state = self.state.lock();
        let (local, healthy) = (state.local.get(service).copied().unwrap_or(0), state.healthy());
        let status = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let text = json!({
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": local,
            "serviceProxyHealthy": healthy,
        });
        let text = format!("{text:#}\n");
        let mut page = Page { kind: "application/json", ..sniffless(Page::text(status, text)) };
        page.headers.push(("x-load-balancing-endpoint-weight", local.to_string()));
        page
    }

    /// Serves the proxy's own ports until `stop`; one that somebody else has is tried again.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let metrics = self.metrics.clone();
        let health = move |path: &str| self.page(path);
        let numbers = move |path: &str| match path {
            "/metrics" => Page::metrics(metrics.page()),
            "/proxyMode" => Page::text(StatusCode::OK, "nftables"),
            "/healthz" => Page::text(StatusCode::OK, "ok"),
            _ => Page::missing(),
        };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        tokio::join!(
            serve(|| everywhere(HEALTH_PORT), HEALTH_PORT, health, &stop),
            serve(|| TcpListener::bind(loopback), METRICS_PORT, numbers, &stop),
        );
    }
}

fn sniffless(mut page: Page) -> Page {
    page.headers.push(("x-content-type-options", "nosniff".into()));
    page
}

async fn serve(
    bind: impl Fn() -> std::io::Result<TcpListener>,
    port: u16,
    page: impl Fn(&str) -> Page + Send + Sync + 'static,
    stop: &CancellationToken,
) {
    let mut told = false;
    let listener = loop {
        match bind().and_then(listener) {
            Ok(listener) => break listener,
            Err(error) if !told => {
                told = true;
                tracing::warn!(%error, port, "the proxy's health port is in use; free it on this node");
            }
            Err(_) => {}
        }
        if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return;
        }
    };
    pages::serve(listener, page, stop.clone()).await;
}

/// All addresses of both families; of IPv4 where the kernel has no other.
fn everywhere(port: u16) -> std::io::Result<TcpListener> {
    let bind = |ip: IpAddr| TcpListener::bind((ip, port));
    bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))
}

fn listener(listener: TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// The ports of Services that are open.
pub(crate) struct Checks {
    health: Health,
    open: HashMap<ObjectKey, (u16, DropGuard)>,
}

impl Checks {
    pub(crate) fn new(health: Health) -> Self {
        Self { health, open: HashMap::new() }
    }

    /// Opens and closes ports so that these Services have theirs, in the network namespace of the calling thread; gives
    /// those that could not be opened, which are tried again by the next call.
    pub(crate) fn sync(
        &mut self,
        wanted: &HashMap<ObjectKey, Check>,
    ) -> Vec<(ObjectKey, u16, std::io::Error)> {
        self.health.state.lock().local = wanted.iter().map(|(key, c)| (key.clone(), c.local)).collect();
        self.open.retain(|key, (port, _)| wanted.get(key).is_some_and(|check| check.port == *port));
        let mut failed = Vec::new();
        for (key, check) in wanted.iter().filter(|(key, _)| !self.open.contains_key(*key)).collect::<Vec<_>>()
        {
            match everywhere(check.port).and_then(listener) {
                Ok(listener) => {
                    let stop = CancellationToken::new();
                    let (health, service) = (self.health.clone(), key.clone());
                    let page = move |_: &str| health.check(&service);
                    tokio::spawn(pages::serve(listener, page, stop.clone()));
                    self.open.insert(key.clone(), (check.port, stop.drop_guard()));
                }
                Err(error) => failed.push((key.clone(), check.port, error)),
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_rules_and_the_node() {
        let health = Health::new(Arc::new(Metrics::new()));
        let code = |path: &str| health.page(path).status.as_u16();
        assert_eq!(
            (code("/healthz"), code("/livez"), code("/x")),
            (503, 503, 404),
            "nothing in the kernel yet"
        );
        health.up_to_date();
        assert_eq!((code("/healthz"), code("/livez")), (200, 200));
        health.set_eligible(false);
        assert_eq!((code("/healthz"), code("/livez")), (503, 200), "the node is about to go");
        health.set_eligible(true);
        health.wait();
        assert_eq!(code("/healthz"), 200, "a change that just came");
        health.state.lock().waiting = Instant::now().checked_sub(PATIENCE);
        assert_eq!((code("/healthz"), code("/livez")), (503, 503));
        let text = health.page("/healthz").text;
        assert!(text.contains("\"lastUpdated\":\"20") && text.contains("+0000 UTC\""), "{text}");
        assert!(health.metrics.page().contains("kubeproxy_proxy_healthz_total{code=\"503\"} 4"));
    }

    #[test]
    fn a_service_is_told_by_its_own_endpoints() {
        let health = Health::new(Arc::new(Metrics::new()));
        health.up_to_date();
        let key = ObjectKey::new("shop", "web");
        assert_eq!(health.check(&key).status, 503);
        health.state.lock().local.insert(key.clone(), 2);
        let page = health.check(&key);
        assert_eq!(page.status, 200);
        assert!(page.headers.contains(&("x-load-balancing-endpoint-weight", "2".into())));
        let told: serde_json::Value = serde_json::from_str(&page.text).unwrap_or_default();
        assert_eq!(
            told,
            json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true})
        );
    }
}
