//! The rules of custom objects: what their schema says.

use std::sync::Arc;

use serde_json::Value;

use super::schema;
use crate::field::FieldErrors;
use crate::object;
use crate::resource::Resource;
use crate::strategy::{Context, Strategy};

/// Rules of the objects of one definition, in the version they are stored in.
pub struct Custom(pub Arc<Resource>);

impl Strategy for Custom {
    /// Two clients that read the same object must not overwrite each other unseen.
    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        if let Some(schema) = &self.0.schema {
            schema::default(schema, object);
        }
    }

    fn prepare_create(&self, _: &Context, object: &mut Value) {
        if self.separate_status(&self.0) {
            object::set_top(object, "status", Value::Null);
        }
    }

    fn validate(&self, _: &Context, object: &Value) -> FieldErrors {
        self.0.schema.as_ref().map(|schema| schema::validate(schema, object)).unwrap_or_default()
    }

    fn validate_status_update(&self, cx: &Context, new: &Value, _: &Value) -> FieldErrors {
        self.validate(cx, new)
    }
}
