//! Server-side apply and the tracking of who set which field (`metadata.managedFields`), over the table.
//!
//! Every write names a manager. An *update* owns what it adds or changes; whoever owned that before loses it. An *apply*
//! states the fields its manager wants: it owns them all, what it wanted before and no longer states goes away unless
//! somebody else owns it, and changing what another manager owns is a conflict unless forced. Owners are noted per
//! field, per list item (by keys or by value) and per map entry; atomic lists and maps have one owner.
//!
//! The algorithm is that of KEP-555. What somebody owns is named in the version that they wrote in, and compared there
//! (`versions`).

mod entries;
mod set;
mod versions;
mod walk;

use crate::canonical;
use crate::table::Type;
use entries::Entry;
use serde_json::Value;
use versions::Differences;
use walk::Shape;

pub use set::Set;
pub use versions::{Pending, Versions, View};

/// Fields that nobody owns.
const UNOWNED: [&str; 12] = [
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.clusterName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];
/// Owner of what an object had when it was applied to first and nobody had kept account before.
const BEFORE_FIRST: &str = "before-first-apply";

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// The `fieldManager` parameter, or the first part of the user agent.
    pub name: &'a str,
    /// Of the request's object.
    pub api_version: &'a str,
    /// `status` and the like, empty for the object itself.
    pub subresource: &'a str,
    /// Now, in RFC 3339 form.
    pub time: &'a str,
    /// Paths that this kind of request cannot change, and so does not own: `status` for the object itself, `spec` and
    /// `metadata` for its status.
    pub resets: &'a [&'a str],
}

impl Manager<'_> {
    fn entry(&self, operation: &str, set: Set) -> Entry {
        Entry {
            manager: self.name.to_owned(),
            operation: operation.to_owned(),
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: self.time.to_owned(),
            set,
        }
    }

    fn owned(&self, set: Set) -> Set {
        let mut resets = Set::default();
        self.resets.iter().for_each(|path| resets.insert_fields(path));
        let mut unowned = Set::default();
        UNOWNED.iter().for_each(|path| unowned.insert_fields(path));
        set.without_subtrees(&resets).difference(&unowned)
    }
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner, as messages name it: `"kubectl-create" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`.
    pub path: String,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others own fields that it would change (409, each conflict a cause `FieldManagerConflict`).
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied object sets `metadata.managedFields` (400).
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// The applied object cannot be owned: unknown fields, list items without or with equal keys (400).
    #[error("failed to create typed patch object: {0}")]
    Invalid(String),
    /// The object has to be converted for owners of other versions first.
    #[error("the object has to be converted to the versions of its owners first")]
    Pending,
}

impl From<Pending> for ApplyError {
    fn from(_: Pending) -> Self {
        ApplyError::Pending
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path);
    }
    let mut lines = Vec::new();
    let mut managers: Vec<&str> = conflicts.iter().map(|conflict| conflict.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let theirs = conflicts.iter().filter(|conflict| conflict.manager == manager);
        lines.extend(theirs.map(|conflict| format!("- {}", conflict.path)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Applies `config` to the live object, or makes a new one of it.
///
/// The result carries the new `managedFields`. Whether it differs from the live object at all is for the caller to see:
/// equal values mean that nothing is to be written.
pub fn apply(
    ty: Type<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
    versions: &dyn Versions,
) -> Result<Value, ApplyError> {
    let shape = Shape::Struct(ty);
    let nobody = |value: Option<&Value>| value.is_none_or(Value::is_null);
    if !nobody(config.pointer("/metadata/managedFields")) {
        return Err(ApplyError::ManagedFields);
    }
    let wanted = walk::fields(shape, config, "").map_err(ApplyError::Invalid)?;
    let before = without_managed_fields(live.cloned().unwrap_or_else(|| empty_like(config)));
    let mut owners = live.and_then(entries::read).unwrap_or_default();
    if owners.is_empty() && live.is_some() {
        let all = walk::compare(shape, Some(&zero_like(ty, &before)), Some(&before)).set();
        let first = Manager { name: BEFORE_FIRST, ..*manager };
        owners.push(first.entry("Update", Manager { resets: &[], ..*manager }.owned(all)));
    }
    let mut mine = manager.entry("Apply", manager.owned(wanted));
    let last = owners.iter().position(|entry| entry.is(&mine)).map(|at| owners.swap_remove(at));

    let merged = walk::merge(shape, before.clone(), config);
    let merged = match &last {
        Some(last) => {
            let managed: Vec<&Entry> = std::iter::once(&mine).chain(&owners).collect();
            versions::prune((ty, manager.api_version), merged, last, &managed, versions)?
        }
        None => merged,
    };
    let conflicts =
        Differences::new(shape, manager.api_version, (&before, &merged), versions).conflicts(&mut owners)?;
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    // Nothing new: the time of the last apply stays, so that the object stays equal.
    if let Some(last) =
        last.filter(|last| last.set == mine.set && last.api_version == mine.api_version && merged == before)
    {
        mine.time = last.time;
    }
    owners.push(mine);
    let mut result = merged;
    entries::write(&mut result, owners);
    Ok(result)
}

/// Notes the owners after a write that is no apply. `new` is the object about to be stored; the account is taken from it
/// (a client may edit it), or else from the live object. A list of one empty entry clears the account.
///
/// # Errors
/// The object has to be converted for owners of other versions first; it is as it was then.
pub fn update_managed_fields(
    ty: Type<'_>,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    versions: &dyn Versions,
) -> Result<(), Pending> {
    let shape = Shape::Struct(ty);
    let list = new.pointer("/metadata/managedFields").and_then(Value::as_array);
    let cleared =
        list.is_some_and(|list| matches!(list.as_slice(), [Value::Object(only)] if only.is_empty()));
    if cleared {
        entries::write(new, Vec::new());
        return Ok(());
    }
    let sent = entries::read(new).filter(|entries| !entries.is_empty());
    let mut owners = sent.or_else(|| live.and_then(entries::read)).unwrap_or_default();
    let account = new.pointer_mut("/metadata/managedFields").map(Value::take);
    let after = without_managed_fields(new.take());
    let before = without_managed_fields(live.cloned().unwrap_or_else(|| zero_like(ty, &after)));
    let mine = manager.entry("Update", Set::default());
    let known = owners.iter().position(|owner| owner.is(&mine)).map(|at| owners.remove(at));
    let mut differences = Differences::new(shape, manager.api_version, (&before, &after), versions);
    let pending = differences.conflicts(&mut owners).err();
    let (changed, removed) = differences.own();
    *new = after;
    if let Some(pending) = pending {
        if let (Some(account), Some(metadata)) =
            (account, new.get_mut("metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("managedFields".to_owned(), account);
        }
        return Err(pending);
    }
    let before = known.as_ref().map(|known| known.set.difference(&removed)).unwrap_or_default();
    let fresh = manager.owned(changed);
    let time = known.filter(|_| fresh.is_empty()).map(|known| known.time);
    owners.push(Entry { set: before.union(&fresh), time: time.unwrap_or_else(|| mine.time.clone()), ..mine });
    entries::write(new, owners);
    Ok(())
}

/// What a manager applied last, as it stands in the object: its fields with their list keys, and the object's identity.
pub fn extract(ty: Type<'_>, object: &Value, manager: &str, subresource: &str) -> Option<Value> {
    let found = entries::read(object)?.into_iter().find(|entry| {
        entry.operation == "Apply" && entry.manager == manager && entry.subresource == subresource
    })?;
    let mut set = found.set;
    for path in ["apiVersion", "kind", "metadata.name", "metadata.namespace"] {
        let mut identity = Set::default();
        identity.insert_fields(path);
        set = set.union(&identity);
    }
    walk::extract(Shape::Struct(ty), object, &set)
}

/// An object of the same kind with what every object of it has: nobody adds that.
fn zero_like(ty: Type<'_>, object: &Value) -> Value {
    let mut out = empty_like(object);
    if !ty.is_custom() {
        canonical::complete(ty, &mut out);
    }
    out
}

/// An object of the same kind with nothing in it.
fn empty_like(object: &Value) -> Value {
    let mut out = serde_json::Map::new();
    for name in ["apiVersion", "kind"] {
        out.extend(object.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    Value::Object(out)
}

fn without_managed_fields(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    object
}

#[cfg(test)]
mod tests;
