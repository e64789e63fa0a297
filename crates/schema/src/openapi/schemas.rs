//! Types as schema objects.

use crate::descriptions;
use crate::table::{Field, GROUPS, Kind, ListType, Table, Type};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Which OpenAPI: references and a few forms differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Two,
    Three,
}

impl Version {
    pub(crate) fn reference(self, definition: &str) -> Value {
        match self {
            Version::Two => json!({"$ref": format!("#/definitions/{definition}")}),
            Version::Three => json!({"$ref": format!("#/components/schemas/{definition}")}),
        }
    }
}

/// A definition of the document: a type of the table, or one with a form of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Definition {
    Type(String),
    Special(&'static str),
}

/// The types of the roots and all they use.
pub(crate) fn reachable(roots: impl IntoIterator<Item = Type<'static>>) -> BTreeSet<Definition> {
    let mut open: Vec<Type<'static>> = roots.into_iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(ty) = open.pop() {
        if !seen.insert(Definition::Type(ty.name().to_owned())) {
            continue;
        }
        for field in ty.fields() {
            let mut kind = &field.kind;
            while let Kind::List(element) | Kind::Map(element) | Kind::Wrapped(element) = kind {
                kind = element;
            }
            open.extend(ty.refer(kind));
            seen.extend(special(kind).map(Definition::Special));
        }
    }
    seen
}

/// Definitions with a form of their own.
fn special(kind: &Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
        Kind::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        Kind::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Kind::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Kind::RawExtension => "io.k8s.apimachinery.pkg.runtime.RawExtension",
        Kind::FieldsV1 => "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        Kind::Json => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON",
        Kind::SchemaOrBool(_) => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        }
        Kind::SchemaOrArray(_) => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        }
        Kind::SchemaOrStrings(_) => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray"
        }
        _ => return None,
    })
}

fn special_schema(name: &str, version: Version) -> Value {
    let short = name.rsplit('.').next().unwrap_or_default();
    match short {
        "Quantity" => json!({"type": "string", "description":
            "A number with an optional suffix: decimal (n, u, m, k, M, G, T, P, E), binary (Ki, Mi, Gi, Ti, Pi, Ei) or an exponent of ten."}),
        "IntOrString" => {
            let text = "A 32-bit integer or a string.";
            match version {
                Version::Two => json!({"type": "string", "format": "int-or-string", "description": text}),
                Version::Three => {
                    json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string",
                    "description": text})
                }
            }
        }
        "Time" => {
            json!({"type": "string", "format": "date-time", "description": "A time in RFC 3339 form, in seconds."})
        }
        "MicroTime" => {
            json!({"type": "string", "format": "date-time", "description": "A time in RFC 3339 form, in microseconds."})
        }
        "RawExtension" => json!({"type": "object", "description": "An object of any kind, kept as it is."}),
        "FieldsV1" => json!({"type": "object", "description": "A set of fields, as a tree of their names."}),
        "JSON" => json!({"description": "Any JSON value."}),
        _ => {
            json!({"description": "A JSON schema, or one of the shorter forms that JSON Schema allows here."})
        }
    }
}

/// The schema objects of these definitions by name.
pub(crate) fn schemas(all: &BTreeSet<Definition>, version: Version) -> Map<String, Value> {
    // Held, so that the descriptions are inflated once.
    let texts = descriptions::hold();
    let describe = |doc: u32| texts.get(doc as usize).filter(|text| !text.is_empty()).cloned();
    let table = Table::builtin();
    let mut out = Map::new();
    for definition in all {
        match definition {
            Definition::Special(name) => drop(out.insert((*name).to_owned(), special_schema(name, version))),
            Definition::Type(name) => {
                if let Some(ty) = table.by_name(name) {
                    out.insert(ty.definition(), schema(ty, version, &describe));
                }
            }
        }
    }
    out
}

fn schema(ty: Type<'_>, version: Version, describe: &dyn Fn(u32) -> Option<String>) -> Value {
    let mut out = Map::new();
    out.extend(describe(ty.data().doc).map(|text| ("description".to_owned(), text.into())));
    let required: Vec<&str> =
        ty.fields().iter().filter(|field| field.required).map(|field| &*field.name).collect();
    if !required.is_empty() {
        out.insert("required".to_owned(), required.into());
    }
    out.insert("type".to_owned(), "object".into());
    let properties: Map<String, Value> = ty
        .fields()
        .iter()
        .map(|field| (field.name.to_string(), property(ty, field, version, describe(field.doc))))
        .collect();
    if !properties.is_empty() {
        out.insert("properties".to_owned(), properties.into());
    }
    if ty.is_kind() {
        out.insert("x-kubernetes-group-version-kind".to_owned(), group_version_kinds(ty));
    }
    if ty.atomic() {
        out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    Value::Object(out)
}

/// The groups and versions under which a kind is known: one, or for the kinds of meta/v1 that of the core.
fn group_version_kinds(ty: Type<'_>) -> Value {
    let folder = ty.name().split('/').next().unwrap_or_default();
    let version = ty.go_name().split('.').next().unwrap_or_default();
    let entry = |group: &str| json!({"group": group, "kind": ty.short_name(), "version": version});
    if folder != "meta" {
        let group = GROUPS.iter().find(|(_, known)| *known == folder).map_or("", |(group, _)| group);
        return json!([entry(group)]);
    }
    match ty.short_name() {
        "DeleteOptions" | "WatchEvent" => GROUPS.iter().map(|(group, _)| entry(group)).collect(),
        _ => json!([entry("")]),
    }
}

fn property(ty: Type<'_>, field: &Field, version: Version, description: Option<String>) -> Value {
    let mut out = value(ty, &field.kind, version, false);
    out.extend(description.map(|text| ("description".to_owned(), text.into())));
    let reference = matches!(field.kind, Kind::Message(_));
    let zero = match &field.default {
        Some(default) => Some(default.clone()),
        None if field.pointer => None,
        None if reference => Some(json!({})),
        None if !field.omitempty => scalar_zero(&field.kind),
        None => None,
    };
    // A reference may have no neighbours in version 2.
    if !(reference && version == Version::Two) {
        out.extend(zero.map(|zero| ("default".to_owned(), zero)));
    }
    let list = field.list.map(|list| match list {
        ListType::Atomic => "atomic",
        ListType::Set => "set",
        ListType::Map => "map",
    });
    let merge: Vec<&str> = [
        (field.strategy.merge, "merge"),
        (field.strategy.retain_keys, "retainKeys"),
        (field.strategy.replace, "replace"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    let mut extension = |name: &str, value: Option<Value>| {
        out.extend(value.map(|value| (format!("x-kubernetes-{name}"), value)));
    };
    extension("list-type", list.map(Value::from));
    let keys: Vec<Value> = field.keys.iter().map(|key| key.as_ref().into()).collect();
    extension("list-map-keys", (!keys.is_empty()).then_some(keys.into()));
    extension("patch-merge-key", field.merge_key.as_deref().map(Value::from));
    extension("patch-strategy", (!merge.is_empty()).then(|| merge.join(",").into()));
    extension("map-type", field.atomic.then_some("atomic".into()));
    Value::Object(out)
}

fn scalar_zero(kind: &Kind) -> Option<Value> {
    match kind {
        Kind::String => Some("".into()),
        Kind::Bool => Some(false.into()),
        Kind::Int32 | Kind::Int64 | Kind::Double => Some(0.into()),
        _ => None,
    }
}

/// The schema of a value; elements of lists and maps state their zero value, as upstream's do.
fn value(ty: Type<'_>, kind: &Kind, version: Version, element: bool) -> Map<String, Value> {
    let definition =
        special(kind).map(str::to_owned).or_else(|| ty.refer(kind).map(|inner| inner.definition()));
    if let Some(definition) = definition {
        let reference = version.reference(&definition);
        if version == Version::Two {
            return reference.as_object().cloned().unwrap_or_default();
        }
        let mut out = Map::from_iter([("allOf".to_owned(), json!([reference]))]);
        if element && matches!(kind, Kind::Message(_)) {
            out.insert("default".to_owned(), json!({}));
        }
        return out;
    }
    let typed = |name: &str, format: Option<&str>| {
        let mut out = Map::from_iter([("type".to_owned(), name.into())]);
        out.extend(format.map(|format| ("format".to_owned(), format.into())));
        out.extend(scalar_zero(kind).filter(|_| element).map(|zero| ("default".to_owned(), zero)));
        out
    };
    match kind {
        Kind::Bool => typed("boolean", None),
        Kind::Int32 => typed("integer", Some("int32")),
        Kind::Int64 => typed("integer", Some("int64")),
        Kind::Double => typed("number", Some("double")),
        Kind::Bytes => typed("string", Some("byte")),
        Kind::List(inner) | Kind::Wrapped(inner) => {
            let mut out = typed("array", None);
            out.insert("items".to_owned(), value(ty, inner, version, true).into());
            out
        }
        Kind::Map(inner) => {
            let mut out = typed("object", None);
            out.insert("additionalProperties".to_owned(), value(ty, inner, version, true).into());
            out
        }
        _ => typed("string", None),
    }
}

/// The definitions of a custom kind and its list.
pub(crate) fn custom(group: &str, version: &str, kind: &str, schema: Value) -> Vec<(String, Value)> {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let name = |kind: &str| format!("{}.{version}.{kind}", reversed.join("."));
    let meta = |list: bool| {
        let metadata = if list { "ListMeta" } else { "ObjectMeta" };
        json!({
            "apiVersion": {"type": "string", "description": "Group and version of the schema of this object."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "metadata": {"allOf": [Version::Three.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{metadata}"))]},
        })
    };
    let identity = |kind: &str| json!([{"group": group, "kind": kind, "version": version}]);
    let mut object = schema;
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        if let Value::Object(meta) = meta(false) {
            properties.extend(meta);
        }
    } else {
        object["properties"] = meta(false);
    }
    object["type"] = "object".into();
    object["x-kubernetes-group-version-kind"] = identity(kind);
    let mut properties = meta(true);
    properties["items"] = json!({"type": "array", "items": Version::Three.reference(&name(kind))});
    let list_kind = format!("{kind}List");
    let list = json!({"type": "object", "required": ["items"], "properties": properties,
        "x-kubernetes-group-version-kind": identity(&list_kind)});
    vec![(name(kind), object), (name(&list_kind), list)]
}
