//! The authorizer: decisions over an index of rules that follows the store.
//!
//! Four watches (roles and bindings, of namespaces and of the cluster) feed the sources; a change marks the index
//! stale and the next decision rebuilds it, so a burst of writes costs one rebuild. Decisions wait for the first
//! complete list. The same watches write the rules of aggregated ClusterRoles back into the objects, where people
//! read them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::index::{Index, Sources, aggregated, rules_of};
use crate::identity::{Attributes, Authorizer, Decision, UserInfo};
use crate::kinds::value::{name, namespace};
use crate::objects::{ObjectChange, Objects};
use crate::resource::GroupResource;
use crate::status::Status;

/// API group of the objects.
pub const GROUP: &str = "rbac.authorization.k8s.io";
const WATCHED: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];
/// Paths that answer everybody, so that a health check needs no policy.
const OPEN_PATHS: [&str; 3] = ["/healthz", "/livez", "/readyz"];
const SYNC_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// Role-based access control over the stored policy.
pub struct Rbac {
    sources: Mutex<Sources>,
    index: ArcSwap<Index>,
    stale: AtomicBool,
    synced: watch::Sender<usize>,
}

impl Rbac {
    /// Starts following the stored policy; needs a tokio runtime.
    pub fn start(objects: Arc<dyn Objects>) -> Arc<Self> {
        let rbac = Arc::new(Rbac {
            sources: Mutex::default(),
            index: ArcSwap::default(),
            stale: AtomicBool::new(false),
            synced: watch::Sender::new(0),
        });
        for plural in WATCHED {
            // Weak: the tasks end with the server that owns the authorizer.
            tokio::spawn(follow(Arc::downgrade(&rbac), objects.clone(), plural));
        }
        rbac
    }

    /// The index as of now.
    pub fn index(&self) -> Arc<Index> {
        if self.stale.swap(false, Ordering::AcqRel) {
            let sources = self.sources.lock();
            self.index.store(Arc::new(Index::build(&sources)));
        }
        self.index.load_full()
    }

    fn change(&self, plural: &str, apply: impl FnOnce(&mut BTreeMap<String, Arc<Value>>)) {
        let mut sources = self.sources.lock();
        apply(if plural.ends_with("bindings") { &mut sources.bindings } else { &mut sources.roles });
        drop(sources);
        self.stale.store(true, Ordering::Release);
    }

    async fn wait_synced(&self) {
        if *self.synced.borrow() >= WATCHED.len() {
            return;
        }
        let mut synced = self.synced.subscribe();
        let wait = synced.wait_for(|done| *done >= WATCHED.len());
        if tokio::time::timeout(SYNC_DEADLINE, wait).await.is_err() {
            tracing::warn!("deciding before the access policy was read");
        }
    }
}

fn key(object: &Value) -> String {
    format!("{}/{}", namespace(object), name(object))
}

/// Lists, then watches, again and again until the authorizer is gone.
async fn follow(rbac: std::sync::Weak<Rbac>, objects: Arc<dyn Objects>, plural: &'static str) {
    let resource = GroupResource::new(GROUP, plural);
    let of_cluster = plural.starts_with("cluster");
    let mut first = true;
    loop {
        let listed = objects.list(&resource, None).await;
        let Some(strong) = rbac.upgrade() else { return };
        let (items, revision) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, plural, "reading the access policy");
                drop(strong);
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        strong.change(plural, |map| {
            map.retain(|key, _| key.starts_with('/') != of_cluster);
            map.extend(items.into_iter().map(|o| (key(&o), o)));
        });
        if std::mem::take(&mut first) {
            strong.synced.send_modify(|done| *done += 1);
        }
        reconcile_aggregates(&strong, objects.as_ref(), plural).await;
        drop(strong);
        let Ok(mut changes) = objects.watch(&resource, revision).await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while let Some(change) = changes.next().await {
            let Some(strong) = rbac.upgrade() else { return };
            strong.change(plural, |map| match change {
                ObjectChange::Put(object) => drop(map.insert(key(&object), object)),
                ObjectChange::Delete(object) => drop(map.remove(&key(&object))),
            });
            reconcile_aggregates(&strong, objects.as_ref(), plural).await;
        }
        // A server that stops ends every watch at once; without a pause this would spin until its runtime is gone.
        tokio::time::sleep(RETRY).await;
    }
}

/// Aggregated ClusterRoles whose written rules differ from what they should be, with the right rules.
fn outdated(sources: &Sources) -> Vec<Value> {
    let cluster_roles = sources.roles.iter().filter(|(key, _)| key.starts_with('/'));
    let mut out = Vec::new();
    for (_, role) in cluster_roles {
        if let Some(rules) = aggregated(role, &sources.roles)
            && rules != rules_of(role)
            && let Ok(rules) = serde_json::to_value(rules)
        {
            let mut role = Value::clone(role);
            role["rules"] = rules;
            out.push(role);
        }
    }
    out
}

async fn reconcile_aggregates(rbac: &Rbac, objects: &dyn Objects, plural: &str) {
    if plural != "clusterroles" {
        return;
    }
    let roles = outdated(&rbac.sources.lock());
    for role in roles {
        // A conflict means a newer version is on its way through the watch, which comes by here again.
        if let Err(error) = objects.update(&GroupResource::new(GROUP, plural), "", role).await {
            tracing::debug!(%error, "writing the rules of an aggregated role");
        }
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, user: &UserInfo, request: &Attributes) -> Decision {
        if user.groups.iter().any(|g| g == "system:masters") {
            return Decision { allowed: true, reason: String::new() };
        }
        if !request.is_resource && OPEN_PATHS.contains(&request.path.as_str()) {
            return Decision { allowed: true, reason: String::new() };
        }
        self.wait_synced().await;
        match self.index().allows(user, request) {
            Some(grant) => Decision { allowed: true, reason: grant.via.clone() },
            None => Decision { allowed: false, reason: String::new() },
        }
    }
}

/// An index read straight from the store, for questions that are rare and need more than yes or no.
pub async fn fresh_index(objects: &dyn Objects) -> Result<Index, Status> {
    Ok(Index::build(&fresh_sources(objects).await?))
}

/// The stored policy, as of now.
pub async fn fresh_sources(objects: &dyn Objects) -> Result<Sources, Status> {
    let mut sources = Sources::default();
    for plural in WATCHED {
        let (items, _) = objects.list(&GroupResource::new(GROUP, plural), None).await?;
        let map = if plural.ends_with("bindings") { &mut sources.bindings } else { &mut sources.roles };
        map.extend(items.into_iter().map(|o| (key(&o), o)));
    }
    Ok(sources)
}
