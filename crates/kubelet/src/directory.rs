//! Who runs what: from container ids to workers, from Pod names to what the server may show.
//!
//! Written by the workers, read by the runtime's event loop and by the HTTPS server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use crate::pod;
use crate::worker::run::Msg;
use crate::worker::state::PodState;

/// A container as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerView {
    /// The runtime's id while it runs.
    pub id: Option<String>,
    /// Number of the present (or last) attempt.
    pub attempt: u32,
    /// It has been started at least once.
    pub started: bool,
    /// Why it waits, if it does.
    pub waiting: Option<String>,
}

/// A Pod as the server sees it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The object.
    pub pod: Arc<Pod>,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerView>,
}

#[derive(Default)]
struct Tables {
    routes: HashMap<String, mpsc::UnboundedSender<Msg>>,
    pods: HashMap<(String, String), PodView>,
}

/// The directory; one per agent.
#[derive(Default)]
pub struct Directory {
    tables: RwLock<Tables>,
    ends: watch::Sender<u64>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("pods", &self.tables.read().pods.len()).finish()
    }
}

impl Directory {
    /// News of this container go to that worker.
    pub fn route(&self, id: &str, to: mpsc::UnboundedSender<Msg>) {
        self.tables.write().routes.insert(id.into(), to);
    }

    /// No more news of this container.
    pub fn unroute(&self, id: &str) {
        self.tables.write().routes.remove(id);
        self.ends.send_modify(|n| *n += 1);
    }

    /// Wakes whenever some container has ended.
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    /// Passes news on; false when nobody knows the container.
    pub fn deliver(&self, id: &str, msg: Msg) -> bool {
        let route = self.tables.read().routes.get(id).cloned();
        route.is_some_and(|to| to.send(msg).is_ok())
    }

    /// Shows a Pod's present state to the server.
    pub fn show(&self, pod: &Arc<Pod>, state: &PodState) {
        let view = |c: &crate::worker::state::ContainerState| ContainerView {
            id: c.running_id().map(String::from),
            attempt: c.restarts,
            started: c.running_id().is_some() || c.ended().is_some() || c.last.is_some(),
            waiting: c.waiting.as_ref().map(|w| w.reason.clone()),
        };
        let containers = state.containers.iter().map(|(name, c)| (name.clone(), view(c))).collect();
        let key = (pod::namespace(pod).to_string(), pod::name(pod).to_string());
        self.tables.write().pods.insert(key, PodView { pod: pod.clone(), containers });
    }

    /// Forgets a Pod, unless a successor has taken its name.
    pub fn hide(&self, gone: &Pod) {
        let key = (pod::namespace(gone).to_string(), pod::name(gone).to_string());
        let mut tables = self.tables.write();
        if tables.pods.get(&key).is_some_and(|view| pod::uid(&view.pod) == pod::uid(gone)) {
            tables.pods.remove(&key);
        }
    }

    /// The Pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.tables.read().pods.get(&(namespace.to_string(), name.to_string())).cloned()
    }

    /// All Pods.
    pub fn pods(&self) -> Vec<PodView> {
        self.tables.read().pods.values().cloned().collect()
    }
}
