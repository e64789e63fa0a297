//! Follows the stored definitions: what is served follows at once, then the definition is told so in its status.
//! A definition that is being deleted goes when its objects have gone.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;

use super::{FINALIZER, accepted, rows};
use crate::backend::Backend;
use crate::core::Core;
use crate::object::{self, meta};
use crate::objects::{ObjectChange, Objects};
use crate::registry::Registry;
use crate::resource::GroupResource;
use crate::status::Status;

/// After a failure, and while the objects of a definition go.
const RETRY: Duration = Duration::from_millis(200);

fn definitions() -> GroupResource {
    GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Serves the definitions that are stored now.
///
/// # Errors
/// An unreadable store.
pub async fn load(core: &Arc<Core>) -> Result<(Vec<Arc<Value>>, u64), Status> {
    let (items, revision) = Backend::new(core.clone()).list(&definitions(), None).await?;
    serve(core, &items);
    Ok((items, revision))
}

/// Runs until the server stops.
pub async fn run(core: Arc<Core>, mut items: Vec<Arc<Value>>, mut revision: u64) {
    let backend = Backend::new(core.clone());
    while !core.stop.is_cancelled() {
        let Ok(mut changes) = backend.watch(&definitions(), revision).await else {
            tokio::time::sleep(RETRY).await;
            if let Ok(listed) = load(&core).await {
                (items, revision) = listed;
            }
            continue;
        };
        loop {
            let busy = settle(&core, &backend, &items).await;
            let change = tokio::select! {
                change = changes.next() => change,
                () = tokio::time::sleep(RETRY), if busy => continue,
            };
            let Some(change) = change else { break };
            apply(&mut items, change);
            serve(&core, &items);
        }
        revision = core.store.revision().await.unwrap_or(revision);
        if let Ok(listed) = load(&core).await {
            (items, revision) = listed;
        }
    }
}

fn apply(items: &mut Vec<Arc<Value>>, change: ObjectChange) {
    let (new, object) = match change {
        ObjectChange::Put(object) => (true, object),
        ObjectChange::Delete(object) => (false, object),
    };
    items.retain(|known| meta(known, "name") != meta(&object, "name"));
    if new {
        items.push(object);
    }
}

fn serve(core: &Core, items: &[Arc<Value>]) {
    let custom = items.iter().flat_map(|definition| rows(definition));
    core.registry.store(Arc::new(Registry::new(crate::builtin::resources().into_iter().chain(custom))));
}

/// Brings each definition's status and finalizer in line; whether something is still to be done later.
async fn settle(core: &Arc<Core>, backend: &Backend, items: &[Arc<Value>]) -> bool {
    let mut busy = false;
    for definition in items {
        let result = if definition["metadata"]["deletionTimestamp"].is_null() {
            accept(backend, definition).await
        } else {
            clean(core, backend, definition).await
        };
        busy |= result.unwrap_or_else(|error| {
            tracing::debug!(%error, definition = meta(definition, "name"), "settling a definition");
            error.code() != 404
        });
    }
    busy
}

async fn accept(backend: &Backend, definition: &Value) -> Result<bool, Status> {
    if accepted(definition).is_some() {
        let change = |current: &Value| Ok(accepted(current).unwrap_or_else(|| current.clone()));
        backend.change(&definitions(), "", meta(definition, "name"), &change).await?;
    }
    Ok(false)
}

/// Deletes the objects; lets the definition go when there are none left.
async fn clean(core: &Arc<Core>, backend: &Backend, definition: &Value) -> Result<bool, Status> {
    let held =
        definition["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == FINALIZER));
    if !held {
        return Ok(false);
    }
    let spec = &definition["spec"];
    let resource = GroupResource::new(
        spec["group"].as_str().unwrap_or_default(),
        spec["names"]["plural"].as_str().unwrap_or_default(),
    );
    if core.registry.load().storage_row(&resource).is_some() {
        let (objects, _) = backend.list(&resource, None).await?;
        for object in objects.iter().filter(|o| o["metadata"]["deletionTimestamp"].is_null()) {
            backend.delete(&resource, meta(object, "namespace"), meta(object, "name")).await?;
        }
        if !backend.list(&resource, None).await?.0.is_empty() {
            return Ok(true);
        }
    }
    let release = |current: &Value| {
        let mut new = current.clone();
        let mut left = current["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        left.retain(|f| f != FINALIZER);
        object::set_meta(&mut new, "finalizers", if left.is_empty() { Value::Null } else { left.into() });
        Ok(new)
    };
    backend.change(&definitions(), "", meta(definition, "name"), &release).await?;
    Ok(false)
}
