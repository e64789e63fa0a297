//! Prometheus metrics under ingress-nginx's names.
//!
//! Requests are counted where they are served, by location, method and status; what belongs to a location that is gone
//! goes with it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;

/// Upper bounds of times in seconds.
const TIMES: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of sizes in bytes.
const SIZES: [f64; 7] = [10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0];

#[derive(Debug, Clone)]
struct Histogram {
    bounds: &'static [f64],
    counts: [u64; 11],
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: [0; 11], sum: 0.0, count: 0 }
    }

    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[at] += 1;
        }
    }

    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(self.counts) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

/// One request, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub took: Duration,
    pub connected: Option<Duration>,
    pub answered: Option<Duration>,
    pub received: u64,
    pub sent: u64,
}

#[derive(Debug)]
struct Cell {
    took: Histogram,
    connected: Histogram,
    headers: Histogram,
    answered: Histogram,
    received: Histogram,
    sent: Histogram,
}

impl Cell {
    fn new() -> Self {
        Self {
            took: Histogram::new(&TIMES),
            connected: Histogram::new(&TIMES),
            headers: Histogram::new(&TIMES),
            answered: Histogram::new(&TIMES),
            received: Histogram::new(&SIZES),
            sent: Histogram::new(&SIZES),
        }
    }

    fn add(&mut self, sample: Sample) {
        self.took.add(sample.took.as_secs_f64());
        if let Some(connected) = sample.connected {
            self.connected.add(connected.as_secs_f64());
        }
        if let Some(answered) = sample.answered {
            self.headers.add(answered.as_secs_f64());
            self.answered.add(sample.took.as_secs_f64());
        }
        self.received.add(sample.received as f64);
        self.sent.add(sample.sent as f64);
    }
}

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Labels {
    pub namespace: String,
    pub ingress: String,
    pub service: String,
    pub host: String,
    pub path: String,
    pub canary: String,
}

/// The counts of one location.
#[derive(Debug)]
pub(crate) struct Stats {
    labels: Labels,
    cells: Mutex<Vec<(Method, u16, Cell)>>,
}

impl Stats {
    pub fn add(&self, method: &Method, status: u16, sample: Sample) {
        let mut cells = self.cells.lock();
        // Few: a linear look is the shortest.
        if let Some((.., cell)) = cells.iter_mut().find(|(m, s, _)| *s == status && m == method) {
            return cell.add(sample);
        }
        // Names of methods are the client's: all that are not standard are one.
        let standard = matches!(method.as_str().len(), 3..=7);
        let method = if standard { method.clone() } else { Method::TRACE };
        let mut cell = Cell::new();
        cell.add(sample);
        if cells.len() < 256 {
            cells.push((method, status, cell));
        }
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    stats: Mutex<HashMap<Labels, Arc<Stats>>>,
    pub accepted: AtomicU64,
    pub active: AtomicU64,
    pub requests: AtomicU64,
    pub reloads: AtomicU64,
    pub errors: AtomicU64,
    pub last_reload: AtomicU64,
    pub lost_lines: AtomicU64,
    /// Ends of certificates, in seconds since 1970, by host.
    pub expiry: Mutex<Vec<(String, i64)>>,
}

impl Metrics {
    pub fn stats(&self, labels: Labels) -> Arc<Stats> {
        let mut all = self.stats.lock();
        let make = || Arc::new(Stats { labels: labels.clone(), cells: Mutex::default() });
        all.entry(labels.clone()).or_insert_with(make).clone()
    }

    /// A new table is in use.
    pub fn reloaded(&self) {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        self.last_reload.store(now, Ordering::Relaxed);
    }

    /// Forgets the counts that no location holds any more.
    pub fn prune(&self) {
        self.stats.lock().retain(|_, stats| Arc::strong_count(stats) > 1);
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut line = |name: &str, kind: &str, labels: &str, value: u64| {
            let name = format!("nginx_ingress_controller_{name}");
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = write!(out, "# TYPE {name} {kind}\n{name}{labels} {value}\n");
        };
        line("nginx_process_connections", "gauge", "state=\"active\"", load(&self.active));
        line("nginx_process_connections_total", "counter", "state=\"accepted\"", load(&self.accepted));
        line("nginx_process_requests_total", "counter", "", load(&self.requests));
        line("success", "counter", "", load(&self.reloads));
        line("errors", "counter", "", load(&self.errors));
        line("config_last_reload_successful", "gauge", "", 1);
        line("config_last_reload_successful_timestamp_seconds", "gauge", "", load(&self.last_reload));
        line("access_log_lines_lost", "counter", "", load(&self.lost_lines));
        let _ = writeln!(out, "# TYPE nginx_ingress_controller_ssl_expire_time_seconds gauge");
        for (host, end) in self.expiry.lock().iter() {
            let _ = writeln!(
                out,
                "nginx_ingress_controller_ssl_expire_time_seconds{{host=\"{}\"}} {end}",
                quoted(host)
            );
        }
        self.locations(&mut out);
        out
    }

    fn locations(&self, out: &mut String) {
        let all: Vec<Arc<Stats>> = self.stats.lock().values().cloned().collect();
        let mut counts = String::new();
        let mut tables: [(&str, String); 6] = [
            ("request_duration_seconds", String::new()),
            ("connect_duration_seconds", String::new()),
            ("header_duration_seconds", String::new()),
            ("response_duration_seconds", String::new()),
            ("request_size", String::new()),
            ("response_size", String::new()),
        ];
        for stats in &all {
            for (method, status, cell) in stats.cells.lock().iter() {
                let labels = stats.labels.text(method, *status);
                let _ = writeln!(counts, "nginx_ingress_controller_requests{{{labels}}} {}", cell.took.count);
                let cells =
                    [&cell.took, &cell.connected, &cell.headers, &cell.answered, &cell.received, &cell.sent];
                for ((name, text), histogram) in tables.iter_mut().zip(cells) {
                    if histogram.count > 0 {
                        histogram.write(&format!("nginx_ingress_controller_{name}"), &labels, text);
                    }
                }
            }
        }
        let _ = write!(out, "# TYPE nginx_ingress_controller_requests counter\n{counts}");
        for (name, text) in tables {
            let _ = write!(out, "# TYPE nginx_ingress_controller_{name} histogram\n{text}");
        }
    }
}

impl Labels {
    fn text(&self, method: &Method, status: u16) -> String {
        format!(
            "namespace=\"{}\",ingress=\"{}\",service=\"{}\",host=\"{}\",path=\"{}\",canary=\"{}\",method=\"{method}\",status=\"{status}\"",
            quoted(&self.namespace),
            quoted(&self.ingress),
            quoted(&self.service),
            quoted(&self.host),
            quoted(&self.path),
            quoted(&self.canary),
        )
    }
}

/// A label's value.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
