//! `metadata.managedFields` as a list of managers with their sets, and back.

use super::set::Set;
use serde_json::{Value, json};

/// More update managers than this are joined into one, the oldest first.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub set: Set,
}

impl Entry {
    /// Is this the same manager? Whoever applies keeps one entry across versions.
    pub(crate) fn is(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == "Apply" || self.api_version == other.api_version)
    }

    /// How a conflict names it.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The entries of an object, `None` when it has no usable list.
pub(crate) fn read(object: &Value) -> Option<Vec<Entry>> {
    let list = object.pointer("/metadata/managedFields")?.as_array()?;
    let mut entries = Vec::with_capacity(list.len());
    for item in list {
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = text("operation");
        if !matches!(operation.as_str(), "Apply" | "Update") || text("fieldsType") != "FieldsV1" {
            return None;
        }
        entries.push(Entry {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            set: Set::parse(item.get("fieldsV1").unwrap_or(&Value::Null)),
        });
    }
    Some(entries)
}

/// Writes the entries in upstream's order; no entries, no list.
pub(crate) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.set.is_empty());
    join_old(&mut entries);
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| {
            [&entry.operation, &entry.time, &entry.manager, &entry.api_version, &entry.subresource]
                .map(Clone::clone)
        };
        key(a).cmp(&key(b))
    });
    let list: Vec<Value> = entries.into_iter().map(to_value).collect();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if list.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), list.into());
    }
}

fn to_value(entry: Entry) -> Value {
    let mut out =
        json!({"manager": entry.manager, "operation": entry.operation, "apiVersion": entry.api_version});
    if !entry.time.is_empty() {
        out["time"] = entry.time.into();
    }
    out["fieldsType"] = "FieldsV1".into();
    out["fieldsV1"] = entry.set.to_value();
    if !entry.subresource.is_empty() {
        out["subresource"] = entry.subresource.into();
    }
    out
}

/// Joins the oldest update managers of one version when there are too many.
fn join_old(entries: &mut Vec<Entry>) {
    let updater = |entry: &Entry| entry.operation == "Update" && entry.subresource.is_empty();
    let count = entries.iter().filter(|entry| updater(entry)).count();
    if count <= MAX_UPDATERS {
        return;
    }
    let (mut old, others): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries).into_iter().partition(updater);
    old.sort_by(|a, b| a.time.cmp(&b.time));
    let kept = old.split_off(count - MAX_UPDATERS + 1);
    let mut joined: Vec<Entry> = Vec::new();
    for entry in old {
        match joined.iter_mut().find(|known| known.api_version == entry.api_version) {
            Some(known) => {
                known.set = known.set.union(&entry.set);
                known.time = entry.time;
            }
            None => joined.push(Entry { manager: ANCIENT.to_owned(), ..entry }),
        }
    }
    entries.extend(others);
    entries.extend(joined);
    entries.extend(kept);
}
