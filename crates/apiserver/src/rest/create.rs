//! Create: names, server-set metadata, defaults, admission, validation, allocation, store.

use rand::RngExt as _;
use serde_json::Value;
use storage::KeyValue;

use super::answer::{self, Answer};
use super::owners;
use crate::admission::{self, Operation, Write};
use crate::core::{Call, store_error};
use crate::field::FieldErrors;
use crate::meta as rules;
use crate::object::{self, meta, set_meta};
use crate::quota;
use crate::status::{Cause, Details, Status};

/// How often a generated name that is taken is tried anew.
const GENERATE_TRIES: usize = 8;

/// The verb. `body` is in the form of the request's version.
///
/// # Errors
/// 400, 403, 404 (namespace), 409, 422.
pub async fn create(call: &Call, mut body: Value) -> Result<Answer, Status> {
    super::check_namespace(call, &mut body)?;
    if let Some(result) = call.strategy.respond(&call.cx, &body).await {
        return answer::object(call, 201, result?);
    }
    if call.row.is_virtual() {
        return super::subresource::create_virtual(call, body).await;
    }
    // Before anything is done: a 406 must not leave an object behind.
    answer::negotiate(call)?;
    match store_new(call, body).await? {
        Stored::Kept(kv) => answer::stored(call, 201, &kv),
        Stored::DryRun(value) => answer::object(call, 201, call.outward(value)),
    }
}

/// What came of a write.
pub enum Stored {
    /// Durable.
    Kept(KeyValue),
    /// Would have been written so; in stored form.
    DryRun(Value),
}

/// Creates an object given in the form of the request's version.
///
/// # Errors
/// As [`create`].
pub async fn store_new(call: &Call, body: Value) -> Result<Stored, Status> {
    let mut object = call.inward(body);
    call.omit(&mut object);
    if !meta(&object, "resourceVersion").is_empty() {
        return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
    }
    check_lifecycle(call, &object).await?;
    let generated = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
    begin(call, &mut object, generated);
    call.strategy.default(&mut object);
    // Whoever writes owns what it sent and what defaults made of that, not what admission adds.
    owners::note(call, None, &mut object).await?;
    call.strategy.admit(&call.cx, &mut object, None).await?;
    admission::mutate(call, &mut object, None).await?;
    call.strategy.prepare_create(&call.cx, &mut object);
    call.complete(&mut object);
    validate(call, &object)?;
    let write = Write { operation: Operation::Create, new: Some(&object), old: None };
    admission::check(call, write).await?;
    let hold =
        quota::reserve(call, Write { operation: Operation::Create, new: Some(&object), old: None }).await?;
    let reservation = call.strategy.allocate(&call.cx, &mut object, None).await?;
    if call.cx.dry_run {
        return check_free(call, object).await;
    }
    let tries = if generated { GENERATE_TRIES } else { 1 };
    for attempt in 1..=tries {
        let key = call.row.key(call.namespace(), meta(&object, "name"));
        let bytes = call.encode(&object).await?;
        match call.core.store.create(&key, bytes).await {
            Ok(kv) => {
                reservation.keep();
                quota::keep(hold);
                object::set_version(&mut object, kv.mod_revision);
                call.strategy.created(&call.cx, &object).await;
                return Ok(Stored::Kept(call.shown(kv).await?));
            }
            Err(storage::Error::Exists(_)) if attempt < tries => {
                let name = generate_name(meta(&object, "generateName"));
                set_meta(&mut object, "name", name.into());
            }
            Err(storage::Error::Exists(_)) => break,
            Err(other) => return Err(store_error(other)),
        }
    }
    Err(Status::already_exists(&call.row.group, &call.row.plural, meta(&object, "name")))
}

async fn check_free(call: &Call, object: Value) -> Result<Stored, Status> {
    let name = meta(&object, "name");
    match call.core.store.get(&call.key(name)).await.map_err(store_error)? {
        Some(_) => Err(Status::already_exists(&call.row.group, &call.row.plural, name)),
        None => Ok(Stored::DryRun(object)),
    }
}

/// What only the server sets.
fn begin(call: &Call, object: &mut Value, generated: bool) {
    if generated {
        let name = generate_name(meta(object, "generateName"));
        set_meta(object, "name", name.into());
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        set_meta(object, key, Value::Null);
    }
    if call.row.namespaced {
        set_meta(object, "namespace", call.namespace().into());
    }
    set_meta(object, "uid", uuid::Uuid::new_v4().to_string().into());
    set_meta(object, "creationTimestamp", object::now().into());
    if call.strategy.counts_generation(&call.stored) {
        set_meta(object, "generation", 1.into());
    }
    if call.strategy.separate_status(&call.stored) && call.row.custom {
        object::set_top(object, "status", Value::Null);
    }
}

/// `base` and five characters that form no words.
pub fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let mut out: String = base.chars().take(58).collect();
    out.extend((0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    out
}

fn validate(call: &Call, object: &Value) -> Result<(), Status> {
    let mut errors = rules::validate(object, call.stored.namespaced, call.name_rule());
    errors.extend(call.strategy.validate(&call.cx, object));
    invalid(call, object, errors)
}

/// 422 if there are offences.
///
/// # Errors
/// The offences.
pub fn invalid(call: &Call, object: &Value, errors: FieldErrors) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    let name = match meta(object, "name") {
        "" => meta(object, "generateName"),
        name => name,
    };
    Err(Status::invalid(&call.row.group, &call.row.kind, name, &errors))
}

/// Namespaces must be there and not on their way out when something is created in them.
async fn check_lifecycle(call: &Call, object: &Value) -> Result<(), Status> {
    if !call.row.namespaced {
        return Ok(());
    }
    let namespace = call.namespace();
    let key = format!("/registry/core/namespaces/{namespace}");
    let Some(kv) = call.core.store.get(&key).await.map_err(store_error)? else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if !is_terminating(&kv) {
        return Ok(());
    }
    let name = meta(object, "name");
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    };
    let status = call.forbidden(name, &why);
    Err(status.with_details(Details {
        name: name.into(),
        group: call.row.group.clone(),
        kind: call.row.plural.clone(),
        causes: vec![cause],
        ..Details::default()
    }))
}

fn is_terminating(namespace: &KeyValue) -> bool {
    // The word cannot appear unescaped elsewhere but as this key; a parse confirms what the cheap look suspects.
    const KEY: &[u8] = b"\"deletionTimestamp\"";
    namespace.value.windows(KEY.len()).any(|w| w == KEY)
        && serde_json::from_slice::<Value>(&namespace.value)
            .is_ok_and(|v| !v["metadata"]["deletionTimestamp"].is_null())
}
