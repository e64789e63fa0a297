//! Each verb and each way it fails, over a real store, in process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use http::Method;
use serde_json::{Value, json};

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"n": name}}, "data": {"k": "v"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_lives() {
    let f = common::start().await;
    let made = f.post(MAPS, &config_map("a")).await;
    assert_eq!(made.code, 201, "{:?}", made.bytes);
    let made = made.json();
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        assert!(made["metadata"][key].is_string(), "{key}");
    }
    assert_eq!(made["metadata"]["namespace"], "default");
    let read = f.get(&format!("{MAPS}/a")).await.json();
    assert_eq!(read, made);
    let mut changed = read.clone();
    changed["data"]["k"] = "w".into();
    let put = f.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!((put.code, &put.json()["data"]["k"]), (200, &json!("w")));
    // The version in `changed` is now an old one.
    let stale = f.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.status().1,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let gone = f.delete(&format!("{MAPS}/a"), None).await.json();
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &read["metadata"]["uid"]));
    assert_eq!(f.get(&format!("{MAPS}/a")).await.status(), (404, "configmaps \"a\" not found".into()));
}

#[tokio::test]
async fn create_refuses() {
    let f = common::start().await;
    f.post(MAPS, &config_map("a")).await;
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        (MAPS, config_map("a"), 409, "configmaps \"a\" already exists"),
        (
            MAPS,
            config_map("A_b"),
            422,
            "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain",
        ),
        (
            MAPS,
            json!({"metadata": {}}),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        ("/api/v1/namespaces/nope/configmaps", config_map("a"), 404, "namespaces \"nope\" not found"),
        (
            MAPS,
            json!({"kind": "Pod", "apiVersion": "v1"}),
            400,
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            MAPS,
            json!({"kind": "ConfigMap", "apiVersion": "apps/v1"}),
            400,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            MAPS,
            json!({"metadata": {"name": "x", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (MAPS, json!([1]), 400, "the object provided is unrecognized (must be of type ConfigMap)"),
        ("/api/v1/nonsense", json!({}), 404, "the server could not find the requested resource"),
        (
            "/api/v1/configmaps",
            config_map("b"),
            405,
            "the server does not allow this method on the requested resource",
        ),
    ];
    for (uri, body, code, message) in cases {
        let got = f.post(uri, &body).await;
        let (got_code, text) = got.status();
        assert_eq!(got_code, code, "{uri} {body}: {text}");
        assert!(text.starts_with(message), "{uri} {body}: {text}");
    }
    let bad = f.send(Method::POST, MAPS, &[("content-type", "text/csv")], "a,b").await;
    assert_eq!(bad.code, 415);
    assert_eq!(f.send(Method::POST, MAPS, &[], vec![b' '; 4 << 20]).await.code, 413);
    assert_eq!(f.send(Method::POST, MAPS, &[], "{").await.code, 400);
    let deep = "[".repeat(100_000);
    assert_eq!(f.send(Method::POST, MAPS, &[], deep).await.code, 400);
    let picky = f.send(Method::POST, MAPS, &[("accept", "image/png")], config_map("z").to_string()).await;
    assert_eq!((picky.code, f.get(&format!("{MAPS}/z")).await.code), (406, 404));
}

async fn five(f: &common::Fixture) {
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(f.post(MAPS, &config_map(name)).await.code, 201);
    }
}

fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn lists_select_and_page() {
    let f = common::start().await;
    five(&f).await;
    let list = f.get(MAPS).await.json();
    assert_eq!((names(&list).join(""), &list["kind"]), ("abcde".into(), &json!("ConfigMapList")));
    for (selector, expected) in [
        ("labelSelector=n%3Db", "b"),
        ("labelSelector=n%20in%20(a,e)", "ae"),
        ("labelSelector=n!%3Da&limit=2", "bc"),
        ("fieldSelector=metadata.name%3Dd", "d"),
        ("fieldSelector=metadata.name!%3Dd", "abce"),
        ("fieldSelector=metadata.name%3Dnope", ""),
    ] {
        assert_eq!(
            names(&f.get(&format!("{MAPS}?{selector}")).await.json()).join(""),
            expected,
            "{selector}"
        );
    }
    let first = f.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((names(&first).join(""), &first["metadata"]["remainingItemCount"]), ("ab".into(), &json!(3)));
    // What is written meanwhile does not show in later pages.
    f.post(MAPS, &config_map("c2")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = f.get(&format!("{MAPS}?continue={token}")).await.json();
    assert_eq!(names(&rest).join(""), "cde");
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = f.get(&format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await.json();
    assert_eq!(names(&exact).join(""), "abcde");
    let all = f.get("/api/v1/configmaps?fieldSelector=metadata.namespace%3Ddefault").await.json();
    assert_eq!(names(&all).len(), 6);
    for (uri, code) in [
        ("?resourceVersion=999999", 504),
        ("?resourceVersionMatch=Exact", 422),
        ("?resourceVersion=x", 400),
        ("?labelSelector=a%20b", 400),
        ("?fieldSelector=spec.x%3D1", 400),
        ("?continue=nonsense", 400),
        ("?limit=many", 400),
    ] {
        assert_eq!(f.get(&format!("{MAPS}{uri}")).await.code, code, "{uri}");
    }
}

#[tokio::test]
async fn an_old_page_has_expired() {
    let options = storage::Options { history_events: 4, ..storage::Options::default() };
    let f = common::start_with(options).await;
    five(&f).await;
    let first = f.get(&format!("{MAPS}?limit=2")).await.json();
    for i in 0..8 {
        f.post(MAPS, &config_map(&format!("x{i}"))).await;
    }
    let token = first["metadata"]["continue"].as_str().unwrap();
    let gone = f.get(&format!("{MAPS}?continue={token}")).await;
    assert_eq!((gone.code, &gone.json()["reason"]), (410, &json!("Expired")));
    assert!(gone.status().1.starts_with("The provided continue parameter is too old"));
}

#[tokio::test]
async fn shapes() {
    let f = common::start().await;
    five(&f).await;
    let ask = |accept: &'static str, uri: String| {
        let f = &f;
        async move { f.send(Method::GET, &uri, &[("accept", accept)], "").await }
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io", MAPS.into()).await.json();
    assert_eq!((&table["kind"], &table["columnDefinitions"][1]["name"]), (&json!("Table"), &json!("Data")));
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..2], [json!("a"), json!(1)]);
    // Creation has whole seconds, so the age may be one at once.
    assert!(cells[2] == "0s" || cells[2] == "1s", "{cells:?}");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = ask("application/json;as=Table;v=v1;g=meta.k8s.io", format!("{MAPS}?includeObject=Object"))
        .await
        .json();
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "v");
    let partial =
        ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", MAPS.into()).await.json();
    assert_eq!(
        (&partial["kind"], &partial["items"][0]["data"]),
        (&json!("PartialObjectMetadataList"), &Value::Null)
    );
    let yaml = ask("application/yaml", format!("{MAPS}/a")).await;
    assert!(std::str::from_utf8(&yaml.bytes).unwrap().contains("kind: ConfigMap"));
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let refused = f
        .send(
            Method::POST,
            uri,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
            review.to_string(),
        )
        .await;
    assert_eq!(refused.code, 406);
    assert_eq!(f.post(uri, &review).await.json()["status"]["allowed"], true);
}

#[tokio::test]
async fn generated_names_and_dry_runs() {
    let f = common::start().await;
    let mut map = config_map("");
    map["metadata"] = json!({"generateName": "web-"});
    let made = f.post(MAPS, &map).await.json();
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let dry = f.post(&format!("{MAPS}?dryRun=All"), &config_map("dry")).await;
    assert_eq!((dry.code, f.get(&format!("{MAPS}/dry")).await.code), (201, 404));
    assert_eq!(f.post(&format!("{MAPS}?dryRun=All"), &made).await.code, 500);
    let mut put = made.clone();
    put["data"]["k"] = "dry".into();
    let dry = f.put(&format!("{MAPS}/{name}?dryRun=All"), &put).await.json();
    assert_eq!(dry["data"]["k"], "dry");
    assert_eq!(f.get(&format!("{MAPS}/{name}")).await.json(), made);
    let gone = f.delete(&format!("{MAPS}/{name}?dryRun=All"), None).await;
    assert_eq!((gone.code, f.get(&format!("{MAPS}/{name}")).await.code), (200, 200));
    assert_eq!(f.post(&format!("{MAPS}?dryRun=Some"), &config_map("y")).await.code, 422);
}

#[tokio::test]
async fn unknown_and_duplicate_fields() {
    let f = common::start().await;
    let text = r#"{"metadata": {"name": "x", "labels": {"a": "1"}, "labels": {"a": "2"}}, "dat": {}}"#;
    let strict = f.send(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), &[], text).await;
    assert_eq!(
        strict.status(),
        (400, "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"metadata.labels\", unknown field \"dat\"".into())
    );
    let warned = f.send(Method::POST, MAPS, &[], text).await;
    let warnings: Vec<&str> = warned.headers.get_all("warning").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(
        warnings,
        [r#"299 - "duplicate field \"metadata.labels\"""#, r#"299 - "unknown field \"dat\"""#]
    );
    assert_eq!((warned.code, &warned.json()["dat"]), (201, &Value::Null));
    let wrong = f.post(MAPS, &json!({"metadata": {"name": "w"}, "data": 5})).await;
    assert_eq!(wrong.code, 400);
    assert!(
        wrong.status().1.contains("cannot unmarshal number into Go struct field ConfigMap.data"),
        "{:?}",
        wrong.status()
    );
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(name: &str) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

#[tokio::test]
async fn patches() {
    let f = common::start().await;
    f.post(DEPLOYMENTS, &deployment("d")).await;
    let uri = format!("{DEPLOYMENTS}/d");
    let merged = f
        .patch(&uri, "application/merge-patch+json", &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .json();
    assert_eq!(
        (&merged["metadata"]["labels"]["x"], &merged["metadata"]["generation"]),
        (&json!("y"), &json!(1))
    );
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}, {"name": "d", "image": "j"}]}}}});
    let two = f.patch(&uri, "application/strategic-merge-patch+json", &strategic).await.json();
    let containers = two["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let images: Vec<&str> = containers.iter().map(|c| c["image"].as_str().unwrap()).collect();
    assert_eq!((images.len(), &two["metadata"]["generation"]), (2, &json!(2)));
    assert!(images.contains(&"i:2") && images.contains(&"j"), "{images:?}");
    let json_patch = json!([{"op": "test", "path": "/spec/replicas", "value": 2}, {"op": "replace", "path": "/spec/replicas", "value": 7}]);
    let seven = f.patch(&uri, "application/json-patch+json", &json_patch).await;
    assert_eq!(seven.json()["spec"]["replicas"], 7);
    assert_eq!(f.patch(&uri, "application/json-patch+json", &json_patch).await.code, 422);
    let same = f.patch(&uri, "application/merge-patch+json", &json!({"spec": {"replicas": 7}})).await.json();
    assert_eq!(
        same["metadata"]["resourceVersion"],
        seven.json()["metadata"]["resourceVersion"],
        "a change of nothing"
    );
    for (media, patch, code) in [
        ("application/merge-patch+json", json!({"metadata": {"resourceVersion": "1"}}), 409),
        ("application/merge-patch+json", json!({"metadata": {"name": "e"}}), 422),
        ("application/merge-patch+json", json!({"spec": {"replicas": -1}}), 422),
        ("application/merge-patch+json", json!({"spec": {"replicas": "x"}}), 400),
        ("application/merge-patch+json", json!([]), 400),
        ("text/plain", json!({}), 415),
    ] {
        let got = f.patch(&uri, media, &patch).await;
        assert_eq!(got.code, code, "{media} {patch}: {:?}", got.status());
    }
    assert_eq!(
        f.patch(&format!("{DEPLOYMENTS}/no"), "application/merge-patch+json", &json!({})).await.code,
        404
    );
}

#[tokio::test]
async fn apply_keeps_account_of_owners() {
    let f = common::start().await;
    let uri = format!("{DEPLOYMENTS}/d?fieldManager=one&force=false");
    let made = f.patch(&uri, "application/apply-patch+yaml", &deployment("d")).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    assert_eq!(made.json()["metadata"]["managedFields"][0]["manager"], "one");
    let again = f.patch(&uri, "application/apply-patch+yaml", &deployment("d")).await;
    assert_eq!(again.code, 200);
    assert_eq!(again.json()["metadata"]["resourceVersion"], made.json()["metadata"]["resourceVersion"]);
    let mut other = deployment("d");
    other["spec"]["replicas"] = 9.into();
    let uri_two = format!("{DEPLOYMENTS}/d?fieldManager=two");
    let lost = f.patch(&uri_two, "application/apply-patch+yaml", &other).await;
    assert_eq!(
        lost.status(),
        (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas".into())
    );
    assert_eq!(lost.json()["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let won = f.patch(&format!("{uri_two}&force=true"), "application/apply-patch+yaml", &other).await;
    assert_eq!(won.json()["spec"]["replicas"], 9);
    assert_eq!(f.patch(&format!("{DEPLOYMENTS}/d"), "application/apply-patch+yaml", &other).await.code, 422);
}

#[tokio::test]
async fn status_and_scale_are_apart() {
    let f = common::start().await;
    let mut sent = deployment("d");
    sent["status"] = json!({"replicas": 5});
    let made = f.post(DEPLOYMENTS, &sent).await.json();
    assert_eq!((&made["status"]["replicas"], &made["metadata"]["generation"]), (&Value::Null, &json!(1)));
    let mut changed = made.clone();
    changed["status"] = json!({"replicas": 2, "readyReplicas": 1});
    changed["spec"]["replicas"] = 99.into();
    let uri = format!("{DEPLOYMENTS}/d");
    let got = f.put(&format!("{uri}/status"), &changed).await.json();
    assert_eq!((&got["status"]["readyReplicas"], &got["spec"]["replicas"]), (&json!(1), &json!(2)));
    assert_eq!(got["metadata"]["generation"], 1);
    let scale = f.get(&format!("{uri}/scale")).await.json();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(2), &json!("app=d"))
    );
    let up = f
        .patch(&format!("{uri}/scale"), "application/merge-patch+json", &json!({"spec": {"replicas": 4}}))
        .await;
    assert_eq!((up.code, &up.json()["spec"]["replicas"]), (200, &json!(4)));
    let now = f.get(&uri).await.json();
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(4), &json!(2)));
    let down = f
        .patch(&format!("{uri}/scale"), "application/merge-patch+json", &json!({"spec": {"replicas": -4}}))
        .await;
    assert_eq!(down.code, 422);
    assert_eq!(f.get(&format!("{uri}/nonsense")).await.code, 404);
    assert_eq!(f.delete(&format!("{uri}/status"), None).await.code, 405);
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn with_account(f: &common::Fixture) {
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(f.post("/api/v1/namespaces/default/serviceaccounts", &account).await.code, 201);
}

fn binding(name: &str, node: &str) -> Value {
    json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}})
}

#[tokio::test]
async fn pods_bind_once_and_leave_gracefully() {
    let f = common::start().await;
    with_account(&f).await;
    assert_eq!(f.post(PODS, &pod("p")).await.code, 201);
    assert_eq!(f.post(&format!("{PODS}/p/binding"), &binding("p", "n1")).await.code, 201);
    let bound = f.get(&format!("{PODS}/p")).await.json();
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    let twice = f.post(&format!("{PODS}/p/binding"), &binding("p", "n2")).await;
    assert_eq!(
        twice.status(),
        (
            409,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
                .into()
        )
    );
    let on_node = f.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.json();
    assert_eq!(names(&on_node), ["p"]);
    let leaving = f.delete(&format!("{PODS}/p"), None).await.json();
    assert_eq!(
        (&leaving["kind"], &leaving["metadata"]["deletionGracePeriodSeconds"]),
        (&json!("Pod"), &json!(30))
    );
    let shorter = f.delete(&format!("{PODS}/p"), Some(json!({"gracePeriodSeconds": 5}))).await.json();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = f.delete(&format!("{PODS}/p"), Some(json!({"gracePeriodSeconds": 50}))).await.json();
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 5);
    let done = f.delete(&format!("{PODS}/p"), Some(json!({"gracePeriodSeconds": 0}))).await;
    assert_eq!((done.code, f.get(&format!("{PODS}/p")).await.code), (200, 404));
    // No kubelet has it: gone at once.
    f.post(PODS, &pod("q")).await;
    assert_eq!(f.delete(&format!("{PODS}/q"), None).await.json()["kind"], "Pod");
    assert_eq!(f.get(&format!("{PODS}/q")).await.code, 404);
}

#[tokio::test]
async fn budgets_hold_evictions_back() {
    let f = common::start().await;
    with_account(&f).await;
    let mut running = pod("p");
    running["metadata"]["labels"] = json!({"app": "x"});
    f.post(PODS, &running).await;
    f.post(&format!("{PODS}/p/binding"), &binding("p", "n1")).await;
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(f.patch(&format!("{PODS}/p/status"), "application/merge-patch+json", &status).await.code, 200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    assert_eq!(f.post(budgets, &budget).await.code, 201);
    let allow = |n: i64| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": n, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    f.patch(&format!("{budgets}/b/status"), "application/merge-patch+json", &allow(0)).await;
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    let held = f.post(&format!("{PODS}/p/eviction"), &eviction).await;
    assert_eq!(
        held.status(),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.".into())
    );
    f.patch(&format!("{budgets}/b/status"), "application/merge-patch+json", &allow(1)).await;
    assert_eq!(f.post(&format!("{PODS}/p/eviction"), &eviction).await.code, 201);
    assert!(f.get(&format!("{PODS}/p")).await.json()["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(f.get(&format!("{budgets}/b")).await.json()["status"]["disruptionsAllowed"], 0);
}

#[tokio::test]
async fn finalizers_and_propagation() {
    let f = common::start().await;
    let mut map = config_map("a");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    f.post(MAPS, &map).await;
    let uri = format!("{MAPS}/a");
    let wrong = f.delete(&uri, Some(json!({"preconditions": {"uid": "x"}}))).await;
    assert_eq!(wrong.code, 409);
    assert!(wrong.status().1.contains("Precondition failed: UID in precondition: x"));
    let marked = f.delete(&uri, Some(json!({"propagationPolicy": "Foreground"}))).await.json();
    assert_eq!(marked["metadata"]["finalizers"], json!(["example.com/hold", "foregroundDeletion"]));
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let new = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}});
    assert_eq!(f.patch(&uri, "application/merge-patch+json", &new).await.code, 422);
    let one = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    assert_eq!(f.patch(&uri, "application/merge-patch+json", &one).await.code, 200);
    let none = json!({"metadata": {"finalizers": null}});
    assert_eq!(f.patch(&uri, "application/merge-patch+json", &none).await.code, 200);
    assert_eq!(f.get(&uri).await.code, 404);
}

#[tokio::test]
async fn namespaces_end_when_their_finalizer_goes() {
    let f = common::start().await;
    assert_eq!(f.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.code, 201);
    let maps = "/api/v1/namespaces/x/configmaps";
    assert_eq!(f.post(maps, &config_map("a")).await.code, 201);
    let ending = f.delete("/api/v1/namespaces/x", None).await.json();
    assert_eq!(ending["status"]["phase"], "Terminating");
    let refused = f.post(maps, &config_map("b")).await;
    assert_eq!(
        refused.status(),
        (403, "configmaps \"b\" is forbidden: unable to create new content in namespace x because it is being terminated".into())
    );
    assert_eq!(refused.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    assert_eq!(f.delete("/api/v1/namespaces/x", None).await.code, 409);
    let mut space = f.get("/api/v1/namespaces/x").await.json();
    space["spec"]["finalizers"] = json!([]);
    assert_eq!(f.put("/api/v1/namespaces/x/finalize", &space).await.code, 200);
    assert_eq!(f.get("/api/v1/namespaces/x").await.code, 404);
    assert_eq!(
        f.delete("/api/v1/namespaces/default", None).await.status(),
        (403, "namespaces \"default\" is forbidden: this namespace may not be deleted".into())
    );
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let f = common::start().await;
    five(&f).await;
    let gone = f.delete(&format!("{MAPS}?labelSelector=n%20in%20(a,b)"), None).await.json();
    assert_eq!(names(&gone).join(""), "ab");
    assert_eq!(names(&f.get(MAPS).await.json()).join(""), "cde");
    assert_eq!(f.delete("/api/v1/namespaces", None).await.code, 405);
}

#[tokio::test]
async fn events_are_served_in_both_groups() {
    let f = common::start().await;
    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "note": "hello", "reason": "Tried", "action": "Try", "type": "Normal", "eventTime": "2025-01-01T00:00:00.000000Z",
        "reportingController": "example.com/c", "reportingInstance": "c-1"});
    let made = f.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    assert_eq!(made.json()["note"], "hello");
    let core = f
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp,type%3DNormal")
        .await
        .json();
    assert_eq!(
        (&core["items"][0]["message"], &core["items"][0]["involvedObject"]["name"]),
        (&json!("hello"), &json!("p"))
    );
    let new = f.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await.json();
    assert_eq!(
        (&new["items"][0]["note"], &new["items"][0]["apiVersion"]),
        (&json!("hello"), &json!("events.k8s.io/v1"))
    );
}

#[tokio::test]
async fn paths_beside_the_resources() {
    let f = common::start().await;
    assert_eq!(f.get("/healthz").await.bytes, "ok");
    assert_eq!(f.get("/version").await.json()["minor"], "33");
    assert_eq!(f.get("/api").await.json()["versions"], json!(["v1"]));
    assert_eq!(f.get("/apis/apps").await.json()["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(f.get("/apis/nope").await.code, 404);
    assert_eq!(f.send(Method::POST, "/version", &[], "").await.code, 405);
    let group = f.get("/openapi/v3/apis/apps/v1").await.json();
    let patch = &group["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(patch["parameters"].to_string().contains("fieldValidation"), "{patch}");
    let metrics = f.get("/metrics").await;
    assert!(std::str::from_utf8(&metrics.bytes).unwrap().contains("apiserver_request_total{verb=\"GET\""));
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let f = common::start().await;
    let ns = "/api/v1/namespaces/default";
    f.post(&format!("{ns}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "max": {"memory": "1Gi"}, "default": {"memory": "512Mi"}, "defaultRequest": {"memory": "256Mi"}}]}});
    assert_eq!(f.post(&format!("{ns}/limitranges"), &range).await.code, 201);
    let pod = |name: &str, resources: Value| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
    let pods = format!("{ns}/pods");
    let made = f.post(&pods, &pod("a", json!({}))).await.json();
    let expected = json!({"limits": {"memory": "512Mi"}, "requests": {"memory": "256Mi"}});
    assert_eq!(made["spec"]["containers"][0]["resources"], expected);
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let note = "LimitRanger plugin set: memory request for container c; memory limit for container c";
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/limit-ranger"], note);
    let refused = f.post(&pods, &pod("b", json!({"limits": {"memory": "2Gi"}}))).await;
    let why = "pods \"b\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi";
    assert_eq!(refused.status(), (403, why.to_owned()));
}
