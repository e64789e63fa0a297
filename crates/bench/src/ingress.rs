//! The ingress controller beside nginx as a proxy: the same backend (nginx, 1 KiB), the same client (wrk), one worker each,
//! in turns; medians count. The proxies have one core, the client and the backend share the other, so that
//! what is measured is how much a core of proxying does.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use client::ObjectKey;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cores::on;
use crate::figures::Figures;
use crate::memory;
use crate::rounds::{ROUNDS, in_turns, median, medians};

const PATHS: usize = 10;
/// Connections that are kept.
const KEPT: [usize; 3] = [1, 64, 512];
/// What many hosts cost is less than two rounds differ by, and than two processes differ by, whose pages lie elsewhere: so
/// many times both are started anew.
const MANY: usize = 5;
const CHANGES: usize = 10_000;
/// The cores of the proxies, and of what they are between.
const PROXY: usize = 1;
const LOAD: usize = 0;

/// A controller without a cluster: hosts and paths are made up, and all go to one backend.
#[derive(Debug, Args)]
pub struct Serve {
    #[arg(long)]
    http: u16,
    #[arg(long)]
    https: u16,
    #[arg(long)]
    health: u16,
    #[arg(long)]
    backend: u16,
    #[arg(long)]
    hosts: usize,
    /// Changes of routes, one after the other.
    #[arg(long, default_value_t = 0)]
    changes: usize,
}

fn ingress(host: usize, version: usize) -> Value {
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let path = |p| json!({"path": format!("/p{p}"), "pathType": "Prefix", "backend": backend});
    json!({
        "metadata": {"name": format!("i{host}"), "namespace": "ns", "resourceVersion": version.to_string(),
            "annotations": {"nginx.ingress.kubernetes.io/x-forwarded-prefix": format!("/{version}")}},
        "spec": {"rules": [{"host": format!("h{host}.example"), "http": {"paths": (0..PATHS).map(path).collect::<Vec<_>>()}}]},
    })
}

fn listed(serve: &Serve, path: &str) -> Vec<Value> {
    match path.rsplit('/').next() {
        Some("services") => vec![json!({
            "metadata": {"name": "web", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]},
        })],
        Some("endpointslices") => vec![json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": serve.backend}], "endpoints": [{"addresses": ["127.0.0.1"]}],
        })],
        Some("configmaps") => vec![json!({
            "metadata": {"name": "settings", "namespace": "ns"}, "data": {"disable-access-log": "true"},
        })],
        _ => Vec::new(),
    }
}

/// Serves until it is killed.
pub async fn serve(serve: Serve) -> anyhow::Result<()> {
    let config = ::ingress::Config {
        ours: ::ingress::build::Ours { controller: "k8s.io/ingress-nginx".into(), without_class: true },
        publish: None,
        pod: None,
        http_port: serve.http,
        https_port: serve.https,
        health_port: serve.health,
        settings: Some(ObjectKey::new("ns", "settings")),
        default_certificate: None,
        admission: None,
        // As many as the peer has.
        workers: 1,
        grace: Duration::ZERO,
    };
    let serve = Arc::new(serve);
    let api = tower::service_fn(move |request: http::Request<Body>| {
        let answer = answer(&serve, request.uri());
        async move { Ok::<_, Infallible>(answer) }
    });
    let client = kube::Client::new(api, "default");
    Ok(::ingress::run(config, client, CancellationToken::new()).await?)
}

type Answered = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// A list as an API server sends it, one object after the other: what is measured is the memory of who reads it.
fn list(serve: Arc<Serve>, path: &str) -> Answered {
    let text = |text: String| Ok(hyper::body::Frame::data(Bytes::from(text)));
    let few = listed(&serve, path);
    let many = if path.ends_with("/ingresses") { serve.hosts } else { 0 };
    let items = few.into_iter().chain((0..many).map(|host| ingress(host, 1))).enumerate();
    let items = items.map(|(i, item)| format!("{}{item}", if i == 0 { "" } else { "," }));
    let begin = std::iter::once(r#"{"metadata":{"resourceVersion":"1"},"items":["#.to_owned());
    let all = begin.chain(items).chain(std::iter::once("]}".to_owned()));
    StreamBody::new(futures::stream::iter(all.map(text))).boxed_unsync()
}

fn answer(serve: &Arc<Serve>, uri: &http::Uri) -> http::Response<Answered> {
    let frame = |value: Value| Ok(hyper::body::Frame::data(Bytes::from(format!("{value}\n"))));
    let watches = uri.query().unwrap_or_default().contains("watch=true");
    let body = if watches && uri.path().ends_with("/ingresses") && serve.changes > 0 {
        let hosts = serve.hosts.max(1);
        let changes = futures::stream::iter(0..serve.changes).then(move |n| async move {
            tokio::time::sleep(Duration::from_micros(200)).await;
            frame(json!({"type": "MODIFIED", "object": ingress(n % hosts, n + 2)}))
        });
        StreamBody::new(changes.chain(futures::stream::pending())).boxed_unsync()
    } else if watches {
        StreamBody::new(futures::stream::pending()).boxed_unsync()
    } else {
        list(serve.clone(), uri.path())
    };
    let mut response = http::Response::new(body);
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

/// How long one may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's master ends its workers only when it is asked to end. Already gone is as good.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(quiet.spawn().with_context(|| format!("start {:?}", command.get_program()))?))
    }

    /// Resident memory in MB.
    fn memory(&self) -> anyhow::Result<f64> {
        memory::resident(self.0.id())
    }
}

/// Ports of a proxy.
#[derive(Clone, Copy)]
struct Ports {
    http: u16,
    https: u16,
}

fn free() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn nginx(dir: &Path, name: &str, core: usize, http: &str) -> anyhow::Result<Running> {
    let config = dir.join(format!("{name}.conf"));
    let shown = dir.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {shown}/{name}.pid; error_log {shown}/{name}.log warn;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000; ssl_protocols TLSv1.2 TLSv1.3; server_names_hash_max_size 8192; server_names_hash_bucket_size 128;
{http} }}"
    );
    std::fs::write(&config, text)?;
    Running::start(on(core, "nginx")?.arg("-c").arg(config).args(["-e", "stderr"]).arg("-p").arg(dir))
}

fn backend(dir: &Path, port: u16) -> anyhow::Result<Running> {
    let server = format!(
        "server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{}\"; }} }}",
        "x".repeat(1024)
    );
    nginx(dir, "backend", LOAD, &server)
}

/// What ingress-nginx would write for these hosts, as far as a request meets it.
fn peer(dir: &Path, ports: Ports, backend: u16, hosts: usize) -> anyhow::Result<Running> {
    let mut text =
        format!("upstream web {{ server 127.0.0.1:{backend}; keepalive 320; keepalive_requests 10000; }}\n");
    for host in 0..hosts {
        write!(
            text,
            "server {{ listen 0.0.0.0:{}; listen 0.0.0.0:{} ssl; server_name h{host}.example;
ssl_certificate {dir}/tls.crt; ssl_certificate_key {dir}/tls.key;\n",
            ports.http,
            ports.https,
            dir = dir.display()
        )?;
        for path in 0..PATHS {
            write!(
                text,
                "location /p{path} {{ proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection \"\";
proxy_set_header Host $host; proxy_set_header X-Request-ID $request_id; proxy_set_header X-Real-IP $remote_addr;
proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host;
proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme;
proxy_set_header X-Forwarded-Scheme $scheme; proxy_set_header X-Scheme $scheme; }}\n"
            )?;
        }
        text.push_str("}\n");
    }
    nginx(dir, "peer", PROXY, &text)
}

fn ours(ports: Ports, backend: u16, hosts: usize, changes: usize) -> anyhow::Result<Running> {
    let mut command = on(PROXY, std::env::current_exe()?)?;
    command.arg("ingress-serve").env("RUST_LOG", "error");
    let (health, text) = (free()?, |n: usize| n.to_string());
    for (flag, value) in [
        ("--http", usize::from(ports.http)),
        ("--https", usize::from(ports.https)),
        ("--health", usize::from(health)),
        ("--backend", usize::from(backend)),
        ("--hosts", hosts),
        ("--changes", changes),
    ] {
        command.arg(flag).arg(text(value));
    }
    Running::start(&mut command)
}

/// Seconds of a round with so many connections, and how many rounds: so long that less than a hundredth of the requests is
/// asked while connections are still being opened, and their p99 is not the time of a handshake.
fn lasts(connections: usize, tls: bool) -> (u64, usize) {
    if tls && connections > 100 { (20, 3) } else { (4, ROUNDS) }
}

/// What wrk saw.
#[derive(Debug, Clone, Copy)]
struct Load {
    per_second: f64,
    /// Milliseconds.
    p99: f64,
    lost: u64,
}

fn wrk(url: &str, host: usize, connections: usize, seconds: u64, close: bool) -> anyhow::Result<Load> {
    let mut command = on(LOAD, "wrk")?;
    command
        .args(["-t1", "--latency", "--timeout", "10s"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{seconds}s"));
    command.arg("-H").arg(format!("Host: h{host}.example"));
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let out = command.arg(url).output().context("run wrk")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = |name: &str| text.lines().find_map(|l| l.trim().strip_prefix(name)).map(str::trim);
    let per_second =
        line("Requests/sec:").and_then(|v| v.parse().ok()).with_context(|| format!("wrk said {text}"))?;
    let p99 = line("99%").and_then(milliseconds).unwrap_or(f64::NAN);
    let refused = line("Non-2xx or 3xx responses:").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let broken = line("Socket errors:").map_or(0, |errors| {
        errors.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum()
    });
    Ok(Load { per_second, p99, lost: refused + broken })
}

/// `1.50ms`, `700.00us`, `1.20s`.
fn milliseconds(text: &str) -> Option<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let value: f64 = text[..at].parse().ok()?;
    Some(match &text[at..] {
        "us" => value / 1000.0,
        "ms" => value,
        "s" => value * 1000.0,
        _ => return None,
    })
}

fn ready(port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let url = format!("http://127.0.0.1:{port}/p0");
        let got = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: h0.example"])
            .arg(url)
            .output();
        if got.context("run curl")?.stdout == b"200" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing answers on port {port}")
}

/// Measures both.
pub fn measure() -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let made = rcgen::generate_simple_self_signed(["h0.example".to_owned()])?;
    std::fs::write(dir.path().join("tls.crt"), made.cert.pem())?;
    std::fs::write(dir.path().join("tls.key"), made.signing_key.serialize_pem())?;
    let port = free()?;
    let _backend = backend(dir.path(), port)?;
    let mut figures = Figures::default();
    few(&mut figures, dir.path(), port)?;
    many(&mut figures, port)?;
    changes(&mut figures, port)?;
    Ok(figures)
}

/// A controller with so many hosts, once it serves.
fn serving(backend: u16, hosts: usize) -> anyhow::Result<(Running, Ports)> {
    let ports = Ports { http: free()?, https: free()? };
    let running = ours(ports, backend, hosts, 0)?;
    ready(ports.http)?;
    Ok((running, ports))
}

/// Both with one host.
fn few(figures: &mut Figures, dir: &Path, backend: u16) -> anyhow::Result<()> {
    let (_ours, mine) = serving(backend, 1)?;
    let theirs = Ports { http: free()?, https: free()? };
    let _peer = peer(dir, theirs, backend, 1)?;
    ready(theirs.http)?;
    for (name, tls) in [("HTTP/1.1", false), ("TLS", true)] {
        let url = |ports: Ports| match tls {
            true => format!("https://127.0.0.1:{}/p7", ports.https),
            false => format!("http://127.0.0.1:{}/p7", ports.http),
        };
        let (mine, theirs) = (url(mine), url(theirs));
        for connections in KEPT {
            let (seconds, rounds) = lasts(connections, tls);
            let pairs = in_turns(
                rounds,
                || kept(&mine, 0, connections, seconds),
                || wrk(&theirs, 0, connections, seconds, false),
            )?;
            let of = |value: fn(&Load) -> f64| {
                medians(&pairs.iter().map(|(mine, theirs)| (value(mine), value(theirs))).collect::<Vec<_>>())
            };
            for (what, unit, target, (mine, theirs)) in [
                ("", "1/s", ">= nginx", of(|load| load.per_second)),
                (", p99", "ms", "<= nginx", of(|load| load.p99)),
            ] {
                figures.add(&format!("{name}, {connections} connections{what}"), unit, mine, Some(target));
                figures.beside("nginx", theirs);
            }
        }
        let opened = |url| wrk(url, 0, 16, 1, true).map(|load| load.per_second);
        let (mine, theirs) = medians(&in_turns(ROUNDS, || opened(&mine), || opened(&theirs))?);
        let what = if tls { "TLS handshakes" } else { "new connections" };
        figures.add(what, "1/s", mine, None);
        figures.beside("nginx", theirs);
    }
    Ok(())
}

/// What many hosts cost, beside one.
fn many(figures: &mut Figures, backend: u16) -> anyhow::Result<()> {
    let load = |ports: Ports, host| {
        kept(&format!("http://127.0.0.1:{}/p7", ports.http), host, 64, 1).map(|load| load.per_second)
    };
    let (mut pairs, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..MANY {
        let ((_one, one), (all, many)) = (serving(backend, 1)?, serving(backend, 1000)?);
        memory.push(all.memory()?);
        pairs.extend(in_turns(ROUNDS, || load(many, 777), || load(one, 0))?);
    }
    figures.add("memory with 1,000 hosts x 10 paths", "MB", median(memory), Some("<= 30"));
    let kept = median(pairs.iter().map(|(with_many, with_one)| with_many / with_one).collect());
    figures.add("1,000 hosts x 10 paths, cost against one", "%", 100.0 * (1.0 - kept), Some("< 3"));
    Ok(())
}

/// Requests on connections that are kept, of which none may be lost.
fn kept(url: &str, host: usize, connections: usize, seconds: u64) -> anyhow::Result<Load> {
    let load = wrk(url, host, connections, seconds, false)?;
    if load.lost > 0 {
        bail!("{url}: {} requests were lost", load.lost);
    }
    Ok(load)
}

/// Changes of routes while requests are under way.
fn changes(figures: &mut Figures, backend: u16) -> anyhow::Result<()> {
    let ports = Ports { http: free()?, https: free()? };
    let _running = ours(ports, backend, 100, CHANGES)?;
    ready(ports.http)?;
    let load = wrk(&format!("http://127.0.0.1:{}/p7", ports.http), 7, 64, 8, false)?;
    figures.add("requests lost in 10,000 route changes", "", load.lost as f64, Some("0"));
    figures.add("requests meanwhile, 64 connections", "1/s", load.per_second, None);
    Ok(())
}
