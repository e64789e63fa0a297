//! Other people's client libraries against a running cluster: `kube` (Rust), `kubernetes` (PyPI) and
//! `@kubernetes/client-node` (npm) through CRUD, watch, apply, exec, logs and port-forward (`kube` through attach, too); and
//! kubectl's commands through the script that makes docs/kubectl.md.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::conditions::is_pod_running;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use testkit::cluster::Cluster;
use testkit::command::run;
use testkit::eventually;
use testkit::images;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const POD: &str = "clients";
const SOON: Duration = Duration::from_secs(60);

#[test]
fn clients_and_commands() {
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(policy.path(), AUDIT_POLICY).unwrap();
    let flags = format!("--audit-policy {}", policy.path().display());
    let cluster = Cluster::start_with(env!("CARGO_BIN_EXE_skiff"), "clients", &flags);
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
    audited(&cluster, policy.path());
}

/// Connections to the Pod, as every library makes them, and nothing else.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  namespaces: [default]
  resources: [{resources: [pods/exec]}]
";

fn audited(cluster: &Cluster, policy: &Path) {
    let log = Path::new("/var/lib/skiff/clients/audit.log");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let count = || {
        let text = std::fs::read_to_string(log).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let stages: Vec<String> = events
            .filter(|event| event["objectRef"]["name"] == POD && event["objectRef"]["subresource"] == "exec")
            .map(|event| event["stage"].as_str().unwrap().to_owned())
            .collect();
        let of = |stage: &str| stages.iter().filter(|s| *s == stage).count();
        (of("ResponseStarted"), of("ResponseComplete"), stages.len())
    };
    eventually("every exec is in the audit log, begun and ended", SOON, || {
        let (begun, ended, all) = count();
        (begun >= 3 && begun == ended && begun + ended == all).then_some(())
    });
    let path = policy.display();
    let said = cluster.skiff(&format!("start --audit-policy {path}"));
    assert!(
        said.ok && said.stderr.contains("the audit log is /var/lib/skiff/clients/audit.log"),
        "{}",
        said.stderr
    );
    let said = cluster.skiff("start --audit-policy none").err();
    assert!(said.contains("the cluster \"clients\" runs with another one; stop it first"), "{said}");
    std::fs::write(policy, AUDIT_POLICY.replace("level: Metadata", "level: Much")).unwrap();
    let said = cluster.skiff(&format!("start --audit-policy {path}")).err();
    let why = "rules[0].level: Unsupported value: \"Much\": supported values: \"None\", \"Metadata\"";
    assert!(said.contains(&format!("--audit-policy={path}: {why}")), "{said}");
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
    let streams = rust_streams(Api::namespaced(client, "default"));
    tokio::time::timeout(SOON, streams).await.expect("a stream that hangs");
}

async fn rust_streams(pods: Api<Pod>) {
    assert_eq!(pods.logs(POD, &LogParams::default()).await.unwrap(), "ready\n");
    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream(POD, &follow).await.unwrap().lines();
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("ready"));

    let script = ["sh", "-c", "read line; echo got $line; echo wrong >&2; exit 3"];
    let mut run = pods.exec(POD, script, &AttachParams::default().stdin(true)).await.unwrap();
    let status = run.take_status().unwrap();
    let (mut out, mut err) = (run.stdout().unwrap(), run.stderr().unwrap());
    run.stdin().unwrap().write_all(b"word\n").await.unwrap();
    let (mut said, mut complained) = (String::new(), String::new());
    out.read_to_string(&mut said).await.unwrap();
    err.read_to_string(&mut complained).await.unwrap();
    assert_eq!((said.as_str(), complained.as_str()), ("got word\n", "wrong\n"));
    let causes = status.await.unwrap().details.unwrap().causes.unwrap();
    assert_eq!(causes[0].message.as_deref(), Some("3"));

    let mut forward = pods.portforward(POD, &[8080]).await.unwrap();
    let mut stream = forward.take_stream(8080).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
    drop(stream);
    forward.abort();

    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "attached"}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox:latest",
        "imagePullPolicy": "Never", "stdin": true, "command": ["sh", "-c", "read line; echo got $line; exec sleep 3600"]}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    await_condition(pods.clone(), "attached", is_pod_running()).await.unwrap();
    let mut attached =
        pods.attach("attached", &AttachParams::default().stdin(true).stderr(false)).await.unwrap();
    attached.stdin().unwrap().write_all(b"word\n").await.unwrap();
    let mut said = [0; 9];
    attached.stdout().unwrap().read_exact(&mut said).await.unwrap();
    assert_eq!(said, *b"got word\n");
    attached.abort();
    pods.delete("attached", &DeleteParams::default()).await.unwrap();
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
