//! Follows the API and keeps the zone up to date.
//!
//! The zone is all that is kept: an object is read, what it says about names is taken, and it is dropped. While the API
//! server is away, the zone stays as it is.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::endpoints::service_of;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::zone::{Kind, Options, Zone};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(2);
const GIVE_BACK: Duration = Duration::from_secs(10);
/// Objects of one answer of a list: little is read at once, as little is kept of it.
const PAGE: u32 = 100;

/// When the change of a Pod came about that a slice follows.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A kind that names come from.
trait Source: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + 'static {
    /// Takes in what the object says.
    fn apply(&self, zone: &mut Zone);
    /// When that came about, where it is to be measured how long it took until it was known here.
    fn came_about(&self, _: &Zone) -> Option<Timestamp> {
        None
    }
    /// Forgets the object.
    fn remove(zone: &mut Zone, namespace: &str, name: &str);
    /// Forgets all objects but these, `NAMESPACE/NAME`.
    fn retain(zone: &mut Zone, keep: &HashSet<String>);
}

fn parts<K: kube::Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Source for Service {
    fn apply(&self, zone: &mut Zone) {
        let (namespace, name) = parts(self);
        zone.set_service(&namespace, &name, Some(self));
    }

    fn remove(zone: &mut Zone, namespace: &str, name: &str) {
        zone.set_service(namespace, name, None);
    }

    fn retain(zone: &mut Zone, keep: &HashSet<String>) {
        zone.retain_services(keep);
    }
}

impl Source for EndpointSlice {
    fn apply(&self, zone: &mut Zone) {
        let (namespace, name) = parts(self);
        let service = service_of(self);
        zone.set_slice(&namespace, &name, service.as_ref().map(|service| (service.name.as_str(), self)));
    }

    /// Headless Services alone have their endpoints in the DNS.
    fn came_about(&self, zone: &Zone) -> Option<Timestamp> {
        let at = self.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()?;
        let service = service_of(self)?;
        let known = zone.service(&service.namespace, &service.name)?;
        matches!(known.service.kind, Kind::Headless).then_some(at)
    }

    fn remove(zone: &mut Zone, namespace: &str, name: &str) {
        zone.set_slice(namespace, name, None);
    }

    fn retain(zone: &mut Zone, keep: &HashSet<String>) {
        zone.retain_slices(keep);
    }
}

impl Source for Namespace {
    fn apply(&self, zone: &mut Zone) {
        zone.set_namespace(&self.name_any(), true);
    }

    fn remove(zone: &mut Zone, _: &str, name: &str) {
        zone.set_namespace(name, false);
    }

    fn retain(zone: &mut Zone, keep: &HashSet<String>) {
        zone.retain_namespaces(keep);
    }
}

impl Source for Pod {
    fn apply(&self, zone: &mut Zone) {
        let (namespace, name) = parts(self);
        let spec_says = self.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let status = self.status.as_ref();
        let ended = status.is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")));
        let all = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        // The node's addresses are no Pod's, and those of an ended Pod may be another's by now.
        let addresses: Vec<IpAddr> =
            all.iter().filter(|_| !spec_says && !ended).filter_map(|ip| ip.ip.parse().ok()).collect();
        zone.set_pod(&namespace, &name, &addresses);
    }

    fn remove(zone: &mut Zone, namespace: &str, name: &str) {
        zone.set_pod(namespace, name, &[]);
    }

    fn retain(zone: &mut Zone, keep: &HashSet<String>) {
        zone.retain_pods(keep);
    }
}

/// Follows one kind for ever; says when it is known.
async fn follow<K: Source>(
    api: Api<K>,
    selection: watcher::Config,
    zone: Arc<RwLock<Zone>>,
    known: watch::Sender<bool>,
    metrics: Arc<Metrics>,
) {
    let mut events = std::pin::pin!(watcher::watcher(api, selection));
    let mut listed: HashSet<String> = HashSet::new();
    let mut delay = FIRST_RETRY;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch broke, retrying");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LAST_RETRY);
                continue;
            }
        };
        // A list that only begins says nothing of the server yet.
        if !matches!(event, Event::Init) {
            delay = FIRST_RETRY;
        }
        match event {
            Event::Init => listed = HashSet::new(),
            Event::InitApply(object) => {
                let (namespace, name) = parts(&object);
                listed.insert(format!("{namespace}/{name}"));
                object.apply(&mut zone.write());
            }
            Event::InitDone => {
                K::retain(&mut zone.write(), &std::mem::take(&mut listed));
                known.send_replace(true);
            }
            Event::Apply(object) => {
                let mut zone = zone.write();
                object.apply(&mut zone);
                if let Some(since) = object.came_about(&zone) {
                    let took = Timestamp::now().duration_since(since);
                    metrics.programmed(took.try_into().unwrap_or_default());
                }
            }
            Event::Delete(object) => {
                let (namespace, name) = parts(&object);
                K::remove(&mut zone.write(), &namespace, &name);
            }
        }
    }
}

/// What must be listed anew when it changes.
fn selection(options: &Options) -> (Option<String>, Option<String>, bool, bool) {
    (
        options.labels.clone(),
        options.namespace_labels.clone(),
        options.endpoint_pod_names,
        options.needs_pods(),
    )
}

/// Keeps the zone up to date until `stop`, with what the options select.
pub(crate) async fn run(
    client: Client,
    zone: Arc<RwLock<Zone>>,
    metrics: Arc<Metrics>,
    mut options: watch::Receiver<Options>,
    stop: CancellationToken,
) {
    loop {
        let now = selection(&options.borrow_and_update());
        let mut all = Following {
            client: client.clone(),
            zone: zone.clone(),
            metrics: metrics.clone(),
            tasks: JoinSet::new(),
            known: Vec::new(),
        };
        all.start::<Service>(now.0.as_deref());
        all.start::<EndpointSlice>(None);
        all.start::<Namespace>(now.1.as_deref());
        if now.3 {
            all.start::<Pod>(None);
        } else {
            zone.write().retain_pods(&HashSet::new());
        }
        let mut known = std::mem::take(&mut all.known);
        let waiting = zone.clone();
        all.tasks.spawn(async move {
            for one in &mut known {
                if one.wait_for(|known| *known).await.is_err() {
                    return;
                }
            }
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            waiting.write().set_synced(since.as_secs() as u32);
            tracing::info!("the cluster's names are known");
            stay_small().await;
        });
        tokio::select! {
            () = stop.cancelled() => return,
            _ = options.wait_for(|new| selection(new) != now) => {}
            // The tasks end only by a defect; whoever started this server starts it anew.
            _ = all.tasks.join_next() => return,
        }
    }
}

/// Gives back what the lists needed once the watches run, and from then on what bursts of questions left behind.
async fn stay_small() {
    tokio::time::sleep(SETTLED).await;
    let mut now = tokio::time::interval(GIVE_BACK);
    loop {
        now.tick().await;
        client::memory::give_back();
    }
}

struct Following {
    client: Client,
    zone: Arc<RwLock<Zone>>,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    known: Vec<watch::Receiver<bool>>,
}

impl Following {
    fn start<K: Source>(&mut self, labels: Option<&str>) {
        let (tx, rx) = watch::channel(false);
        let selection =
            watcher::Config { label_selector: labels.map(str::to_owned), ..watcher::Config::default() }
                .page_size(PAGE);
        let api = Api::all(self.client.clone());
        self.tasks.spawn(follow::<K>(api, selection, self.zone.clone(), tx, self.metrics.clone()));
        self.known.push(rx);
    }
}
