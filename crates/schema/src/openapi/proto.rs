//! An OpenAPI v2 document in protobuf (`openapi.v2.Document`), from its JSON: what kubectl up to 1.28 reads. The numbers
//! are those of gnostic's `OpenAPIv2.proto`; extensions travel as YAML text, which JSON is.

use crate::protobuf::wire::{put_bytes, put_number};
use serde_json::Value;

/// The bytes of a document.
pub fn document(json: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, &json["swagger"]);
    nested(&mut out, 2, |info| {
        text(info, 1, &json["info"]["title"]);
        text(info, 2, &json["info"]["version"]);
    });
    nested(&mut out, 8, |paths| {
        each(&json["paths"], |path, item| named(paths, 2, path, |out| path_item(out, item)));
    });
    nested(&mut out, 9, |definitions| schemas(definitions, &json["definitions"]));
    out
}

fn nested(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put_bytes(out, number, &inner);
}

/// An entry of a map: name and value.
fn named(out: &mut Vec<u8>, number: u32, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    nested(out, number, |entry| {
        put_bytes(entry, 1, name.as_bytes());
        nested(entry, 2, fill);
    });
}

fn each(map: &Value, mut visit: impl FnMut(&str, &Value)) {
    map.as_object().into_iter().flatten().for_each(|(key, value)| visit(key, value));
}

fn text(out: &mut Vec<u8>, number: u32, value: &Value) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        put_bytes(out, number, text.as_bytes());
    }
}

fn texts(out: &mut Vec<u8>, number: u32, values: &Value) {
    values.as_array().into_iter().flatten().for_each(|value| text(out, number, value));
}

fn flag(out: &mut Vec<u8>, number: u32, value: &Value) {
    if value == true {
        put_number(out, number, 1);
    }
}

/// Any value, as YAML.
fn any(out: &mut Vec<u8>, number: u32, value: &Value) {
    nested(out, number, |any| put_bytes(any, 2, value.to_string().as_bytes()));
}

fn extensions(out: &mut Vec<u8>, number: u32, object: &Value) {
    each(object, |key, value| {
        if key.starts_with("x-") {
            named(out, number, key, |any| put_bytes(any, 2, value.to_string().as_bytes()));
        }
    });
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if item[method].is_object() {
            nested(out, number, |out| operation(out, &item[method]));
        }
    }
    parameters(out, 9, &item["parameters"]);
    extensions(out, 10, item);
}

fn operation(out: &mut Vec<u8>, operation: &Value) {
    texts(out, 1, &operation["tags"]);
    text(out, 3, &operation["description"]);
    text(out, 5, &operation["operationId"]);
    texts(out, 6, &operation["produces"]);
    texts(out, 7, &operation["consumes"]);
    parameters(out, 8, &operation["parameters"]);
    nested(out, 9, |responses| {
        each(&operation["responses"], |code, response| {
            named(responses, 1, code, |value| {
                nested(value, 1, |out| {
                    text(out, 1, &response["description"]);
                    if response["schema"].is_object() {
                        nested(out, 2, |item| nested(item, 1, |out| schema(out, &response["schema"])));
                    }
                });
            });
        });
    });
    extensions(out, 13, operation);
}

fn parameters(out: &mut Vec<u8>, number: u32, list: &Value) {
    for parameter in list.as_array().into_iter().flatten() {
        nested(out, number, |item| nested(item, 1, |out| self::parameter(out, parameter)));
    }
}

fn parameter(out: &mut Vec<u8>, parameter: &Value) {
    if parameter["in"] == "body" {
        return nested(out, 1, |body| {
            text(body, 2, &parameter["name"]);
            text(body, 3, &parameter["in"]);
            flag(body, 4, &parameter["required"]);
            nested(body, 5, |out| schema(out, &parameter["schema"]));
        });
    }
    // Those of the query may be empty, which moves the numbers behind by one.
    let (sort, kind, unique) = if parameter["in"] == "path" { (4, 5, 19) } else { (3, 6, 20) };
    nested(out, 2, |other| {
        nested(other, sort, |out| {
            flag(out, 1, &parameter["required"]);
            text(out, 2, &parameter["in"]);
            text(out, 3, &parameter["description"]);
            text(out, 4, &parameter["name"]);
            text(out, kind, &parameter["type"]);
            flag(out, unique, &parameter["uniqueItems"]);
        });
    });
}

fn schemas(out: &mut Vec<u8>, map: &Value) {
    each(map, |name, value| named(out, 1, name, |out| schema(out, value)));
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    text(out, 1, &value["$ref"]);
    text(out, 2, &value["format"]);
    text(out, 4, &value["description"]);
    if !value["default"].is_null() {
        any(out, 5, &value["default"]);
    }
    texts(out, 19, &value["required"]);
    match &value["additionalProperties"] {
        Value::Bool(open) => nested(out, 21, |item| flag(item, 2, &Value::Bool(*open))),
        additional @ Value::Object(_) => {
            nested(out, 21, |item| nested(item, 1, |out| schema(out, additional)));
        }
        _ => {}
    }
    if value["type"].is_string() {
        nested(out, 22, |kind| text(kind, 1, &value["type"]));
    }
    if value["items"].is_object() {
        nested(out, 23, |items| nested(items, 1, |out| schema(out, &value["items"])));
    }
    if value["properties"].is_object() {
        nested(out, 25, |properties| schemas(properties, &value["properties"]));
    }
    extensions(out, 31, value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::protobuf::wire::{Reader, Wire};
    use serde_json::json;

    /// All values of a field, which must be bytes.
    fn all(bytes: &[u8], wanted: u32) -> Vec<Vec<u8>> {
        let (mut reader, mut out) = (Reader::new(bytes), Vec::new());
        while let Some((number, value)) = reader.field().unwrap() {
            if number == wanted {
                let Wire::Bytes(bytes) = value else { panic!("field {number} is no message") };
                out.push(bytes.to_vec());
            }
        }
        out
    }

    fn at(bytes: &[u8], path: &[u32]) -> Vec<u8> {
        path.iter().fold(bytes.to_vec(), |bytes, number| all(&bytes, *number).remove(0))
    }

    #[test]
    fn what_kubectl_looks_at_is_where_it_looks() {
        let json = json!({"swagger": "2.0", "info": {"title": "t", "version": "v"},
            "paths": {"/api/v1/pods": {"patch": {"operationId": "patchPod",
                "parameters": [{"name": "dryRun", "in": "query", "type": "string"}],
                "x-kubernetes-group-version-kind": {"kind": "Pod"}, "responses": {"200": {"description": "OK"}}}}},
            "definitions": {"Pod": {"type": "object", "description": "d", "required": ["spec"], "properties": {
                "spec": {"$ref": "#/definitions/Spec"}, "list": {"type": "array", "items": {"type": "string"}}},
                "x-kubernetes-group-version-kind": [{"kind": "Pod"}]}}});
        let bytes = document(&json);
        assert_eq!(at(&bytes, &[1]), b"2.0");
        assert_eq!(at(&bytes, &[2, 2]), b"v");
        // paths, its entry, the path item, patch
        let patch = at(&bytes, &[8, 2, 2, 8]);
        assert_eq!(at(&patch, &[5]), b"patchPod");
        assert_eq!(at(&patch, &[8, 1, 2, 3, 4]), b"dryRun");
        assert_eq!(at(&patch, &[13, 1]), b"x-kubernetes-group-version-kind");
        assert_eq!(at(&patch, &[13, 2, 2]), br#"{"kind":"Pod"}"#);
        let pod = at(&bytes, &[9, 1, 2]);
        assert_eq!(at(&pod, &[22, 1]), b"object");
        assert_eq!(at(&pod, &[19]), b"spec");
        let properties = all(&at(&pod, &[25]), 1);
        assert_eq!(at(&properties[0], &[2, 1]), b"#/definitions/Spec");
        assert_eq!(at(&properties[1], &[2, 23, 1, 22, 1]), b"string");
    }
}
