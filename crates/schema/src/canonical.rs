//! The form in which Go would write a built-in object: what a client reads from the API.
//!
//! Go's structs have a place for every field. The encoder leaves out fields tagged `omitempty` whose value is the zero
//! value; a pointer is zero only when it is nil, a struct never. All other fields are always written: `restartCount: 0`,
//! `resources: {}`, and `null` for a list that is empty, since the store's protobuf does not tell it from none, or for
//! a time that was never set. <https://pkg.go.dev/encoding/json#Marshal>

use crate::table::{Field, Kind, Type};
use serde_json::{Map, Value};

/// Leaves out what `omitempty` leaves out. Rules that fill in what is missing then see zero values as missing.
pub fn omit(ty: Type<'_>, object: &mut Value) {
    walk(ty, object, false);
}

/// [`omit`], and every field that is always written is there.
pub fn complete(ty: Type<'_>, object: &mut Value) {
    walk(ty, object, true);
}

fn walk(ty: Type<'_>, object: &mut Value, complete: bool) {
    if let Value::Object(map) = object {
        fields(ty, map, complete);
    }
}

fn fields(ty: Type<'_>, object: &mut Map<String, Value>, complete: bool) {
    object.retain(|key, value| match ty.field(key) {
        Some(field) => {
            inside(ty, &field.kind, value, complete);
            if value.is_null() {
                return complete && field.always_written();
            }
            if !field.omitempty {
                // A list without items has no trace in protobuf.
                if is_empty(&field.kind, value) && !field.pointer {
                    *value = Value::Null;
                }
                return true;
            }
            field.pointer || !is_zero(&field.kind, value)
        }
        None => true,
    });
    if !complete {
        return;
    }
    for field in ty.always_written() {
        // A null stands for the zero value, which for some kinds is not null.
        let missing = object.get(field.name.as_ref()).is_none_or(Value::is_null);
        if missing {
            let mut value = zero(field);
            inside(ty, &field.kind, &mut value, true);
            object.insert(field.name.to_string(), value);
        }
    }
}

/// A `float64`: whole numbers are written without a fraction. None for what JSON cannot say.
pub(crate) fn double(value: f64) -> Option<Value> {
    // Beyond, an i64 ends.
    if value.fract() == 0.0 && value.abs() < 9e18 {
        return Some(Value::from(value as i64));
    }
    serde_json::Number::from_f64(value).map(Value::Number)
}

fn inside(ty: Type<'_>, kind: &Kind, value: &mut Value, complete: bool) {
    match (kind, value) {
        (Kind::Double, value) if value.is_f64() => {
            if let Some(written) = value.as_f64().and_then(double) {
                *value = written;
            }
        }
        (Kind::Message(_), Value::Object(object)) => {
            if let Some(inner) = ty.refer(kind) {
                fields(inner, object, complete);
            }
        }
        (Kind::List(element) | Kind::Wrapped(element), Value::Array(items)) if nests(element) => {
            items.iter_mut().for_each(|item| inside(ty, element, item, complete));
        }
        (Kind::Map(element), Value::Object(object)) if nests(element) => {
            object.values_mut().for_each(|value| inside(ty, element, value, complete));
        }
        (
            Kind::SchemaOrBool(id) | Kind::SchemaOrArray(id) | Kind::SchemaOrStrings(id),
            Value::Object(object),
        ) => {
            if let Some(schema) = ty.at(*id) {
                fields(schema, object, complete);
            }
        }
        (Kind::SchemaOrArray(id), Value::Array(items)) => {
            items.iter_mut().for_each(|item| inside(ty, &Kind::Message(*id), item, complete));
        }
        _ => {}
    }
}

/// Whether values of a kind can hold fields.
fn nests(kind: &Kind) -> bool {
    match kind {
        Kind::List(inner) | Kind::Map(inner) | Kind::Wrapped(inner) => nests(inner),
        Kind::Message(_) | Kind::SchemaOrBool(_) | Kind::SchemaOrArray(_) | Kind::SchemaOrStrings(_) => true,
        _ => false,
    }
}

fn is_empty(kind: &Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::List(_) | Kind::Wrapped(_), Value::Array(items)) => items.is_empty(),
        (Kind::Map(_), Value::Object(map)) => map.is_empty(),
        (Kind::Bytes, Value::String(text)) => text.is_empty(),
        _ => false,
    }
}

/// Whether `omitempty` leaves the value out of a field without a pointer.
fn is_zero(kind: &Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::String, Value::String(text)) => text.is_empty(),
        (Kind::Bool, Value::Bool(on)) => !on,
        (Kind::Int32 | Kind::Int64 | Kind::Double, Value::Number(number)) => number.as_f64() == Some(0.0),
        _ => is_empty(kind, value),
    }
}

fn zero(field: &Field) -> Value {
    if field.pointer {
        return Value::Null;
    }
    match field.kind {
        Kind::String => Value::String(String::new()),
        Kind::Bool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
        Kind::Quantity => Value::String("0".to_owned()),
        Kind::Message(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Table, protobuf};
    use proptest::prelude::*;
    use serde_json::json;

    fn completed(ty: &str, mut object: Value) -> Value {
        complete(Table::builtin().by_name(ty).unwrap(), &mut object);
        object
    }

    #[test]
    fn zero_values_go_unless_a_pointer_holds_them() {
        let spec = json!({"hostNetwork": false, "hostname": "", "priority": 0, "nodeSelector": {}, "tolerations": [],
            "securityContext": {"runAsUser": 0, "runAsNonRoot": false, "supplementalGroups": [], "seLinuxOptions": {"user": ""}},
            "containers": [{"name": "a", "image": "", "tty": false, "env": [{"name": "A", "value": ""}], "ports": [{"containerPort": 0, "hostPort": 0}]}],
            "volumes": [{"name": "v", "emptyDir": {"medium": ""}}]});
        assert_eq!(
            completed("core/v1.PodSpec", spec),
            json!({"priority": 0, "securityContext": {"runAsUser": 0, "runAsNonRoot": false, "seLinuxOptions": {}},
                "containers": [{"name": "a", "env": [{"name": "A"}], "ports": [{"containerPort": 0}], "resources": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}]})
        );
    }

    #[test]
    fn what_is_always_written_is_filled_in() {
        assert_eq!(
            completed("core/v1.ContainerStatus", json!({"name": "a", "ready": true})),
            json!({"name": "a", "ready": true, "state": {}, "lastState": {}, "restartCount": 0, "image": "", "imageID": ""})
        );
        assert_eq!(
            completed("core/v1.ResourceFieldSelector", json!({"resource": "cpu"})),
            json!({"resource": "cpu", "divisor": "0"})
        );
        assert_eq!(
            completed("core/v1.PodTemplateSpec", json!({})),
            json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": null}})
        );
        assert_eq!(
            completed("rbac/v1.Role", json!({"rules": []})),
            json!({"rules": null, "metadata": {"creationTimestamp": null}})
        );
        assert_eq!(
            completed(
                "apiextensions/v1.JSONSchemaProps",
                json!({"minimum": 0.0, "maximum": 1e16, "multipleOf": 0.5})
            ),
            json!({"minimum": 0, "maximum": 10_000_000_000_000_000_i64, "multipleOf": 0.5})
        );
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "format": "", "default": "", "maxLength": 0}},
            "items": {"description": ""}, "additionalProperties": false});
        assert_eq!(
            completed("apiextensions/v1.JSONSchemaProps", schema),
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "", "maxLength": 0}},
                "items": {}, "additionalProperties": false})
        );
    }

    #[test]
    fn omitting_adds_nothing() {
        let mut spec = json!({"restartPolicy": "", "containers": [{"name": "a", "resources": null}]});
        omit(Table::builtin().by_name("core/v1.PodSpec").unwrap(), &mut spec);
        assert_eq!(spec, json!({"containers": [{"name": "a"}]}));
    }

    /// A value of a kind out of a stream of choices: absent, zero, empty or filled at any place.
    fn value(ty: Type<'_>, kind: &Kind, choices: &mut dyn Iterator<Item = u8>, depth: usize) -> Value {
        let choice = choices.next().unwrap_or(0);
        let filled = !choice.is_multiple_of(3);
        match kind {
            Kind::String => (if filled { "x" } else { "" }).into(),
            Kind::Bool => filled.into(),
            Kind::Int32 | Kind::Int64 => (i64::from(filled) * 7).into(),
            Kind::Double => (if filled { 1.5 } else { 0.0 }).into(),
            Kind::Bytes => (if filled { "eA==" } else { "" }).into(),
            Kind::Quantity => (if filled { "1" } else { "0" }).into(),
            Kind::IntOrString => {
                if filled {
                    json!("x")
                } else {
                    json!(0)
                }
            }
            Kind::Time => "2026-01-01T00:00:00Z".into(),
            Kind::MicroTime => "2026-01-01T00:00:00.000001Z".into(),
            Kind::RawExtension | Kind::Json | Kind::FieldsV1 => json!({"a": null, "b": ""}),
            Kind::SchemaOrBool(_) => filled.into(),
            Kind::SchemaOrStrings(_) => json!(["x"]),
            Kind::SchemaOrArray(_) => json!({}),
            Kind::Message(_) => {
                let inner = ty.refer(kind).unwrap();
                let mut out = Map::new();
                // Type and version of an object are not in its own message.
                let own = |name: &str| !(inner.is_kind() && matches!(name, "kind" | "apiVersion"));
                for field in inner.fields().iter().filter(|field| depth > 0 && own(&field.name)) {
                    if choices.next().unwrap_or(0).is_multiple_of(3) {
                        out.insert(field.name.to_string(), value(inner, &field.kind, choices, depth - 1));
                    }
                }
                out.into()
            }
            Kind::List(element) | Kind::Wrapped(element) => {
                let count = if depth > 0 { choice % 3 } else { 0 };
                (0..count).map(|_| value(ty, element, choices, depth - 1)).collect()
            }
            Kind::Map(element) => {
                let count = if depth > 0 { choice % 3 } else { 0 };
                let entries = (0..count).map(|i| (format!("k{i}"), value(ty, element, choices, depth - 1)));
                Value::Object(entries.collect())
            }
        }
    }

    /// Go's rule read once more, over the finished document.
    fn check(ty: Type<'_>, object: &Map<String, Value>) -> Result<(), String> {
        for field in ty.fields() {
            let at = format!("{}.{}", ty.name(), field.name);
            let strukt = matches!(
                field.kind,
                Kind::Message(_)
                    | Kind::Quantity
                    | Kind::IntOrString
                    | Kind::Time
                    | Kind::MicroTime
                    | Kind::RawExtension
            );
            match object.get(field.name.as_ref()) {
                None if !field.omitempty || (strukt && !field.pointer) => {
                    return Err(format!("{at} is missing"));
                }
                Some(Value::Null) if field.omitempty && (field.pointer || !strukt) => {
                    return Err(format!("{at} is null"));
                }
                Some(zero)
                    if field.omitempty
                        && !field.pointer
                        && !strukt
                        && *zero != json!({"a": null, "b": ""}) =>
                {
                    let zeros = [json!(""), json!(false), json!(0), json!(0.0), json!([]), json!({})];
                    if zeros.contains(zero) {
                        return Err(format!("{at} is {zero}"));
                    }
                }
                _ => {}
            }
            if let (Some(inner), Some(Value::Object(map))) =
                (ty.refer(&field.kind), object.get(field.name.as_ref()))
            {
                check(inner, map)?;
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_object_is_as_go_writes_it(pick in any::<prop::sample::Index>(), choices in prop::collection::vec(any::<u8>(), 0..600)) {
            let kinds: Vec<Type<'_>> = Table::builtin().types().filter(|ty| ty.is_kind() && !ty.name().starts_with("meta/")).collect();
            let ty = kinds[pick.index(kinds.len())];
            let mut choices = choices.into_iter();
            let mut object = Map::new();
            for field in ty.fields().iter().filter(|field| !matches!(field.name.as_ref(), "kind" | "apiVersion")) {
                object.insert(field.name.to_string(), value(ty, &field.kind, &mut choices, 7));
            }
            let mut done = Value::Object(object.clone());
            complete(ty, &mut done);
            let mut again = done.clone();
            complete(ty, &mut again);
            prop_assert_eq!(&again, &done, "once is enough");
            prop_assert_eq!(check(ty, done.as_object().unwrap()), Ok(()));
            // The wire keeps what the form keeps, and nothing that it drops.
            let wire = |object: &Map<String, Value>| {
                let bytes = protobuf::encode_message(ty, object).unwrap();
                let mut back = Value::Object(protobuf::decode_message(ty, &bytes).unwrap());
                complete(ty, &mut back);
                back
            };
            prop_assert_eq!(wire(&object), done);
        }
    }
}
