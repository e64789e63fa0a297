//! The patch types that change a document: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic
//! merge patch. Server-side apply is another module, since it needs to know who owns what.

mod strategic;

use serde_json::{Map, Value};

pub use strategic::strategic;

/// Upstream's bound on the operations of one JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// What the `copy` operations of one patch may add, in bytes of text: doubling a value forty times is a terabyte.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of its type: the client's mistake (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit this document: a failed test, a missing path (422).
    #[error("{0}")]
    Unprocessable(String),
    /// More operations than allowed (413).
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooLarge(usize),
}

/// Applies a JSON patch; on an error the document is as before.
pub fn json(document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(operations));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    let mut changed = document.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += changed.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > MAX_COPIED {
                let text = format!("the copies of a JSON patch are limited to {MAX_COPIED} bytes");
                return Err(PatchError::Unprocessable(text));
            }
        }
        json_patch::patch_unsafe(&mut changed, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(format!("{} ({})", error.kind, error.path)))?;
    }
    *document = changed;
    Ok(())
}

/// Applies a JSON merge patch: objects are merged, `null` removes, anything else replaces.
pub fn merge(document: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *document = patch.clone();
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(object) = document else { return };
    for (key, value) in patch {
        if value.is_null() {
            object.shift_remove(key);
        } else {
            merge(object.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests;
