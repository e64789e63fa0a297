//! The real kubectl, in every version that is installed, against a server on the loopback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use common::Kubectl;

const MANIFEST: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: NAME}
data: {k: 'VALUE'}
";

fn manifest(name: &str, value: &str) -> String {
    MANIFEST.replace("NAME", name).replace("VALUE", value)
}

/// A new user's first ten minutes.
fn tour(k: &Kubectl, ns: &str) {
    let n = ["-n", ns];
    let with = |arguments: &[&str]| -> String { k.run(&[&n[..], arguments].concat()) };
    assert_eq!(k.run(&["create", "namespace", ns]), format!("namespace/{ns} created"));
    with(&["create", "serviceaccount", "default"]);
    assert!(k.run(&["api-resources"]).contains("deployments"));
    assert_eq!(
        with(&["create", "deployment", "web", "--image=nginx", "--replicas=2"]),
        "deployment.apps/web created"
    );
    assert_eq!(with(&["expose", "deployment", "web", "--port=80"]), "service/web exposed");
    let wide = with(&["get", "deploy", "-o", "wide"]);
    assert!(wide.contains("UP-TO-DATE") && wide.contains("app=web") && wide.contains("0/2"), "{wide}");
    assert!(with(&["get", "deploy", "web", "-o", "yaml"]).contains("kind: Deployment"));
    assert_eq!(with(&["label", "deploy", "web", "a=b"]), "deployment.apps/web labeled");
    // 1.27 says it in the imperative.
    assert!(with(&["annotate", "deploy", "web", "a=b"]).starts_with("deployment.apps/web annotate"));
    assert_eq!(with(&["scale", "deploy", "web", "--replicas=5"]), "deployment.apps/web scaled");
    assert_eq!(with(&["set", "image", "deploy/web", "nginx=nginx:2"]), "deployment.apps/web image updated");
    assert_eq!(
        with(&[
            "get",
            "deploy",
            "web",
            "-o",
            "jsonpath={.spec.replicas} {.metadata.generation} {.spec.template.spec.containers[0].image}"
        ]),
        "5 3 nginx:2"
    );
    assert_eq!(with(&["run", "shell", "--image=busybox", "--", "sleep", "1"]), "pod/shell created");
    let pods = with(&["get", "pods"]);
    assert!(pods.contains("shell   0/1     Pending   0"), "{pods}");
    assert!(with(&["describe", "service", "web"]).contains("app=web"));
    assert!(with(&["get", "all"]).contains("service/web"));
    assert_eq!(with(&["delete", "pod", "shell"]).lines().next().unwrap(), "pod \"shell\" deleted");
    assert!(with(&["delete", "deploy", "web"]).starts_with("deployment.apps \"web\" deleted"));
    let missing = k.fail(&[&n[..], &["get", "deploy", "web"]].concat(), "");
    assert_eq!(missing, "Error from server (NotFound): deployments.apps \"web\" not found");
}

/// Files: create, apply both ways, diff, replace, errors.
fn files(k: &Kubectl, ns: &str) {
    let n = ["-n", ns];
    let feed = |arguments: &[&str], input: &str| k.feed(&[&n[..], arguments].concat(), input);
    assert_eq!(feed(&["apply", "-f", "-"], &manifest("m", "1")), "configmap/m created");
    assert_eq!(feed(&["apply", "-f", "-"], &manifest("m", "1")), "configmap/m unchanged");
    assert_eq!(feed(&["apply", "-f", "-"], &manifest("m", "2")), "configmap/m configured");
    assert_eq!(
        feed(&["apply", "--server-side", "-f", "-"], &manifest("s", "1")),
        "configmap/s serverside-applied"
    );
    assert_eq!(feed(&["create", "-f", "-"], &manifest("c", "1")), "configmap/c created");
    assert_eq!(feed(&["replace", "-f", "-"], &manifest("c", "2")), "configmap/c replaced");
    assert_eq!(k.run(&[&n[..], &["get", "cm", "c", "-o", "jsonpath={.data.k}"]].concat()), "2");
    assert_eq!(
        feed(
            &["patch", "cm", "c", "--type=json", "-p", r#"[{"op":"add","path":"/data/x","value":"y"}]"#],
            ""
        ),
        "configmap/c patched"
    );
    let twice = k.fail(&[&n[..], &["create", "-f", "-"]].concat(), &manifest("c", "1"));
    assert!(
        twice.contains("(AlreadyExists)") && twice.contains("configmaps \"c\" already exists"),
        "{twice}"
    );
    let zeros = "apiVersion: v1\nkind: Pod\nmetadata: {name: z, labels: {}}\nspec: {hostNetwork: false, nodeSelector: {}, \
        containers: [{name: c, image: i, command: [], env: [{name: E, value: ''}]}]}\n";
    for apply in [&["apply", "-f", "-"][..], &["apply", "--server-side", "-f", "-"]] {
        feed(apply, zeros);
        let how = [&["diff"][..], &apply[1..]].concat();
        assert_eq!(feed(&how, zeros), "", "no difference after {apply:?}");
    }
    let typo = manifest("t", "1").replace("data:", "dat:");
    let refused = k.fail(&[&n[..], &["create", "-f", "-"]].concat(), &typo);
    assert!(refused.contains("unknown field \"dat\""), "{refused}");
    let dry = feed(&["apply", "--dry-run=server", "-f", "-"], &manifest("d", "1"));
    assert_eq!(dry, "configmap/d created (server dry run)");
    assert!(k.run(&["explain", "deployment.spec.replicas"]).contains("FIELD: replicas <integer>"));
    assert_eq!(k.run(&["auth", "can-i", "create", "pods"]), "yes");
}

/// A watch shows what another command does.
fn watching(k: &Kubectl, ns: &str) {
    let mut child = k
        .command(&["-n", ns, "get", "cm", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    k.run(&["-n", ns, "create", "configmap", "watched"]);
    let seen = lines.by_ref().take(10).any(|line| line == "configmap/watched");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen);
}

fn session(version: Option<&'static str>, config: &Path, cache: &Path) {
    let name = version.map_or_else(|| "current".to_owned(), |v| v.replace('.', "-"));
    let k = Kubectl { version, config: config.to_owned(), cache: cache.join(&name) };
    let ns = format!("tour-{name}");
    tour(&k, &ns);
    files(&k, &ns);
    watching(&k, &ns);
}

async fn drive(version: Option<&'static str>) {
    if common::kubectl(version).is_none() {
        assert!(version.is_some(), "no kubectl on the PATH");
        eprintln!("kubectl {version:?} is not installed");
        return;
    }
    let mut f = common::start().await;
    f.serve(0).await;
    let (config, cache) = (f.kubeconfig(), f.dir.path().join("cache"));
    tokio::task::spawn_blocking(move || session(version, &config, &cache)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_kubectl() {
    drive(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_27_without_websockets_and_v2_discovery() {
    drive(Some("1.27")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_30() {
    drive(Some("1.30")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_33_with_protobuf_bodies() {
    drive(Some("1.33")).await;
}
