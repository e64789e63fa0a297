//! The scale subresource: `autoscaling/v1.Scale` as a view of `spec.replicas`.

use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};

use super::answer::{self, Answer};
use super::create::Stored;
use super::patch::Patch;
use super::update::{self, MakeNew, Part};
use super::{Expected, check_fields, decode_object};
use crate::core::Call;
use crate::field::{FieldError, FieldErrors};
use crate::jsonpath;
use crate::object::{self, make_child, meta};
use crate::resource::Subresource;
use crate::status::Status;

/// Runs a request on `/scale`.
///
/// # Errors
/// 400, 404, 409, 422.
pub async fn dispatch(
    call: &Call,
    sub: &Subresource,
    method: &Method,
    body: Bytes,
) -> Result<Answer, Status> {
    let change: MakeNew<'_> = match method.as_str() {
        "GET" | "HEAD" => {
            let object = call.parse(&call.fetch(call.name()).await?)?;
            return answer::object(call, 200, view(call, &object));
        }
        "PATCH" => {
            let patch = Patch::read(call, &body)?;
            Box::new(move |scale| patch.apply(&call.row, &Expected::from(sub), scale))
        }
        _ => {
            let sent = decode_object(call, sub, body)?;
            Box::new(move |_| Ok(sent.clone()))
        }
    };
    let stored = update::update(call, call.name(), Part::Computed, &|old| {
        let mut scale = change(&view(call, old))?;
        check_fields(call, &Expected::from(sub), &mut scale, &[])?;
        scaled(call, old, &scale)
    })
    .await?;
    let object = match stored {
        Stored::Kept(kv) => call.parse(&kv)?,
        Stored::DryRun(value) => value,
    };
    answer::object(call, 200, view(call, &object))
}

/// The object with the replicas of a Scale.
///
/// # Errors
/// 422 for a negative number.
pub fn scaled(call: &Call, old: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let mut errors = FieldErrors::new();
        errors.push(FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0"));
        return Err(Status::invalid("autoscaling", "Scale", call.name(), &errors));
    }
    let mut new = old.clone();
    object::set_meta(&mut new, "resourceVersion", scale["metadata"]["resourceVersion"].clone());
    match &call.row.scale_paths {
        // Paths of definitions are plain fields below spec.
        Some(paths) => set_path(&mut new, &paths.spec, replicas.into()),
        None => drop(make_child(&mut new, "spec").insert("replicas".into(), replicas.into())),
    }
    Ok(new)
}

fn set_path(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for key in path.split('.').filter(|k| !k.is_empty()) {
        place = object::entry(place, key);
    }
    *place = value;
}

/// The Scale of an object.
pub fn view(call: &Call, object: &Value) -> Value {
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta(object, key).is_empty() {
            metadata.insert(key.into(), meta(object, key).into());
        }
    }
    let mut spec = Map::new();
    let (wanted, current, selector) = match &call.row.scale_paths {
        Some(paths) => {
            let number = |path: &str| jsonpath::find(object, path).and_then(Value::as_i64);
            let selector =
                jsonpath::find(object, &paths.selector).and_then(Value::as_str).unwrap_or_default();
            let selector = if paths.selector.is_empty() { "" } else { selector };
            (number(&paths.spec), number(&paths.status), selector.to_owned())
        }
        None => (
            object["spec"]["replicas"].as_i64(),
            object["status"]["replicas"].as_i64(),
            selector_text(&object["spec"]["selector"]),
        ),
    };
    if let Some(replicas) = wanted.filter(|r| *r != 0) {
        spec.insert("replicas".into(), replicas.into());
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {
            "replicas": current.unwrap_or(0),
            "selector": selector,
        },
    })
}

/// A selector as text, as in queries.
pub fn selector_text(selector: &Value) -> String {
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    let labels = &selector["matchLabels"];
    if labels.is_null() && selector["matchExpressions"].is_null() {
        // A plain map, as in ReplicationControllers and Services.
        return selector.as_object().into_iter().flatten().map(pair).collect::<Vec<_>>().join(",");
    }
    let mut parts: Vec<String> = labels.as_object().into_iter().flatten().map(pair).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.sort();
    parts.join(",")
}
