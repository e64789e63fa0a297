//! Counters of requests, in the Prometheus text format under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::identity::Attributes;

type Key = (String, String, String, u16);

/// Counts per verb, resource, subresource and code.
#[derive(Default)]
pub struct Metrics(Mutex<BTreeMap<Key, (u64, Duration)>>);

impl Metrics {
    /// Counts one answered request. Paths that are no resource share one name, so that clients cannot grow the map.
    pub fn count(&self, request: &Attributes, code: u16, took: Duration) {
        let resource =
            if request.is_resource && code != 404 { request.resource.clone() } else { String::new() };
        let key = (request.verb.clone(), resource, request.subresource.clone(), code);
        let mut all = self.0.lock();
        if all.len() >= 4096 && !all.contains_key(&key) {
            return;
        }
        let entry = all.entry(key).or_default();
        entry.0 += 1;
        entry.1 += took;
    }

    /// The text that scrapers read.
    pub fn render(&self) -> String {
        let mut counts = String::from(
            "# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n",
        );
        let mut times = String::from(
            "# HELP apiserver_request_duration_seconds Time until the answer began.\n# TYPE apiserver_request_duration_seconds summary\n",
        );
        for ((verb, resource, sub, code), (count, took)) in self.0.lock().iter() {
            let verb = verb.to_uppercase();
            let labels =
                format!("verb=\"{verb}\",resource=\"{resource}\",subresource=\"{sub}\",code=\"{code}\"");
            let _ = writeln!(counts, "apiserver_request_total{{{labels}}} {count}");
            let _ =
                writeln!(times, "apiserver_request_duration_seconds_sum{{{labels}}} {}", took.as_secs_f64());
            let _ = writeln!(times, "apiserver_request_duration_seconds_count{{{labels}}} {count}");
        }
        counts + &times
    }
}
