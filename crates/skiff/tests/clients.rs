//! Other people's client libraries against a running cluster: `kubernetes` (PyPI) and `@kubernetes/client-node` (npm)
//! through CRUD, watch, apply, exec, logs and port-forward; `kube` (Rust) through the same but the last two streams, for
//! which it would be built otherwise than for skiff; and kubectl's commands through the script that makes docs/kubectl.md.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use testkit::cluster::Cluster;
use testkit::command::run;
use testkit::images;

const POD: &str = "clients";

#[test]
fn clients_and_commands() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "clients");
    cluster.skiff(&format!("image load {}", images::tar("busybox").display())).out();
    let kubectl = cluster.kubectl();
    let script = "mkdir -p /www && echo hello >/www/index.html && httpd -p 8080 -h /www && echo ready && exec sleep 3600";
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {POD}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: c, image: \"busybox:latest\", imagePullPolicy: Never, command: [sh, -c, \"{script}\"]}}\n"
    );
    kubectl.apply(&pod);
    kubectl.out(&format!("wait pod/{POD} --for=condition=Ready --timeout=60s"));
    rust(&cluster);
    python(&cluster);
    node(&cluster);
    every_command(&cluster);
}

/// Where hack/test-deps.sh installs the libraries.
fn installed() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let dir = target.join("clients");
    assert!(dir.join("done").is_file(), "the client libraries are not installed: hack/test-deps.sh");
    dir.canonicalize().unwrap()
}

fn scenario(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn rust(cluster: &Cluster) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rust_scenario(cluster));
}

async fn rust_scenario(cluster: &Cluster) {
    let file = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = |name: &str, value: &str| -> ConfigMap {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}});
        serde_json::from_value(object).unwrap()
    };
    let value = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get("k").cloned()).unwrap_or_default();

    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut made = maps.create(&PostParams::default(), &map("rust", "1")).await.unwrap();
    made.data = map("rust", "2").data;
    assert_eq!(value(&maps.replace("rust", &PostParams::default(), &made).await.unwrap()), "2");
    let merge = json!({"data": {"k": "3"}});
    let patched = maps.patch("rust", &PatchParams::default(), &Patch::Merge(merge)).await.unwrap();
    assert_eq!(value(&patched), "3");
    maps.delete("rust", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("rust").await.unwrap().is_none());

    let mut seen = Vec::new();
    let mut events = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            WatchEvent::Added(m) if m.metadata.name.as_deref() == Some("rust") => seen.push("added"),
            WatchEvent::Modified(m) if m.metadata.name.as_deref() == Some("rust") => seen.push("modified"),
            WatchEvent::Deleted(m) if m.metadata.name.as_deref() == Some("rust") => break,
            _ => {}
        }
    }
    assert_eq!(seen, ["added", "modified", "modified"]);

    let apply = async |manager: &str, value: &str, force: bool| {
        let by = PatchParams { force, ..PatchParams::apply(manager) };
        maps.patch("rust-applied", &by, &Patch::Apply(map("rust-applied", value))).await
    };
    apply("one", "1", false).await.unwrap();
    assert!(apply("two", "2", false).await.is_err());
    assert_eq!(value(&apply("two", "2", true).await.unwrap()), "2");
    maps.delete("rust-applied", &DeleteParams::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    assert_eq!(pods.logs(POD, &LogParams::default()).await.unwrap(), "ready\n");
}

fn python(cluster: &Cluster) {
    let mut command = Command::new(installed().join("venv/bin/python3"));
    command.arg(scenario("client.py")).arg(POD).env("KUBECONFIG", cluster.kubeconfig());
    assert_eq!(run(&mut command).out(), "python: all passed\n");
}

fn node(cluster: &Cluster) {
    let mut command = Command::new("node");
    command.arg(scenario("client.mjs")).arg(POD).env("KUBECONFIG", cluster.kubeconfig());
    command.env("CLIENTS", installed());
    assert_eq!(run(&mut command).out(), "node: all passed\n");
}

/// The newest kubectl, all commands; a row that fails fails the test with what the script says of it.
fn every_command(cluster: &Cluster) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../hack/kubectl-table.sh");
    let table = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(script);
    command.arg(table.path()).arg("newest").env("KUBECONFIG", cluster.kubeconfig());
    run(&mut command).out();
    let text = std::fs::read_to_string(table.path()).unwrap();
    assert!(text.matches("| yes |").count() > 100, "{text}");
}
