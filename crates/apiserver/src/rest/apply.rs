//! Server-side apply: PATCH with `application/apply-patch+yaml` (KEP-555). The merge is crate `schema`'s.

use bytes::Bytes;
use schema::apply::{ApplyError, Manager};
use serde_json::Value;

use super::answer::{self, Answer};
use super::create::{self, Stored};
use super::update::{self, Part};
use super::views::Seen;
use super::{Expected, check_fields, check_kind, owners};
use crate::body::{self, Format};
use crate::core::{Call, store_error};
use crate::field::{FieldError, FieldErrors};
use crate::object::{self, meta, set_meta};
use crate::status::{Cause, Details, Status};

/// Media type of the patch.
pub const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// The verb.
///
/// # Errors
/// 400, 404 (status of a missing object), 409 with the conflicting owners, 415, 422.
pub async fn apply(call: &Call, part: Part, body: &Bytes) -> Result<Answer, Status> {
    if call.query.get("fieldManager").is_empty() {
        let mut errors = FieldErrors::new();
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &errors));
    }
    let mut call = call.clone();
    call.applies = true;
    let wanted = read(&call, body)?;
    let key = call.key(call.name());
    if call.core.store.get(&key).await.map_err(store_error)?.is_none() {
        if part != Part::Main {
            return Err(call.not_found(call.name()));
        }
        let new = merge(&call, None, &wanted)?;
        return match create::store_new(&call, new).await? {
            Stored::Kept(kv) => answer::stored(&call, 201, &kv),
            Stored::DryRun(value) => answer::object(&call, 201, call.outward(value)),
        };
    }
    let stored = update::update(&call, call.name(), part, &|old| merge(&call, Some(old), &wanted)).await?;
    update::respond(&call, stored)
}

/// The applied configuration; the URL completes its name and namespace.
fn read(call: &Call, body: &Bytes) -> Result<Value, Status> {
    // JSON is YAML, and its parser is the quicker one and finds duplicates.
    let parsed = body::parse(Format::Json, body).or_else(|_| body::parse(Format::Yaml, body));
    let parsed = parsed.map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
    let mut wanted = parsed.value;
    let expected = Expected::from(call.row.as_ref());
    if wanted["kind"].as_str().is_none_or(str::is_empty)
        || wanted["apiVersion"].as_str().is_none_or(str::is_empty)
    {
        return Err(Status::bad_request("the applied object must have kind and apiVersion"));
    }
    check_kind(&expected, &mut wanted, body)?;
    check_fields(call, &expected, &mut wanted, &parsed.duplicates)?;
    super::check_namespace(call, &mut wanted)?;
    match meta(&wanted, "name") {
        "" => set_meta(&mut wanted, "name", call.name().into()),
        same if same == call.name() => {}
        other => {
            return Err(Status::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({})",
                call.name()
            )));
        }
    }
    Ok(wanted)
}

fn merge(call: &Call, old: Option<&Value>, wanted: &Value) -> Result<Value, Status> {
    let row = &call.row;
    let ty = super::type_of(row, &Expected::from(row.as_ref()));
    let ty = ty.ok_or_else(|| Status::unsupported_media_type(&["application/merge-patch+json"]))?;
    let (name, api_version, time) = (owners::manager_name(call), row.api_version(), object::now());
    let manager = Manager {
        name: &name,
        api_version: &api_version,
        subresource: &call.cx.subresource,
        time: &time,
        resets: owners::resets(call),
    };
    schema::apply::apply(ty, old, wanted, &manager, call.query.flag("force"), &Seen(call)).map_err(refused)
}

fn refused(error: ApplyError) -> Status {
    let text = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let cause = |c: schema::apply::Conflict| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {}", c.manager),
                field: c.path,
            };
            let causes = conflicts.into_iter().map(cause).collect();
            Status::new(409, "Conflict", text).with_details(Details { causes, ..Details::default() })
        }
        // The engine of updates fetches and asks again; nobody sees this.
        ApplyError::Pending => Status::internal(text),
        ApplyError::ManagedFields | ApplyError::Invalid(_) => Status::bad_request(text),
    }
}
