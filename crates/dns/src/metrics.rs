//! Counters under CoreDNS's names, in Prometheus's text format. Counting takes no lock where questions are answered.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use hickory_proto::rr::{DNSClass, RecordType};
use parking_lot::Mutex;

use crate::config::Config;
use crate::respond::Transport;
use crate::wire::code;

/// A count.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of times, in seconds: CoreDNS's.
const SECONDS: [f64; 16] = [
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192,
];
/// Upper bounds of sizes, in octets: CoreDNS's.
const OCTETS: [f64; 14] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3];

/// How often values lay below which bound.
#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    counts: [Count; N],
    /// Above the last bound.
    above: Count,
    /// In millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| Count::default()),
            above: Count::default(),
            sum: AtomicU64::new(0),
        }
    }

    fn note(&self, value: f64) {
        match self.bounds.iter().position(|bound| value <= *bound) {
            Some(index) => self.counts[index].up(),
            None => self.above.up(),
        }
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count.get();
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        below += self.above.get();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {below}");
    }
}

/// The types that are counted by name; all others share one, so that a client cannot grow the list.
const KINDS: [(u16, &str); 18] = [
    (1, "A"),
    (28, "AAAA"),
    (5, "CNAME"),
    (33, "SRV"),
    (12, "PTR"),
    (16, "TXT"),
    (6, "SOA"),
    (2, "NS"),
    (15, "MX"),
    (255, "ANY"),
    (65, "HTTPS"),
    (35, "NAPTR"),
    (43, "DS"),
    (48, "DNSKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (50, "NSEC3"),
    (0, "other"),
];
const CODES: usize = 24;

/// Who has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plugin {
    None,
    Kubernetes,
    Hosts,
    Template,
    Cache,
    Forward,
    Any,
}

const PLUGINS: [&str; 7] = ["", "kubernetes", "hosts", "template", "cache", "forward", "any"];

/// What has been asked of one zone.
#[derive(Debug)]
pub(crate) struct Counters {
    /// By transport, family and type.
    requests: [[[Count; KINDS.len()]; 2]; 2],
    /// By who has answered, and code.
    responses: [[Count; CODES]; PLUGINS.len()],
    dnssec: Count,
    durations: Histogram<16>,
    request_sizes: [Histogram<14>; 2],
    response_sizes: [Histogram<14>; 2],
}

impl Default for Counters {
    fn default() -> Self {
        let counts = || std::array::from_fn(|_| Count::default());
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| counts())),
            responses: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())),
            dnssec: Count::default(),
            durations: Histogram::new(&SECONDS),
            request_sizes: std::array::from_fn(|_| Histogram::new(&OCTETS)),
            response_sizes: std::array::from_fn(|_| Histogram::new(&OCTETS)),
        }
    }
}

impl Counters {
    pub(crate) fn asked(&self, transport: Transport, peer: IpAddr, kind: u16, dnssec: bool, size: usize) {
        let index =
            KINDS.iter().position(|(known, _)| *known == kind && kind != 0).unwrap_or(KINDS.len() - 1);
        let family = usize::from(peer.is_ipv6());
        self.requests[transport as usize][family][index].up();
        self.request_sizes[transport as usize].note(size as f64);
        if dnssec {
            self.dnssec.up();
        }
    }

    pub(crate) fn answered(&self, transport: Transport, by: Plugin, code: u16, size: usize, took: Duration) {
        self.responses[by as usize][usize::from(code).min(CODES - 1)].up();
        self.response_sizes[transport as usize].note(size as f64);
        self.durations.note(took.as_secs_f64());
    }
}

/// What is remembered, and how well.
#[derive(Debug, Default)]
pub(crate) struct CacheCounts {
    hits: [Count; 2],
    misses: Count,
    prefetched: Count,
    stale: Count,
}

impl CacheCounts {
    pub(crate) fn hit(&self, code: u16) {
        self.hits[usize::from(code != code::NOERROR)].up();
    }

    pub(crate) fn miss(&self) {
        self.misses.up();
    }

    pub(crate) fn prefetch(&self) {
        self.prefetched.up();
    }

    pub(crate) fn stale(&self) {
        self.stale.up();
    }
}

/// How upstreams fare.
#[derive(Debug, Default)]
pub(crate) struct ForwardCounts {
    answered: Mutex<BTreeMap<(String, u16), Histogram<16>>>,
    unhealthy: Mutex<BTreeMap<String, u64>>,
    all_down: Count,
    rejected: Count,
}

impl ForwardCounts {
    pub(crate) fn answered(&self, to: &str, code: u16, took: Duration) {
        let mut all = self.answered.lock();
        all.entry((to.to_owned(), code)).or_insert_with(|| Histogram::new(&SECONDS)).note(took.as_secs_f64());
    }

    pub(crate) fn unhealthy(&self, to: &str) {
        *self.unhealthy.lock().entry(to.to_owned()).or_default() += 1;
    }

    pub(crate) fn all_down(&self) {
        self.all_down.up();
    }

    pub(crate) fn rejected(&self) {
        self.rejected.up();
    }
}

/// Panics are of the whole process.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// From now on panics are counted, and go on as before.
pub(crate) fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
    });
}

/// What the server has done since it started.
#[derive(Debug)]
pub(crate) struct Metrics {
    zones: Mutex<BTreeMap<String, Arc<Counters>>>,
    pub(crate) cache: CacheCounts,
    pub(crate) forward: ForwardCounts,
    autopath: Count,
    reload_failed: Count,
    programming: Histogram<20>,
}

/// Upper bounds of the time from a change to its answer: CoreDNS's, which double from a millisecond on.
const PROGRAMMING: [f64; 20] = {
    let mut bounds = [0.001; 20];
    let mut i = 1;
    while i < bounds.len() {
        bounds[i] = bounds[i - 1] * 2.0;
        i += 1;
    }
    bounds
};

impl Default for Metrics {
    fn default() -> Self {
        Self {
            zones: Mutex::default(),
            cache: CacheCounts::default(),
            forward: ForwardCounts::default(),
            autopath: Count::default(),
            reload_failed: Count::default(),
            programming: Histogram::new(&PROGRAMMING),
        }
    }
}

impl Metrics {
    /// Where questions of a zone are counted, whatever Corefile holds.
    pub(crate) fn of(&self, zone: &str) -> Arc<Counters> {
        self.zones.lock().entry(zone.to_owned()).or_default().clone()
    }

    pub(crate) fn completed(&self) {
        self.autopath.up();
    }

    /// A change of a headless Service's endpoints came about so long ago, and is told now.
    pub(crate) fn programmed(&self, took: Duration) {
        self.programming.note(took.as_secs_f64());
    }

    pub(crate) fn reload_failed(&self) {
        self.reload_failed.up();
    }

    /// The page.
    pub(crate) fn page(&self, config: &Config) -> String {
        let mut out = String::new();
        let version = env!("CARGO_PKG_VERSION");
        head(&mut out, "coredns_build_info", "gauge", "A metric with a constant '1' value.");
        let _ =
            writeln!(out, "coredns_build_info{{goversion=\"\",revision=\"skiff\",version=\"{version}\"}} 1");
        let zones = self.zones.lock();
        requests(&mut out, &zones);
        responses(&mut out, &zones);
        sizes(&mut out, &zones);
        head(
            &mut out,
            "coredns_plugin_enabled",
            "gauge",
            "A metric that indicates whether a plugin is enabled.",
        );
        for server in &config.servers {
            for plugin in &server.plugins {
                let zone = server.label();
                let _ = writeln!(out, "coredns_plugin_enabled{{name=\"{plugin}\",{}}} 1", labels(&zone));
            }
        }
        head(&mut out, "coredns_panics_total", "counter", "Number of panics.");
        let _ = writeln!(out, "coredns_panics_total {}", PANICS.load(Ordering::Relaxed));
        self.cache_page(&mut out, config);
        self.forward_page(&mut out, config);
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        let help = "Histogram of the time (in seconds) it took to program a dns instance.";
        head(&mut out, name, "histogram", help);
        self.programming.write(&mut out, name, "service_kind=\"headless_with_selector\"");
        templates(&mut out, config);
        let name = "coredns_autopath_success_total";
        head(&mut out, name, "counter", "Counter of requests that did autopath.");
        let _ = writeln!(out, "{name}{{server=\"dns://:53\"}} {}", self.autopath.get());
        let name = "coredns_reload_failed_total";
        head(&mut out, name, "counter", "Counter of the number of failed reload attempts.");
        let _ = writeln!(out, "{name} {}", self.reload_failed.get());
        let name = "coredns_reload_version_info";
        head(&mut out, name, "gauge", "A metric with constant '1' value labeled by hash, and value.");
        let _ = writeln!(out, "{name}{{hash=\"sha512\",value=\"{}\"}} 1", config.digest);
        head(
            &mut out,
            "coredns_hosts_entries",
            "gauge",
            "The combined number of entries in hosts and Corefile.",
        );
        let hosts: usize = config.servers.iter().filter_map(|s| Some(s.hosts.as_ref()?.0.len())).sum();
        let _ = writeln!(out, "coredns_hosts_entries {hosts}");
        out
    }

    fn cache_page(&self, out: &mut String, config: &Config) {
        const SERVER: &str = "server=\"dns://:53\"";
        head(out, "coredns_cache_entries", "gauge", "The number of elements in the cache.");
        for server in &config.servers {
            let kept = server.forwards.iter().filter_map(|forward| forward.forwarder.kept());
            let (success, denial) = kept.fold((0, 0), |sum, kept| (sum.0 + kept.0, sum.1 + kept.1));
            let zone = server.label();
            for (kind, count) in [("success", success), ("denial", denial)] {
                let _ = writeln!(
                    out,
                    "coredns_cache_entries{{{SERVER},type=\"{kind}\",view=\"\",zones=\"{zone}\"}} {count}"
                );
            }
        }
        let name = "coredns_cache_evictions_total";
        head(out, name, "counter", "The count of cache evictions.");
        for server in &config.servers {
            let evicted = server.forwards.iter().filter_map(|forward| forward.forwarder.evicted());
            let (success, denial) = evicted.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
            let zone = server.label();
            for (kind, count) in [("success", success), ("denial", denial)] {
                let _ =
                    writeln!(out, "{name}{{{SERVER},type=\"{kind}\",view=\"\",zones=\"{zone}\"}} {count}");
            }
        }
        head(out, "coredns_cache_hits_total", "counter", "The count of cache hits.");
        for (kind, count) in ["success", "denial"].iter().zip(&self.cache.hits) {
            let _ = writeln!(out, "coredns_cache_hits_total{{{SERVER},type=\"{kind}\"}} {}", count.get());
        }
        let all: u64 = self.cache.hits.iter().chain([&self.cache.misses]).map(Count::get).sum();
        let counts = [
            ("requests", "The count of cache requests.", all),
            ("misses", "The count of cache misses.", self.cache.misses.get()),
            (
                "prefetch",
                "The number of times the cache has prefetched a cached item.",
                self.cache.prefetched.get(),
            ),
            (
                "served_stale",
                "The number of requests served from stale cache entries.",
                self.cache.stale.get(),
            ),
        ];
        for (name, help, count) in counts {
            head(out, &format!("coredns_cache_{name}_total"), "counter", help);
            let _ = writeln!(out, "coredns_cache_{name}_total{{{SERVER}}} {count}");
        }
    }

    fn forward_page(&self, out: &mut String, config: &Config) {
        let answered = self.forward.answered.lock();
        let name = "coredns_proxy_request_duration_seconds";
        head(out, name, "histogram", "Histogram of the time each request took.");
        for ((to, code), times) in answered.iter() {
            let code = code::name(*code);
            times.write(out, name, &format!("proxy_name=\"forward\",rcode=\"{code}\",to=\"{to}\""));
        }
        head(out, "coredns_forward_requests_total", "counter", "Counter of requests made per upstream.");
        let mut per_server: BTreeMap<&str, u64> = BTreeMap::new();
        for ((to, _), times) in answered.iter() {
            *per_server.entry(to).or_default() +=
                times.counts.iter().chain([&times.above]).map(Count::get).sum::<u64>();
        }
        for (to, count) in per_server {
            let _ = writeln!(out, "coredns_forward_requests_total{{to=\"{to}\"}} {count}");
        }
        let name = "coredns_proxy_healthcheck_failures_total";
        head(out, name, "counter", "Counter of the number of failed healthchecks.");
        for (to, count) in self.forward.unhealthy.lock().iter() {
            let _ = writeln!(out, "{name}{{proxy_name=\"forward\",to=\"{to}\"}} {count}");
        }
        connections(out, config);
        for (name, help, count) in [
            (
                "coredns_forward_healthcheck_broken_total",
                "Counter of the number of complete failures of the healthchecks.",
                &self.forward.all_down,
            ),
            (
                "coredns_forward_max_concurrent_rejects_total",
                "Counter of the queries rejected because of max_concurrent.",
                &self.forward.rejected,
            ),
        ] {
            head(out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", count.get());
        }
    }
}

/// How often templates were about a question.
fn templates(out: &mut String, config: &Config) {
    let mut all: BTreeMap<(String, u16, u16), u64> = BTreeMap::new();
    for server in &config.servers {
        for template in &server.templates {
            *all.entry((server.label(), template.class, template.kind)).or_default() += template.matched();
        }
    }
    let name = "coredns_template_matches_total";
    head(out, name, "counter", "Counter of template regex matches.");
    for ((zone, class, kind), count) in all {
        let (class, kind) = (DNSClass::from(class), RecordType::from(kind));
        let _ = writeln!(out, "{name}{{class=\"{class}\",{},type=\"{kind}\"}} {count}", labels(&zone));
    }
}

/// Connections to upstreams, which two directives may share.
fn connections(out: &mut String, config: &Config) {
    let mut all: BTreeMap<(String, bool), (u64, u64)> = BTreeMap::new();
    for forward in config.servers.iter().flat_map(|server| &server.forwards) {
        for (to, by_tls, reused, opened) in forward.forwarder.connections() {
            let sum = all.entry((to, by_tls)).or_default();
            *sum = (sum.0 + reused, sum.1 + opened);
        }
    }
    for (name, help, which) in [
        (
            "coredns_proxy_conn_cache_hits_total",
            "Counter of connection cache hits per upstream and protocol.",
            0,
        ),
        (
            "coredns_proxy_conn_cache_misses_total",
            "Counter of connection cache misses per upstream and protocol.",
            1,
        ),
    ] {
        head(out, name, "counter", help);
        for ((to, by_tls), (reused, opened)) in &all {
            let proto = if *by_tls { "tcp-tls" } else { "tcp" };
            let count = if which == 0 { reused } else { opened };
            let _ = writeln!(out, "{name}{{proto=\"{proto}\",proxy_name=\"forward\",to=\"{to}\"}} {count}");
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labels(zone: &str) -> String {
    format!("server=\"dns://:53\",view=\"\",zone=\"{zone}\"")
}

const PROTOCOLS: [&str; 2] = ["udp", "tcp"];

fn requests(out: &mut String, zones: &BTreeMap<String, Arc<Counters>>) {
    head(
        out,
        "coredns_dns_requests_total",
        "counter",
        "Counter of DNS requests made per zone, protocol and family.",
    );
    for (zone, counters) in zones {
        for (proto, families) in PROTOCOLS.iter().zip(&counters.requests) {
            for (family, kinds) in families.iter().enumerate() {
                for ((_, kind), count) in KINDS.iter().zip(kinds).filter(|(_, count)| count.get() > 0) {
                    let _ = writeln!(
                        out,
                        "coredns_dns_requests_total{{family=\"{}\",proto=\"{proto}\",{},type=\"{kind}\"}} {}",
                        family + 1,
                        labels(zone),
                        count.get()
                    );
                }
            }
        }
    }
    head(
        out,
        "coredns_dns_do_requests_total",
        "counter",
        "Counter of DNS requests with DO bit set per zone.",
    );
    for (zone, counters) in zones {
        let _ = writeln!(out, "coredns_dns_do_requests_total{{{}}} {}", labels(zone), counters.dnssec.get());
    }
}

fn responses(out: &mut String, zones: &BTreeMap<String, Arc<Counters>>) {
    head(out, "coredns_dns_responses_total", "counter", "Counter of response status codes.");
    for (zone, counters) in zones {
        for (plugin, codes) in PLUGINS.iter().zip(&counters.responses) {
            for (code, count) in codes.iter().enumerate().filter(|(_, count)| count.get() > 0) {
                let code = code::name(code as u16);
                let labels = labels(zone);
                let count = count.get();
                let _ = writeln!(
                    out,
                    "coredns_dns_responses_total{{plugin=\"{plugin}\",rcode=\"{code}\",{labels}}} {count}"
                );
            }
        }
    }
}

fn sizes(out: &mut String, zones: &BTreeMap<String, Arc<Counters>>) {
    let name = "coredns_dns_request_duration_seconds";
    head(out, name, "histogram", "Histogram of the time (in seconds) each request took per zone.");
    for (zone, counters) in zones {
        counters.durations.write(out, name, &labels(zone));
    }
    for (name, help, which) in [
        (
            "coredns_dns_request_size_bytes",
            "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.",
            0,
        ),
        ("coredns_dns_response_size_bytes", "Size of the returned response in bytes.", 1),
    ] {
        head(out, name, "histogram", help);
        for (zone, counters) in zones {
            let all = if which == 0 { &counters.request_sizes } else { &counters.response_sizes };
            for (proto, sizes) in PROTOCOLS.iter().zip(all) {
                sizes.write(out, name, &format!("proto=\"{proto}\",{}", labels(zone)));
            }
        }
    }
}
