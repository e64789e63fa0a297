//! CEL where clients meet it: rules of definitions, ValidatingAdmissionPolicies, match conditions of webhooks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::Fixture;
use serde_json::{Value, json};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

async fn made(f: &Fixture, uri: &str, object: &Value) {
    let got = f.post(uri, object).await;
    assert_eq!(got.code, 201, "{uri}: {:?}", got.status());
}

fn definition(validations: Value) -> Value {
    json!({"metadata": {"name": "widgets.x.example"}, "spec": {"group": "x.example", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "storage": true, "served": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "x-kubernetes-validations": validations, "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"},
                "pool": {"type": "string"}}}}}}}]}})
}

#[tokio::test]
async fn rules_of_definitions() {
    let f = common::start().await;
    let bad = definition(json!([{"rule": "self.min <"}]));
    let (code, why) = f.post(DEFINITIONS, &bad).await.status();
    assert_eq!(code, 422);
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    assert!(why.contains(at) && why.contains("compilation failed"), "{why}");
    let good = definition(json!([
        {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is more than max'"},
        {"rule": "!has(oldSelf.pool) || self.pool == oldSelf.pool", "message": "pool is immutable"}]));
    made(&f, DEFINITIONS, &good).await;
    let widgets = "/apis/x.example/v1/namespaces/default/widgets";
    let end = Instant::now() + Duration::from_secs(30);
    while f.get(widgets).await.code != 200 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let widget = |spec: Value| json!({"apiVersion": "x.example/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let (code, why) = f.post(widgets, &widget(json!({"min": 3, "max": 1}))).await.status();
    let text = "Widget.x.example \"w\" is invalid: spec: Invalid value: \"object\": min 3 is more than max";
    assert_eq!((code, why.as_str()), (422, text));
    made(&f, widgets, &widget(json!({"min": 1, "max": 2, "pool": "a"}))).await;
    let uri = format!("{widgets}/w");
    let merge = "application/merge-patch+json";
    let (code, why) = f.patch(&uri, merge, &json!({"spec": {"pool": "b"}})).await.status();
    assert_eq!((code, why.contains("pool is immutable")), (422, true), "{why}");
    assert_eq!(f.patch(&uri, merge, &json!({"spec": {"max": 5}})).await.code, 200);
}

#[tokio::test]
async fn policies_judge_where_they_are_bound() {
    let f = common::start().await;
    let rules = json!([{"operations": ["CREATE", "UPDATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]);
    let policy = json!({"metadata": {"name": "sizes"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": rules},
        "matchConditions": [{"name": "not-exempt", "expression": "!has(object.metadata.labels) || !('exempt' in object.metadata.labels)"}],
        "variables": [
            {"name": "count", "expression": "has(object.data) ? object.data.size() : 0"},
            {"name": "broken", "expression": "object.nothing"}],
        "validations": [
            {"expression": "variables.count <= int(params.data.max)",
                "messageExpression": "'has ' + string(variables.count) + ' of ' + params.data.max"},
            {"expression": "request.operation == 'CREATE' && request.userInfo.username == 'admin'", "reason": "Forbidden"},
            {"expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed()"}]}});
    made(&f, &format!("{ADMISSION}/validatingadmissionpolicies"), &policy).await;
    let map = |name: &str, keys: usize| {
        let data: serde_json::Map<String, Value> = (0..keys).map(|i| (format!("k{i}"), json!("v"))).collect();
        json!({"metadata": {"name": name}, "data": data})
    };
    // Without a binding nothing happens.
    made(&f, MAPS, &map("many", 5)).await;
    made(&f, MAPS, &json!({"metadata": {"name": "params"}, "data": {"max": "2"}})).await;
    let bindings = format!("{ADMISSION}/validatingadmissionpolicybindings");
    let binding = |actions: Value| {
        json!({"metadata": {"name": "here"}, "spec": {"policyName": "sizes", "validationActions": actions,
        "paramRef": {"name": "params", "namespace": "default", "parameterNotFoundAction": "Deny"}}})
    };
    made(&f, &bindings, &binding(json!(["Deny"]))).await;
    let (code, why) = f.post(MAPS, &map("big", 3)).await.status();
    let text = "configmaps \"big\" is forbidden: ValidatingAdmissionPolicy 'sizes' with binding 'here' denied request: has 3 of 2";
    assert_eq!((code, why.as_str()), (422, text));
    made(&f, MAPS, &map("small", 2)).await;
    // The second validation refuses updates, with its own reason.
    let merge = "application/merge-patch+json";
    let got = f.patch(&format!("{MAPS}/small"), merge, &json!({"data": {"k0": "w"}})).await;
    assert_eq!(got.code, 403);
    assert_eq!(got.json()["reason"], "Forbidden");
    assert!(got.status().1.contains("failed expression: request.operation"), "{:?}", got.status());
    let exempt = json!({"metadata": {"labels": {"exempt": "yes"}}, "data": {"k9": "v"}});
    assert_eq!(f.patch(&format!("{MAPS}/small"), merge, &exempt).await.code, 200);
    // Of a delete there is no object: the condition fails, and that refuses.
    let (code, why) = f.delete(&format!("{MAPS}/many"), None).await.status();
    assert_eq!((code, why.contains("matchCondition \"not-exempt\" resulted in error")), (422, true), "{why}");

    f.delete(&format!("{bindings}/here"), None).await;
    made(&f, &bindings, &binding(json!(["Warn", "Audit"]))).await;
    let got = f.post(MAPS, &map("warned", 3)).await;
    assert_eq!(got.code, 201);
    let warning = got.headers["warning"].to_str().unwrap();
    assert!(
        warning.contains(
            "Validation failed for ValidatingAdmissionPolicy 'sizes' with binding 'here': has 3 of 2"
        ),
        "{warning}"
    );
}

#[tokio::test]
async fn conditions_keep_requests_from_webhooks() {
    let f = common::start().await;
    // Nobody listens there: whoever is sent to it is refused.
    let hook = |condition: &str, policy: &str| {
        json!({"metadata": {"name": "test"}, "webhooks": [{"name": "hook.example.com", "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 1, "failurePolicy": policy,
        "clientConfig": {"url": "https://127.0.0.1:1/", "caBundle": "LS0="},
        "matchConditions": [{"name": "c", "expression": condition}],
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["configmaps"]}]}]})
    };
    let uri = format!("{ADMISSION}/validatingwebhookconfigurations");
    let (code, why) = f.post(&uri, &hook("object.", "Fail")).await.status();
    assert_eq!((code, why.contains("webhooks[0].matchConditions[0].expression")), (422, true), "{why}");
    for (condition, policy, expected) in [
        ("object.metadata.name == 'other'", "Fail", 201),
        ("object.metadata.name.startsWith('m')", "Fail", 500),
        ("object.nothing == 1", "Ignore", 201),
        ("object.nothing == 1", "Fail", 403),
    ] {
        made(&f, &uri, &hook(condition, policy)).await;
        let got = f.post(MAPS, &json!({"metadata": {"name": "map"}})).await;
        assert_eq!(got.code, expected, "{condition}: {:?}", got.status());
        f.delete(&format!("{uri}/test"), None).await;
        f.delete(&format!("{MAPS}/map"), None).await;
    }
}
