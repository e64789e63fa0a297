//! What is written down of a request: a line of the access log, and a sample for the metrics.
//!
//! What a line says of the request is filled in when it comes, the rest when the answer has been sent. Lines go through
//! a queue to a thread of their own: a slow reader of the log costs lines, which are counted, and never requests.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use http::{Method, StatusCode};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::body::BodyError;
use crate::metrics::{Metrics, Sample, Stats};
use crate::throttle::Place;
use crate::upstream::endpoint::Endpoint;
use crate::variables::{Late, Template, Variable};

/// Lines that wait to be written.
const WAITING: usize = 16_384;

/// Where lines go.
#[derive(Debug, Clone)]
pub(crate) struct Log(SyncSender<String>);

impl Log {
    /// A log that is written to the standard output.
    pub fn stdout() -> Self {
        let (sender, lines) = sync_channel::<String>(WAITING);
        let write = move || {
            while let Ok(first) = lines.recv() {
                let mut out = std::io::BufWriter::new(std::io::stdout().lock());
                let more = std::iter::from_fn(|| lines.try_recv().ok()).take(1024);
                for line in std::iter::once(first).chain(more) {
                    // Nobody reads: the next line may find somebody.
                    let _ = writeln!(out, "{line}");
                }
                let _ = out.flush();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("access-log".into()).spawn(write) {
            tracing::warn!(%error, "no thread for the access log");
        }
        Self(sender)
    }

    #[cfg(test)]
    pub fn to_test() -> (Self, std::sync::mpsc::Receiver<String>) {
        let (sender, lines) = sync_channel(WAITING);
        (Self(sender), lines)
    }
}

/// Where requests are written down.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub metrics: Arc<Metrics>,
    pub log: Log,
}

/// One time that an endpoint was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub endpoint: Arc<Endpoint>,
    /// What it answered, or what its silence counts as; none where the client is at fault.
    pub status: Option<StatusCode>,
    pub answered: bool,
    pub took: Duration,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Record {
    started: Instant,
    ledger: Arc<Ledger>,
    pub method: Method,
    pub status: u16,
    pub stats: Option<Arc<Stats>>,
    /// The line, as far as it is known.
    pub line: Option<Template>,
    /// Bytes of its body that have come, where it has one.
    pub received: Option<Arc<AtomicU64>>,
    pub head_length: u64,
    pub asked: Vec<Asked>,
    pub connected: Option<Duration>,
    pub alternative: Option<String>,
    pub place: Option<Place>,
}

impl Record {
    pub fn new(ledger: Arc<Ledger>, method: Method) -> Self {
        Self {
            started: Instant::now(),
            ledger,
            method,
            status: 0,
            stats: None,
            line: None,
            received: None,
            head_length: 0,
            asked: Vec::new(),
            connected: None,
            alternative: None,
            place: None,
        }
    }

    /// The answer ended before its end.
    pub fn broke(&mut self, error: &BodyError) {
        let at = self.asked.last().map_or("", |asked| &asked.endpoint.text);
        tracing::warn!(endpoint = at, %error, "an answer broke off");
    }

    /// The answer has been sent, or as much of it as could be.
    pub fn finish(self, sent: u64) {
        let took = self.started.elapsed();
        self.ledger.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let received =
            self.head_length + self.received.as_ref().map_or(0, |bytes| bytes.load(Ordering::Relaxed));
        if let Some(stats) = &self.stats {
            let answered = self.asked.last().filter(|asked| asked.answered).map(|a| a.took);
            stats.add(
                &self.method,
                self.status,
                Sample { took, connected: self.connected, answered, received, sent },
            );
        }
        if let Some(line) = &self.line {
            let line = line.fill(|variable, out| {
                if let Variable::Late(late) = variable {
                    self.late(*late, took, received, sent, out);
                }
            });
            if self.ledger.log.0.try_send(line).is_err() {
                self.ledger.metrics.lost_lines.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn late(&self, late: Late, took: Duration, received: u64, sent: u64, out: &mut String) {
        use std::fmt::Write as _;
        let zoned = || Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        let each = |value: &dyn Fn(&Asked) -> String| {
            let all: Vec<String> = self.asked.iter().map(value).collect();
            if all.is_empty() { "-".to_owned() } else { all.join(", ") }
        };
        let status =
            |asked: &Asked| asked.status.map_or_else(|| "-".into(), |status| status.as_str().to_owned());
        let _ = match late {
            Late::Status => write!(out, "{}", self.status),
            Late::BytesSent => write!(out, "{sent}"),
            Late::RequestLength => write!(out, "{received}"),
            Late::RequestTime => write!(out, "{:.3}", took.as_secs_f64()),
            Late::TimeLocal => write!(out, "{}", zoned().strftime("%d/%b/%Y:%H:%M:%S %z")),
            Late::TimeIso => write!(out, "{}", zoned().strftime("%Y-%m-%dT%H:%M:%S%:z")),
            Late::Msec => write!(out, "{:.3}", Timestamp::now().as_millisecond() as f64 / 1000.0),
            Late::UpstreamAddr => out.write_str(&each(&|asked| asked.endpoint.text.to_string())),
            Late::UpstreamStatus => out.write_str(&each(&status)),
            Late::UpstreamTime => out.write_str(&each(&|asked| format!("{:.3}", asked.took.as_secs_f64()))),
            Late::UpstreamLength => write!(out, "{sent}"),
            Late::Alternative => out.write_str(self.alternative.as_deref().unwrap_or_default()),
        };
    }
}

/// A value as it stands in a line: nothing of a client's may end the line or a quotation.
pub(crate) fn escaped(text: &str, json: bool, out: &mut String) {
    use std::fmt::Write as _;
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' if json => write!(out, "\\{c}"),
            '"' | '\\' => write!(out, "\\x{:02X}", u32::from(c)),
            c if c.is_control() && json => write!(out, "\\u{:04x}", u32::from(c)),
            c if c.is_control() => write!(out, "\\x{:02X}", u32::from(c)),
            c => out.write_char(c),
        };
    }
}
