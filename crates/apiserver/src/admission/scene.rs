//! What expressions of policies and match conditions see of a request.

use std::sync::Arc;

use super::{Write, review};
use crate::cel::convert::dynamic;
use crate::cel::{self, Budget, Value};
use crate::core::Call;
use crate::identity::Attributes;
use crate::kinds::value::{list, text};
use crate::resource::{GroupResource, Resource};
use crate::status::Status;

/// The variables of one request, in the form of one version.
pub struct Scene(Vec<(&'static str, Value)>);

impl Scene {
    /// Of a request.
    ///
    /// # Errors
    /// An unreadable store, a conversion by webhook that fails.
    pub async fn of(call: &Call, row: &Arc<Resource>, write: Write<'_>) -> Result<Self, Status> {
        let side = async |object: Option<&serde_json::Value>| match object {
            Some(object) => review::outward(call, row, object).await.map(|shown| dynamic(&shown)),
            None => Ok(Value::Null),
        };
        let namespace = if call.row.namespaced {
            let resource = GroupResource::new("", "namespaces");
            call.cx.objects.get(&resource, "", call.namespace()).await?
        } else {
            None
        };
        let (ask, about) = cel::authorizers(call.cx.authorizer.clone(), call.cx.user.clone(), about(call));
        Ok(Scene(vec![
            ("object", side(write.new).await?),
            ("oldObject", side(write.old).await?),
            ("request", dynamic(&review::request(call, row, write))),
            ("namespaceObject", namespace.map_or(Value::Null, |n| dynamic(&n))),
            ("authorizer", ask),
            ("authorizer.requestResource", about),
            ("params", Value::Null),
        ]))
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name, value)),
        }
    }

    /// All of them.
    pub fn variables(&self) -> Vec<(&str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value)).collect()
    }
}

fn about(call: &Call) -> Attributes {
    Attributes {
        is_resource: true,
        group: call.row.group.clone(),
        version: call.row.version.clone(),
        resource: call.row.plural.clone(),
        subresource: call.cx.subresource.clone(),
        namespace: call.namespace().to_owned(),
        name: call.name().to_owned(),
        ..Attributes::default()
    }
}

/// Whether all `matchConditions` hold. One that does not outweighs one that fails.
///
/// # Errors
/// Which one failed, and how.
pub fn conditions(owner: &serde_json::Value, scene: &Scene, budget: &mut Budget) -> Result<bool, String> {
    let mut failure = None;
    for condition in list(owner, "matchConditions") {
        let verdict = cel::compile(text(condition, "expression"))
            .and_then(|program| program.holds(&scene.variables(), budget));
        match verdict {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                let name = text(condition, "name");
                failure.get_or_insert(format!("matchCondition {name:?} resulted in error: {why}"));
            }
        }
    }
    failure.map_or(Ok(true), Err)
}
