//! Delete: preconditions, grace, finalizers and propagation; one object or a collection.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use storage::KeyValue;

use super::answer::{self, Answer};
use super::list::{self, Filter};
use crate::admission::{self, Operation, Write};
use crate::body;
use crate::core::{Call, store_error};
use crate::field::{FieldError, FieldErrors};
use crate::object::{self, meta, set_meta};
use crate::request::parse_dry_run;
use crate::status::Status;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const TRIES: usize = 20;

/// What to do with the objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `meta/v1.DeleteOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    /// `preconditions.uid`
    uid: Option<String>,
    /// `preconditions.resourceVersion`
    version: Option<String>,
    dry_run: bool,
    /// Answers 202 when the object stays for now: what the old `orphanDependents: false` asked for.
    legacy: bool,
}

impl Options {
    /// From body and query; the body wins.
    ///
    /// # Errors
    /// 400, 415, 422.
    pub fn read(call: &Call, bytes: &Bytes) -> Result<Self, Status> {
        let mut value = json!({});
        if !bytes.is_empty() {
            let format = body::format(&call.headers)?;
            let parsed = body::parse(format, bytes)
                .map_err(|why| Status::bad_request(format!("couldn't decode DeleteOptions: {why}")))?;
            value = parsed.value;
            let kind = value["kind"].as_str().unwrap_or("DeleteOptions");
            if kind != "DeleteOptions" || !value.is_object() {
                return Err(Status::bad_request(format!(
                    "decoded object cannot be converted to DeleteOptions: {kind}"
                )));
            }
        } else {
            for key in ["gracePeriodSeconds"] {
                if let Some(number) = call.query.number(key)? {
                    value[key] = number.into();
                }
            }
            if call.query.has("orphanDependents") {
                value["orphanDependents"] = call.query.flag("orphanDependents").into();
            }
            if call.query.has("propagationPolicy") {
                value["propagationPolicy"] = call.query.get("propagationPolicy").into();
            }
        }
        let mut options = Self::parse(&value)?;
        options.dry_run |= call.query.dry_run()?;
        Ok(options)
    }

    fn parse(value: &Value) -> Result<Self, Status> {
        let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let orphan = value["orphanDependents"].as_bool();
        let policy = text(&value["propagationPolicy"]);
        let mut errors = FieldErrors::new();
        let propagation = match (policy.as_deref(), orphan) {
            (Some(_), Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid(
                    "propagationPolicy",
                    value["propagationPolicy"].clone(),
                    why,
                ));
                None
            }
            (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), None) => {
                let known = ["Background", "Foreground", "Orphan", "nil"];
                errors.push(FieldError::not_supported("propagationPolicy", other, &known));
                None
            }
            (None, None) => None,
        };
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        let dry = value["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Options {
            grace: value["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: text(&value["preconditions"]["uid"]),
            version: text(&value["preconditions"]["resourceVersion"]),
            dry_run: parse_dry_run(dry.iter().filter_map(Value::as_str))?,
            legacy: orphan == Some(false),
        })
    }

    /// As a user would delete without options, but without grace.
    pub fn now() -> Self {
        Options { grace: Some(0), ..Options::default() }
    }

    /// Only this object, not another one of the same name.
    #[must_use]
    pub fn only(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// Nothing is kept.
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }
}

/// The verb on one object.
///
/// # Errors
/// 403, 404, 409.
pub async fn delete(call: &Call, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    let options = Options::read(call, &body)?;
    let outcome = remove(call, call.name(), &options).await?;
    respond(call, &options, outcome)
}

/// Answers with the object or a Status that holds its uid.
///
/// # Errors
/// 406.
pub fn respond(call: &Call, options: &Options, outcome: Outcome) -> Result<Answer, Status> {
    match outcome {
        Outcome::Pending(value) => {
            let code = if options.legacy { 202 } else { 200 };
            answer::object(call, code, call.outward(value))
        }
        Outcome::Gone(value) if call.row.returns_deleted => answer::object(call, 200, call.outward(value)),
        Outcome::Gone(value) => Ok(Answer::json(200, &success(call, &value))),
    }
}

fn success(call: &Call, object: &Value) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), meta(object, "name").into());
    if !call.row.group.is_empty() {
        details.insert("group".into(), call.row.group.as_str().into());
    }
    details.insert("kind".into(), call.row.plural.as_str().into());
    details.insert("uid".into(), meta(object, "uid").into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// What a delete did; objects in stored form.
pub enum Outcome {
    /// Removed: its last state, with the revision of the removal.
    Gone(Value),
    /// Still there, on its way out.
    Pending(Value),
}

impl Outcome {
    /// The object.
    pub fn into_object(self) -> Value {
        match self {
            Outcome::Gone(value) | Outcome::Pending(value) => value,
        }
    }
}

/// Deletes one object of this call's namespace.
///
/// # Errors
/// 403, 404, 409.
pub async fn remove(call: &Call, name: &str, options: &Options) -> Result<Outcome, Status> {
    if call.row.is_namespaces() && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(call.forbidden(name, "this namespace may not be deleted"));
    }
    for _ in 0..TRIES {
        let kv = call.fetch(name).await?;
        let old = call.parse(&kv)?;
        check_preconditions(call, name, options, &old)?;
        call.strategy.admit_delete(&call.cx, &old).await?;
        let write = Write { operation: Operation::Delete, new: None, old: Some(&old) };
        admission::check(call, write).await?;
        let step = plan(call, name, options, &old)?;
        if options.dry_run {
            return Ok(match step {
                Step::Remove(value) => Outcome::Gone(value),
                Step::Mark(value) | Step::Nothing(value) => Outcome::Pending(value),
            });
        }
        if let Some(outcome) = carry_out(call, &kv, step, &old).await? {
            return Ok(outcome);
        }
    }
    Err(Status::modified(&call.row.group, &call.row.plural, name))
}

fn check_preconditions(call: &Call, name: &str, options: &Options, object: &Value) -> Result<(), Status> {
    let checks = [("UID", &options.uid, "uid"), ("ResourceVersion", &options.version, "resourceVersion")];
    for (what, wanted, key) in checks {
        let current = meta(object, key);
        if let Some(wanted) = wanted
            && wanted != current
        {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {current}"
            );
            return Err(call.conflict(name, &why));
        }
    }
    Ok(())
}

enum Step {
    /// Take it out of the store.
    Remove(Value),
    /// Write that it is being deleted.
    Mark(Value),
    /// It is already on its way as asked.
    Nothing(Value),
}

/// What a delete means for the object as it is now.
fn plan(call: &Call, name: &str, options: &Options, old: &Value) -> Result<Step, Status> {
    let grace = call.strategy.grace(&call.stored, old, options.grace);
    let deleting = !old["metadata"]["deletionTimestamp"].is_null();
    let mut new = old.clone();
    set_finalizers(&mut new, options.propagation);
    let held = new["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let held_back = call.strategy.holds_back_delete(&call.stored, old);
    if let Some(grace) = grace.filter(|g| *g > 0) {
        if deleting {
            return Ok(shorten(options, grace, new, old));
        }
        mark(&mut new, grace);
        return Ok(Step::Mark(new));
    }
    if !held && !held_back {
        return Ok(Step::Remove(new));
    }
    if deleting && held_back && call.row.is_namespaces() && !held {
        let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace will automatically be purged by the system.";
        return Err(call.conflict(name, why));
    }
    if deleting && old["metadata"]["deletionGracePeriodSeconds"] == 0 && new == *old {
        return Ok(Step::Nothing(new));
    }
    if deleting {
        set_meta(&mut new, "deletionGracePeriodSeconds", 0.into());
    } else {
        mark(&mut new, 0);
        if call.row.is_namespaces() {
            object::make_child(&mut new, "status").insert("phase".into(), "Terminating".into());
        }
    }
    Ok(Step::Mark(new))
}

/// A second delete of an object in its grace may only shorten it.
fn shorten(options: &Options, grace: i64, mut new: Value, old: &Value) -> Step {
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if options.grace.is_none() || grace >= current {
        return if new == *old { Step::Nothing(new) } else { Step::Mark(new) };
    }
    let end: Option<Timestamp> = meta(old, "deletionTimestamp").parse().ok();
    let end = end.unwrap_or_else(Timestamp::now) - SignedDuration::from_secs(current - grace);
    set_meta(&mut new, "deletionTimestamp", object::format_time(end).into());
    set_meta(&mut new, "deletionGracePeriodSeconds", grace.into());
    Step::Mark(new)
}

fn mark(object: &mut Value, grace: i64) {
    let end = Timestamp::now() + SignedDuration::from_secs(grace.min(1 << 31));
    set_meta(object, "deletionTimestamp", object::format_time(end).into());
    set_meta(object, "deletionGracePeriodSeconds", grace.into());
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        set_meta(object, "generation", (generation + 1).into());
    }
}

/// The garbage collector's finalizers follow what is asked; without a wish they stay.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    match propagation {
        Propagation::Orphan => list.push(ORPHAN.into()),
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    set_meta(object, "finalizers", if list.is_empty() { Value::Null } else { list.into() });
}

/// `None`: somebody else wrote first.
async fn carry_out(call: &Call, kv: &KeyValue, step: Step, old: &Value) -> Result<Option<Outcome>, Status> {
    match step {
        Step::Nothing(value) => Ok(Some(Outcome::Pending(value))),
        Step::Remove(mut value) => match call.core.store.delete(&kv.key, Some(kv.mod_revision)).await {
            Ok(deleted) => {
                object::set_version(&mut value, deleted.revision);
                call.strategy.deleted(&call.cx, &value).await;
                Ok(Some(Outcome::Gone(value)))
            }
            Err(e) => lost(call, old, e),
        },
        Step::Mark(mut value) => {
            let bytes = call.encode(&value).await?;
            match call.core.store.update(&kv.key, bytes, kv.mod_revision).await {
                Ok(kv) => {
                    object::set_version(&mut value, kv.mod_revision);
                    call.strategy.updated(&call.cx, &value, old).await;
                    Ok(Some(Outcome::Pending(value)))
                }
                Err(e) => lost(call, old, e),
            }
        }
    }
}

fn lost(call: &Call, old: &Value, error: storage::Error) -> Result<Option<Outcome>, Status> {
    match error {
        storage::Error::Conflict { .. } => Ok(None),
        storage::Error::NotFound(_) => Err(call.not_found(meta(old, "name"))),
        other => Err(store_error(other)),
    }
}

/// The verb on a collection: every object that the selectors choose.
///
/// # Errors
/// 400, and the first refusal of an object.
pub async fn delete_collection(call: &Call, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    let options = Options::read(call, &body)?;
    let page = list::page(call, &Filter::of(call)?).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for kv in &page.items {
        let (namespace, name) = crate::core::split_key(&call.row, call.row.prefix().len(), &kv.key);
        let mut one = call.clone();
        one.cx.namespace = namespace.to_owned();
        match remove(&one, name, &options).await {
            Ok(outcome) => items.push(call.outward(outcome.into_object())),
            Err(gone) if gone.code() == 404 => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(Answer::json(200, &list::render_items(call, items, page.revision)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options() {
        let parse = |v: Value| Options::parse(&v);
        assert_eq!(parse(json!({})).unwrap(), Options::default());
        assert_eq!(
            parse(json!({"propagationPolicy": "Orphan"})).unwrap().propagation,
            Some(Propagation::Orphan)
        );
        assert!(parse(json!({"orphanDependents": false})).unwrap().legacy);
        for bad in [
            json!({"propagationPolicy": "Sideways"}),
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
            json!({"dryRun": ["Some"]}),
        ] {
            assert_eq!(parse(bad).unwrap_err().code(), 422);
        }
    }

    #[test]
    fn finalizers_follow_the_propagation() {
        let finalizers = |p| {
            let mut object = json!({"metadata": {"finalizers": ["a.b/c", "orphan"]}});
            set_finalizers(&mut object, p);
            object["metadata"]["finalizers"].clone()
        };
        assert_eq!(finalizers(None), json!(["a.b/c", "orphan"]));
        assert_eq!(finalizers(Some(Propagation::Background)), json!(["a.b/c"]));
        assert_eq!(finalizers(Some(Propagation::Foreground)), json!(["a.b/c", "foregroundDeletion"]));
    }
}
