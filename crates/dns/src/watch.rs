//! Follows the API and keeps the zone up to date.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use client::endpoints::service_of;
use client::{Change, Informer, InformerGone, ObjectKey};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::zone::Zone;

/// The slices of each Service, by name.
#[derive(Default)]
struct Slices(HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>);

impl Slices {
    /// Takes a change in; gives the Services that it touches.
    fn change(&mut self, change: &Change<EndpointSlice>) -> Vec<ObjectKey> {
        let mut touched = Vec::new();
        let old = match change {
            Change::Applied { old, .. } => old.as_ref(),
            Change::Deleted(last) => Some(last),
        };
        if let Some((old, key)) = old.and_then(|old| Some((old, service_of(old)?))) {
            if let Some(slices) = self.0.get_mut(&key) {
                slices.remove(old.metadata.name.as_deref().unwrap_or_default());
                if slices.is_empty() {
                    self.0.remove(&key);
                }
            }
            touched.push(key);
        }
        if let Change::Applied { new, .. } = change
            && let Some(key) = service_of(new)
        {
            let name = new.metadata.name.clone().unwrap_or_default();
            self.0.entry(key.clone()).or_default().insert(name, new.clone());
            touched.push(key);
        }
        touched
    }

    fn of(&self, key: &ObjectKey) -> Vec<&EndpointSlice> {
        self.0.get(key).into_iter().flatten().map(|(_, slice)| &**slice).collect()
    }
}

/// Keeps the zone up to date until `stop`.
pub(crate) async fn run(
    client: Client,
    zone: Arc<RwLock<Zone>>,
    stop: CancellationToken,
) -> Result<(), InformerGone> {
    let services = Informer::<Service>::start(Api::all(client.clone()), Config::default());
    let slices = Informer::<EndpointSlice>::start(Api::all(client.clone()), Config::default());
    let namespaces = Informer::<Namespace>::start(Api::all(client), Config::default());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = async { tokio::try_join!(services.synced(), slices.synced(), namespaces.synced()) } => synced?,
    };
    let mut service_changes = services.subscribe();
    let mut slice_changes = slices.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    let mut known = Slices::default();
    let mut dirty: HashSet<ObjectKey> = HashSet::new();
    let mut first = true;
    loop {
        while let Ok(change) = service_changes.try_recv() {
            dirty.insert(ObjectKey::of(&**change.object()));
        }
        while let Ok(change) = slice_changes.try_recv() {
            dirty.extend(known.change(&change));
        }
        let mut named = Vec::new();
        while let Ok(change) = namespace_changes.try_recv() {
            named.push(change);
        }
        {
            let mut writer = zone.write();
            for change in named {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                writer.set_namespace(&name, matches!(change, Change::Applied { .. }));
            }
            for key in dirty.drain() {
                let service = services.get_key(&key);
                writer.set_service(&key.namespace, &key.name, service.as_deref(), &known.of(&key));
            }
            if std::mem::take(&mut first) {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                writer.set_synced(now.as_secs() as u32);
                tracing::info!("the cluster's names are known");
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            change = service_changes.recv() => match change {
                Some(change) => { dirty.insert(ObjectKey::of(&**change.object())); }
                None => return services.synced().await,
            },
            change = slice_changes.recv() => match change {
                Some(change) => dirty.extend(known.change(&change)),
                None => return slices.synced().await,
            },
            change = namespace_changes.recv() => match change {
                Some(change) => {
                    let name = change.object().metadata.name.clone().unwrap_or_default();
                    zone.write().set_namespace(&name, matches!(change, Change::Applied { .. }));
                }
                None => return namespaces.synced().await,
            },
        }
    }
}
