//! Tables: what `kubectl get` shows. Columns and cells per kind as upstream prints them; a column with a priority
//! above 0 is shown by `-o wide` only.

mod cluster;
mod format;
mod network;
mod pod;
mod policy;
mod storage;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::meta;
use crate::resource::{CustomColumn, Resource};

/// One column of a kind.
#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    wide: bool,
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", wide: false };
const AGE: Column = text("Age");

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: false }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", wide: false }
}

const fn boolean(name: &'static str) -> Column {
    Column { name, kind: "boolean", format: "", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: true }
}

/// How a kind is printed. Cells are made from the stored form, at a moment (for ages).
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// Kinds without columns of their own.
static PLAIN: Printer = Printer {
    columns: &[NAME, Column { name: "Created At", kind: "string", format: "date-time", wide: false }],
    cells: |object, _| vec![meta(object, "name").into(), meta(object, "creationTimestamp").into()],
};

fn printer(row: &Resource) -> &'static Printer {
    let found = match row.group.as_str() {
        "" | "events.k8s.io" => pod::printer(&row.plural)
            .or_else(|| workload::printer(&row.plural))
            .or_else(|| network::printer(&row.plural))
            .or_else(|| cluster::printer(&row.plural))
            .or_else(|| storage::printer(&row.plural)),
        "apps" | "batch" | "autoscaling" => workload::printer(&row.plural),
        "networking.k8s.io" | "discovery.k8s.io" => network::printer(&row.plural),
        "storage.k8s.io" => storage::printer(&row.plural),
        "coordination.k8s.io" | "scheduling.k8s.io" | "node.k8s.io" => cluster::printer(&row.plural),
        "rbac.authorization.k8s.io" | "policy" | "certificates.k8s.io" | "admissionregistration.k8s.io" => {
            policy::printer(&row.plural)
        }
        _ => None,
    };
    found.unwrap_or(&PLAIN)
}

/// A `meta.k8s.io` Table.
pub fn document(row: &Resource, version: &str, meta: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let mut out = json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta});
    out["columnDefinitions"] = if with_columns { columns(row) } else { Value::Null };
    out["rows"] = rows.into();
    out
}

fn columns(row: &Resource) -> Value {
    let definition = |name: &str, kind: &str, format: &str, priority: i64, help: &str| json!({"name": name, "type": kind, "format": format, "description": help, "priority": priority});
    if row.custom {
        let first = definition("Name", "string", "name", 0, "");
        let own = custom_columns(row).into_iter();
        return std::iter::once(first)
            .chain(own.map(|c| definition(&c.name, &c.kind, &c.format, c.priority, &c.description)))
            .collect();
    }
    let columns = printer(row).columns.iter();
    columns.map(|c| definition(c.name, c.kind, c.format, i64::from(c.wide), "")).collect()
}

/// The columns of a custom kind besides the name; the age, if the definition gives none.
fn custom_columns(row: &Resource) -> Vec<CustomColumn> {
    if !row.columns.is_empty() {
        return row.columns.clone();
    }
    vec![CustomColumn {
        name: "Age".into(),
        kind: "date".into(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        path: ".metadata.creationTimestamp".into(),
    }]
}

/// The cells of an object in its stored form.
pub fn cells(row: &Resource, object: &Value) -> Vec<Value> {
    let now = Timestamp::now();
    if !row.custom {
        return (printer(row).cells)(object, now);
    }
    let mut out = vec![meta(object, "name").into()];
    out.extend(custom_columns(row).iter().map(|column| custom_cell(column, object, now)));
    out
}

/// The value at a simple JSON path, in the type of its column.
fn custom_cell(column: &CustomColumn, object: &Value, now: Timestamp) -> Value {
    let Some(found) = crate::jsonpath::find(object, &column.path) else { return Value::Null };
    match (column.kind.as_str(), found) {
        ("date", Value::String(moment)) => format::age(moment, now).into(),
        ("integer" | "number", Value::Number(_))
        | ("boolean", Value::Bool(_))
        | ("string", Value::String(_)) => found.clone(),
        ("string", other) => other.to_string().into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests;
