//! `metadata.managedFields`: who set which field, for server-side apply.
//!
//! Account is kept of writes that name a field manager (kubectl's do) and of every write to an object that has an
//! account already. Others, above all the status updates of controllers, are spared the work and the bytes; apply
//! then finds their fields under `before-first-apply`.

use schema::apply::{self, Manager};
use serde_json::Value;

use super::Expected;
use super::views::{self, Seen};
use crate::core::Call;
use crate::object;
use crate::status::Status;

/// The manager that a request writes as.
pub fn manager_name(call: &Call) -> String {
    match call.query.get("fieldManager") {
        "" => {
            let agent =
                call.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let first = agent.split('/').next().unwrap_or_default();
            if first.is_empty() { "unknown".into() } else { first.chars().take(128).collect() }
        }
        name => name.to_owned(),
    }
}

/// Paths that this kind of request cannot change.
pub fn resets(call: &Call) -> &'static [&'static str] {
    match call.cx.subresource.as_str() {
        "status" => &["spec", "metadata"],
        _ if call.strategy.separate_status(&call.stored) => &["status"],
        _ => &[],
    }
}

/// A write that changes nothing but the times of its owners changes nothing.
pub fn keep_times(new: &mut Value, old: &Value) {
    let known = &old["metadata"]["managedFields"];
    let untimed = |entry: &Value| {
        let mut entry = entry.clone();
        object::set_top(&mut entry, "time", Value::Null);
        entry
    };
    let Some(place) = new.pointer_mut("/metadata/managedFields") else { return };
    let (Some(ours), Some(theirs)) = (place.as_array(), known.as_array()) else { return };
    if place == known
        || ours.len() != theirs.len()
        || !ours.iter().zip(theirs).all(|(a, b)| untimed(a) == untimed(b))
    {
        return;
    }
    let noted = std::mem::replace(place, known.clone());
    if new != old
        && let Some(place) = new.pointer_mut("/metadata/managedFields")
    {
        *place = noted;
    }
}

/// Notes the owners of what a write changed, defaults included; admission and the server's own rules come after.
///
/// # Errors
/// 500 when the webhook of a custom kind fails.
pub async fn note(call: &Call, old: Option<&Value>, new: &mut Value) -> Result<(), Status> {
    let accounted = |v: &Value| !v["metadata"]["managedFields"].is_null();
    let wanted = !call.query.get("fieldManager").is_empty() || accounted(new) || old.is_some_and(accounted);
    if call.applies || !wanted {
        return Ok(());
    }
    call.complete(new);
    let row = &call.stored;
    let Some(ty) = super::type_of(row, &Expected::from(row.as_ref())) else { return Ok(()) };
    let (name, api_version, time) = (manager_name(call), row.api_version(), object::now());
    let manager = Manager {
        name: &name,
        api_version: &api_version,
        subresource: &call.cx.subresource,
        time: &time,
        resets: resets(call),
    };
    while apply::update_managed_fields(ty, old, new, &manager, &Seen(call)).is_err() {
        if !views::fetch(call).await? {
            return Err(Status::internal("the versions of the fields' owners cannot be had"));
        }
    }
    Ok(())
}
