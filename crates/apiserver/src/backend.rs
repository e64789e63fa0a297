//! [`Objects`] over the store: what rules, authorization and bootstrap read and write.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use storage::{Event, KeyValue, ListOptions};

use crate::core::{Call, Core, store_error};
use crate::crd;
use crate::identity::{Attributes, Authorizer, Decision, UserInfo};
use crate::object::{self, meta, set_meta};
use crate::objects::{ObjectChange, Objects};
use crate::request::{Query, ResourcePath};
use crate::resource::{GroupResource, Resource};
use crate::rest::create::{self, Stored};
use crate::rest::delete;
use crate::rest::update::{self, Part};
use crate::status::Status;

/// Lists of more than so many are not what is read with every request.
const FEW: usize = 16;

/// The server's own access to its objects.
#[derive(Clone)]
pub struct Backend {
    core: Arc<Core>,
}

/// The server itself may do everything.
struct Itself;

#[async_trait]
impl Authorizer for Itself {
    async fn authorize(&self, _: &UserInfo, _: &Attributes) -> Decision {
        Decision { allowed: true, reason: String::new() }
    }
}

impl Backend {
    /// Over the shared state.
    pub fn new(core: Arc<Core>) -> Self {
        Backend { core }
    }

    /// Changes an object in any part, checked as metadata only.
    ///
    /// # Errors
    /// 404, 409.
    pub async fn change(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
        change: update::Change<'_>,
    ) -> Result<(), Status> {
        let call = self.call(resource, namespace, name)?;
        // Boxed: a write takes from quotas, which are objects that change.
        Box::pin(update::update(&call, name, Part::Trusted, change)).await.map(drop)
    }

    /// A stored object, parsed.
    fn decode(&self, row: &Resource, kv: &KeyValue) -> Result<Arc<Value>, Status> {
        // What is shown of a custom object changes with its definition, not with its version.
        if row.custom {
            return decode(kv, kv.mod_revision);
        }
        self.core.parsed.decode(kv).map_err(|error| broken(kv, &error))
    }

    fn row(&self, resource: &GroupResource) -> Result<Arc<Resource>, Status> {
        let row = self.core.registry.load().storage_row(resource);
        row.ok_or_else(|| Status::internal(format!("no kind is stored as {resource}")))
    }

    /// A request of the server itself about one object.
    fn call(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<Call, Status> {
        let row = self.row(resource)?;
        let path = ResourcePath { namespace: namespace.into(), name: name.into(), ..ResourcePath::default() };
        let user = UserInfo::new("system:apiserver", &["system:masters"]);
        let access = (Arc::new(self.clone()) as Arc<dyn Objects>, Arc::new(Itself) as Arc<dyn Authorizer>);
        let mut call = Call::new(&self.core, row, &path, Query::default(), user, access);
        call.internal = true;
        Ok(call)
    }
}

fn decode(kv: &KeyValue, revision: u64) -> Result<Arc<Value>, Status> {
    object::decode(&kv.value, revision).map(Arc::new).map_err(|error| broken(kv, &error))
}

fn broken(kv: &KeyValue, error: &serde_json::Error) -> Status {
    Status::internal(format!("decode {}: {error}", kv.key))
}

/// A stored change as a parsed one; what cannot be parsed is passed over.
fn change(event: &Event) -> Option<ObjectChange> {
    match (&event.current, &event.previous) {
        (Some(now), _) => decode(now, event.revision).ok().map(ObjectChange::Put),
        (None, Some(last)) => decode(last, event.revision).ok().map(ObjectChange::Delete),
        (None, None) => None,
    }
}

fn written(call: &Call, stored: Stored) -> Result<Value, Status> {
    match stored {
        Stored::Kept(kv) => call.parse(&kv),
        Stored::DryRun(value) => Ok(value),
    }
}

#[async_trait]
impl Objects for Backend {
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status> {
        let row = self.row(resource)?;
        let found = self.core.store.get(&row.key(namespace, name)).await.map_err(store_error)?;
        let found = crd::convert::shown(self, &row, found.into_iter().collect()).await?;
        found.first().map(|kv| self.decode(&row, kv)).transpose()
    }

    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Arc<Value>>, u64), Status> {
        let row = self.row(resource)?;
        let prefix = match namespace {
            Some(namespace) if row.namespaced => format!("{}{namespace}/", row.prefix()),
            _ => row.prefix(),
        };
        let result = self.core.store.list(&prefix, ListOptions::default()).await.map_err(store_error)?;
        let items = crd::convert::shown(self, &row, result.items).await?;
        let few = items.len() <= FEW;
        let one = |kv: &KeyValue| if few { self.decode(&row, kv) } else { decode(kv, kv.mod_revision) };
        let items = items.iter().map(one).collect::<Result<_, _>>()?;
        Ok((items, result.revision))
    }

    async fn watch(
        &self,
        resource: &GroupResource,
        revision: u64,
    ) -> Result<BoxStream<'static, ObjectChange>, Status> {
        if self.core.stop.is_cancelled() {
            return Err(Status::unavailable("the server is shutting down"));
        }
        let prefix = self.row(resource)?.prefix();
        let source = self.core.store.watch(&prefix, revision).await.map_err(store_error)?;
        let stop = self.core.stop.clone();
        let changes = source
            .take_while(|item| std::future::ready(item.is_ok()))
            .flat_map(|item| stream::iter(item.ok().and_then(|event| change(&event))));
        Ok(changes.take_until(stop.cancelled_owned()).boxed())
    }

    async fn create(
        &self,
        resource: &GroupResource,
        namespace: &str,
        mut value: Value,
    ) -> Result<Value, Status> {
        let call = self.call(resource, namespace, "")?;
        if call.row.namespaced {
            set_meta(&mut value, "namespace", namespace.into());
        }
        let stored = create::store_new(&call, value).await?;
        written(&call, stored)
    }

    async fn update(&self, resource: &GroupResource, namespace: &str, value: Value) -> Result<Value, Status> {
        let call = self.call(resource, namespace, meta(&value, "name"))?;
        let stored = update::update(&call, call.name(), Part::Main, &|_| Ok(value.clone())).await?;
        written(&call, stored)
    }

    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), Status> {
        let call = self.call(resource, namespace, name)?;
        delete::remove(&call, name, &delete::Options::now()).await.map(drop)
    }
}
