//! CustomResourceDefinitions: from a stored definition to rows of the kinds table, served by the same handlers.

pub mod convert;
pub mod follow;
pub mod read;
pub mod rules;
pub mod schema;
pub mod validations;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::object;
use crate::resource::{CustomColumn, Resource, ScalePaths};

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The rows of a definition, one per served version, most stable version first.
pub fn rows(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let conversion = convert::Webhook::of(&spec["conversion"]).map(Arc::new);
    let mut rows: Vec<Resource> =
        versions.iter().map(|v| Resource { conversion: conversion.clone(), ..row(spec, v) }).collect();
    let all = Arc::new(read::Versions::of(&rows));
    rows.retain(|row| row.stores || !row.verbs.is_empty());
    rows.iter_mut().for_each(|row| row.read = Some(all.clone()));
    rows.sort_by_key(|row| std::cmp::Reverse(stability(&row.version)));
    rows
}

fn row(spec: &Value, version: &Value) -> Resource {
    let names = &spec["names"];
    let (group, name) = (text(spec, "group"), text(version, "name"));
    let mut row = Resource::new(group, name, text(names, "kind"), text(names, "plural")).generations();
    row.singular = text(names, "singular").to_owned();
    row.short_names = texts(&names["shortNames"]);
    row.categories = texts(&names["categories"]);
    row.namespaced = spec["scope"] == "Namespaced";
    row.custom = true;
    row.stores = version["storage"] == true;
    if version["deprecated"] == true {
        let usual = || format!("{group}/{name} {} is deprecated", row.kind);
        row.warning = Some(version["deprecationWarning"].as_str().map_or_else(usual, str::to_owned));
    }
    if version["served"] != true {
        // Objects may still be stored in this version, but nobody can ask for it.
        row.verbs.clear();
    }
    if version["subresources"]["status"].is_object() {
        row = row.status();
    }
    let scale = &version["subresources"]["scale"];
    if scale.is_object() {
        row.scale_paths = Some(ScalePaths {
            spec: text(scale, "specReplicasPath").to_owned(),
            status: text(scale, "statusReplicasPath").to_owned(),
            selector: text(scale, "labelSelectorPath").to_owned(),
        });
        row = row.scale();
    }
    row.columns = version["additionalPrinterColumns"].as_array().into_iter().flatten().map(column).collect();
    let schema = version["schema"]["openAPIV3Schema"].clone();
    row.types = Some(Arc::new(::schema::Table::from_schema(name, &row.kind, &schema)));
    row.has_rules = validations::has_rules(&schema);
    row.schema = Some(Arc::new(schema));
    row
}

fn column(column: &Value) -> CustomColumn {
    CustomColumn {
        name: text(column, "name").to_owned(),
        kind: text(column, "type").to_owned(),
        format: text(column, "format").to_owned(),
        description: text(column, "description").to_owned(),
        priority: column["priority"].as_i64().unwrap_or(0),
        path: text(column, "jsonPath").to_owned(),
    }
}

/// Order of versions: v2, v1, v1beta2, v1beta1, v1alpha1, anything else.
fn stability(version: &str) -> (u8, u64, u64) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        for (word, level) in [("beta", 2), ("alpha", 1)] {
            if let Some((major, minor)) = rest.split_once(word) {
                return Some((level, major.parse().ok()?, minor.parse().ok()?));
            }
        }
        Some((3, rest.parse().ok()?, 0))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The definition as accepted: finalizer, names, stored versions, conditions. `None` when nothing is to be changed.
pub fn accepted(definition: &Value) -> Option<Value> {
    let mut new = definition.clone();
    let mut finalizers = texts(&new["metadata"]["finalizers"]);
    if !finalizers.iter().any(|f| f == FINALIZER) && new["metadata"]["deletionTimestamp"].is_null() {
        finalizers.push(FINALIZER.into());
        object::set_meta(&mut new, "finalizers", finalizers.into());
    }
    let names = new["spec"]["names"].clone();
    let storage = new["spec"]["versions"].as_array().into_iter().flatten().find(|v| v["storage"] == true);
    let storage = storage.map(|v| v["name"].clone());
    let status = object::make_child(&mut new, "status");
    status.insert("acceptedNames".into(), names);
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(stored), Some(storage)) = (stored.as_array_mut(), storage)
        && !stored.contains(&storage)
    {
        stored.push(storage);
    }
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    for (kind, reason, message) in [
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ] {
        let known = conditions
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["status"] == "True"));
        if !known && let Some(list) = conditions.as_array_mut() {
            list.retain(|c| c["type"] != kind);
            list.push(json!({"type": kind, "status": "True", "reason": reason, "message": message,
                "lastTransitionTime": object::now()}));
        }
    }
    (new != *definition).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"metadata": {"name": "things.x.example"}, "spec": {
            "group": "x.example", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "shortNames": ["th"]},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object"}},
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]},
                {"name": "v2", "served": false, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
            ],
        }})
    }

    #[test]
    fn rows_of_served_versions_most_stable_first() {
        let rows = rows(&definition());
        let brief: Vec<_> =
            rows.iter().map(|r| (r.version.as_str(), r.stores, r.has_subresource("status"))).collect();
        assert_eq!(brief, [("v1", true, true), ("v1beta1", false, false)]);
        assert_eq!(rows[0].columns[0].path, ".spec.size");
        assert_eq!(rows[0].key("ns", "n"), "/registry/x.example/things/ns/n");
    }

    #[test]
    fn acceptance_settles() {
        let new = accepted(&definition()).unwrap_or_default();
        assert_eq!(new["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(new["status"]["conditions"][1]["type"], "Established");
        assert_eq!(accepted(&new), None);
        // Objects of the old version may still be there when another one is stored.
        let mut moved = new;
        moved["spec"]["versions"][0]["storage"] = json!(true);
        moved["spec"]["versions"][1]["storage"] = json!(false);
        assert_eq!(
            accepted(&moved).unwrap_or_default()["status"]["storedVersions"],
            json!(["v1", "v1beta1"])
        );
    }
}
