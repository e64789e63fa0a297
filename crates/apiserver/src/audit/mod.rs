//! The audit log: who asked for what, and what came of it, as lines of `audit.k8s.io/v1.Event` in a file.
//!
//! A request costs here only what its events are made from: its head, its annotations, and shared bytes of its bodies.
//! One thread makes the lines and writes them; what it cannot take in time is lost and counted.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>

mod event;
mod log;
pub mod policy;
mod record;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use policy::{Level, Policy};
pub use record::{Head, Record};

/// Names the events of a request: clients may choose it, and get it back.
pub const ID: HeaderName = HeaderName::from_static("audit-id");

/// An audit log that is wanted.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is logged.
    pub policy: Arc<Policy>,
    /// The file that is written to.
    pub path: PathBuf,
    /// It is set aside before it grows beyond so many bytes.
    pub max_size: u64,
    /// How many that were set aside are kept.
    pub max_backups: usize,
}

/// The audit log of a server.
pub struct Audit {
    policy: Arc<Policy>,
    log: log::Log,
    counters: Arc<Counters>,
}

/// What happened to events; upstream's metrics.
#[derive(Default)]
struct Counters {
    events: AtomicU64,
    errors: AtomicU64,
    levels: [AtomicU64; 4],
}

impl Audit {
    /// Opens the file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(settings: &Settings) -> std::io::Result<Arc<Self>> {
        let counters = Arc::new(Counters::default());
        let file = log::File::open(&settings.path, settings.max_size, settings.max_backups)?;
        let log = log::Log::start(file, counters.clone())?;
        Ok(Arc::new(Audit { policy: settings.policy.clone(), log, counters }))
    }

    /// Upstream's metrics.
    pub fn render(&self) -> String {
        let (events, errors) = (&self.counters.events, &self.counters.errors);
        let mut out = format!(
            "# HELP apiserver_audit_event_total Audit events that were made.\n# TYPE apiserver_audit_event_total counter\n\
             apiserver_audit_event_total {}\n\
             # HELP apiserver_audit_error_total Audit events that were lost.\n# TYPE apiserver_audit_error_total counter\n\
             apiserver_audit_error_total{{plugin=\"log\"}} {}\n\
             # HELP apiserver_audit_level_total Requests by the level that the policy gives them.\n\
             # TYPE apiserver_audit_level_total counter\n",
            events.load(Ordering::Relaxed),
            errors.load(Ordering::Relaxed)
        );
        for level in Level::ALL {
            let count = self.counters.levels[level as usize].load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_audit_level_total{{level=\"{}\"}} {count}", level.name());
        }
        out
    }
}

/// The id of a request: its client's, else a new one.
pub fn id_of(headers: &HeaderMap) -> HeaderValue {
    if let Some(given) = headers.get(&ID).filter(|v| !v.is_empty() && v.len() <= 64 && v.to_str().is_ok()) {
        return given.clone();
    }
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    HeaderValue::from_str(&id.hyphenated().to_string())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}
