//! Does a document fit its type? Unknown fields, duplicate fields and values of wrong types, with the texts of Kubernetes'
//! decoder, and the document brought to the form in which Go would write it again.
//!
//! Upstream decodes into a Go struct and encodes it again; what the struct cannot hold is lost on the way. Here the
//! document itself is walked over along its type: unknown fields are removed (or kept for strict validation, which
//! refuses the document anyway), `null` fields disappear, quantities become canonical strings.

mod walk;

use crate::json::Duplicate;
use crate::table::Type;
use serde_json::Value;

/// The `fieldValidation` parameter of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Unknown fields are dropped without a word.
    Ignore,
    /// Unknown and duplicate fields are dropped, each with a warning.
    #[default]
    Warn,
    /// Unknown and duplicate fields refuse the document.
    Strict,
}

impl Mode {
    /// The parameter's value; empty means the default.
    pub fn parse(text: &str) -> Option<Mode> {
        match text {
            "" | "Warn" => Some(Mode::Warn),
            "Ignore" => Some(Mode::Ignore),
            "Strict" => Some(Mode::Strict),
            _ => None,
        }
    }
}

/// One thing that is wrong with a document. Its text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The type has no such field.
    #[error("unknown field {0:?}")]
    Unknown(String),
    /// The field is there twice.
    #[error("duplicate field {0:?}")]
    Duplicate(String),
    /// The value is of the wrong type, whatever the mode: the document cannot be read.
    #[error("{0}")]
    Type(String),
}

impl FieldError {
    /// Does it refuse the document in every mode?
    pub fn is_fatal(&self) -> bool {
        matches!(self, FieldError::Type(_))
    }
}

/// Checks `value` against `ty` and brings it to its canonical form.
///
/// Fatal errors come first. In mode Ignore only they are reported; in mode Warn the others are warnings; in mode Strict
/// they refuse the document and unknown fields are left in it. `duplicates` is what [`crate::json::parse`] noted.
pub fn fields(ty: Type<'_>, value: &mut Value, duplicates: &[Duplicate], mode: Mode) -> Vec<FieldError> {
    let mut walk = walk::Walk::new(duplicates, mode);
    walk.document(ty, value);
    walk.finish()
}

/// The one message for a refused document: the first fatal error, or all strict errors. `None` if nothing refuses it.
pub fn refusal(errors: &[FieldError], mode: Mode) -> Option<String> {
    if let Some(fatal) = errors.iter().find(|error| error.is_fatal()) {
        return Some(fatal.to_string());
    }
    if mode != Mode::Strict || errors.is_empty() {
        return None;
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Some(format!("strict decoding error: {}", texts.join(", ")))
}

#[cfg(test)]
mod tests;
