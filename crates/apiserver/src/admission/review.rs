//! `admission.k8s.io/v1.AdmissionReview`: the question to a webhook, and what its answer means.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Write;
use crate::convert;
use crate::core::Call;
use crate::crd;
use crate::identity::UserInfo;
use crate::kinds::value::{list, name, text, unset};
use crate::object::set_top;
use crate::resource::Resource;
use crate::rest::scale;
use crate::status::Status;

/// Versions of the review that are spoken, most wanted first.
pub const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// A user as reviews show it.
pub fn user(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        set_top(&mut out, "uid", user.uid.as_str().into());
    }
    if !user.extra.is_empty() {
        set_top(&mut out, "extra", json!(user.extra));
    }
    out
}

fn kind(row: &Resource, subresource: &str) -> Value {
    let sub = row.subresources.iter().find(|s| s.name == subresource);
    let (group, version, kind) = match sub {
        Some(sub) => (&sub.group, &sub.version, &sub.kind),
        None => (&row.group, &row.version, &row.kind),
    };
    json!({"group": group, "version": version, "kind": kind})
}

/// An object in the form of one version, as the subresource shows it.
///
/// # Errors
/// 500 when a conversion by webhook fails.
pub async fn outward(call: &Call, row: &Resource, object: &Value) -> Result<Value, Status> {
    let mut out = object.clone();
    if call.cx.subresource == "scale" && out["kind"] != "Scale" {
        return Ok(scale::view(call, object));
    }
    // Bodies of other subresources (Eviction, PodExecOptions) are sent as they came.
    let differs = row.version != call.stored.version || row.group != call.stored.group;
    if differs && out["kind"] == call.stored.kind.as_str() {
        if row.custom {
            return custom(call, row, out).await;
        }
        convert::from_stored(row, &mut out);
    }
    Ok(out)
}

async fn custom(call: &Call, row: &Resource, object: Value) -> Result<Value, Status> {
    let converted = crd::convert::convert(call.cx.objects.as_ref(), row, vec![object]).await?;
    Ok(converted.into_iter().next().unwrap_or_default())
}

/// What a webhook made of [`outward`]'s object, in stored form again.
///
/// # Errors
/// A change of the kind, or of a view that cannot be turned back; a conversion by webhook that fails.
pub async fn inward(call: &Call, row: &Resource, before: &Value, after: Value) -> Result<Value, Status> {
    if call.cx.subresource == "scale" {
        return scale::scaled(call, before, &after);
    }
    if after["kind"] != row.kind.as_str() && after["kind"] != before["kind"] {
        return Err(Status::internal("a webhook changed the kind of the object"));
    }
    let mut after = after;
    if row.version != call.stored.version || row.group != call.stored.group {
        if row.custom {
            return custom(call, &call.stored, after).await;
        }
        convert::to_stored(row, &call.stored, &mut after);
    }
    Ok(after)
}

/// The request as reviews and expressions show it: everything but the objects.
pub fn request(call: &Call, row: &Resource, write: Write<'_>) -> Value {
    let sub = call.cx.subresource.as_str();
    let resource =
        |row: &Resource| json!({"group": row.group, "version": row.version, "resource": row.plural});
    let named = write.new.or(write.old).map(name).filter(|n| !n.is_empty()).unwrap_or(call.name());
    let operation = write.operation.name();
    let options = match operation {
        "CREATE" => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        "UPDATE" => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        "DELETE" => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        _ => Value::Null,
    };
    let mut out = json!({
        "kind": kind(row, sub), "resource": resource(row),
        "requestKind": kind(&call.row, sub), "requestResource": resource(&call.row),
        "name": named, "namespace": call.namespace(), "operation": operation,
        "userInfo": user(&call.cx.user), "dryRun": call.cx.dry_run, "options": options,
    });
    if !sub.is_empty() {
        out["subResource"] = sub.into();
        out["requestSubResource"] = sub.into();
    }
    let manager = call.query.get("fieldManager");
    if !manager.is_empty() && matches!(operation, "CREATE" | "UPDATE") {
        out["options"]["fieldManager"] = manager.into();
    }
    if call.cx.dry_run && operation != "CONNECT" {
        out["options"]["dryRun"] = json!(["All"]);
    }
    out
}

/// The question.
///
/// # Errors
/// As [`outward`].
pub async fn question(
    call: &Call,
    row: &Resource,
    write: Write<'_>,
    uid: &str,
    version: &str,
) -> Result<Value, Status> {
    let mut request = request(call, row, write);
    request["uid"] = uid.into();
    for (key, object) in [("object", write.new), ("oldObject", write.old)] {
        request[key] = match object {
            Some(object) => outward(call, row, object).await?,
            None => Value::Null,
        };
    }
    Ok(
        json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request}),
    )
}

/// What a webhook answered.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    /// The refusal, if it is one.
    pub refusal: Option<Refusal>,
    /// RFC 6902 operations.
    pub patch: Option<Value>,
    /// Texts for the user.
    pub warnings: Vec<String>,
}

/// The `status` of a refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    code: u16,
    reason: String,
    message: String,
}

impl Refusal {
    /// As the client gets it.
    pub fn status(&self, webhook: &str) -> Status {
        let denied = format!("admission webhook {webhook:?} denied the request");
        let why = match (self.message.as_str(), self.reason.as_str()) {
            ("", "") => "without explanation",
            ("", reason) => reason,
            (message, _) => message,
        };
        Status::new(self.code, self.reason.clone(), format!("{denied}: {why}"))
    }
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub fn verdict(review: &Value, uid: &str, version: &str) -> Result<Verdict, String> {
    let wanted = format!("admission.k8s.io/{version}");
    if version == "v1" && (text(review, "kind") != "AdmissionReview" || text(review, "apiVersion") != wanted)
    {
        let got = format!("{}, Kind={}", text(review, "apiVersion"), text(review, "kind"));
        return Err(format!("expected webhook response of {wanted}, Kind=AdmissionReview, got {got}"));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    if version == "v1" && text(response, "uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
    }
    let warnings = list(response, "warnings").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let refusal = (response["allowed"] != true).then(|| {
        let status = &response["status"];
        let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(0);
        Refusal {
            // Never a success, and nothing that HTTP does not know.
            code: code.clamp(400, 599),
            reason: text(status, "reason").to_owned(),
            message: text(status, "message").to_owned(),
        }
    });
    let patch = if unset(&response["patch"]) { None } else { Some(patch(response)?) };
    Ok(Verdict { refusal, patch, warnings })
}

fn patch(response: &Value) -> Result<Value, String> {
    match text(response, "patchType") {
        "JSONPatch" | "" => {}
        other => return Err(format!("unsupported patch type {other:?}: only JSONPatch is known")),
    }
    let bytes = STANDARD.decode(text(response, "patch")).map_err(|e| format!("response.patch: {e}"))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("response.patch: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(response: Value) -> Result<Verdict, String> {
        let review =
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        verdict(&review, "7", "v1")
    }

    #[test]
    fn refusals_say_why_and_are_never_a_success() {
        for (status, code, message) in [
            (json!(null), 400, "admission webhook \"a.b.c\" denied the request: without explanation"),
            (
                json!({"code": 200, "message": "no"}),
                400,
                "admission webhook \"a.b.c\" denied the request: no",
            ),
            (
                json!({"code": 403, "reason": "Odd"}),
                403,
                "admission webhook \"a.b.c\" denied the request: Odd",
            ),
        ] {
            let verdict = answer(json!({"uid": "7", "allowed": false, "status": status})).unwrap();
            let got = verdict.refusal.unwrap().status("a.b.c");
            assert_eq!((got.code(), got.message()), (code, message));
        }
    }

    #[test]
    fn answers_that_are_none() {
        assert_eq!(answer(json!(null)).unwrap_err(), "webhook response was absent");
        assert!(answer(json!({"uid": "8", "allowed": true})).unwrap_err().contains("expected response.uid"));
        assert!(
            verdict(&json!({"response": {"uid": "7"}}), "7", "v1").unwrap_err().contains("AdmissionReview")
        );
        let bad = answer(json!({"uid": "7", "allowed": true, "patchType": "JSONPatch", "patch": "?"}));
        assert!(bad.unwrap_err().starts_with("response.patch"));
        let good = answer(json!({"uid": "7", "allowed": true, "patchType": "JSONPatch", "patch": "W10=",
            "warnings": ["w"]}));
        assert_eq!(
            good.unwrap(),
            Verdict { refusal: None, patch: Some(json!([])), warnings: vec!["w".into()] }
        );
    }
}
