//! What every handler shares: the store, the kinds and their rules; and [`Call`], one request about one resource.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use schema::canonical;
use serde_json::Value;
use storage::{KeyValue, Store};
use tokio_util::sync::CancellationToken;

use crate::audit::Record;
use crate::auth::AuthError;
use crate::config::Config;
use crate::convert;
use crate::crd;
use crate::identity::{Authorizer, UserInfo};
use crate::kinds::Kinds;
use crate::object;
use crate::objects::Objects;
use crate::parsed::Parsed;
use crate::quota::Quotas;
use crate::registry::Registry;
use crate::request::{Query, ResourcePath};
use crate::resource::{GroupResource, Resource};
use crate::rest::views::Views;
use crate::status::Status;
use crate::strategy::{Context, NameRule, Strategy};

/// The state behind all requests.
pub struct Core {
    /// Settings.
    pub config: Config,
    /// Objects.
    pub store: Arc<dyn Store>,
    /// Kinds served now.
    pub registry: ArcSwap<Registry>,
    /// Ends all watches when the server stops.
    pub stop: CancellationToken,
    /// What writes take from ResourceQuotas.
    pub quotas: Quotas,
    /// What rules read with every request.
    pub parsed: Parsed,
    kinds: Kinds,
    strategies: Mutex<HashMap<GroupResource, Arc<dyn Strategy>>>,
}

impl Core {
    /// Over a store, with the built-in kinds.
    ///
    /// # Errors
    /// The configuration's keys are none.
    pub fn new(config: Config, store: Arc<dyn Store>) -> Result<Self, AuthError> {
        let kinds = Kinds::new(&config)?;
        let registry = ArcSwap::from_pointee(Registry::new(crate::builtin::resources()));
        Ok(Core {
            config,
            store,
            registry,
            stop: CancellationToken::new(),
            quotas: Quotas::default(),
            parsed: Parsed::default(),
            kinds,
            strategies: Mutex::default(),
        })
    }

    /// The rules of a kind, made on first use.
    pub fn strategy(&self, resource: &GroupResource) -> Arc<dyn Strategy> {
        let mut known = self.strategies.lock();
        if let Some(strategy) = known.get(resource) {
            return strategy.clone();
        }
        let strategy = self.kinds.strategy(resource);
        known.insert(resource.clone(), strategy.clone());
        strategy
    }
}

/// One request about one resource: everything a verb needs besides the body.
#[derive(Clone)]
pub struct Call {
    /// Shared state.
    pub core: Arc<Core>,
    /// The row of the version in the URL.
    pub row: Arc<Resource>,
    /// The row in whose form objects are when rules see them: the stored one of a built-in kind, the requested one of a
    /// custom kind.
    pub stored: Arc<Resource>,
    /// The row in whose form objects are written to the store.
    pub written: Arc<Resource>,
    /// The rules of the form of `stored`.
    pub strategy: Arc<dyn Strategy>,
    /// What hooks may know.
    pub cx: Context,
    /// Options.
    pub query: Query,
    /// Header fields of the request.
    pub headers: HeaderMap,
    /// What follows the subresource in the path.
    pub rest: String,
    /// Whether a slash follows the subresource.
    pub has_rest: bool,
    /// The write is a server-side apply: it keeps account of field owners itself.
    pub applies: bool,
    /// The object in other versions, for owners of its fields.
    pub views: Arc<Views>,
    /// What the audit log is to say of the request; held as long as it lasts.
    pub record: Option<Arc<Record>>,
    /// The server itself asks, or what is asked was admitted under another name: admission is not asked again.
    pub internal: bool,
}

impl Call {
    /// A request of a user.
    pub fn new(
        core: &Arc<Core>,
        row: Arc<Resource>,
        path: &ResourcePath,
        query: Query,
        user: UserInfo,
        access: (Arc<dyn Objects>, Arc<dyn Authorizer>),
    ) -> Self {
        let written = core.registry.load().storage_of(&row);
        let stored = if row.custom { row.clone() } else { written.clone() };
        let strategy: Arc<dyn Strategy> = if stored.custom {
            Arc::new(crate::crd::rules::Custom(stored.clone()))
        } else {
            core.strategy(&stored.group_resource())
        };
        let cx = Context {
            resource: row.clone(),
            namespace: if row.namespaced { path.namespace.clone() } else { String::new() },
            name: path.name.clone(),
            subresource: path.subresource.clone(),
            user,
            dry_run: false,
            objects: access.0,
            authorizer: access.1,
            notes: Arc::default(),
            warnings: Arc::default(),
        };
        let (rest, has_rest) = (path.rest.clone(), path.has_rest);
        Call {
            core: core.clone(),
            row,
            stored,
            written,
            strategy,
            cx,
            query,
            headers: HeaderMap::new(),
            rest,
            has_rest,
            applies: false,
            views: Arc::default(),
            record: None,
            internal: false,
        }
    }

    /// Makes it a request about another, built-in resource.
    pub fn turn_to(&mut self, row: Arc<Resource>) {
        self.strategy = self.core.strategy(&row.group_resource());
        self.stored = row.clone();
        self.written = row.clone();
        self.cx.resource = row.clone();
        self.row = row;
    }

    /// Name in the URL.
    pub fn name(&self) -> &str {
        &self.cx.name
    }

    /// Namespace in the URL.
    pub fn namespace(&self) -> &str {
        &self.cx.namespace
    }

    /// Key of an object of this request's namespace.
    pub fn key(&self, name: &str) -> String {
        self.row.key(&self.cx.namespace, name)
    }

    /// Prefix of the keys that a collection request is about.
    pub fn prefix(&self) -> String {
        let all = self.row.prefix();
        if self.row.namespaced && !self.cx.namespace.is_empty() {
            format!("{all}{}/", self.cx.namespace)
        } else {
            all
        }
    }

    /// How names of this kind are checked.
    pub fn name_rule(&self) -> NameRule {
        match self.strategy.name_rule() {
            NameRule::Subdomain => self.stored.names,
            own => own,
        }
    }

    /// 404 for an object of this resource.
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.row.group, &self.row.plural, name)
    }

    /// 403 with a reason.
    pub fn forbidden(&self, name: &str, why: &str) -> Status {
        Status::forbidden(&self.row.group, &self.row.plural, name, why)
    }

    /// 409 with a reason.
    pub fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(&self.row.group, &self.row.plural, name, why)
    }

    /// The bytes of an object, in the form that rules see.
    ///
    /// # Errors
    /// 404 when it is not there, 500 when its conversion fails.
    pub async fn fetch(&self, name: &str) -> Result<KeyValue, Status> {
        self.shown(self.fetch_written(name).await?).await
    }

    /// The bytes of an object as they were written.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub async fn fetch_written(&self, name: &str) -> Result<KeyValue, Status> {
        let found = self.core.store.get(&self.key(name)).await.map_err(store_error)?;
        found.ok_or_else(|| self.not_found(name))
    }

    /// What was read from the store, in the form that rules see.
    ///
    /// # Errors
    /// 500 when the conversion fails.
    pub async fn shown(&self, kv: KeyValue) -> Result<KeyValue, Status> {
        if self.stored.read.is_none() {
            return Ok(kv);
        }
        let one = self.all_shown(vec![kv]).await?.pop();
        one.ok_or_else(|| Status::internal("a conversion lost an object"))
    }

    /// [`Self::shown`], of many with one question to the webhook.
    ///
    /// # Errors
    /// 500 when the conversion fails.
    pub async fn all_shown(&self, items: Vec<KeyValue>) -> Result<Vec<KeyValue>, Status> {
        crd::convert::shown(self.cx.objects.as_ref(), &self.stored, items).await
    }

    /// Whether bytes of the store are of the version that is written now.
    pub fn is_current(&self, kv: &KeyValue) -> bool {
        !self.written.custom || kv.value.starts_with(object::head(&self.written).as_bytes())
    }

    /// An object as bytes for the store.
    ///
    /// # Errors
    /// 500 when the conversion fails.
    pub async fn encode(&self, object: &Value) -> Result<Bytes, Status> {
        if !self.stored.custom || Arc::ptr_eq(&self.stored, &self.written) {
            return Ok(object::encode(&self.written, object));
        }
        let mut sent = object.clone();
        object::set_meta(&mut sent, "resourceVersion", Value::Null);
        let objects = self.cx.objects.as_ref();
        let converted = crd::convert::convert(objects, &self.written, vec![sent]).await?;
        Ok(object::encode(&self.written, converted.first().unwrap_or(&Value::Null)))
    }

    /// An object that was read, with its version.
    ///
    /// # Errors
    /// 500 for bytes that are no object.
    pub fn parse(&self, kv: &KeyValue) -> Result<Value, Status> {
        self.parse_at(kv, kv.mod_revision)
    }

    /// The same with another version: a removal's.
    ///
    /// # Errors
    /// 500 for bytes that are no object.
    pub fn parse_at(&self, kv: &KeyValue, revision: u64) -> Result<Value, Status> {
        let mut object = object::decode(&kv.value, revision)
            .map_err(|e| Status::internal(format!("decode {}: {e}", kv.key)))?;
        if self.stored.custom {
            // Versions that differ by name alone are not converted.
            object::set_top(&mut object, "apiVersion", self.stored.api_version().into());
        }
        Ok(object)
    }

    /// Leaves zero values out of an object of the form that rules see, as Go's decoder makes no difference between them
    /// and absent ones. Objects of custom kinds stay as they were written.
    pub fn omit(&self, object: &mut Value) {
        if let Some(ty) = self.stored.builtin() {
            canonical::omit(ty, object);
        }
    }

    /// Brings an object of the form that rules see to that in which it is stored and shown.
    pub fn complete(&self, object: &mut Value) {
        if let Some(ty) = self.stored.builtin() {
            canonical::complete(ty, object);
        }
    }

    /// From the stored form to the form of this request's version.
    pub fn outward(&self, mut object: Value) -> Value {
        if !Arc::ptr_eq(&self.row, &self.stored) {
            convert::from_stored(&self.row, &mut object);
            if let Some(ty) = self.row.builtin() {
                canonical::complete(ty, &mut object);
            }
        }
        object
    }

    /// From the form of this request's version to the stored form.
    pub fn inward(&self, mut object: Value) -> Value {
        if !Arc::ptr_eq(&self.row, &self.stored) {
            convert::to_stored(&self.row, &self.stored, &mut object);
        }
        object
    }
}

/// A store's failure as a client sees it.
pub fn store_error(error: storage::Error) -> Status {
    match error {
        storage::Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        storage::Error::Future { requested, newest } => too_large_version(requested, newest),
        storage::Error::Closed => Status::unavailable("the server is shutting down"),
        other => Status::internal(other),
    }
}

/// 504: the client has seen a version that this server has not reached.
pub fn too_large_version(requested: u64, newest: u64) -> Status {
    let message = format!("Timeout: Too large resource version: {requested}, current: {newest}");
    let cause = crate::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    Status::new(504, "Timeout", message).with_details(crate::status::Details {
        causes: vec![cause],
        retry_after_seconds: 1,
        ..Default::default()
    })
}

/// Namespace and name in a key of a resource.
pub fn split_key<'k>(row: &Resource, prefix_len: usize, key: &'k str) -> (&'k str, &'k str) {
    let tail = key.get(prefix_len..).unwrap_or_default();
    if row.namespaced { tail.split_once('/').unwrap_or(("", tail)) } else { ("", tail) }
}
