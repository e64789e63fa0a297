//! What the proxy has done since it started, under kube-proxy's names, in Prometheus's text format.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Upper bounds of 1 ms, 2 ms, 4 ms, ... as upstream has them for one round of work.
const ROUND: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// Quarter seconds, seconds, five seconds, half minutes up to five minutes.
fn programming() -> Vec<f64> {
    let steps = |from: f64, width: f64, count: u32| (0..count).map(move |i| from + width * f64::from(i));
    let all = steps(0.25, 0.25, 2).chain(steps(1.0, 1.0, 59));
    all.chain(steps(60.0, 5.0, 12)).chain(steps(120.0, 30.0, 7)).collect()
}

struct Histogram {
    bounds: Vec<f64>,
    /// One per bound, and one for what lies above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: Vec<f64>) -> Self {
        Self { counts: vec![0; bounds.len() + 1], bounds, sum: 0.0 }
    }

    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }

    fn render(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        total += self.counts.last().copied().unwrap_or(0);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}\n{name}_sum {}", self.sum);
        let _ = writeln!(out, "{name}_count {total}");
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

struct Counts {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    conntrack: Histogram,
    deleted_entries: u64,
    failures: u64,
    services: u64,
    services_pending: u64,
    endpoints: u64,
    endpoints_pending: u64,
    queued: f64,
    synced: f64,
    no_local: [usize; 2],
    healthz: [u64; 2],
    livez: [u64; 2],
}

/// The counters.
pub(crate) struct Metrics(Mutex<Counts>);

/// Which page was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    Healthz,
    Livez,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let round = || Histogram::new(ROUND.to_vec());
        Self(Mutex::new(Counts {
            sync: round(),
            full: round(),
            partial: round(),
            programming: Histogram::new(programming()),
            conntrack: round(),
            deleted_entries: 0,
            failures: 0,
            services: 0,
            services_pending: 0,
            endpoints: 0,
            endpoints_pending: 0,
            queued: 0.0,
            synced: 0.0,
            no_local: [0; 2],
            healthz: [0; 2],
            livez: [0; 2],
        }))
    }

    /// A Service has changed.
    pub(crate) fn service_changed(&self) {
        let mut counts = self.0.lock();
        counts.services += 1;
        counts.services_pending += 1;
        counts.queued = now();
    }

    /// A slice has changed.
    pub(crate) fn endpoints_changed(&self) {
        let mut counts = self.0.lock();
        counts.endpoints += 1;
        counts.endpoints_pending += 1;
        counts.queued = now();
    }

    /// All that was pending is in the kernel; `whole` when everything was replaced.
    pub(crate) fn committed(&self, whole: bool, took: Duration, since_triggers: &[Duration]) {
        let mut counts = self.0.lock();
        counts.sync.observe(took);
        if whole {
            counts.full.observe(took)
        } else {
            counts.partial.observe(took)
        }
        since_triggers.iter().for_each(|time| counts.programming.observe(*time));
        (counts.services_pending, counts.endpoints_pending) = (0, 0);
        counts.synced = now();
    }

    /// The kernel refused a transaction.
    pub(crate) fn failed(&self) {
        self.0.lock().failures += 1;
    }

    /// Stale connections were looked for, and so many deleted.
    pub(crate) fn reconciled(&self, took: Duration, deleted: usize) {
        let mut counts = self.0.lock();
        counts.conntrack.observe(took);
        counts.deleted_entries += deleted as u64;
    }

    /// How many Services keep to local endpoints and have none: internally, externally.
    pub(crate) fn no_local(&self, internal: usize, external: usize) {
        self.0.lock().no_local = [internal, external];
    }

    /// A probe was answered.
    pub(crate) fn probed(&self, probe: Probe, healthy: bool) {
        let mut counts = self.0.lock();
        let of = match probe {
            Probe::Healthz => &mut counts.healthz,
            Probe::Livez => &mut counts.livez,
        };
        of[usize::from(!healthy)] += 1;
    }

    /// The page.
    pub(crate) fn page(&self) -> String {
        let counts = self.0.lock();
        let mut out = String::new();
        let out = &mut out;
        counts.sync.render(
            out,
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
        );
        counts.full.render(
            out,
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
        );
        counts.partial.render(
            out,
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for partial resyncs",
        );
        counts.programming.render(
            out,
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
        );
        counts.conntrack.render(
            out,
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Latency of the search for stale connection tracking entries in seconds",
        );
        let numbers = [
            (
                "conntrack_reconciler_deleted_entries_total",
                "counter",
                "Stale connection tracking entries deleted",
                counts.deleted_entries as f64,
            ),
            (
                "sync_proxy_rules_nftables_sync_failures_total",
                "counter",
                "Transactions that the kernel refused",
                counts.failures as f64,
            ),
            (
                "sync_proxy_rules_service_changes_total",
                "counter",
                "Changes of Services",
                counts.services as f64,
            ),
            (
                "sync_proxy_rules_service_changes_pending",
                "gauge",
                "Changes of Services that are not in the kernel yet",
                counts.services_pending as f64,
            ),
            (
                "sync_proxy_rules_endpoint_changes_total",
                "counter",
                "Changes of EndpointSlices",
                counts.endpoints as f64,
            ),
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "gauge",
                "Changes of EndpointSlices that are not in the kernel yet",
                counts.endpoints_pending as f64,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "gauge",
                "When the last change came",
                counts.queued,
            ),
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "gauge",
                "When the rules were last brought up to date",
                counts.synced,
            ),
        ];
        for (name, kind, help, value) in numbers {
            let name = format!("kubeproxy_{name}");
            head(out, &name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        let [internal, external] = counts.no_local;
        let labelled = [
            (
                "sync_proxy_rules_no_local_endpoints_total",
                "gauge",
                "Services of a Local traffic policy without an endpoint here",
                "traffic_policy",
                [("internal", internal as u64), ("external", external as u64)],
            ),
            (
                "proxy_healthz_total",
                "counter",
                "Answers of /healthz",
                "code",
                [("200", counts.healthz[0]), ("503", counts.healthz[1])],
            ),
            (
                "proxy_livez_total",
                "counter",
                "Answers of /livez",
                "code",
                [("200", counts.livez[0]), ("503", counts.livez[1])],
            ),
        ];
        for (name, kind, help, label, values) in labelled {
            let name = format!("kubeproxy_{name}");
            head(out, &name, kind, help);
            for (of, value) in values {
                let _ = writeln!(out, "{name}{{{label}=\"{of}\"}} {value}");
            }
        }
        std::mem::take(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let metrics = Metrics::new();
        for millis in [1, 3, 100_000] {
            metrics.committed(millis == 3, Duration::from_millis(millis), &[Duration::from_secs(2)]);
        }
        let page = metrics.page();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"+Inf\"} 3",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"1\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"2\"} 3",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300\"} 3",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
    }
}
