//! Connections that a node has seen, with names, verdict and the policy that decided; and who wants to know of them.
//!
//! Refused and audited ones are always heard of, as Events need them, and the last ones are remembered. Allowed ones
//! are only heard of while somebody looks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

/// Refused and audited connections that are remembered.
const REMEMBERED: usize = 1000;
/// Connections that a watcher may be behind before it misses some.
const BACKLOG: usize = 4096;

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It passed.
    Allowed,
    /// It did not.
    Denied,
    /// It passed, and would not if the policies that say so were enforced.
    Audited,
}

/// One end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Its address and port; 0 where the protocol has no ports.
    pub address: SocketAddr,
    /// The Pod that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// When it was seen first.
    pub time: Timestamp,
    /// The node that saw it.
    pub node: String,
    /// What became of it.
    pub outcome: Outcome,
    /// `TCP`, `UDP`, `SCTP`, or the number of another one.
    pub protocol: String,
    /// Who asked.
    pub from: Place,
    /// Who was asked, once Services are translated.
    pub to: Place,
    /// Where it was sent before that, if it was to a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<SocketAddr>,
    /// The side that decided: `egress` is the source's, `ingress` the destination's. None: no policy speaks of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// The rule that permits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl Seen {
    /// Whether one of its ends is that Pod, `NAMESPACE/NAME`.
    pub fn concerns(&self, pod: &str) -> bool {
        [&self.from, &self.to].iter().any(|place| place.pod.as_deref() == Some(pod))
    }
}

/// Where a node's connections are told, and listened to; clones are the same.
#[derive(Debug, Clone)]
pub struct Flows(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    recent: Mutex<VecDeque<Arc<Seen>>>,
    refused: broadcast::Sender<Arc<Seen>>,
    allowed: broadcast::Sender<Arc<Seen>>,
    watched: Notify,
    questions: mpsc::UnboundedSender<Question>,
    asked: Mutex<Option<mpsc::UnboundedReceiver<Question>>>,
}

/// Somebody wants to know the connections that are tracked now.
pub(crate) type Question = oneshot::Sender<Vec<Seen>>;

impl Default for Flows {
    fn default() -> Self {
        let (questions, asked) = mpsc::unbounded_channel();
        Self(Arc::new(Hub {
            recent: Mutex::new(VecDeque::new()),
            refused: broadcast::channel(BACKLOG).0,
            allowed: broadcast::channel(BACKLOG).0,
            watched: Notify::new(),
            questions,
            asked: Mutex::new(Some(asked)),
        }))
    }
}

impl Flows {
    /// The last refused and audited connections, oldest first.
    pub fn recent(&self) -> Vec<Arc<Seen>> {
        self.0.recent.lock().iter().cloned().collect()
    }

    /// Refused and audited connections from now on.
    pub fn refused(&self) -> broadcast::Receiver<Arc<Seen>> {
        self.0.refused.subscribe()
    }

    /// Allowed connections from now on.
    pub fn allowed(&self) -> broadcast::Receiver<Arc<Seen>> {
        let receiver = self.0.allowed.subscribe();
        self.0.watched.notify_one();
        receiver
    }

    /// The connections that the kernel tracks now; none where nobody watches the node.
    pub async fn current(&self) -> Vec<Seen> {
        let (question, answer) = oneshot::channel();
        match self.0.questions.send(question) {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    pub(crate) fn tell(&self, seen: Seen) {
        let seen = Arc::new(seen);
        if seen.outcome == Outcome::Allowed {
            // Without a receiver nobody looks.
            let _ = self.0.allowed.send(seen);
            return;
        }
        let mut recent = self.0.recent.lock();
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(seen.clone());
        drop(recent);
        let _ = self.0.refused.send(seen);
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.0.allowed.receiver_count() > 0
    }

    /// Resolves when somebody has begun to look at allowed connections.
    pub(crate) async fn watched(&self) {
        self.0.watched.notified().await;
    }

    /// The questions; once.
    pub(crate) fn questions(&self) -> Option<mpsc::UnboundedReceiver<Question>> {
        self.0.asked.lock().take()
    }
}
