//! PodSecurity by the labels of a namespace: refused, warned of, told when the labels change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Got;
use serde_json::{Value, json};

fn warnings(got: &Got) -> Vec<&str> {
    got.headers.get_all("warning").iter().map(|v| v.to_str().unwrap()).collect()
}

fn pod(name: &str, context: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i", "securityContext": context}]}})
}

#[tokio::test]
async fn standards_of_a_namespace() {
    let f = common::start().await;
    let namespace = json!({"metadata": {"name": "safe", "labels": {
        "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}});
    assert_eq!(f.post("/api/v1/namespaces", &namespace).await.code, 201);
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(f.post("/api/v1/namespaces/safe/serviceaccounts", &account).await.code, 201);
    let pods = "/api/v1/namespaces/safe/pods";

    let (code, why) = f.post(pods, &pod("bad", json!({"privileged": true}))).await.status();
    let text = "pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)";
    assert_eq!((code, why.as_str()), (403, text));
    let got = f.post(pods, &pod("plain", json!({"runAsUser": 0}))).await;
    assert_eq!(got.code, 201);
    assert!(
        warnings(&got)[0].contains(
            "would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation != false"
        )
    );

    // A workload is warned of its template, and refused nothing.
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}}}});
    let got = f.post("/apis/apps/v1/namespaces/safe/deployments", &deployment).await;
    assert_eq!(got.code, 201);
    assert!(warnings(&got)[0].contains("host namespaces (hostNetwork=true)"), "{:?}", warnings(&got));

    // Labels that mean nothing; labels that those who are there already do not meet.
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let merge = "application/merge-patch+json";
    let got = f.patch("/api/v1/namespaces/safe", merge, &label("strict")).await;
    assert_eq!(got.code, 422);
    assert!(
        got.status().1.contains("Invalid value: \"strict\": must be one of privileged, baseline, restricted")
    );
    let got = f.patch("/api/v1/namespaces/safe", merge, &label("restricted")).await;
    assert_eq!(got.code, 200);
    let said = warnings(&got).join("\n");
    assert!(
        said.contains("existing pods in namespace \\\"safe\\\" violate the new PodSecurity enforce level"),
        "{said}"
    );
    assert!(said.contains("plain: allowPrivilegeEscalation != false, unrestricted capabilities"), "{said}");
    // What changes nothing that matters is still allowed.
    let touched = json!({"metadata": {"labels": {"touched": "yes"}}});
    assert_eq!(f.patch(&format!("{pods}/plain"), merge, &touched).await.code, 200);
}
