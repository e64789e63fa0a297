//! For unit tests of rules: stored objects (a map behind the trait, no defaults, no validation), and what rules say.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use serde_json::Value;

use super::rules::Rules;
use super::value;
use crate::field::FieldErrors;
use crate::identity::{Attributes, Authorizer, Decision, UserInfo};
use crate::objects::{ObjectChange, Objects};
use crate::resource::{GroupResource, Resource};
use crate::status::Status;
use crate::strategy::Context;

type Key = (GroupResource, String, String);

/// The map.
#[derive(Default)]
pub(crate) struct Fake(Mutex<BTreeMap<Key, Arc<Value>>>);

impl Fake {
    /// With these objects, each with its group and plural.
    pub(crate) fn with(objects: &[(&str, &str, Value)]) -> Arc<Self> {
        let fake = Fake::default();
        for (group, plural, object) in objects {
            let key = (
                GroupResource::new(group, plural),
                value::namespace(object).to_owned(),
                value::name(object).to_owned(),
            );
            fake.0.lock().insert(key, Arc::new(object.clone()));
        }
        Arc::new(fake)
    }
}

#[async_trait]
impl Objects for Fake {
    async fn get(&self, r: &GroupResource, ns: &str, name: &str) -> Result<Option<Arc<Value>>, Status> {
        Ok(self.0.lock().get(&(r.clone(), ns.to_owned(), name.to_owned())).cloned())
    }

    async fn list(&self, r: &GroupResource, ns: Option<&str>) -> Result<(Vec<Arc<Value>>, u64), Status> {
        let map = self.0.lock();
        let items = map.iter().filter(|((group, n, _), _)| group == r && ns.is_none_or(|ns| ns == n));
        Ok((items.map(|(_, o)| o.clone()).collect(), 1))
    }

    async fn watch(&self, _: &GroupResource, _: u64) -> Result<BoxStream<'static, ObjectChange>, Status> {
        Ok(futures::stream::pending().boxed())
    }

    async fn create(&self, r: &GroupResource, ns: &str, object: Value) -> Result<Value, Status> {
        let key = (r.clone(), ns.to_owned(), value::name(&object).to_owned());
        let mut map = self.0.lock();
        if map.contains_key(&key) {
            return Err(Status::already_exists(&r.group, &r.resource, value::name(&object)));
        }
        map.insert(key, Arc::new(object.clone()));
        Ok(object)
    }

    async fn update(&self, r: &GroupResource, ns: &str, object: Value) -> Result<Value, Status> {
        let key = (r.clone(), ns.to_owned(), value::name(&object).to_owned());
        self.0.lock().insert(key, Arc::new(object.clone()));
        Ok(object)
    }

    async fn delete(&self, r: &GroupResource, ns: &str, name: &str) -> Result<(), Status> {
        self.0.lock().remove(&(r.clone(), ns.to_owned(), name.to_owned()));
        Ok(())
    }
}

/// Allows everything.
pub(crate) struct Anything;

#[async_trait]
impl Authorizer for Anything {
    async fn authorize(&self, _: &UserInfo, _: &Attributes) -> Decision {
        Decision { allowed: true, reason: String::new() }
    }
}

/// A request's context on a kind.
pub(crate) fn context(resource: Resource, namespace: &str, objects: Arc<dyn Objects>) -> Context {
    Context {
        resource: Arc::new(resource),
        namespace: namespace.into(),
        name: String::new(),
        subresource: String::new(),
        user: UserInfo::new("tester", &["system:authenticated"]),
        dry_run: false,
        objects,
        authorizer: Arc::new(Anything),
        notes: Arc::default(),
        warnings: Arc::default(),
    }
}

/// What a kind's rules say against an object after defaulting, as text.
pub fn offences(rules: Rules, mut object: Value) -> String {
    (rules.default)(&mut object);
    let mut errors = FieldErrors::new();
    (rules.validate)(&object, &mut errors);
    errors.to_string()
}
