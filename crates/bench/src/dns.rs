//! Cluster DNS with ten thousand Services, asked by `dnsperf`, beside `unbound` with the same names: each server alone on
//! one processor, the load on another, all in a network namespace of their own. The API server is one of lists only.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cores::on;
use crate::figures::{Figures, percentile};
use crate::memory;

const SERVICES: usize = 10_000;
/// Services of one namespace.
const PER_NAMESPACE: usize = 100;
/// Outside names that are asked for again and again.
const OUTSIDE: usize = 1000;
/// Ports of ours and of the peer: ours takes all addresses.
const OURS: u16 = 53;
const UNBOUND: u16 = 5300;
/// After which what a burst needed has been given back.
const REST: Duration = Duration::from_secs(12);
/// So often a run that lost questions is tried.
const TRIES: usize = 3;
/// Half of what one processor is to answer.
const HALF: usize = 50_000;
const KINDS: [(&str, &str); 5] = [
    ("/api/v1/services", "v1"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1"),
    ("/api/v1/namespaces", "v1"),
    ("/api/v1/pods", "v1"),
    ("/api/v1/namespaces/kube-system/configmaps", "v1"),
];

/// Goes into a network namespace of its own, where the ports are free, and measures there.
pub fn isolated(out: &Path, skiff: &Path, seconds: u64) -> anyhow::Result<()> {
    for program in ["dnsperf", "unbound"] {
        let script = format!("command -v {program}");
        if !Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).status()?.success() {
            println!("no {program} to measure DNS with; install it: apt-get install {program}");
            return Ok(());
        }
    }
    let own = std::env::current_exe().context("find the benchmark itself")?;
    let status = Command::new("unshare")
        .arg("--net")
        .arg(own)
        .arg("--out")
        .arg(out)
        .args(["dns-inside", "--seconds", &seconds.to_string()])
        .arg(skiff)
        .status()
        .context("unshare the network; run as root")?;
    ensure!(status.success(), "measuring DNS failed");
    Ok(())
}

/// A child that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Resident memory in MB.
    fn memory(&self) -> anyhow::Result<f64> {
        memory::resident(self.0.id())
    }
}

/// Measures.
pub async fn measure(skiff: &Path, seconds: u64) -> anyhow::Result<Figures> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    ensure!(up.success(), "ip link set lo up");
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let names = |name: fn(usize) -> String, count: usize| {
        (0..count).fold(String::new(), |mut text, i| {
            let _ = writeln!(text, "{} A", name(i));
            text
        })
    };
    let inside = file("inside", &names(service_name, SERVICES))?;
    let outside = file("outside", &names(outside_name, OUTSIDE))?;
    let unbound = file("unbound.conf", &unbound_conf())?;
    let peer = pinned("unbound", &["-d", "-c", &unbound])?;
    let api = serve_api().await?;
    let kubeconfig = file("config", &kubeconfig(api))?;
    let mut ours = on(0, skiff)?;
    ours.arg("dns").env("KUBECONFIG", kubeconfig);
    let said = dir.path().join("stderr");
    let ours = ours.stdout(Stdio::null()).stderr(std::fs::File::create(&said)?);
    let ours = Server(ours.spawn().context("start skiff dns")?);
    if let Err(error) = ready().await {
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        return Err(error.context(format!("skiff dns says:\n{said}")));
    }

    let mut figures = Figures::default();
    let run = |port: u16, file: &str, most: Option<usize>| dnsperf(port, file, seconds, most);
    // Each is asked once before, so that both have what is to be cached.
    for port in [OURS, UNBOUND] {
        dnsperf(port, &outside, 1, None)?;
    }
    let (all, (half, p99)) = (run(OURS, &inside, None)?.0, run(OURS, &inside, Some(HALF))?);
    figures.add("DNS: cluster names, one processor", "q/s", all, Some(">= 100000 (CoreDNS: 17700)"));
    figures.beside("unbound", run(UNBOUND, &inside, None)?.0);
    figures.add("DNS: p99 at half of that", "ms", p99, Some("< 1"));
    figures.beside("unbound", run(UNBOUND, &inside, Some(HALF))?.1);
    figures.add("DNS: questions a second at that", "q/s", half, Some("50000"));
    figures.add("DNS: cached outside names", "q/s", run(OURS, &outside, None)?.0, Some("as cluster names"));
    figures.beside("unbound", run(UNBOUND, &outside, None)?.0);
    figures.add("DNS: memory with 10000 Services, under load", "MB", ours.memory()?, None);
    figures.beside("unbound", peer.memory()?);
    tokio::time::sleep(REST).await;
    let target = Some("<= 20 (CoreDNS: 54)");
    figures.add("DNS: memory with 10000 Services, at rest", "MB", ours.memory()?, target);
    figures.beside("unbound", peer.memory()?);
    Ok(figures)
}

fn pinned(program: &str, args: &[&str]) -> anyhow::Result<Server> {
    let mut command = on(0, program)?;
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Server(command.spawn().with_context(|| format!("start {program}"))?))
}

/// Waits until the names are known.
async fn ready() -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let asked = Command::new("dig")
            .args(["+short", "+tries=1", "+time=1", "@127.0.0.1", &service_name(SERVICES - 1)])
            .output()?;
        if String::from_utf8_lossy(&asked.stdout).trim() == service_ip(SERVICES - 1) {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "the server does not come to know the names");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Questions a second that were answered, and the time below which 99 % of them were, in ms. A machine that did something
/// else meanwhile loses questions: such a run does not count.
fn dnsperf(port: u16, file: &str, seconds: u64, most: Option<usize>) -> anyhow::Result<(f64, f64)> {
    (1..TRIES)
        .find_map(|_| run_dnsperf(port, file, seconds, most).ok())
        .map_or_else(|| run_dnsperf(port, file, seconds, most), Ok)
}

fn run_dnsperf(port: u16, file: &str, seconds: u64, most: Option<usize>) -> anyhow::Result<(f64, f64)> {
    let mut command = on(1, "dnsperf")?;
    command.args(["-s", "127.0.0.1", "-p", &port.to_string(), "-d", file]);
    command.args(["-l", &seconds.to_string(), "-c", "16"]);
    match most {
        // Every answer is told with its time.
        Some(most) => command.args(["-v", "-Q", &most.to_string()]),
        None => command.args(["-q", "400"]),
    };
    let out = command.output().context("run dnsperf")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let said = |what: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(what));
        let line = line.with_context(|| format!("dnsperf says nothing of {what}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let (sent, lost) = (said("Queries sent:")?, said("Queries lost:")?);
    ensure!(lost <= sent / 1000.0, "{lost} of {sent} questions were lost");
    let codes = text.lines().find(|line| line.contains("Response codes:")).unwrap_or_default();
    ensure!(codes.contains("NOERROR") && !codes.contains("SERVFAIL"), "not all are answered: {codes}");
    let times = text.lines().filter(|line| line.starts_with('>'));
    let mut times: Vec<Duration> = times
        .filter_map(|line| line.split_whitespace().last()?.parse().ok())
        .map(Duration::from_secs_f64)
        .collect();
    Ok((said("Queries per second:")?, percentile(&mut times, 0.99)))
}

fn service_name(i: usize) -> String {
    format!("svc-{i}.ns-{}.svc.cluster.local", i / PER_NAMESPACE)
}

fn service_ip(i: usize) -> String {
    format!("10.97.{}.{}", i / 250, i % 250 + 1)
}

fn pod_ip(i: usize) -> String {
    format!("10.244.{}.{}", i / 250, i % 250 + 1)
}

fn outside_name(i: usize) -> String {
    format!("host-{i}.example.org")
}

fn unbound_conf() -> String {
    let mut text = format!(
        "server:\n interface: 127.0.0.1@{UNBOUND}\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n use-syslog: no\n \
         pidfile: \"\"\n num-threads: 1\n access-control: 127.0.0.0/8 allow\n module-config: \"iterator\"\n \
         local-zone: \"cluster.local.\" static\n local-zone: \"example.org.\" static\n"
    );
    for i in 0..SERVICES {
        let _ = writeln!(text, " local-data: \"{}. 30 IN A {}\"", service_name(i), service_ip(i));
    }
    for i in 0..OUTSIDE {
        let _ = writeln!(text, " local-data: \"{}. 3600 IN A 192.0.2.{}\"", outside_name(i), i % 250 + 1);
    }
    text + "remote-control:\n control-enable: no\n"
}

fn kubeconfig(api: SocketAddr) -> String {
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
        "users": [{"name": "u", "user": {}}]})
    .to_string()
}

/// What the API server lists: objects as large as those of a real cluster.
fn lists() -> HashMap<&'static str, Vec<Value>> {
    let namespace = |i: usize| format!("ns-{}", i / PER_NAMESPACE);
    let meta = |name: String, i: usize| {
        json!({"name": name, "namespace": namespace(i), "uid": format!("00000000-0000-0000-0000-{i:012}"),
            "resourceVersion": "1", "creationTimestamp": "2025-01-01T00:00:00Z", "labels": {"app": format!("svc-{i}")}})
    };
    let service = |i: usize| {
        json!({"metadata": meta(format!("svc-{i}"), i), "spec": {"clusterIP": service_ip(i), "clusterIPs": [service_ip(i)],
            "selector": {"app": format!("svc-{i}")}, "ipFamilies": ["IPv4"], "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}, "status": {"loadBalancer": {}}})
    };
    let slice = |i: usize| {
        let mut meta = meta(format!("svc-{i}-abcde"), i);
        meta["labels"]["kubernetes.io/service-name"] = json!(format!("svc-{i}"));
        json!({"metadata": meta, "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [pod_ip(i)], "nodeName": "node",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": namespace(i), "name": format!("svc-{i}-5d8f6c9b7d-x2x5k")}}]})
    };
    let pod = |i: usize| {
        json!({"metadata": meta(format!("svc-{i}-5d8f6c9b7d-x2x5k"), i), "spec": {"nodeName": "node",
            "containers": [{"name": "c", "image": "image"}]},
            "status": {"phase": "Running", "podIP": pod_ip(i), "podIPs": [{"ip": pod_ip(i)}]}})
    };
    let corefile = dns::addon::corefile("cluster.local", &[], Path::new(&format!("127.0.0.1:{UNBOUND}")));
    let map =
        json!({"metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"Corefile": corefile}});
    let namespaces = (0..SERVICES / PER_NAMESPACE).map(|i| json!({"metadata": {"name": format!("ns-{i}")}}));
    let all = |make: &dyn Fn(usize) -> Value| (0..SERVICES).map(make).collect::<Vec<_>>();
    let lists = [all(&service), all(&slice), namespaces.collect(), all(&pod), vec![map]];
    KINDS.iter().map(|(path, _)| *path).zip(lists).collect()
}

/// An API server that lists page by page, and whose watches say nothing.
async fn serve_api() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let lists = Arc::new(lists());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let lists = lists.clone();
            let service = service_fn(move |request| {
                let answer = answer(&lists, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    Ok(addr)
}

type Body = BoxBody<Bytes, Infallible>;

fn answer(
    lists: &HashMap<&'static str, Vec<Value>>,
    request: &hyper::Request<Incoming>,
) -> hyper::Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let body = if query.contains("watch=true") {
        http_body_util::StreamBody::new(futures::stream::pending()).boxed()
    } else {
        let none = Vec::new();
        let items = lists.get(request.uri().path()).unwrap_or(&none);
        let number =
            |key: &str, otherwise: usize| value(key).and_then(|v| v.parse().ok()).unwrap_or(otherwise);
        let from = number("continue", 0).min(items.len());
        let to = (from + number("limit", items.len())).min(items.len());
        let next = if to < items.len() { to.to_string() } else { String::new() };
        let list = json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": items[from..to]});
        Full::new(Bytes::from(list.to_string())).boxed()
    };
    let mut response = hyper::Response::new(body);
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}
