//! The rules of a kind, called by the generic handlers in a fixed order.
//!
//! create: `default` → `admit` → `prepare_create` → `validate` → `allocate` → store → `created`
//! update: `default` → `prepare_update` (or `prepare_status_update`) → `admit` → `validate_update` (or
//! `validate_status_update`) → `allocate` → store → `updated`
//! delete: `admit_delete` → (finalizers, grace) → store → `deleted`
//!
//! Pure functions over the object wherever possible; what must look at other objects or reserve something is
//! async. A dry run stops before `allocate`'s reservation is kept and before the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::field::FieldErrors;
use crate::identity::{Authorizer, UserInfo};
use crate::objects::Objects;
use crate::resource::Resource;
use crate::status::Status;

/// What a hook may know about the request and the server.
#[derive(Clone)]
pub struct Context {
    /// The table row of the kind.
    pub resource: Arc<Resource>,
    /// Namespace of the request; empty for kinds of the cluster.
    pub namespace: String,
    /// Name in the URL; empty on create.
    pub name: String,
    /// Subresource written through; empty for the object itself.
    pub subresource: String,
    /// Who asks.
    pub user: UserInfo,
    /// Nothing may be kept.
    pub dry_run: bool,
    /// The stored objects.
    pub objects: Arc<dyn Objects>,
    /// For rules that depend on what the user may do elsewhere.
    pub authorizer: Arc<dyn Authorizer>,
    /// What the audit log says of the request besides.
    pub notes: Arc<parking_lot::Mutex<BTreeMap<String, String>>>,
    /// Texts for `Warning` response headers.
    pub warnings: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Context {
    /// Shows a text to the user of kubectl.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }

    /// Annotates the request in the audit log.
    pub fn note(&self, key: impl Into<String>, text: impl Into<String>) {
        self.notes.lock().insert(key.into(), text.into());
    }
}

/// Something reserved for a write. Dropped without `keep`, it gives back what it took.
pub trait Reservation: Send {
    /// The write is durable.
    fn keep(self: Box<Self>);
}

/// A reservation of nothing.
pub struct Nothing;

impl Reservation for Nothing {
    fn keep(self: Box<Self>) {}
}

/// How names of a kind are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Dns1035,
    /// Usable as a path segment: RBAC kinds.
    PathSegment,
    /// Checked by `validate` alone.
    Own,
}

/// The rules of one kind. Every method has the answer of a kind without special rules.
#[async_trait]
pub trait Strategy: Send + Sync + 'static {
    /// How `metadata.name` is checked by the generic handlers, where it is not as the kind's row says.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// Whether spec and status are written apart (main resource ignores status, `/status` ignores the rest).
    /// Kinds with a `status` subresource answer true.
    fn separate_status(&self, resource: &Resource) -> bool {
        resource.has_subresource("status")
    }

    /// Whether `metadata.generation` counts changes of the spec.
    fn counts_generation(&self, resource: &Resource) -> bool {
        resource.generation
    }

    /// PUT to a missing object creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without resourceVersion overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Seconds of grace of a delete that asks for `requested`; `None`: the kind knows no grace and is deleted at once.
    fn grace(&self, resource: &Resource, object: &Value, requested: Option<i64>) -> Option<i64> {
        (resource.group.is_empty() && resource.plural == "pods").then(|| pod_grace(object, requested))
    }

    /// Whether something besides `metadata.finalizers` keeps an object that is being deleted.
    fn holds_back_delete(&self, resource: &Resource, object: &Value) -> bool {
        resource.is_namespaces() && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
    }

    /// Fills in what is left out, on create, update and when read from an older store.
    fn default(&self, _object: &mut Value) {}

    /// Sets what only the server sets (status of a new object, protocol fields).
    fn prepare_create(&self, _cx: &Context, _object: &mut Value) {}

    /// Keeps what an update may not touch. Status is already the old one where `separate_status`.
    fn prepare_update(&self, _cx: &Context, _new: &mut Value, _old: &Value) {}

    /// The same for `/status`. Everything but status (and metadata's own rules) is already the old one.
    fn prepare_status_update(&self, _cx: &Context, _new: &mut Value, _old: &Value) {}

    /// Changes or refuses a write after looking at other objects (ServiceAccount, quota, priority class).
    async fn admit(&self, _cx: &Context, _new: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses a delete.
    async fn admit_delete(&self, _cx: &Context, _object: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// Offences of a new object. `metadata` is checked by the generic handlers.
    fn validate(&self, _cx: &Context, _object: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Offences of an update.
    fn validate_update(&self, cx: &Context, new: &Value, _old: &Value) -> FieldErrors {
        self.validate(cx, new)
    }

    /// Offences of a status update.
    fn validate_status_update(&self, _cx: &Context, _new: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Reserves addresses and ports and writes them into the object; a dropped reservation gives them back.
    async fn allocate(
        &self,
        _cx: &Context,
        _new: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Box<dyn Reservation>, Status> {
        Ok(Box::new(Nothing))
    }

    /// After a create is durable.
    async fn created(&self, _cx: &Context, _object: &Value) {}

    /// After an update is durable.
    async fn updated(&self, _cx: &Context, _new: &Value, _old: &Value) {}

    /// After the object is gone from the store: release what it held.
    async fn deleted(&self, _cx: &Context, _object: &Value) {}

    /// Answers a create of a kind that is never stored (reviews), or of a subresource that only computes
    /// (`serviceaccounts/token`); `object` is the body. `None`: not of this kind.
    async fn respond(&self, _cx: &Context, _body: &Value) -> Option<Result<Value, Status>> {
        None
    }
}

/// Grace of a Pod: what is asked for, else its own; none at all when no kubelet has it or it has ended.
fn pod_grace(pod: &Value, requested: Option<i64>) -> i64 {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        return 0;
    }
    match requested.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// A kind without rules of its own.
pub struct Generic;

impl Strategy for Generic {}
