//! Between the versions of a custom kind: with strategy None only `apiVersion` differs, with strategy Webhook an HTTPS
//! server of the user's is asked (`apiextensions.k8s.io/v1.ConversionReview`).
//!
//! Objects are converted where they are read from the store and where they are written to it, so that everything in
//! between (rules, patches, apply, tables) sees the version that was asked for alone.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/>

use std::time::Duration;

use serde_json::{Map, Value, json};
use storage::KeyValue;

use super::read;
use crate::field::FieldErrors;
use crate::kinds::value::{list, text};
use crate::meta as rules;
use crate::object::{self, meta};
use crate::objects::Objects;
use crate::post;
use crate::resource::Resource;
use crate::status::Status;

/// Versions of the review that are spoken.
pub const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The webhook of a definition.
#[derive(Debug)]
pub struct Webhook {
    client: Value,
    /// Version of the review: the first of the definition's that is spoken here.
    review: String,
    /// Held by watches that convert: of many that see the same events, one asks for all.
    pub turn: tokio::sync::Mutex<()>,
}

impl Webhook {
    /// Of `spec.conversion`; `None` when it asks for none.
    pub fn of(conversion: &Value) -> Option<Self> {
        if text(conversion, "strategy") != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let wanted = list(webhook, "conversionReviewVersions").iter().filter_map(Value::as_str);
        let review = wanted.into_iter().find(|v| REVIEWS.contains(v)).unwrap_or(REVIEWS[0]).to_owned();
        Some(Webhook { client: webhook["clientConfig"].clone(), review, turn: tokio::sync::Mutex::default() })
    }
}

/// Stored objects as they are read today, in the form of `row`; one request for all that are converted.
///
/// # Errors
/// 500 when the webhook fails.
pub async fn shown(
    objects: &dyn Objects,
    row: &Resource,
    mut items: Vec<KeyValue>,
) -> Result<Vec<KeyValue>, Status> {
    let Some(versions) = &row.read else { return Ok(items) };
    let (mut foreign, mut values) = (Vec::new(), Vec::new());
    for kv in &mut items {
        let read = versions.read(&kv.value);
        let (value, changed) = read.map_err(|e| Status::internal(format!("decode {}: {e}", kv.key)))?;
        if !read::is_of(row, &kv.value) {
            foreign.push(kv);
            values.push(value);
        } else if changed {
            kv.value = object::encode(row, &value);
        }
    }
    let converted = convert(objects, row, values).await?;
    for (kv, value) in foreign.iter_mut().zip(converted) {
        kv.value = object::encode(row, &value);
    }
    Ok(items)
}

/// Objects of any version in the form of `row`.
///
/// # Errors
/// 500 when the webhook fails.
pub async fn convert(
    objects: &dyn Objects,
    row: &Resource,
    mut values: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let target = row.api_version();
    let Some(webhook) = &row.conversion else {
        for value in values.iter_mut().filter(|v| text(v, "apiVersion") != target) {
            object::set_top(value, "apiVersion", target.as_str().into());
            prune(row, value);
        }
        return Ok(values);
    };
    let mut foreign: Vec<&mut Value> =
        values.iter_mut().filter(|v| text(v, "apiVersion") != target).collect();
    let Some(first) = foreign.first() else { return Ok(values) };
    let who = format!("conversion webhook for {}", kind_of(first));
    let sent: Vec<&Value> = foreign.iter().map(|v| &**v).collect();
    let uid = uuid::Uuid::new_v4().to_string();
    let question = json!({
        "kind": "ConversionReview", "apiVersion": review_version(&webhook.review),
        "request": {"uid": uid, "desiredAPIVersion": target, "objects": sent},
    });
    let answer = post::post(objects, &webhook.client, &question, TIMEOUT).await;
    let converted = answer
        .and_then(|answer| read(answer, &uid, &webhook.review))
        .map_err(|why| failure(format!("{who} failed: {why}")))?;
    if converted.len() != foreign.len() {
        let (got, wanted) = (converted.len(), foreign.len());
        return Err(failure(format!("{who} returned {got} objects, expected {wanted}")));
    }
    for (i, (place, new)) in foreign.iter_mut().zip(converted).enumerate() {
        let mut new = checked(place, new, &target)
            .map_err(|why| failure(format!("{who} returned invalid converted object at index {i}: {why}")))?;
        prune(row, &mut new);
        **place = new;
    }
    Ok(values)
}

/// As upstream answers what is not its own failure: without a reason.
fn failure(message: String) -> Status {
    Status::new(500, "", message)
}

fn review_version(version: &str) -> String {
    format!("apiextensions.k8s.io/{version}")
}

/// `x.example/v1, Kind=Thing`.
fn kind_of(object: &Value) -> String {
    format!("{}, Kind={}", text(object, "apiVersion"), text(object, "kind"))
}

/// The objects of an answer.
fn read(mut answer: Value, uid: &str, version: &str) -> Result<Vec<Value>, String> {
    let wanted = review_version(version);
    if text(&answer, "kind") != "ConversionReview" || text(&answer, "apiVersion") != wanted {
        return Err(format!(
            "expected webhook response of {wanted}, Kind=ConversionReview, got {}",
            kind_of(&answer)
        ));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if version == "v1" && text(response, "uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
    }
    let result = &response["result"];
    match (text(result, "status"), text(result, "message")) {
        ("Success", _) => {}
        (other, "") => return Err(format!("response.result.status was '{other}', not 'Success'")),
        (_, message) => return Err(message.to_owned()),
    }
    match answer["response"]["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        Value::Null => Ok(Vec::new()),
        _ => Err("response.convertedObjects is no list".into()),
    }
}

/// The converted object with the metadata that the webhook had no business to change.
fn checked(old: &Value, mut new: Value, target: &str) -> Result<Value, String> {
    let same = |what: &str, wanted: &str, got: &str| {
        if wanted == got { Ok(()) } else { Err(format!("{what}: {wanted} != {got}")) }
    };
    let (version, kind) = (text(&new, "apiVersion"), text(&new, "kind"));
    if version != target {
        return Err(format!("invalid groupVersion (expected {target}, received {version})"));
    }
    if kind != text(old, "kind") {
        return Err(format!("invalid kind (expected {}, received {kind})", text(old, "kind")));
    }
    same("must have the same name", meta(old, "name"), meta(&new, "name"))?;
    same("must have the same namespace", meta(old, "namespace"), meta(&new, "namespace"))?;
    same("must have the same UID", meta(old, "uid"), meta(&new, "uid"))?;
    let metadata = restored(&old["metadata"], &new["metadata"])?;
    object::set_top(&mut new, "metadata", metadata);
    Ok(new)
}

/// The old metadata with the labels and annotations of the new one.
fn restored(old: &Value, new: &Value) -> Result<Value, String> {
    let new = new.as_object().ok_or("missing metadata in converted object")?;
    let mut out = old.as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match new.get(field) {
            None | Some(Value::Null) => drop(out.shift_remove(field)),
            Some(Value::Object(texts)) => {
                check_texts(field, texts, &old[field])?;
                out.insert(field.into(), texts.clone().into());
            }
            Some(_) => return Err(format!("invalid metadata.{field} in converted object: it must be a map")),
        }
    }
    Ok(out.into())
}

fn check_texts(field: &str, texts: &Map<String, Value>, old: &Value) -> Result<(), String> {
    if let Some((key, _)) = texts.iter().find(|(_, value)| !value.is_string()) {
        return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
    }
    let texts = Value::Object(texts.clone());
    if texts == *old {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    let check = if field == "labels" { rules::validate_labels } else { rules::validate_annotations };
    check(&texts, &format!("metadata.{field}"), &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors.to_string()) }
}

/// Without what the schema of the target does not know.
fn prune(row: &Resource, object: &mut Value) {
    if let Some(types) = &row.types {
        read::prune(types, object);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn thing(version: &str) -> Value {
        json!({"apiVersion": format!("x.example/{version}"), "kind": "Thing",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"k": "v"}, "finalizers": ["a/b"]}})
    }

    #[test]
    fn the_first_version_that_is_spoken() {
        let of = |versions: Value| {
            Webhook::of(&json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": versions}}))
        };
        assert_eq!(of(json!(["v2", "v1beta1", "v1"])).unwrap().review, "v1beta1");
        assert_eq!(of(json!(["v1"])).unwrap().review, "v1");
        assert!(Webhook::of(&json!({"strategy": "None"})).is_none());
    }

    #[test]
    fn answers() {
        let answer = |response: Value| {
            let review = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
            read(review, "7", "v1")
        };
        let good = json!({"uid": "7", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]});
        assert_eq!(answer(good.clone()), Ok(vec![json!({"a": 1})]));
        for (response, why) in [
            (json!(null), "no response provided"),
            (json!({"uid": "8"}), "expected response.uid=\"7\", got \"8\""),
            (json!({"uid": "7"}), "response.result.status was '', not 'Success'"),
            (
                json!({"uid": "7", "result": {"status": "Failed"}}),
                "response.result.status was 'Failed', not 'Success'",
            ),
            (json!({"uid": "7", "result": {"status": "Failed", "message": "no way"}}), "no way"),
            (
                json!({"uid": "7", "result": {"status": "Success"}, "convertedObjects": {}}),
                "response.convertedObjects is no list",
            ),
        ] {
            assert_eq!(answer(response), Err(why.to_owned()));
        }
        let other = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1beta1", "response": good});
        assert_eq!(
            read(other.clone(), "7", "v1").unwrap_err(),
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got apiextensions.k8s.io/v1beta1, Kind=ConversionReview"
        );
        // The older review never had to repeat the uid.
        assert_eq!(read(other, "9", "v1beta1").unwrap().len(), 1);
    }

    #[test]
    fn only_labels_and_annotations_of_metadata_change() {
        let mut new = thing("v2");
        new["metadata"] =
            json!({"name": "a", "namespace": "n", "uid": "u", "annotations": {"x": "y"}, "generation": 9});
        let got = checked(&thing("v1"), new, "x.example/v2").unwrap();
        let expected = json!({"name": "a", "namespace": "n", "uid": "u", "annotations": {"x": "y"}, "finalizers": ["a/b"]});
        assert_eq!(got["metadata"], expected);
    }

    #[test]
    fn objects_that_were_not_asked_for() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (
                |v| v["apiVersion"] = json!("x.example/v3"),
                "invalid groupVersion (expected x.example/v2, received x.example/v3)",
            ),
            (|v| v["kind"] = json!("Thong"), "invalid kind (expected Thing, received Thong)"),
            (|v| v["metadata"]["name"] = json!("b"), "must have the same name: a != b"),
            (|v| v["metadata"]["namespace"] = json!("m"), "must have the same namespace: n != m"),
            (|v| v["metadata"]["uid"] = json!("w"), "must have the same UID: u != w"),
            (|v| drop(v.as_object_mut().unwrap().remove("metadata")), "must have the same name: a != "),
            (
                |v| v["metadata"]["labels"] = json!([]),
                "invalid metadata.labels in converted object: it must be a map",
            ),
            (
                |v| v["metadata"]["labels"] = json!({"a": 1}),
                "metadata.labels[a] must be a string in converted object",
            ),
            (|v| v["metadata"]["labels"] = json!({"a": "b c"}), "metadata.labels: Invalid value: \"b c\""),
        ];
        for (change, why) in cases {
            let mut new = thing("v2");
            change(&mut new);
            let got = checked(&thing("v1"), new, "x.example/v2").unwrap_err();
            assert!(got.starts_with(why), "{got}");
        }
    }
}
