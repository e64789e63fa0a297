//! The rules of custom objects: what their schema says.

use std::sync::Arc;

use serde_json::Value;

use super::{schema, validations};
use crate::field::FieldErrors;
use crate::object;
use crate::resource::Resource;
use crate::strategy::{Context, Strategy};

/// Rules of the objects of one definition, in the version that was asked for.
pub struct Custom(pub Arc<Resource>);

impl Custom {
    /// Against the schema, and then its rules: they count on the types.
    fn check(&self, new: &Value, old: Option<&Value>) -> FieldErrors {
        let Some(schema) = &self.0.schema else { return FieldErrors::new() };
        let errors = schema::validate(schema, new, old);
        if errors.is_empty() && self.0.has_rules { validations::check(schema, new, old) } else { errors }
    }
}

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
        self.check(object, None)
    }

    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> FieldErrors {
        self.check(new, Some(old))
    }

    fn validate_status_update(&self, _: &Context, new: &Value, old: &Value) -> FieldErrors {
        self.check(new, Some(old))
    }
}
