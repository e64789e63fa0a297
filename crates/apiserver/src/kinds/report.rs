//! Short forms for the checks every kind repeats.

use serde_json::Value;

use super::value::{int, list, text, unset};
use crate::field::{FieldError, FieldErrors};

/// A field below a path, which is empty at the top of the object.
fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl FieldErrors {
    /// The sentences of a form check, all about one value.
    pub fn messages(&mut self, path: &str, value: impl Into<Value>, messages: Vec<String>) {
        let value = value.into();
        for message in messages {
            self.push(FieldError::invalid(path, value.clone(), message));
        }
    }

    /// A text field that must be there and must have a form.
    pub fn form(&mut self, object: &Value, path: &str, key: &str, check: fn(&str) -> Vec<String>) {
        let (path, value) = (join(path, key), text(object, key));
        if value.is_empty() {
            self.push(FieldError::required(path, ""));
        } else {
            self.messages(&path, value, check(value));
        }
    }

    /// A text field that must have a form when it is there.
    pub fn optional_form(&mut self, object: &Value, path: &str, key: &str, check: fn(&str) -> Vec<String>) {
        if !text(object, key).is_empty() {
            self.form(object, path, key, check);
        }
    }

    /// A text field that must be there.
    pub fn present(&mut self, object: &Value, path: &str, key: &str) {
        if unset(&object[key]) {
            self.push(FieldError::required(join(path, key), ""));
        }
    }

    /// A text field that must be one of these (sorted by the caller, as the message lists them).
    pub fn one_of(&mut self, object: &Value, path: &str, key: &str, supported: &[&str]) {
        let value = text(object, key);
        if !supported.contains(&value) {
            self.push(FieldError::not_supported(join(path, key), value, supported));
        }
    }

    /// The same for a field that may be left out.
    pub fn optional_one_of(&mut self, object: &Value, path: &str, key: &str, supported: &[&str]) {
        if !text(object, key).is_empty() {
            self.one_of(object, path, key, supported);
        }
    }

    /// A number that may not be below zero.
    pub fn not_negative(&mut self, object: &Value, path: &str, key: &str) {
        if let Some(n) = int(object, key)
            && n < 0
        {
            let why = "must be greater than or equal to 0";
            self.push(FieldError::invalid(join(path, key), n, why));
        }
    }

    /// A number that must be above zero when it is there.
    pub fn positive(&mut self, object: &Value, path: &str, key: &str) {
        if let Some(n) = int(object, key)
            && n <= 0
        {
            self.push(FieldError::invalid(join(path, key), n, "must be greater than 0"));
        }
    }

    /// No two elements of a list with the same text in `key`.
    pub fn distinct(&mut self, object: &Value, path: &str, list_key: &str, key: &str) {
        let mut seen: Vec<&str> = Vec::new();
        for (i, element) in list(object, list_key).iter().enumerate() {
            let value = text(element, key);
            if !value.is_empty() && seen.contains(&value) {
                self.push(FieldError::duplicate(join(path, &format!("{list_key}[{i}].{key}")), value));
            }
            seen.push(value);
        }
    }

    /// A field that may never change.
    pub fn immutable(&mut self, new: &Value, old: &Value, path: &str) {
        if !super::value::same(new, old) {
            self.push(FieldError::invalid(path, new.clone(), "field is immutable"));
        }
    }
}
