//! Patch: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch; each a function from the old object
//! to the new one, run by the update engine.

use bytes::Bytes;
use serde_json::Value;

use super::answer::{self, Answer};
use super::update::{self, Part};
use super::{Expected, check_fields};
use crate::body;
use crate::core::Call;
use crate::object::{meta, set_meta};
use crate::status::Status;
use crate::typed;

/// A JSON patch may have so many operations.
const OPERATIONS: usize = 10_000;

/// A parsed patch.
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Merge by the schema's keys.
    Strategic(Value),
}

impl Patch {
    /// By media type.
    ///
    /// # Errors
    /// 400, 413, 415.
    pub fn read(call: &Call, bytes: &[u8]) -> Result<Self, Status> {
        let decode = |e: serde_json::Error| Status::bad_request(format!("error decoding patch: {e}"));
        match body::media_type(&call.headers) {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(bytes).map_err(decode)?;
                if patch.0.len() > OPERATIONS {
                    return Err(Status::new(
                        413,
                        "RequestEntityTooLarge",
                        format!(
                            "The allowed maximum operations in a JSON patch is {OPERATIONS}, got {}",
                            patch.0.len()
                        ),
                    ));
                }
                Ok(Patch::Json(patch))
            }
            "application/merge-patch+json" => Ok(Patch::Merge(object_patch(bytes)?)),
            "application/strategic-merge-patch+json" if !call.row.custom => {
                Ok(Patch::Strategic(object_patch(bytes)?))
            }
            other => Err(Status::unsupported_media_type(other, &typed::PATCH_TYPES)),
        }
    }

    /// The patched object.
    ///
    /// # Errors
    /// 400 and 422 for what does not fit the object.
    pub fn apply(&self, expected: &Expected<'_>, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        match self {
            Patch::Json(patch) => json_patch::patch(&mut new, patch).map_err(|e| {
                Status::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?,
            Patch::Merge(patch) => json_patch::merge(&mut new, patch),
            Patch::Strategic(patch) => new = typed::strategic(expected, old, patch)?,
        }
        Ok(new)
    }
}

fn object_patch(bytes: &[u8]) -> Result<Value, Status> {
    match serde_json::from_slice(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Status::bad_request("error decoding patch: the patch is no object")),
        Err(e) => Err(Status::bad_request(format!("error decoding patch: {e}"))),
    }
}

/// The verb.
///
/// # Errors
/// 400, 404, 409, 415, 422.
pub async fn patch(call: &Call, part: Part, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    let patch = Patch::read(call, &body)?;
    let stored = update::update(call, call.name(), part, &|old| patched(call, &patch, old)).await?;
    update::respond(call, stored)
}

/// The object that a patch makes of `old`, checked as a body is.
///
/// # Errors
/// 400, 422.
pub fn patched(call: &Call, patch: &Patch, old: &Value) -> Result<Value, Status> {
    let expected = Expected::from(call.row.as_ref());
    let mut new = patch.apply(&expected, old)?;
    if new["kind"] != old["kind"] || new["apiVersion"] != old["apiVersion"] {
        return Err(Status::bad_request("a patch may not change kind or apiVersion"));
    }
    check_fields(call, &expected, &mut new, Vec::new())?;
    if meta(&new, "namespace").is_empty() {
        set_meta(&mut new, "namespace", old["metadata"]["namespace"].clone());
    }
    Ok(new)
}
