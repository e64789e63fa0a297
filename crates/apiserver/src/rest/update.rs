//! Update: PUT, and the one engine behind every change of a stored object (patches and subresources too).

use bytes::Bytes;
use serde_json::Value;
use storage::KeyValue;

use super::answer::{self, Answer};
use super::create::{self, Stored};
use super::{owners, views};
use crate::admission::{self, Operation, Write};
use crate::core::{Call, store_error};
use crate::field::{FieldError, FieldErrors};
use crate::meta as rules;
use crate::object::{self, meta, set_meta, set_top};
use crate::quota;
use crate::status::Status;

/// How often a change that names no version is tried anew when others write meanwhile.
const TRIES: usize = 20;

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but status, where the kind writes that apart.
    Main,
    /// Status alone.
    Status,
    /// What a subresource computed; checked as a change of the whole.
    Computed,
    /// What a subresource computed and has checked itself.
    Trusted,
}

/// Makes the new object from the old one, both in the form of the request's version, version included.
pub type Change<'a> = &'a (dyn Fn(&Value) -> Result<Value, Status> + Sync);

/// An owned [`Change`].
pub type MakeNew<'a> = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a>;

/// PUT.
///
/// # Errors
/// 400, 404, 409, 422.
pub async fn put(call: &Call, part: Part, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    let mut new = super::decode_object(call, call.row.as_ref(), body)?;
    super::check_namespace(call, &mut new)?;
    let name = call.name().to_owned();
    match meta(&new, "name") {
        "" => set_meta(&mut new, "name", name.as_str().into()),
        same if same == name => {}
        other => {
            return Err(Status::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({name})"
            )));
        }
    }
    if part == Part::Main && call.strategy.allow_create_on_update() {
        let exists = call.core.store.get(&call.key(&name)).await.map_err(store_error)?.is_some();
        if !exists {
            set_meta(&mut new, "resourceVersion", Value::Null);
            return create::create(call, new).await;
        }
    }
    if meta(&new, "resourceVersion").is_empty() && !call.strategy.allow_unconditional_update() {
        let mut errors = FieldErrors::new();
        let path = "metadata.resourceVersion";
        errors.push(FieldError::invalid(path, 0, "must be specified for an update"));
        create::invalid(call, &new, errors)?;
    }
    let stored = update(call, &name, part, &|_| Ok(new.clone())).await?;
    respond(call, stored)
}

/// Answers a change.
///
/// # Errors
/// 406.
pub fn respond(call: &Call, stored: Stored) -> Result<Answer, Status> {
    match stored {
        Stored::Kept(kv) => answer::stored(call, 200, &kv),
        Stored::DryRun(value) => answer::object(call, 200, call.outward(value)),
    }
}

/// Changes a stored object: reads, computes, checks, writes if nobody else wrote meanwhile; else begins again,
/// unless the change names the version it was made for.
///
/// # Errors
/// 404, 409, 422 and whatever `change` and the rules say.
pub async fn update(call: &Call, name: &str, part: Part, change: Change<'_>) -> Result<Stored, Status> {
    for _ in 0..TRIES {
        let written = call.fetch_written(name).await?;
        if let Some(stored) = attempt(call, name, part, change, written).await? {
            return Ok(stored);
        }
    }
    Err(Status::modified(&call.row.group, &call.row.plural, name))
}

/// One try; `None`: somebody else wrote first.
async fn attempt(
    call: &Call,
    name: &str,
    part: Part,
    change: Change<'_>,
    written: KeyValue,
) -> Result<Option<Stored>, Status> {
    let mut is_current = call.is_current(&written);
    let before = written.value.clone();
    let kv = call.shown(written).await?;
    // What is read otherwise than it was written is written anew.
    is_current &= kv.value == before || !std::sync::Arc::ptr_eq(&call.stored, &call.written);
    let mut old = call.parse(&kv)?;
    call.complete(&mut old);
    let shown = call.outward(old.clone());
    let new = loop {
        match change(&shown) {
            // An apply that needs a webhook's view of the object.
            Err(_) if views::fetch(call).await? => {}
            done => break done?,
        }
    };
    check_preconditions(call, name, &new, &old)?;
    let mut new = call.inward(new);
    call.omit(&mut new);
    carry_over(call, part, &mut new, &old);
    call.strategy.default(&mut new);
    owners::note(call, Some(&old), &mut new).await?;
    prepare(call, part, &mut new, &old);
    call.strategy.admit(&call.cx, &mut new, Some(&old)).await?;
    admission::mutate(call, &mut new, Some(&old)).await?;
    call.complete(&mut new);
    validate(call, part, &new, &old)?;
    let write = Write { operation: Operation::Update, new: Some(&new), old: Some(&old) };
    admission::check(call, write).await?;
    count_generation(call, &mut new, &old);
    owners::keep_times(&mut new, &old);
    let hold = quota::reserve(call, Write { operation: Operation::Update, new: Some(&new), old: Some(&old) })
        .await?;
    let reservation = call.strategy.allocate(&call.cx, &mut new, Some(&old)).await?;
    if call.cx.dry_run {
        return Ok(Some(Stored::DryRun(new)));
    }
    if is_released(call, &new, &old) {
        reservation.keep();
        return remove(call, kv, new).await;
    }
    // A write that changes nothing still brings an object to the version that is stored now.
    if new == old && is_current {
        reservation.keep();
        quota::keep(hold);
        return Ok(Some(Stored::Kept(kv)));
    }
    let bytes = call.encode(&new).await?;
    match call.core.store.update(&kv.key, bytes, kv.mod_revision).await {
        Ok(kv) => {
            reservation.keep();
            quota::keep(hold);
            object::set_version(&mut new, kv.mod_revision);
            call.strategy.updated(&call.cx, &new, &old).await;
            Ok(Some(Stored::Kept(call.shown(kv).await?)))
        }
        Err(storage::Error::Conflict { .. }) => Ok(None),
        Err(storage::Error::NotFound(_)) => Err(call.not_found(name)),
        Err(other) => Err(store_error(other)),
    }
}

/// The last finalizer of an object being deleted is gone: so is the object.
async fn remove(call: &Call, kv: KeyValue, new: Value) -> Result<Option<Stored>, Status> {
    match call.core.store.delete(&kv.key, Some(kv.mod_revision)).await {
        Ok(deleted) => {
            call.strategy.deleted(&call.cx, &new).await;
            let value = object::encode(&call.stored, &new);
            Ok(Some(Stored::Kept(KeyValue { value, mod_revision: deleted.revision, ..kv })))
        }
        Err(storage::Error::Conflict { .. } | storage::Error::NotFound(_)) => Ok(None),
        Err(other) => Err(store_error(other)),
    }
}

fn is_released(call: &Call, new: &Value, old: &Value) -> bool {
    let held = |v: &Value| v["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    old["metadata"]["deletionGracePeriodSeconds"] == 0
        && !old["metadata"]["deletionTimestamp"].is_null()
        && !held(new)
        && !call.strategy.holds_back_delete(&call.stored, new)
}

fn check_preconditions(call: &Call, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let (wanted, current) = (meta(new, "resourceVersion"), meta(old, "resourceVersion"));
    if !wanted.is_empty() && wanted != "0" && wanted != current {
        return Err(Status::modified(&call.row.group, &call.row.plural, name));
    }
    let (wanted, current) = (meta(new, "uid"), meta(old, "uid"));
    if !wanted.is_empty() && wanted != current {
        let why =
            format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {current}");
        return Err(call.conflict(name, &why));
    }
    Ok(())
}

/// Metadata that no client changes, and the part that this write leaves alone.
fn carry_over(call: &Call, part: Part, new: &mut Value, old: &Value) {
    let fixed = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];
    for key in fixed.iter().chain(&["generateName", "resourceVersion"]) {
        set_meta(new, key, old["metadata"][*key].clone());
    }
    if meta(new, "namespace").is_empty() {
        set_meta(new, "namespace", old["metadata"]["namespace"].clone());
    }
    if new["metadata"].get("managedFields").is_none() {
        set_meta(new, "managedFields", old["metadata"]["managedFields"].clone());
    }
    match part {
        Part::Main if call.strategy.separate_status(&call.stored) => {
            set_top(new, "status", old["status"].clone());
        }
        Part::Status => {
            let mut merged = old.clone();
            set_top(&mut merged, "status", new["status"].clone());
            // Clients mark objects through status too; whom they belong to and what holds them stays.
            set_meta(&mut merged, "annotations", new["metadata"]["annotations"].clone());
            if call.stored.group.is_empty() {
                set_meta(&mut merged, "labels", new["metadata"]["labels"].clone());
            }
            *new = merged;
        }
        _ => {}
    }
}

fn prepare(call: &Call, part: Part, new: &mut Value, old: &Value) {
    match part {
        Part::Main => call.strategy.prepare_update(&call.cx, new, old),
        Part::Status => call.strategy.prepare_status_update(&call.cx, new, old),
        Part::Computed | Part::Trusted => {}
    }
}

fn validate(call: &Call, part: Part, new: &Value, old: &Value) -> Result<(), Status> {
    let mut errors = rules::validate(new, call.stored.namespaced, call.name_rule());
    errors.extend(rules::validate_update(new, old));
    match part {
        Part::Main | Part::Computed => errors.extend(call.strategy.validate_update(&call.cx, new, old)),
        Part::Status => errors.extend(call.strategy.validate_status_update(&call.cx, new, old)),
        Part::Trusted => {}
    }
    create::invalid(call, new, errors)
}

/// A change outside of metadata and status makes a new generation.
fn count_generation(call: &Call, new: &mut Value, old: &Value) {
    if !call.strategy.counts_generation(&call.stored) {
        return;
    }
    let skip = |key: &str| matches!(key, "metadata" | "status");
    let differs = |a: &Value, b: &Value| {
        a.as_object().into_iter().flatten().any(|(key, value)| !skip(key) && b.get(key) != Some(value))
    };
    if differs(new, old) || differs(old, new) {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        set_meta(new, "generation", next.into());
    }
}
