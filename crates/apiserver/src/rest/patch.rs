//! Patch: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch; each a function from the old object
//! to the new one, run by the update engine.

use bytes::Bytes;
use schema::patch::{self, PatchError};
use serde_json::Value;

use super::answer::{self, Answer};
use super::apply;
use super::update::{self, Part};
use super::{Expected, check_fields};
use crate::body;
use crate::core::Call;
use crate::object::{meta, set_meta};
use crate::resource::Resource;
use crate::status::Status;

/// Media types of patches.
const TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::MEDIA_TYPE,
];

/// A parsed patch.
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Merge by the schema's keys.
    Strategic(Value),
}

impl Patch {
    /// By media type.
    ///
    /// # Errors
    /// 400, 415.
    pub fn read(call: &Call, bytes: &[u8]) -> Result<Self, Status> {
        let parse = || -> Result<Value, Status> {
            serde_json::from_slice(bytes)
                .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))
        };
        let object = || match parse()? {
            value @ Value::Object(_) => Ok(value),
            _ => Err(Status::bad_request("error decoding patch: the patch is no object")),
        };
        match body::media_type(&call.headers) {
            "application/json-patch+json" => Ok(Patch::Json(parse()?)),
            "application/merge-patch+json" => Ok(Patch::Merge(object()?)),
            "application/strategic-merge-patch+json" if !call.row.custom => Ok(Patch::Strategic(object()?)),
            _ => Err(Status::unsupported_media_type(&TYPES)),
        }
    }

    /// The patched object.
    ///
    /// # Errors
    /// 400 and 422 for what does not fit the object.
    pub fn apply(&self, row: &Resource, expected: &Expected<'_>, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        let result = match self {
            Patch::Json(patch) => patch::json(&mut new, patch),
            Patch::Merge(patch) => {
                patch::merge(&mut new, patch);
                Ok(())
            }
            Patch::Strategic(patch) => {
                let ty = super::type_of(row, expected);
                let ty = ty.ok_or_else(|| Status::unsupported_media_type(&TYPES[..2]))?;
                patch::strategic(ty, old.clone(), patch).map(|merged| new = merged)
            }
        };
        result.map(|()| new).map_err(refused)
    }
}

fn refused(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(text) => Status::bad_request(text),
        PatchError::Unprocessable(why) => {
            let text = format!("the server rejected our request due to an error in our request: {why}");
            Status::new(422, "Invalid", text)
        }
        large @ PatchError::TooLarge(_) => Status::new(413, "RequestEntityTooLarge", large.to_string()),
    }
}

/// The verb.
///
/// # Errors
/// 400, 404, 409, 415, 422.
pub async fn patch(call: &Call, part: Part, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    if body::media_type(&call.headers) == apply::MEDIA_TYPE {
        return apply::apply(call, part, &body).await;
    }
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
    let mut new = patch.apply(&call.row, &expected, old)?;
    if new["kind"] != old["kind"] || new["apiVersion"] != old["apiVersion"] {
        return Err(Status::bad_request("a patch may not change kind or apiVersion"));
    }
    check_fields(call, &expected, &mut new, &[])?;
    if meta(&new, "namespace").is_empty() {
        set_meta(&mut new, "namespace", old["metadata"]["namespace"].clone());
    }
    Ok(new)
}
