//! Counts what namespaces with quotas hold, when objects go or shrink, a quota changes, or a write that had taken
//! something failed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use storage::{Event, KeyValue, ListOptions};
use tokio::time::Instant;

use super::usage::{self, Usage};
use super::{resource_quotas, selects, write_used};
use crate::backend::Backend;
use crate::core::{Core, store_error};
use crate::kinds::quantity::Quantity;
use crate::kinds::value::{entries, list, name, namespace};
use crate::object;
use crate::objects::Objects;
use crate::resource::GroupResource;
use crate::status::Status;

/// Changes are gathered for so long.
const PAUSE: Duration = Duration::from_millis(50);
/// A count may take this part of the time: after one that took long, the next waits.
const SHARE: u32 = 10;

/// Runs until the server stops.
pub async fn run(core: Arc<Core>) {
    while !core.stop.is_cancelled() {
        if let Err(error) = follow(&core).await {
            tracing::debug!(%error, "following quotas");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The quotas there are, by namespace.
#[derive(Default)]
struct Known(HashMap<String, BTreeSet<String>>);

impl Known {
    fn note(&mut self, namespace: &str, name: &str, there: bool) {
        let names = self.0.entry(namespace.to_owned()).or_default();
        if there {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
        if names.is_empty() {
            self.0.remove(namespace);
        }
    }

    /// The namespace that an event makes stale.
    fn stale<'k>(&mut self, event: &'k Event) -> Option<&'k str> {
        let mut parts = event.key().strip_prefix("/registry/")?.splitn(4, '/');
        let (group, plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let resource = GroupResource::new(if group == "core" { "" } else { group }, plural);
        if resource == resource_quotas() {
            self.note(namespace, name, event.current.is_some());
        }
        if !self.0.contains_key(namespace) {
            return None;
        }
        let stale = match (&event.current, &event.previous) {
            (Some(now), _) if resource == resource_quotas() => decode(now).is_some_and(|q| is_uncounted(&q)),
            (Some(now), Some(before)) if usage::needs_objects(&resource) => {
                let of = |kv| decode(kv).map(|o| usage::of(&resource, &o));
                of(now) != of(before)
            }
            (Some(_), _) => false,
            (None, _) => true,
        };
        stale.then_some(namespace)
    }
}

fn decode(kv: &KeyValue) -> Option<Value> {
    object::decode(&kv.value, kv.mod_revision).ok()
}

/// The spec names something that the status does not know.
fn is_uncounted(quota: &Value) -> bool {
    let status = &quota["status"];
    let keys = |v: &Value, key: &str| entries(v, key).map(|(k, _)| k.clone()).collect::<BTreeSet<_>>();
    keys(&quota["spec"], "hard") != keys(status, "used") || quota["spec"]["hard"] != status["hard"]
}

async fn follow(core: &Arc<Core>) -> Result<(), Status> {
    let (quotas, revision) = Backend::new(core.clone()).list(&resource_quotas(), None).await?;
    let mut known = Known::default();
    for quota in &quotas {
        known.note(namespace(quota), name(quota), true);
        core.quotas.mark(namespace(quota));
    }
    let mut changes = core.store.watch("/registry/", revision).await.map_err(store_error)?;
    let mut due = Instant::now();
    loop {
        let stale = !core.quotas.stale.lock().is_empty();
        tokio::select! {
            () = core.stop.cancelled() => return Ok(()),
            () = core.quotas.changed.notified() => {
                let now = Instant::now();
                if due <= now {
                    due = now + PAUSE;
                }
            }
            () = tokio::time::sleep_until(due), if stale => {
                let begin = Instant::now();
                for namespace in core.quotas.take_stale() {
                    count(core, &namespace).await?;
                }
                due = Instant::now() + begin.elapsed() * SHARE;
            }
            change = changes.next() => match change {
                Some(Ok(event)) => {
                    if let Some(namespace) = known.stale(&event) {
                        core.quotas.mark(namespace);
                    }
                }
                Some(Err(error)) => return Err(store_error(error)),
                None => return Ok(()),
            },
        }
    }
}

/// Counts what a namespace holds and tells its quotas. Writes that take from them wait meanwhile.
///
/// # Errors
/// An unreadable store.
pub async fn count(core: &Arc<Core>, namespace: &str) -> Result<(), Status> {
    let gate = core.quotas.gate(namespace);
    let _alone = gate.counting.write().await;
    let backend = Backend::new(core.clone());
    let (quotas, _) = backend.list(&resource_quotas(), Some(namespace)).await?;
    let mut held = Held { core, backend: &backend, namespace, seen: BTreeMap::new() };
    for quota in &quotas {
        let used = held.by(quota).await?;
        let tell = |current: &Value| {
            let mut new = current.clone();
            object::make_child(&mut new, "status").shift_remove("used");
            write_used(&mut new, &used);
            Ok(new)
        };
        match backend.change(&resource_quotas(), namespace, name(quota), &tell).await {
            Err(gone) if gone.code() == 404 => {}
            other => other?,
        }
    }
    Ok(())
}

/// The objects of a namespace, each kind read once.
struct Held<'a> {
    core: &'a Arc<Core>,
    backend: &'a Backend,
    namespace: &'a str,
    seen: BTreeMap<GroupResource, Vec<Arc<Value>>>,
}

impl Held<'_> {
    /// What a quota has given out.
    async fn by(&mut self, quota: &Value) -> Result<Usage, Status> {
        let mut used: Usage =
            entries(&quota["spec"], "hard").map(|(key, _)| (key.clone(), Quantity::ZERO)).collect();
        let resources: BTreeSet<GroupResource> =
            used.keys().map(|key| usage::counted_resource(key)).collect();
        for resource in resources {
            if !usage::needs_objects(&resource) {
                let scoped =
                    !list(&quota["spec"], "scopes").is_empty() || quota["spec"]["scopeSelector"].is_object();
                let number = if scoped { 0 } else { self.number(&resource).await? };
                for key in [usage::count_name(&resource), resource.resource.clone()] {
                    if usage::counted_resource(&key) == resource
                        && let Some(slot) = used.get_mut(&key)
                    {
                        *slot = Quantity::ONE.times(number);
                    }
                }
                continue;
            }
            for object in self.objects(&resource).await?.iter().filter(|o| selects(quota, &resource, o)) {
                for (key, amount) in usage::of(&resource, object) {
                    if let Some(slot) = used.get_mut(&key) {
                        *slot = slot.plus(amount);
                    }
                }
            }
        }
        Ok(used)
    }

    async fn number(&self, resource: &GroupResource) -> Result<usize, Status> {
        let Some(row) = self.core.registry.load().storage_row(resource).filter(|row| row.namespaced) else {
            return Ok(0);
        };
        let prefix = format!("{}{}/", row.prefix(), self.namespace);
        let found = self.core.store.list(&prefix, ListOptions { limit: 1, ..ListOptions::default() }).await;
        let found = found.map_err(store_error)?;
        Ok(found.items.len() + usize::try_from(found.remaining).unwrap_or(usize::MAX))
    }

    async fn objects(&mut self, resource: &GroupResource) -> Result<&Vec<Arc<Value>>, Status> {
        if !self.seen.contains_key(resource) {
            let (objects, _) = self.backend.list(resource, Some(self.namespace)).await?;
            self.seen.insert(resource.clone(), objects);
        }
        Ok(&self.seen[resource])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(key: &str, previous: Option<Value>, current: Option<Value>) -> Event {
        let kv = |value: Value| KeyValue {
            key: key.into(),
            value: value.to_string().into(),
            create_revision: 1,
            mod_revision: 1,
        };
        Event {
            revision: 1,
            current: current.map(kv),
            previous: previous.map(kv),
            memo: std::sync::OnceLock::new(),
        }
    }

    #[test]
    fn what_makes_a_namespace_stale() {
        let mut known = Known::default();
        let pods = "/registry/core/pods/shop/p";
        let pod = |phase: &str| json!({"metadata": {}, "spec": {}, "status": {"phase": phase}});
        assert_eq!(known.stale(&event(pods, Some(pod("Running")), None)), None);
        let quota = json!({"metadata": {}, "spec": {"hard": {"pods": "1"}}});
        let born = event("/registry/core/resourcequotas/shop/q", None, Some(quota.clone()));
        assert_eq!(known.stale(&born), Some("shop"));
        let mut counted = quota;
        counted["status"] = json!({"hard": {"pods": "1"}, "used": {"pods": "0"}});
        let told = event("/registry/core/resourcequotas/shop/q", None, Some(counted));
        assert_eq!(known.stale(&told), None);
        for (previous, current, expected) in [
            (None, Some(pod("Pending")), None),
            (Some(pod("Pending")), Some(pod("Running")), None),
            (Some(pod("Running")), Some(pod("Succeeded")), Some("shop")),
            (Some(pod("Running")), None, Some("shop")),
        ] {
            assert_eq!(known.stale(&event(pods, previous, current)), expected);
        }
        assert_eq!(known.stale(&event("/registry/core/nodes/n", None, None)), None);
        known.stale(&event("/registry/core/resourcequotas/shop/q", Some(json!({"metadata": {}})), None));
        assert_eq!(known.stale(&event(pods, Some(pod("Running")), None)), None);
    }
}
