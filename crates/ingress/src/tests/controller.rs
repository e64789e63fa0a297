//! The whole controller, on an API that only lists and watches.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use client::ObjectKey;
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::harness::{Answer, LIMIT, SETTINGS, annotated, echo, ingress, loopback, path, rule, talk};
use crate::build::Ours;
use crate::run::{Config, Listeners, serve};

const INGRESSES: &str = "/apis/networking.k8s.io/v1/ingresses";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const CONFIGS: &str = "/api/v1/configmaps";

struct Controller {
    api: FakeApi,
    http: SocketAddr,
    health: SocketAddr,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

fn slice(name: &str, endpoint: SocketAddr) -> Value {
    json!({
        "metadata": {"name": format!("{name}-0"), "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "web", "port": endpoint.port()}],
        "endpoints": [{"addresses": [endpoint.ip()]}],
    })
}

async fn start(ingresses: Vec<Value>) -> Controller {
    let service = |name: &str| json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"ports": [{"name": "web", "port": 8080}]}});
    let api = FakeApi::new([
        (INGRESSES, ingresses),
        ("/apis/networking.k8s.io/v1/ingressclasses", vec![]),
        ("/api/v1/services", vec![service("a"), service("b")]),
        (SLICES, vec![slice("a", echo("a").await), slice("b", echo("b").await)]),
        ("/api/v1/secrets", vec![]),
        (CONFIGS, vec![]),
    ]);
    let listeners = Listeners {
        http: loopback().await,
        https: loopback().await,
        health: loopback().await,
        admission: None,
    };
    let (http, health) = (listeners.http.local_addr().unwrap(), listeners.health.local_addr().unwrap());
    let config = Config {
        ours: Ours { controller: "k8s.io/ingress-nginx".into(), without_class: true },
        publish: None,
        pod: None,
        http_port: 0,
        https_port: 0,
        health_port: 0,
        settings: Some(ObjectKey::new("ns", SETTINGS)),
        default_certificate: None,
        admission: None,
        workers: 2,
        grace: Duration::from_millis(200),
    };
    let stop = CancellationToken::new();
    let (client, token) = (api.client(), stop.clone());
    let ended = tokio::spawn(async move { serve(config, client, listeners, token).await.unwrap() });
    let controller = Controller { api, http, health, stop, ended };
    controller.until(controller.health, "/readyz", |answer| answer.status == 200).await;
    controller
}

impl Controller {
    async fn get(&self, at: SocketAddr, path: &str) -> Answer {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: h\r\nUser-Agent: nobody\r\nConnection: close\r\n\r\n");
        Answer::parse(&talk(TcpStream::connect(at).await.unwrap(), request.as_bytes()).await)
    }

    async fn until(&self, at: SocketAddr, path: &str, good: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.get(at, path).await;
            if good(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Asks for a host that nobody changes, until it is done; every answer must be right. Gives how many there were.
async fn untroubled(at: SocketAddr, done: CancellationToken) -> usize {
    let mut answers = 0;
    while !done.is_cancelled() || answers == 0 {
        let request = b"GET / HTTP/1.1\r\nHost: steady\r\nConnection: close\r\n\r\n";
        let answer = Answer::parse(&talk(TcpStream::connect(at).await.unwrap(), request).await);
        assert_eq!((answer.status, answer.service().as_str()), (200, "a"));
        answers += 1;
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_take_effect_at_once_and_lose_no_request() {
    let other = ingress("y", json!({"rules": [rule("steady", &[path("/", "Prefix", "a")])]}));
    let controller = start(vec![annotated(&[]), other]).await;
    let done = CancellationToken::new();
    let steady = tokio::spawn(untroubled(controller.http, done.clone()));
    let mut times = Vec::new();
    for round in 0..20 {
        let to = if round % 2 == 0 { "b" } else { "a" };
        let spec = json!({"rules": [rule("h", &[path("/", "Prefix", to)])]});
        let start = Instant::now();
        controller.api.tell(INGRESSES, "MODIFIED", &ingress("x", spec)).await;
        controller.until(controller.http, "/", |answer| answer.service() == to).await;
        times.push(start.elapsed());
    }
    done.cancel();
    assert!(steady.await.unwrap() > 0);
    times.sort();
    // The median, as this machine may be busy with anything.
    assert!(times[times.len() / 2] < Duration::from_millis(50), "{times:?}");
    // Endpoints and settings as well.
    controller.api.tell(SLICES, "DELETED", &slice("a", controller.http)).await;
    controller.until(controller.http, "/", |answer| answer.status == 503).await;
    let settings =
        json!({"metadata": {"name": SETTINGS, "namespace": "ns"}, "data": {"block-user-agents": "nobody"}});
    controller.api.tell(CONFIGS, "ADDED", &settings).await;
    controller.until(controller.http, "/", |answer| answer.status == 403).await;
    controller.stop.cancel();
    tokio::time::timeout(LIMIT, controller.ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_stops_is_not_ready_first_and_serves_on() {
    let controller = start(vec![annotated(&[])]).await;
    assert_eq!(controller.get(controller.http, "/").await.service(), "a");
    controller.stop.cancel();
    controller.until(controller.health, "/readyz", |answer| answer.status == 503).await;
    assert_eq!(controller.get(controller.http, "/").await.service(), "a");
    assert_eq!(controller.get(controller.health, "/healthz").await.status, 200);
    tokio::time::timeout(LIMIT, controller.ended).await.unwrap().unwrap();
    assert!(TcpStream::connect(controller.http).await.is_err());
}
