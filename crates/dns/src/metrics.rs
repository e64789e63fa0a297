//! Counters under CoreDNS's names, in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use parking_lot::Mutex;

/// What the server has done since it started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, String), u64>>,
    responses: Mutex<BTreeMap<String, u64>>,
    pub(crate) forwarded: AtomicU64,
}

impl Metrics {
    pub(crate) fn request(&self, transport: &'static str, kind: RecordType) {
        // Types nobody knows share one name, so that a client cannot grow the list.
        let kind = match kind {
            RecordType::Unknown(_) => "other".to_owned(),
            kind => kind.to_string(),
        };
        *self.requests.lock().entry((transport, kind)).or_default() += 1;
    }

    pub(crate) fn response(&self, code: ResponseCode) {
        *self.responses.lock().entry(code_name(code)).or_default() += 1;
    }

    /// The page.
    pub(crate) fn page(&self) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        };
        head(&mut out, "coredns_dns_requests_total", "Counter of DNS requests made per protocol and type.");
        for ((transport, kind), count) in self.requests.lock().iter() {
            let _ =
                writeln!(out, "coredns_dns_requests_total{{proto=\"{transport}\",type=\"{kind}\"}} {count}");
        }
        head(&mut out, "coredns_dns_responses_total", "Counter of response status codes.");
        for (code, count) in self.responses.lock().iter() {
            let _ = writeln!(out, "coredns_dns_responses_total{{rcode=\"{code}\"}} {count}");
        }
        head(&mut out, "coredns_forward_requests_total", "Counter of requests made to upstreams.");
        let _ = writeln!(out, "coredns_forward_requests_total {}", self.forwarded.load(Ordering::Relaxed));
        out
    }
}

fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => format!("{other:?}").to_ascii_uppercase(),
    }
}
