#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;

const VERBS: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

fn apps() -> Vec<Resource<'static>> {
    let resource =
        |name, group, kind, verbs| Resource { name, group, version: "v1", kind, namespaced: true, verbs };
    vec![
        resource("deployments", "apps", "Deployment", VERBS),
        resource("deployments/status", "apps", "Deployment", &["get", "update", "patch"]),
        resource("deployments/scale", "autoscaling", "Scale", &["get", "update", "patch"]),
    ]
}

/// Every `$ref` in a document leads to a definition of it.
fn assert_closed(document: &Value, prefix: &str) {
    let text = document.to_string();
    let mut count = 0;
    for found in text.split("\"$ref\":\"").skip(1) {
        let pointer = found.split('"').next().unwrap();
        assert!(pointer.starts_with(prefix), "{pointer}");
        assert!(document.pointer(pointer.trim_start_matches('#')).is_some(), "{pointer} leads nowhere");
        count += 1;
    }
    assert!(count >= 10, "only {count} references");
}

#[test]
fn a_group_has_paths_and_all_its_schemas() {
    let document = v3_group("apps", "v1", &apps(), "v1.33.0");
    assert_closed(&document, "#/components/schemas/");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group":"apps","kind":"Deployment","version":"v1"})
    );
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(
        parameters
            .iter()
            .any(|parameter| parameter["name"] == "fieldValidation" && parameter["in"] == "query")
    );
    assert!(document["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    assert_eq!(
        document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"]["operationId"],
        "readAppsV1NamespacedScaleScale"
    );
    let spec = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["required"], json!(["selector", "template"]));
    assert!(
        spec["properties"]["replicas"]["description"]
            .as_str()
            .unwrap()
            .starts_with("Number of desired pods.")
    );
    let ports = &document["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(ports["x-kubernetes-list-type"], "map");
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group":"apps","kind":"Deployment","version":"v1"}])
    );
}

#[test]
fn version_two_is_closed_too() {
    let document = v2_json(&[("apps", "v1", apps())], "v1.33.0");
    assert_closed(&document, "#/definitions/");
    assert!(document["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
}

#[test]
fn every_group_makes_a_document() {
    for (group, _) in GROUPS {
        assert_closed(&v3_group(group, "v1", &[], "v1.33.0"), "#/components/schemas/");
    }
}

#[test]
fn custom_kinds_join() {
    let widgets = Resource {
        name: "widgets",
        group: "example.com",
        version: "v1",
        kind: "Widget",
        namespaced: true,
        verbs: VERBS,
    };
    let schema = json!({"type":"object","properties":{"spec":{"type":"object"}}});
    let document = v3_custom("example.com", "v1", &[widgets], &[("Widget", schema)], "v1.33.0");
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert!(widget["properties"]["metadata"].is_object() && widget["properties"]["spec"].is_object());
    let list = &document["paths"]["/apis/example.com/v1/widgets"]["get"]["responses"]["200"]["content"];
    assert_eq!(list["application/json"]["schema"]["$ref"], "#/components/schemas/com.example.v1.WidgetList");
}

#[test]
fn the_index() {
    assert_eq!(
        v3_index([("api/v1", "AB")]),
        json!({"paths":{"api/v1":{"serverRelativeURL":"/openapi/v3/api/v1?hash=AB"}}})
    );
}
