//! kube's client over the server itself: what every controller of this process does.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client};
use serde_json::json;

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap()
}

#[tokio::test]
async fn a_kube_client_needs_no_network() {
    let f = common::start().await;
    let client =
        Client::new(f.api.in_process("system:kube-controller-manager", &["system:masters"]), "default");
    assert_eq!(client.apiserver_version().await.unwrap().minor, "33");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut events = watcher(maps.clone(), kube::runtime::watcher::Config::default()).boxed();
    assert!(matches!(events.next().await.unwrap().unwrap(), Event::Init));
    assert!(matches!(events.next().await.unwrap().unwrap(), Event::InitDone));
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    match events.next().await.unwrap().unwrap() {
        Event::Apply(seen) => assert_eq!(seen.metadata.name.as_deref(), Some("a")),
        other => panic!("{other:?}"),
    }
    let patch = Patch::Merge(json!({"data": {"k": "w"}}));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.data.unwrap()["k"], "w");
    let list = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 1);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let missing = maps.get("a").await.unwrap_err();
    assert!(missing.to_string().contains("configmaps \"a\" not found"), "{missing}");
    let spaces: Api<Namespace> = Api::all(client);
    assert_eq!(spaces.list(&ListParams::default()).await.unwrap().items.len(), 4);
}

#[tokio::test]
async fn a_component_may_only_do_what_its_user_may() {
    let f = common::start().await;
    let client = Client::new(f.api.in_process("nobody", &[]), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let refused = maps.create(&PostParams::default(), &map("a")).await.unwrap_err();
    assert!(
        refused.to_string().contains(
            "configmaps is forbidden: User \"nobody\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
        ),
        "{refused}"
    );
}
