//! Rules that are plain functions over the object: most kinds need no more, and read as one value of [`Rules`].

use serde_json::{Value, json};

use super::value::set;
use crate::field::FieldErrors;
use crate::strategy::{Context, NameRule, Strategy};

/// The rules of a kind as functions; each does nothing unless given.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Form of names.
    pub names: NameRule,
    /// Fills in what is left out.
    pub default: fn(&mut Value),
    /// Status of a new object where it is not empty.
    pub status: fn(&Value) -> Value,
    /// What only the server sets on create, status aside.
    pub create: fn(&Context, &mut Value),
    /// What an update may not touch: (new, old).
    pub update: fn(&mut Value, &Value),
    /// Offences of an object.
    pub validate: fn(&Value, &mut FieldErrors),
    /// Further offences of an update: (new, old).
    pub validate_update: fn(&Value, &Value, &mut FieldErrors),
    /// PUT makes what is missing.
    pub create_on_update: bool,
    /// PUT needs a resourceVersion.
    pub versioned_update: bool,
}

impl Rules {
    /// No rules.
    pub const NONE: Rules = Rules {
        names: NameRule::Subdomain,
        default: |_| {},
        status: |_| json!({}),
        create: |_, _| {},
        update: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        create_on_update: false,
        versioned_update: false,
    };
}

impl Strategy for Rules {
    fn name_rule(&self) -> NameRule {
        self.names
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        !self.versioned_update
    }

    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_create(&self, cx: &Context, object: &mut Value) {
        if self.separate_status(&cx.resource) {
            let status = (self.status)(object);
            if status.is_null() {
                // The author's own: kubelets report a Node together with its status.
            } else {
                set(object, "status", status);
            }
        }
        (self.create)(cx, object);
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Value, old: &Value) {
        (self.update)(new, old);
    }

    fn validate(&self, _cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        (self.validate)(object, &mut errors);
        errors
    }

    fn validate_update(&self, _cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        (self.validate)(new, &mut errors);
        (self.validate_update)(new, old, &mut errors);
        errors
    }
}
