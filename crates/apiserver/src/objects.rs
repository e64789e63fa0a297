//! What rules and hooks see of the stored objects.
//!
//! Strategies, admission, authentication and authorization look things up (does the ServiceAccount exist, which
//! Roles are there) without going through HTTP, authentication or authorization.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;

use crate::resource::GroupResource;
use crate::status::Status;

/// One change of a watched collection.
#[derive(Debug, Clone)]
pub enum ObjectChange {
    /// Created or changed: the object as it is now.
    Put(Arc<Value>),
    /// Gone: the object as it was last.
    Delete(Arc<Value>),
}

/// Direct access to the objects of the cluster. Objects come in their storage form, `resourceVersion` included.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// One object; `namespace` is empty for kinds of the cluster.
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status>;

    /// All objects of a resource (of one namespace), and the revision they were read at.
    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
    ) -> Result<(Vec<Arc<Value>>, u64), Status>;

    /// Changes after `revision`. The stream ends when the history no longer reaches back: list again then.
    async fn watch(
        &self,
        resource: &GroupResource,
        revision: u64,
    ) -> Result<BoxStream<'static, ObjectChange>, Status>;

    /// Creates through defaults, validation and hooks, as user `system:apiserver`.
    async fn create(&self, resource: &GroupResource, namespace: &str, object: Value)
    -> Result<Value, Status>;

    /// Replaces through defaults, validation and hooks, as user `system:apiserver`.
    async fn update(&self, resource: &GroupResource, namespace: &str, object: Value)
    -> Result<Value, Status>;

    /// Deletes at once, as user `system:apiserver`.
    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), Status>;
}
