//! Built-in objects are answered as Go would have written them, custom ones as their clients did.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Full of zero values: some mean something, behind a pointer, the others are as good as absent.
fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {}, "annotations": {}},
        "spec": {"replicas": 0, "paused": false, "minReadySeconds": 0, "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {"app": "d"}, "matchExpressions": []},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "hostNetwork": false, "restartPolicy": "", "nodeSelector": {}, "tolerations": [], "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "i", "command": [], "tty": false, "env": [{"name": "E", "value": ""}],
                    "securityContext": {"runAsUser": 0}}]}}}})
}

async fn made(f: &common::Fixture, uri: &str, body: &Value) -> Value {
    let got = f.post(uri, body).await;
    assert_eq!(got.code, 201, "{uri}: {:?}", got.status());
    let name = got.json()["metadata"]["name"].as_str().unwrap().to_owned();
    let uri = uri.split('?').next().unwrap();
    assert_eq!(f.get(&format!("{uri}/{name}")).await.json(), got.json(), "what is stored");
    got.json()
}

#[tokio::test]
async fn zero_values_of_built_in_kinds() {
    let f = common::start().await;
    let d = made(&f, &format!("{DEPLOYMENTS}?fieldManager=m"), &deployment()).await;
    let spec = &d["spec"];
    assert_eq!((&spec["replicas"], &spec["revisionHistoryLimit"]), (&json!(0), &json!(0)));
    assert_eq!(spec["selector"], json!({"matchLabels": {"app": "d"}}));
    for key in ["paused", "minReadySeconds"] {
        assert!(spec.get(key).is_none(), "{key}");
    }
    for key in ["labels", "annotations"] {
        assert!(d["metadata"].get(key).is_none(), "{key}");
    }
    assert_eq!(spec["template"]["metadata"], json!({"labels": {"app": "d"}, "creationTimestamp": null}));
    assert_eq!(d["status"], json!({}));
    let owned = &d["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert!(
        owned.get(".").is_none() && owned["f:strategy"].get(".").is_none(),
        "no pointers: nobody added them: {owned}"
    );
    assert!(owned["f:strategy"]["f:rollingUpdate"].get(".").is_some(), "{owned}");
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Always", "a default takes the place of a zero value");
    assert_eq!(pod["automountServiceAccountToken"], false);
    for key in ["hostNetwork", "nodeSelector", "tolerations"] {
        assert!(pod.get(key).is_none(), "{key}");
    }
    let container = &pod["containers"][0];
    assert_eq!(
        (&container["env"], &container["resources"], &container["securityContext"]),
        (&json!([{"name": "E"}]), &json!({}), &json!({"runAsUser": 0}))
    );
    assert!(container.get("command").is_none() && container.get("tty").is_none());

    let core = "/api/v1/namespaces/default";
    let service = made(
        &f,
        &format!("{core}/services"),
        &json!({"metadata": {"name": "s"}, "spec": {"externalIPs": [], "externalName": "",
        "selector": {}, "ports": [{"name": "", "port": 80, "nodePort": 0}]}}),
    )
    .await;
    assert_eq!(service["status"], json!({"loadBalancer": {}}));
    assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": 80, "protocol": "TCP"}]));
    assert!(
        ["externalIPs", "externalName", "selector"].iter().all(|key| service["spec"].get(*key).is_none())
    );
    let map = made(&f, &format!("{core}/configmaps"), &json!({"metadata": {"name": "m", "finalizers": []}, "data": {"empty": ""}, "binaryData": {}, "immutable": false})).await;
    assert_eq!((&map["data"], &map["immutable"]), (&json!({"empty": ""}), &json!(false)));
    assert!(map.get("binaryData").is_none() && map["metadata"].get("finalizers").is_none());
    let role = made(
        &f,
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
        &json!({"metadata": {"name": "r"}, "rules": []}),
    )
    .await;
    assert_eq!(role.get("rules"), Some(&Value::Null));
    let event = made(&f, "/apis/events.k8s.io/v1/namespaces/default/events", &json!({"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Normal", "reason": "R", "action": "A", "reportingController": "c/x", "reportingInstance": "i", "note": ""})).await;
    assert_eq!((&event["deprecatedSource"], &event["regarding"]), (&json!({}), &json!({})));
    assert!(event.get("note").is_none());
    let core_event = f.get(&format!("{core}/events/e")).await.json();
    assert_eq!((&core_event["source"], core_event.get("firstTimestamp")), (&json!({}), Some(&Value::Null)));
    let review = f
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}),
        )
        .await;
    assert_eq!(review.json()["metadata"], json!({"creationTimestamp": null}));
}

#[tokio::test]
async fn a_change_to_a_zero_value_is_none() {
    let f = common::start().await;
    let made = made(&f, &format!("{DEPLOYMENTS}?fieldManager=m"), &deployment()).await;
    let uri = format!("{DEPLOYMENTS}/d");
    for (media, patch) in [
        (
            "application/merge-patch+json",
            json!({"spec": {"paused": false, "template": {"spec": {"hostNetwork": false}}}}),
        ),
        (
            "application/strategic-merge-patch+json",
            json!({"metadata": {"labels": {}}, "spec": {"template": {"spec": {"tolerations": []}}}}),
        ),
        (
            "application/json-patch+json",
            json!([{"op": "add", "path": "/spec/template/spec/hostPID", "value": false}]),
        ),
    ] {
        let same = f.patch(&format!("{uri}?fieldManager=n"), media, &patch).await;
        assert_eq!((same.code, same.json()), (200, made.clone()), "{media}");
    }
    let mut bare = deployment();
    bare["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    let same = f.put(&uri, &bare).await.json();
    assert_eq!(same["metadata"]["generation"], 1, "what a client leaves out of zero values is no change");
}

#[tokio::test]
async fn an_apply_owns_the_zero_values_it_states() {
    let f = common::start().await;
    let uri = format!("{DEPLOYMENTS}/d?fieldManager=one");
    let media = "application/apply-patch+yaml";
    let made = f.patch(&uri, media, &deployment()).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    let made = made.json();
    let owned = &made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert!(made["spec"].get("paused").is_none() && owned.get("f:paused").is_some(), "{owned}");
    // A later second changes no time, either.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let again = f.patch(&uri, media, &deployment()).await;
    assert_eq!((again.code, again.json()), (200, made));
    let mut other = deployment();
    other["spec"]["paused"] = true.into();
    let lost = f.patch(&format!("{DEPLOYMENTS}/d?fieldManager=two"), media, &other).await;
    assert_eq!(lost.code, 409);
    assert!(lost.status().1.contains(".spec.paused"), "{}", lost.status().1);
}

#[tokio::test]
async fn what_admission_adds_belongs_to_nobody() {
    let f = common::start().await;
    let core = "/api/v1/namespaces/default";
    f.post(&format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = made(&f, &format!("{core}/pods?fieldManager=m"), &pod).await;
    let spec = &pod["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    let keys: Vec<&String> = spec.as_object().unwrap().keys().collect();
    assert!(pod["spec"]["volumes"].is_array() && pod["spec"]["serviceAccountName"] == "default");
    assert_eq!(
        keys,
        [
            "f:containers",
            "f:dnsPolicy",
            "f:enableServiceLinks",
            "f:restartPolicy",
            "f:schedulerName",
            "f:securityContext",
            "f:terminationGracePeriodSeconds"
        ]
    );
    let container = &spec["f:containers"]["k:{\"name\":\"c\"}"];
    assert!(
        container.get("f:volumeMounts").is_none() && container.get("f:resources").is_some(),
        "{container}"
    );
}

#[tokio::test]
async fn custom_objects_keep_their_zero_values() {
    let f = common::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"on": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "string"}}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "zeros.x.example"},
        "spec": {"group": "x.example", "scope": "Namespaced", "names": {"plural": "zeros", "kind": "Zero"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let got = f.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    assert_eq!(got.code, 201, "{:?}", got.status());
    let version = &got.json()["spec"]["versions"][0];
    assert_eq!(version["schema"]["openAPIV3Schema"], schema, "no field of a schema is filled in");
    let uri = "/apis/x.example/v1/namespaces/default/zeros";
    common::until(&f, uri, 200).await;
    let spec = json!({"on": false, "list": [], "text": "", "map": {}, "number": 0});
    let zero = json!({"apiVersion": "x.example/v1", "kind": "Zero", "metadata": {"name": "z"}, "spec": spec});
    assert_eq!(made(&f, uri, &zero).await["spec"], spec);
}
