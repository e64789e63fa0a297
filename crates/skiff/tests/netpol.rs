//! NetworkPolicies on real Pods: the course's example word for word, what it does not show, and a cluster that does not
//! enforce them and says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "netpol/commands.rs"]
mod commands;

use std::time::Duration;

use testkit::cluster::Cluster;
use testkit::kubectl::Kubectl;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(30);

const EXAMPLE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: access-nginx
spec:
  podSelector:
    matchLabels:
      app: nginx
  ingress:
  - from:
    - podSelector:
        matchLabels:
          access: "true"
---
apiVersion: v1
kind: Pod
metadata:
  name: nginx
  labels:
    app: nginx
spec:
  containers:
  - name: nwp-nginx
    image: nginx:latest
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata:
  name: busybox
  labels:
    app: sleepy
spec:
  containers:
  - name: nwp-busybox
    image: localhost/skiff:latest
    command: [sleep, "3600"]
"#;

const DESCRIBED: &str = "\
Spec:
  PodSelector:     app=nginx
  Allowing ingress traffic:
    To Port: <any> (traffic allowed to all ports)
    From:
      PodSelector: access=true
  Not affecting egress traffic
  Policy Types: Ingress
";

#[test]
fn policies_are_enforced_unless_the_cluster_says_that_it_does_not() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "e2enetpol");
    let kubectl = cluster.kubectl();
    cluster.skiff(&format!("image load {}", images::tar("nginx").display())).out();
    the_course_example(&kubectl, || commands::while_refused(&cluster, &kubectl));
    commands::while_allowed(&cluster, &kubectl);
    a_policy_decides_whether_and_a_change_at_once(&kubectl);
    ports_have_numbers_names_and_ranges(&kubectl);
    egress_names_namespaces_and_blocks(&kubectl);
    rules_outlive_the_daemon(&cluster, &kubectl);
    kubenet_enforces_nothing_and_says_so(&cluster, &kubectl);
}

/// What a Pod says when it fetches something.
fn wget(kubectl: &Kubectl, pod: &str, url: &str) -> String {
    let ran = kubectl.run(&format!("exec {pod} -- wget --spider --timeout=1 {url}"));
    format!("{}{}", ran.stdout, ran.stderr)
}

#[track_caller]
fn reaches(kubectl: &Kubectl, pod: &str, url: &str) {
    eventually(&format!("{pod} reaches {url}"), SOON, || {
        wget(kubectl, pod, url).contains("remote file exists").then_some(())
    });
}

#[track_caller]
fn is_refused(kubectl: &Kubectl, pod: &str, url: &str) {
    eventually(&format!("{pod} is refused {url}"), SOON, || {
        wget(kubectl, pod, url).contains("download timed out").then_some(())
    });
}

fn address(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.json(&format!("get pod {pod}"))["status"]["podIP"].as_str().unwrap().to_owned()
}

fn the_course_example(kubectl: &Kubectl, while_refused: impl FnOnce()) {
    // Made in one go: the policy and the Pods that it isolates, which pass their gates and their probes.
    kubectl.apply(EXAMPLE);
    kubectl.out("wait --for=condition=Ready pod/nginx pod/busybox --timeout=30s");
    let listed = kubectl.out("get networkpolicy");
    assert!(listed.contains("access-nginx   app=nginx"), "{listed}");
    let described = kubectl.out("describe networkpolicy");
    assert!(described.contains(DESCRIBED), "{described}");
    assert_eq!(kubectl.out("expose pod nginx --port=80"), "service/nginx exposed\n");
    let service = kubectl.json("get service nginx")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    is_refused(kubectl, "busybox", "nginx");
    let refused = wget(kubectl, "busybox", "nginx");
    assert!(
        refused.starts_with(&format!("Connecting to nginx ({service}:80)\nwget: download timed out\n")),
        "{refused}"
    );
    assert!(refused.contains("command terminated with exit code 1"), "{refused}");
    while_refused();
    assert_eq!(kubectl.out("label pod busybox access=true"), "pod/busybox labeled\n");
    reaches(kubectl, "busybox", "nginx");
    let fetched = wget(kubectl, "busybox", "nginx");
    assert_eq!(fetched, format!("Connecting to nginx ({service}:80)\nremote file exists\n"));
}

fn a_policy_decides_whether_and_a_change_at_once(kubectl: &Kubectl) {
    kubectl.out("label pod busybox access-");
    is_refused(kubectl, "busybox", "nginx");
    kubectl.out("delete networkpolicy access-nginx");
    reaches(kubectl, "busybox", "nginx");
    kubectl.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}",
    );
    is_refused(kubectl, "busybox", "nginx");
    // The node's own agent comes through all the same: the Pod would be unready by now.
    kubectl.out("wait --for=condition=Ready pod/nginx --timeout=30s");
}

fn ports_have_numbers_names_and_ranges(kubectl: &Kubectl) {
    kubectl.apply(
        r"
apiVersion: v1
kind: Pod
metadata: {name: ports, labels: {app: ports}}
spec:
  containers:
  - {name: a, image: 'localhost/skiff:latest', args: [serve, --http, '8080'], ports: [{name: first, containerPort: 8080}]}
  - {name: b, image: 'localhost/skiff:latest', args: [serve, --http, '8081']}
  - {name: c, image: 'localhost/skiff:latest', args: [serve, --http, '8082']}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ports}
spec:
  podSelector: {matchLabels: {app: ports}}
  ingress: [{ports: [{port: first}]}]
",
    );
    kubectl.out("wait --for=condition=Ready pod/ports --timeout=30s");
    let address = address(kubectl, "ports");
    reaches(kubectl, "busybox", &format!("{address}:8080"));
    is_refused(kubectl, "busybox", &format!("{address}:8081"));
    let patch = |rules: &str| {
        let patch = format!(r#"{{"spec": {{"ingress": {rules}}}}}"#);
        kubectl.args(&["patch", "networkpolicy", "ports", "--type=merge", "-p", &patch]).out();
    };
    patch(r#"[{"ports": [{"port": 8081, "endPort": 8082}]}]"#);
    reaches(kubectl, "busybox", &format!("{address}:8081"));
    reaches(kubectl, "busybox", &format!("{address}:8082"));
    is_refused(kubectl, "busybox", &format!("{address}:8080"));
    patch(r#"[{"ports": [{"port": 8080, "protocol": "UDP"}]}]"#);
    is_refused(kubectl, "busybox", &format!("{address}:8081"));
    patch("[{}]");
    reaches(kubectl, "busybox", &format!("{address}:8081"));
}

fn egress_names_namespaces_and_blocks(kubectl: &Kubectl) {
    let ports = address(kubectl, "ports");
    let policy = |to: &str| {
        kubectl.apply(&format!(
            r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: out}}
spec:
  podSelector: {{matchLabels: {{app: sleepy}}}}
  policyTypes: [Egress]
  egress: {to}
"
        ));
    };
    policy("[]");
    is_refused(kubectl, "busybox", &format!("{ports}:8080"));
    policy("[{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]");
    reaches(kubectl, "busybox", &format!("{ports}:8080"));
    policy(&format!("[{{to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{ports}/32]}}}}]}}]"));
    is_refused(kubectl, "busybox", &format!("{ports}:8080"));
    policy(&format!("[{{to: [{{ipBlock: {{cidr: {ports}/32}}}}]}}]"));
    reaches(kubectl, "busybox", &format!("{ports}:8080"));
    // Names are resolved by a Pod of another namespace: a bare rule for its port is enough.
    policy("[{ports: [{port: 53, protocol: UDP}, {port: 8080}]}]");
    reaches(kubectl, "busybox", &format!("{ports}:8080"));
    eventually("the DNS answers", SOON, || {
        kubectl.run("exec busybox -- nslookup nginx").stdout.contains("nginx.default.svc").then_some(())
    });
}

fn rules_outlive_the_daemon(cluster: &Cluster, kubectl: &Kubectl) {
    kubectl.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: ports}, spec: {podSelector: {matchLabels: {app: ports}}}}",
    );
    let ports = address(kubectl, "ports");
    is_refused(kubectl, "busybox", &format!("{ports}:8081"));
    let daemon = format!("/proc/{}", cluster.daemon_pid());
    cluster.kill_daemon();
    eventually("the daemon is gone", SOON, || (!std::path::Path::new(&daemon).exists()).then_some(()));
    cluster.skiff("start").out();
    is_refused(kubectl, "busybox", &format!("{ports}:8081"));
    kubectl.out("delete networkpolicy --all");
    reaches(kubectl, "busybox", &format!("{ports}:8081"));
}

fn kubenet_enforces_nothing_and_says_so(cluster: &Cluster, kubectl: &Kubectl) {
    assert!(
        cluster.skiff("start --cni=kubenet").err().contains("runs with another network"),
        "it runs with another one"
    );
    cluster.skiff("stop").out();
    cluster.skiff("start --cni=kubenet").out();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}",
    )
    .unwrap();
    let created = kubectl.args(&["create", "-f", &file.path().display().to_string()]);
    assert!(
        created.ok && created.stderr.contains("Warning: this cluster does not enforce NetworkPolicies"),
        "{created:?}"
    );
    kubectl.out("wait --for=condition=Ready pod/ports pod/busybox --timeout=30s");
    let ports = address(kubectl, "ports");
    reaches(kubectl, "busybox", &format!("{ports}:8081"));
    // The choice holds for the next start, until another one is made.
    cluster.skiff("stop").out();
    let started = cluster.skiff("start --cni=calico");
    assert!(started.ok && started.stderr.contains("enforces network policies"), "{started:?}");
    kubectl.out("wait --for=condition=Ready pod/ports pod/busybox --timeout=30s");
    let ports = address(kubectl, "ports");
    is_refused(kubectl, "busybox", &format!("{ports}:8081"));
}
