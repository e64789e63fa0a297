//! The apiextensions group, which kubectl does not link: its Go fields are put together from the protobuf messages and
//! the JSON names of OpenAPI. Which fields are pointers is the one fact neither tells; it stands here.

use crate::gotypes::{GoField, GoTypes};
use crate::openapi::Definition;
use crate::pb::{PbField, PbMessage, markers};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

const PACKAGE: &str = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1";
const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";

/// Fields whose zero value differs from their absence.
const POINTERS: [&str; 37] = [
    "$ref",
    "additionalItems",
    "additionalProperties",
    "clientConfig",
    "conversion",
    "default",
    "example",
    "externalDocs",
    "items",
    "not",
    "openAPIV3Schema",
    "request",
    "response",
    "scale",
    "schema",
    "service",
    "subresources",
    "maximum",
    "maxLength",
    "maxItems",
    "maxProperties",
    "minimum",
    "minLength",
    "minItems",
    "minProperties",
    "multipleOf",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "labelSelectorPath",
    "url",
    "path",
    "port",
    "deprecationWarning",
    "reason",
    "optionalOldSelf",
    "webhook",
];

/// Adds the group's structs to the Go types.
pub fn add(
    go: &mut GoTypes,
    pb: &BTreeMap<String, PbMessage>,
    openapi: &BTreeMap<String, Definition>,
) -> Result<()> {
    for message in pb.values().filter(|message| message.path.starts_with(&format!("{PACKAGE}."))) {
        let path = &message.path;
        let definition = openapi.get(&path.replacen("k8s.io/", "io.k8s.", 1).replace('/', "."));
        let mut fields = Vec::new();
        let name = path.rsplit('.').next().unwrap_or("");
        if matches!(name, "CustomResourceDefinition" | "CustomResourceDefinitionList" | "ConversionReview") {
            fields.push(type_meta());
        }
        for wire in &message.fields {
            fields.push(field(wire, name, definition).with_context(|| format!("{path}.{}", wire.name))?);
        }
        go.insert(path.clone(), fields);
    }
    Ok(())
}

fn type_meta() -> GoField {
    GoField {
        go_name: "TypeMeta".to_owned(),
        ty: format!("{META}.TypeMeta"),
        json: String::new(),
        omitempty: false,
        inline: true,
        number: 0,
        patch_strategy: String::new(),
        merge_key: String::new(),
    }
}

fn field(wire: &PbField, owner: &str, definition: Option<&Definition>) -> Result<GoField> {
    let plain = |text: &str| text.replace(['_', '$', '-'], "").to_lowercase();
    let known = definition.and_then(|d| d.properties.keys().find(|name| plain(name) == plain(&wire.name)));
    let json = known.cloned().unwrap_or_else(|| camel(&wire.name));
    let required =
        definition.map_or(markers(&wire.doc, "optional").is_empty(), |d| d.required.contains(&json));
    let ty = go_type(wire)?;
    let status = owner == "CustomResourceSubresources" && json == "status";
    let named = POINTERS.contains(&json.as_str()) && !ty.starts_with("[]");
    let pointer = if named || status { "*" } else { "" };
    Ok(GoField {
        go_name: json.clone(),
        ty: format!("{pointer}{ty}"),
        omitempty: !required,
        inline: false,
        number: wire.number,
        patch_strategy: markers(&wire.doc, "patchStrategy").join(","),
        merge_key: markers(&wire.doc, "patchMergeKey").join(","),
        json,
    })
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or("").to_owned();
    words.fold(first, |mut out, word| {
        let mut chars = word.chars();
        out.extend(chars.next().map(|char| char.to_ascii_uppercase()));
        out.push_str(chars.as_str());
        out
    })
}

/// The Go type expression for prost's attribute and type.
fn go_type(wire: &PbField) -> Result<String> {
    let message = || -> Result<String> {
        let (module, name) = match wire.rust_type.rsplit_once("::") {
            None => ("", wire.rust_type.as_str()),
            Some((module, name)) => (module, name),
        };
        Ok(match module.rsplit("super::").next().unwrap_or("") {
            "" => format!("{PACKAGE}.{}", name.replace("Json", "JSON")),
            "apimachinery::pkg::apis::meta::v1" => format!("{META}.{name}"),
            "apimachinery::pkg::runtime" => format!("k8s.io/apimachinery/pkg/runtime.{name}"),
            other => bail!("unknown module {other}"),
        })
    };
    Ok(match wire.attribute.as_str() {
        "string, optional" => "string".to_owned(),
        "bool, optional" => "bool".to_owned(),
        "int32, optional" => "int32".to_owned(),
        "int64, optional" => "int64".to_owned(),
        "double, optional" => "float64".to_owned(),
        "bytes = \"vec\", optional" => "[]uint8".to_owned(),
        "string, repeated" => "[]string".to_owned(),
        "message, optional" | "message, optional, boxed" => message()?,
        "message, repeated" => format!("[]{}", message()?),
        "btree_map = \"string, message\"" => format!("map[string]{}", message()?),
        other => bail!("unknown protobuf attribute {other}"),
    })
}
