//! Who runs what: from container ids to workers, from Pod names to what the server may show.
//!
//! Written by the workers, read by the runtime's event loop and by the HTTPS server.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use crate::config::HostPort;
use crate::pod;
use crate::worker::run::Msg;
use crate::worker::state::{PodState, Stage};

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
    /// Host ports by Pod uid.
    ports: HashMap<String, Vec<HostPort>>,
}

impl Tables {
    fn publish(&self, to: &watch::Sender<Vec<HostPort>>) {
        let mut all: Vec<HostPort> = self.ports.values().flatten().cloned().collect();
        all.sort();
        to.send_if_modified(|known| {
            let changed = *known != all;
            *known = all;
            changed
        });
    }
}

/// The host ports that a Pod with these addresses asks for; a Pod on the node's network has its ports there anyway.
fn ports_of(pod: &Pod, ips: &[IpAddr]) -> Vec<HostPort> {
    if pod::host_network(pod) {
        return Vec::new();
    }
    let mut wanted = Vec::new();
    for pod::WantedPort { host_ip, host_port, protocol, container_port } in pod::wanted_ports(pod) {
        wanted.extend(ips.iter().filter(|ip| host_ip.is_none_or(|h| h.is_ipv4() == ip.is_ipv4())).map(
            |ip| HostPort { host_ip, host_port, protocol: protocol.to_owned(), pod_ip: *ip, container_port },
        ));
    }
    wanted
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
    }

    /// Wakes whenever some container has begun or ended.
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    /// Passes news on; false when nobody knows the container.
    pub fn deliver(&self, id: &str, msg: Msg) -> bool {
        let route = self.tables.read().routes.get(id).cloned();
        route.is_some_and(|to| to.send(msg).is_ok())
    }

    /// Shows a Pod's present state to the server, and its host ports to the service proxy.
    pub fn show(&self, pod: &Arc<Pod>, state: &PodState, host_ports: &watch::Sender<Vec<HostPort>>) {
        let view = |c: &crate::worker::state::ContainerState| ContainerView {
            id: c.running_id().map(String::from),
            attempt: c.restarts,
            started: c.running_id().is_some() || c.ended().is_some() || c.last.is_some(),
            waiting: c.waiting.as_ref().map(|w| w.reason.clone()),
        };
        let containers: BTreeMap<String, ContainerView> =
            state.containers.iter().map(|(name, c)| (name.clone(), view(c))).collect();
        let key = (pod::namespace(pod).to_string(), pod::name(pod).to_string());
        let wanted = if state.torn_down == Stage::Todo { ports_of(pod, &state.ips) } else { Vec::new() };
        let mut tables = self.tables.write();
        let before = tables.pods.insert(key, PodView { pod: pod.clone(), containers: containers.clone() });
        let ids = |c: &BTreeMap<String, ContainerView>| c.values().map(|c| c.id.clone()).collect::<Vec<_>>();
        if before.is_some_and(|before| ids(&before.containers) != ids(&containers)) {
            self.ends.send_modify(|n| *n += 1);
        }
        let uid = pod::uid(pod);
        if tables.ports.get(uid).map_or(&[][..], Vec::as_slice) != wanted {
            tables.ports.insert(uid.to_string(), wanted);
            tables.publish(host_ports);
        }
    }

    /// Forgets a Pod, unless a successor has taken its name.
    pub fn hide(&self, gone: &Pod, host_ports: &watch::Sender<Vec<HostPort>>) {
        let key = (pod::namespace(gone).to_string(), pod::name(gone).to_string());
        let mut tables = self.tables.write();
        if tables.pods.get(&key).is_some_and(|view| pod::uid(&view.pod) == pod::uid(gone)) {
            tables.pods.remove(&key);
            self.ends.send_modify(|n| *n += 1);
        }
        if tables.ports.remove(pod::uid(gone)).is_some() {
            tables.publish(host_ports);
        }
    }

    /// The Pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.tables.read().pods.get(&(namespace.to_string(), name.to_string())).cloned()
    }

    /// Whether some worker waits for news of this container.
    pub fn knows(&self, id: &str) -> bool {
        self.tables.read().routes.contains_key(id)
    }

    /// All Pods.
    pub fn pods(&self) -> Vec<PodView> {
        self.tables.read().pods.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn host_ports_come_and_go_with_their_pods() {
        let pod = Arc::new(pod::tests::pod(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"},
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}, {"containerPort": 9}]}]}}),
        ));
        let directory = Directory::default();
        let ports = watch::Sender::new(Vec::new());
        let mut state = PodState::default();
        directory.show(&pod, &state, &ports);
        assert_eq!(*ports.borrow(), []);
        state.ips = vec!["10.244.0.5".parse().unwrap()];
        directory.show(&pod, &state, &ports);
        let text = |p: &HostPort| {
            format!("{:?} {} {} -> {}:{}", p.host_ip, p.protocol, p.host_port, p.pod_ip, p.container_port)
        };
        let shown: Vec<String> = ports.borrow().iter().map(text).collect();
        assert_eq!(shown, ["None TCP 8080 -> 10.244.0.5:80", "Some(127.0.0.1) UDP 53 -> 10.244.0.5:53"]);
        directory.hide(&pod, &ports);
        assert_eq!(*ports.borrow(), []);
    }
}
