//! The table of a custom resource, from the structural schema of its CustomResourceDefinition.
//!
//! Only the shape is taken: which fields there are, what they hold, how apply sees their lists. Constraints on values
//! (enum, pattern, bounds) are not the table's.

use crate::table::{Field, Kind, ListType, Table, TypeData};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The types of meta/v1 that every object uses.
const META: [&str; 3] = ["meta/v1.ObjectMeta", "meta/v1.OwnerReference", "meta/v1.ManagedFieldsEntry"];
/// Nested deeper than this a schema's values are taken as they are.
const MAX_DEPTH: usize = 64;

/// The types of the resource, its own first.
pub(crate) fn types(version: &str, kind: &str, schema: &Value) -> Vec<TypeData> {
    let mut builder = Builder { types: vec![TypeData::default()], meta: Vec::new() };
    builder.add_meta();
    let name = format!("custom/{version}.{kind}");
    let mut root = builder.object(schema, &name, true, 0);
    root.is_kind = true;
    builder.types[0] = root;
    builder.types
}

struct Builder {
    types: Vec<TypeData>,
    /// Where each of [`META`] is in this table.
    meta: Vec<(u32, u32)>,
}

impl Builder {
    fn next(&self) -> u32 {
        u32::try_from(self.types.len()).unwrap_or(u32::MAX)
    }

    /// Copies the types of meta/v1 and makes their references those of this table.
    fn add_meta(&mut self) {
        let builtin = Table::builtin();
        let position = |name: &str| (0u32..).zip(&builtin.types).find(|(_, data)| data.name == name);
        for name in META {
            if let Some((id, data)) = position(name) {
                self.meta.push((id, self.next()));
                self.types.push(data.clone());
            }
        }
        let meta = self.meta.clone();
        for field in self.types.iter_mut().flat_map(|data| &mut data.fields) {
            remap(&mut field.kind, &meta);
        }
    }

    /// An object with properties. Roots and embedded resources have type and object metadata besides.
    fn object(&mut self, schema: &Value, name: &str, resource: bool, depth: usize) -> TypeData {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut fields = Vec::new();
        if resource {
            fields.push(plain("apiVersion", Kind::String));
            fields.push(plain("kind", Kind::String));
            if let Some((_, id)) = self.meta.first() {
                fields.push(plain("metadata", Kind::Message(*id)));
            }
        }
        for (property, schema) in properties {
            if !fields.iter().any(|field| field.name == property.as_str()) {
                let mut field = self.field(property, schema, name, depth + 1);
                field.required = required.contains(&property.as_str());
                fields.push(field);
            }
        }
        TypeData {
            name: Cow::Owned(name.to_owned()),
            atomic: schema.get("x-kubernetes-map-type").is_some_and(|kind| kind == "atomic"),
            open: is_true(schema, "x-kubernetes-preserve-unknown-fields"),
            fields,
            doc: u32::MAX,
            ..TypeData::default()
        }
    }

    fn field(&mut self, property: &str, schema: &Value, outer: &str, depth: usize) -> Field {
        let kind = self.kind(schema, &format!("{outer}.{property}"), depth);
        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
        let list = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("map") => Some(ListType::Map),
            Some("set") => Some(ListType::Set),
            Some(_) => Some(ListType::Atomic),
            None => None,
        };
        Field {
            nullable: is_true(schema, "nullable"),
            atomic: schema.get("x-kubernetes-map-type").is_some_and(|kind| kind == "atomic"),
            list,
            keys: keys.filter_map(Value::as_str).map(|key| Cow::Owned(key.to_owned())).collect(),
            default: schema.get("default").cloned(),
            ..plain(property, kind)
        }
    }

    fn kind(&mut self, schema: &Value, name: &str, depth: usize) -> Kind {
        if depth > MAX_DEPTH {
            return Kind::Json;
        }
        if is_true(schema, "x-kubernetes-int-or-string") {
            return Kind::IntOrString;
        }
        let format = schema.get("format").and_then(Value::as_str);
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => Kind::String,
            Some("boolean") => Kind::Bool,
            Some("integer") if format == Some("int32") => Kind::Int32,
            Some("integer") => Kind::Int64,
            Some("number") => Kind::Double,
            Some("array") => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                Kind::List(Box::new(self.kind(items, name, depth + 1)))
            }
            Some("object") => match schema.get("additionalProperties") {
                Some(values @ Value::Object(_)) => Kind::Map(Box::new(self.kind(values, name, depth + 1))),
                Some(Value::Bool(true)) => Kind::Map(Box::new(Kind::Json)),
                _ => {
                    let id = self.next();
                    self.types.push(TypeData::default());
                    let embedded = is_true(schema, "x-kubernetes-embedded-resource");
                    let data = self.object(schema, name, embedded, depth);
                    if let Some(place) = self.types.get_mut(id as usize) {
                        *place = data;
                    }
                    Kind::Message(id)
                }
            },
            _ => Kind::Json,
        }
    }
}

fn is_true(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn plain(name: &str, kind: Kind) -> Field {
    Field { pointer: true, omitempty: true, ..Field::new(Cow::Owned(name.to_owned()), 0, kind) }
}

fn remap(kind: &mut Kind, ids: &[(u32, u32)]) {
    match kind {
        Kind::Message(id) => match ids.iter().find(|(old, _)| old == id) {
            Some((_, new)) => *id = *new,
            None => *kind = Kind::Json,
        },
        Kind::List(inner) | Kind::Map(inner) | Kind::Wrapped(inner) => remap(inner, ids),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use crate::Table;
    use crate::apply::{Manager, apply};
    use crate::validate::{Mode, fields};
    use serde_json::{Value, json};

    fn table() -> Table {
        let schema = json!({"type":"object","properties":{
            "spec":{"type":"object","properties":{
                "size":{"type":"integer"},
                "port":{"x-kubernetes-int-or-string":true},
                "note":{"type":"string","nullable":true},
                "free":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"n":{"type":"integer"}}},
                "labels":{"type":"object","additionalProperties":{"type":"string"}},
                "parts":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["name"],
                    "items":{"type":"object","properties":{"name":{"type":"string"},"n":{"type":"integer"}}}},
                "template":{"type":"object","x-kubernetes-embedded-resource":true}}}}});
        Table::from_schema("v1", "Widget", &schema)
    }

    fn check(mut value: Value, mode: Mode) -> (Value, Vec<String>) {
        let errors = fields(table().root().unwrap(), &mut value, &[], mode);
        (value, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn unknown_fields_are_pruned_where_the_schema_is_closed() {
        let (value, warnings) = check(
            json!({"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","nope":1,"ownerReferences":[{"uid":"u"}]},
                "spec":{"size":1,"port":"http","note":null,"free":{"any":{"x":1},"n":2},"labels":{"a":"b"},
                    "parts":[{"name":"p","bad":1}],"template":{"kind":"Pod","metadata":{"name":"x"},"spec":{}},"extra":1}}),
            Mode::Warn,
        );
        assert_eq!(
            warnings,
            [
                "unknown field \"metadata.nope\"",
                "unknown field \"spec.parts[0].bad\"",
                "unknown field \"spec.template.spec\"",
                "unknown field \"spec.extra\""
            ]
        );
        assert_eq!(
            value,
            json!({"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","ownerReferences":[{"uid":"u"}]},
            "spec":{"size":1,"port":"http","note":null,"free":{"any":{"x":1},"n":2},"labels":{"a":"b"},
                "parts":[{"name":"p"}],"template":{"kind":"Pod","metadata":{"name":"x"}}}})
        );
    }

    #[test]
    fn wrong_types_are_told_in_the_words_of_json_schema() {
        let (_, errors) = check(json!({"spec":{"size":"big"}}), Mode::Ignore);
        assert_eq!(
            errors,
            ["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""]
        );
    }

    #[test]
    fn lists_merge_by_their_keys_in_an_apply() {
        let table = table();
        let by =
            |name| Manager { name, api_version: "example.com/v1", subresource: "", time: "", resets: &[] };
        let widget = |part: &str| json!({"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"},"spec":{"parts":[{"name":part}]}});
        let one = apply(table.root().unwrap(), None, &widget("a"), &by("x"), false, &()).unwrap();
        let two = apply(table.root().unwrap(), Some(&one), &widget("b"), &by("y"), false, &()).unwrap();
        assert_eq!(two["spec"]["parts"], json!([{"name":"a"},{"name":"b"}]));
    }
}
