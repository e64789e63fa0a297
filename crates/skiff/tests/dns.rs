//! Cluster DNS beyond the tutorial: a libc of another kind, the host's name, and a Corefile that is edited while Pods ask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use testkit::cluster::Cluster;
use testkit::kubectl::Kubectl;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn pods_ask_the_clusters_dns() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "dns");
    let kubectl = cluster.kubectl();
    for name in ["nginx", "busybox"] {
        cluster.skiff(&format!("image load {}", images::tar(name).display())).out();
    }
    an_application_and_a_client(&kubectl);
    a_pod_with_glibc_asks_too(&kubectl);
    the_host_has_a_name(&cluster, &kubectl);
    an_edited_corefile_holds_and_a_wrong_one_does_not(&kubectl);
}

/// What the rest works on; the tutorial's own steps to it are tests/tutorial.rs.
fn an_application_and_a_client(kubectl: &Kubectl) {
    kubectl.out("create deploy nginx-app --image=nginx:latest --replicas=1");
    kubectl.out("expose deploy nginx-app --port=80");
    kubectl.out("run testpod --image=busybox -- sleep 3600");
    kubectl.out("wait --for=condition=Ready pod/testpod --timeout=60s");
    kubectl.out("rollout status deploy/nginx-app --timeout=60s");
}

fn a_pod_with_glibc_asks_too(kubectl: &Kubectl) {
    // The image has glibc but not the program; the host's is of the same glibc or an older one.
    kubectl.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "glibc"}, "spec": {
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Never",
                "volumeMounts": [{"name": "getent", "mountPath": "/getent"}]}],
            "volumes": [{"name": "getent", "hostPath": {"path": "/usr/bin/getent", "type": "File"}}]}}"#,
    );
    kubectl.out("wait --for=condition=Ready pod/glibc --timeout=60s");
    let ip = kubectl.out("get service nginx-app -o jsonpath={.spec.clusterIP}");
    let said = kubectl.out("exec glibc -- /getent ahostsv4 nginx-app");
    assert!(said.starts_with(&ip) && said.contains("nginx-app.default.svc.cluster.local"), "{said}");
}

fn ask(kubectl: &Kubectl, name: &str) -> String {
    kubectl.run(&format!("exec testpod -- nslookup -type=a {name}")).stdout
}

fn the_host_has_a_name(cluster: &Cluster, kubectl: &Kubectl) {
    let node = cluster.skiff("ip").out();
    let (network, _) = node.trim().rsplit_once('.').unwrap();
    for name in ["host.skiff.internal", "host.minikube.internal"] {
        let said = ask(kubectl, name);
        assert!(said.contains(&format!("Name:\t{name}\nAddress: {network}.1")), "{said}");
    }
}

fn an_edited_corefile_holds_and_a_wrong_one_does_not(kubectl: &Kubectl) {
    let with = |line: &str| {
        let corefile = format!(".:53 {{\\n kubernetes cluster.local\\n hosts {{\\n  {line}\\n }}\\n}}\\n");
        let patch = format!(r#"{{"data":{{"Corefile":"{corefile}"}}}}"#);
        let args = ["-n", "kube-system", "patch", "configmap", "coredns", "--type=merge", "-p", &patch];
        kubectl.args(&args).out();
    };
    let becomes = |name: &str, addr: &str| {
        eventually(name, SOON, || ask(kubectl, name).contains(&format!("Address: {addr}\n")).then_some(()));
    };
    with("192.0.2.1 one.test");
    becomes("one.test", "192.0.2.1");
    with("192.0.2.2 one.test\\n }\\n frobnicate {");
    let told = eventually("an event tells", SOON, || {
        let events = kubectl.out("-n kube-system get events --field-selector reason=CorefileRejected");
        events.contains("frobnicate").then_some(events)
    });
    assert!(told.contains("configmap/coredns") && told.contains("Corefile:6: unknown directive"), "{told}");
    let log = kubectl.out("-n kube-system logs -l k8s-app=kube-dns --tail=50");
    assert!(log.contains("Corefile:6: unknown directive"), "{log}");
    becomes("one.test", "192.0.2.1");
    with("192.0.2.3 one.test");
    becomes("one.test", "192.0.2.3");
}
