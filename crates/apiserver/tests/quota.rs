//! ResourceQuota: refusals, counting, and that many writers together never pass it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::Fixture;
use serde_json::{Value, json};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn quota(f: &Fixture, spec: Value) {
    let got = f.post(QUOTAS, &json!({"metadata": {"name": "q"}, "spec": spec})).await;
    assert_eq!(got.code, 201, "{:?}", got.status());
}

async fn pod(f: &Fixture, name: &str, spec: Value) -> (u16, String) {
    let mut spec = spec;
    spec["automountServiceAccountToken"] = json!(false);
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
    }
    let account = json!({"metadata": {"name": "default"}});
    f.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
    let got = f.post(PODS, &json!({"metadata": {"name": name}, "spec": spec})).await;
    got.status()
}

async fn used(f: &Fixture, key: &str, expected: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let status = f.get(&format!("{QUOTAS}/q")).await.json()["status"].clone();
        if status["used"][key] == expected {
            assert!(status["hard"].is_object());
            return;
        }
        assert!(Instant::now() < end, "{key} is not {expected}: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn pods_take_from_it_and_give_back() {
    let f = common::start().await;
    quota(&f, json!({"hard": {"pods": "2", "count/pods": "5", "limits.memory": "1Gi"}})).await;
    let limited = |memory: &str| json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"memory": memory}}}]});
    let (code, why) = pod(&f, "bare", json!({})).await;
    assert_eq!(
        (code, why.as_str()),
        (403, "pods \"bare\" is forbidden: failed quota: q: must specify limits.memory for: c")
    );
    assert_eq!(pod(&f, "a", limited("512Mi")).await.0, 201);
    used(&f, "limits.memory", "512Mi").await;
    let (code, why) = pod(&f, "big", limited("600Mi")).await;
    let text = "pods \"big\" is forbidden: exceeded quota: q, requested: limits.memory=600Mi, used: limits.memory=512Mi, limited: limits.memory=1Gi";
    assert_eq!((code, why.as_str()), (403, text));
    assert_eq!(pod(&f, "b", limited("512Mi")).await.0, 201);
    assert_eq!(pod(&f, "c", limited("0")).await.0, 403);

    // One that ends gives back what it took; one that goes, its place too.
    let done = json!({"status": {"phase": "Succeeded"}});
    let uri = format!("{PODS}/a/status");
    assert_eq!(f.patch(&uri, "application/merge-patch+json", &done).await.code, 200);
    used(&f, "pods", "1").await;
    used(&f, "count/pods", "2").await;
    assert_eq!(f.delete(&format!("{PODS}/a"), None).await.code, 200);
    used(&f, "count/pods", "1").await;
    assert_eq!(pod(&f, "c", limited("512Mi")).await.0, 201);
    // A dry run takes nothing, and a failed create gives back.
    assert_eq!(f.post(&format!("{PODS}?dryRun=All"), &json!({"metadata": {"name": "d"}})).await.code, 422);
    used(&f, "pods", "2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_never_pass_it() {
    let f = common::start().await;
    quota(&f, json!({"hard": {"configmaps": "20", "count/leases.coordination.k8s.io": "1"}})).await;
    let tries = (0..60).map(|i| {
        let f = &f;
        async move { f.post(MAPS, &json!({"metadata": {"name": format!("m{i}")}})).await.code }
    });
    let codes = futures::future::join_all(tries).await;
    assert_eq!(codes.iter().filter(|c| **c == 201).count(), 20);
    assert!(codes.iter().all(|c| matches!(c, 201 | 403)), "{codes:?}");
    used(&f, "configmaps", "20").await;
    // The same name again fails after it was let in, and does not count.
    assert_eq!(f.delete(&format!("{MAPS}/{}", first(&f).await), None).await.code, 200);
    used(&f, "configmaps", "19").await;
    let taken = first(&f).await;
    assert_eq!(f.post(MAPS, &json!({"metadata": {"name": taken}})).await.code, 409);
    used(&f, "configmaps", "19").await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    assert_eq!(f.post(leases, &json!({"metadata": {"name": "a"}})).await.code, 201);
    let (code, why) = f.post(leases, &json!({"metadata": {"name": "b"}})).await.status();
    assert_eq!(code, 403, "{why}");
    assert!(why.contains("requested: count/leases.coordination.k8s.io=1, used:"), "{why}");
}

async fn first(f: &Fixture) -> String {
    f.get(&format!("{MAPS}?limit=1")).await.json()["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn scopes_and_bad_quotas() {
    let f = common::start().await;
    quota(&f, json!({"hard": {"pods": "0"}, "scopes": ["Terminating"]})).await;
    let (code, why) = pod(&f, "ends", json!({"activeDeadlineSeconds": 5})).await;
    assert_eq!(code, 403, "{why}");
    assert_eq!(pod(&f, "stays", json!({})).await.0, 201);
    for (spec, text) in [
        (
            json!({"hard": {"nonsense": "1"}}),
            "spec.hard[nonsense]: Invalid value: \"nonsense\": must be a standard resource for quotas",
        ),
        (json!({"hard": {"pods": "500m"}}), "spec.hard[pods]: Invalid value: \"500m\": must be an integer"),
        (json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}), "conflicting scopes"),
        (
            json!({"hard": {"services": "1"}, "scopes": ["BestEffort"]}),
            "unsupported scope applied to resource",
        ),
        (json!({"hard": {"pods": "1"}, "scopes": ["Big"]}), "unsupported scope"),
    ] {
        let got = f.post(QUOTAS, &json!({"metadata": {"name": "bad"}, "spec": spec})).await;
        let (code, why) = got.status();
        assert_eq!(code, 422, "{why}");
        assert!(why.contains(text), "{why}");
    }
}
