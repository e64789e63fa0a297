//! The walk over a document along its type.

use super::{FieldError, Mode};
use crate::json::Duplicate;
use crate::table::{Field, Kind, Type};
use crate::{quantity, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Upstream stops counting here, too.
const MAX_ERRORS: usize = 100;

pub(super) struct Walk<'a> {
    duplicates: &'a [Duplicate],
    mode: Mode,
    /// `spec.containers[0].ports`, as strict errors name a place.
    path: String,
    /// `spec.containers.ports`, as Go's type errors do.
    go_path: String,
    fatal: Vec<FieldError>,
    strict: Vec<FieldError>,
}

/// Where a value stands: its struct, and how Go prints the type it should have.
#[derive(Clone, Copy)]
struct Place<'a> {
    ty: Type<'a>,
    go_type: Option<&'a str>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(duplicates: &'a [Duplicate], mode: Mode) -> Self {
        let (path, go_path) = (String::new(), String::new());
        Walk { duplicates, mode, path, go_path, fatal: Vec::new(), strict: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<FieldError> {
        let mut errors = self.fatal;
        errors.extend(self.strict);
        errors
    }

    pub(super) fn document(&mut self, ty: Type<'_>, value: &mut Value) {
        match value {
            Value::Object(object) => self.object(ty, object),
            other => {
                let text =
                    format!("json: cannot unmarshal {} into Go value of type {}", word(other), ty.go_name());
                self.fatal.push(FieldError::Type(text));
            }
        }
    }

    fn strict(&mut self, error: FieldError) {
        if self.mode != Mode::Ignore && self.strict.len() < MAX_ERRORS && !self.strict.contains(&error) {
            self.strict.push(error);
        }
    }

    fn fatal(&mut self, text: String) {
        if self.fatal.len() < MAX_ERRORS {
            self.fatal.push(FieldError::Type(text));
        }
    }

    fn wrong(&mut self, place: Place<'_>, kind: &Kind, found: &str) {
        if place.ty.is_custom() {
            let (path, expected) = (&self.path, schema_type(kind));
            let found = found.split(' ').next().unwrap_or_default();
            let text = format!(
                "{path}: Invalid value: {found:?}: {path} in body must be of type {expected}: {found:?}"
            );
            return self.fatal(text);
        }
        let expected = place.go_type.map_or_else(|| go_type(place.ty, kind), str::to_owned);
        let (owner, path) = (place.ty.short_name(), &self.go_path);
        self.fatal(format!(
            "json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {expected}"
        ));
    }

    /// The keys of this object that came again when it had `position` keys.
    fn report_duplicates(&mut self, position: usize, of: impl Fn(&str) -> bool) {
        let duplicates = self.duplicates;
        for duplicate in duplicates {
            if duplicate.position == position && duplicate.object == self.path && of(&duplicate.key) {
                self.strict(FieldError::Duplicate(duplicate.path()));
            }
        }
    }

    fn object(&mut self, ty: Type<'_>, object: &mut Map<String, Value>) {
        let (outer, go_outer) = (self.path.len(), self.go_path.len());
        let mut position = 0;
        let known = |key: &str| ty.field(key).is_some();
        object.retain(|key, value| {
            self.report_duplicates(position, known);
            position += 1;
            for path in [&mut self.path, &mut self.go_path] {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            let keep = match ty.field(key) {
                Some(field) => {
                    self.field(ty, field, value);
                    // Go has no null to keep: the field is at its zero value.
                    !value.is_null() || field.nullable || matches!(field.kind, Kind::Json)
                }
                None if ty.preserves_unknown() => true,
                None => {
                    self.strict(FieldError::Unknown(self.path.clone()));
                    self.mode == Mode::Strict
                }
            };
            self.path.truncate(outer);
            self.go_path.truncate(go_outer);
            keep
        });
        self.report_duplicates(position, known);
    }

    fn field(&mut self, ty: Type<'_>, field: &Field, value: &mut Value) {
        let place = Place { ty, go_type: field.go_type.as_deref() };
        self.value(place, &field.kind, value);
    }

    fn value(&mut self, place: Place<'_>, kind: &Kind, value: &mut Value) {
        if value.is_null() {
            return;
        }
        match (kind, value) {
            (Kind::String, Value::String(_))
            | (Kind::Bool, Value::Bool(_))
            | (Kind::Double, Value::Number(_)) => {}
            (Kind::Json | Kind::RawExtension | Kind::FieldsV1, _) => {}
            (Kind::Int32, Value::Number(number)) => {
                if number.as_i64().and_then(|value| i32::try_from(value).ok()).is_none() {
                    self.wrong(place, kind, &format!("number {number}"));
                }
            }
            (Kind::Int64, Value::Number(number)) => {
                if number.as_i64().is_none() {
                    self.wrong(place, kind, &format!("number {number}"));
                }
            }
            (Kind::Bytes, Value::String(text)) => {
                if let Err(error) = STANDARD.decode(text.as_bytes()) {
                    self.fatal(format!(
                        "illegal base64 data at input byte {}",
                        base64_position(&error, text)
                    ));
                }
            }
            (Kind::Quantity, value) => self.quantity(value),
            (Kind::IntOrString, value) => self.int_or_string(value),
            (Kind::Time | Kind::MicroTime, value) => self.time(kind, value),
            (Kind::Message(_), Value::Object(object)) => {
                if let Some(inner) = place.ty.refer(kind) {
                    self.object(inner, object);
                }
            }
            (Kind::List(element) | Kind::Wrapped(element), Value::Array(items)) => {
                self.list(place, element, items)
            }
            (Kind::Map(element), Value::Object(object)) => self.map(place, element, object),
            (Kind::SchemaOrBool(_), Value::Bool(_)) => {}
            (
                Kind::SchemaOrBool(id) | Kind::SchemaOrArray(id) | Kind::SchemaOrStrings(id),
                Value::Object(object),
            ) => {
                if let Some(schema) = place.ty.at(*id) {
                    self.object(schema, object);
                }
            }
            (Kind::SchemaOrArray(id), Value::Array(items)) => self.list(place, &Kind::Message(*id), items),
            (Kind::SchemaOrStrings(_), Value::Array(items)) => self.list(place, &Kind::String, items),
            (Kind::SchemaOrBool(_), _) => self.fatal("boolean or JSON schema expected".to_owned()),
            (kind, value) => self.wrong(place, kind, word(value)),
        }
    }

    fn list(&mut self, place: Place<'_>, element: &Kind, items: &mut [Value]) {
        let inner = Place { go_type: place.go_type.and_then(|name| name.strip_prefix("[]")), ..place };
        let outer = self.path.len();
        for (index, item) in items.iter_mut().enumerate() {
            self.path.push_str(&format!("[{index}]"));
            self.element(inner, element, item);
            self.path.truncate(outer);
        }
    }

    fn map(&mut self, place: Place<'_>, element: &Kind, object: &mut Map<String, Value>) {
        let named =
            place.go_type.and_then(|name| name.strip_prefix("map[")).and_then(|name| name.split_once(']'));
        let inner = Place { go_type: named.map(|(_, value)| value), ..place };
        let outer = self.path.len();
        for (position, (key, item)) in object.iter_mut().enumerate() {
            self.report_duplicates(position, |_| true);
            if outer != 0 {
                self.path.push('.');
            }
            self.path.push_str(key);
            self.element(inner, element, item);
            self.path.truncate(outer);
        }
        self.report_duplicates(object.len(), |_| true);
    }

    /// A list item or map value: Go makes the zero value of a `null`.
    fn element(&mut self, place: Place<'_>, kind: &Kind, item: &mut Value) {
        if item.is_null() {
            *item = match kind {
                Kind::String | Kind::Bytes => Value::String(String::new()),
                Kind::Quantity => Value::String("0".to_owned()),
                Kind::Bool => Value::Bool(false),
                Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
                Kind::Message(_) => Value::Object(Map::new()),
                _ => Value::Null,
            };
        }
        self.value(place, kind, item);
    }

    fn quantity(&mut self, value: &mut Value) {
        let text = match &*value {
            Value::String(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        match quantity::canonical(&text) {
            Ok(canonical) => *value = Value::String(canonical),
            Err(error) => self.fatal(error.to_string()),
        }
    }

    fn int_or_string(&mut self, value: &Value) {
        let fits = |value: &Value| value.as_i64().is_some_and(|value| i32::try_from(value).is_ok());
        match value {
            Value::String(_) => {}
            number @ Value::Number(_) if fits(number) => {}
            Value::Number(number) => {
                self.fatal(format!("json: cannot unmarshal number {number} into Go value of type int32"));
            }
            other => {
                self.fatal(format!("json: cannot unmarshal {} into Go value of type int32", word(other)))
            }
        }
    }

    fn time(&mut self, kind: &Kind, value: &mut Value) {
        let micro = *kind == Kind::MicroTime;
        let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
        let Value::String(text) = value else {
            return self
                .fatal(format!("json: cannot unmarshal {} into Go value of type string", word(value)));
        };
        let parsed = time::parse(text).and_then(|(seconds, nanos)| {
            if micro { time::micros(seconds, nanos) } else { time::seconds(seconds) }
        });
        match parsed {
            Some(canonical) => *text = canonical,
            None => {
                self.fatal(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
            }
        }
    }
}

/// A JSON type as Go's decoder calls it.
fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A kind as JSON schema calls its type.
fn schema_type(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "boolean",
        Kind::Int32 | Kind::Int64 => "integer",
        Kind::Double => "number",
        Kind::List(_) | Kind::Wrapped(_) => "array",
        Kind::Message(_) | Kind::Map(_) => "object",
        _ => "string",
    }
}

/// A kind as Go prints its type.
fn go_type(ty: Type<'_>, kind: &Kind) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::Bool => "bool".to_owned(),
        Kind::Int32 => "int32".to_owned(),
        Kind::Int64 => "int64".to_owned(),
        Kind::Double => "float64".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Message(_) => ty.refer(kind).map_or_else(String::new, |inner| inner.go_name().to_owned()),
        Kind::List(element) | Kind::Wrapped(element) => format!("[]{}", go_type(ty, element)),
        Kind::Map(element) => format!("map[string]{}", go_type(ty, element)),
        Kind::Quantity => "resource.Quantity".to_owned(),
        Kind::IntOrString => "intstr.IntOrString".to_owned(),
        Kind::Time => "v1.Time".to_owned(),
        Kind::MicroTime => "v1.MicroTime".to_owned(),
        Kind::RawExtension => "runtime.RawExtension".to_owned(),
        Kind::FieldsV1 => "v1.FieldsV1".to_owned(),
        Kind::Json => "v1.JSON".to_owned(),
        Kind::SchemaOrBool(_) => "v1.JSONSchemaPropsOrBool".to_owned(),
        Kind::SchemaOrArray(_) => "v1.JSONSchemaPropsOrArray".to_owned(),
        Kind::SchemaOrStrings(_) => "v1.JSONSchemaPropsOrStringArray".to_owned(),
    }
}

fn base64_position(error: &base64::DecodeError, text: &str) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
    }
}
