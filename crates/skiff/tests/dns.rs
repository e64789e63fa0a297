//! Cluster DNS as a user meets it: the tutorial's part about it, and a Corefile that is edited while Pods ask.
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
    the_tutorial_holds(&kubectl);
    a_pod_with_glibc_asks_too(&kubectl);
    the_host_has_a_name(&cluster, &kubectl);
    an_edited_corefile_holds_and_a_wrong_one_does_not(&kubectl);
}

fn the_tutorial_holds(kubectl: &Kubectl) {
    kubectl.out("create deploy nginx-app --image=nginx:latest --replicas=1");
    kubectl.out("expose deploy nginx-app --port=80");
    let system = kubectl.out("get service,pods -n kube-system");
    let service: Vec<&str> = system
        .lines()
        .find(|line| line.starts_with("service/kube-dns"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        service[..5],
        ["service/kube-dns", "ClusterIP", "10.96.0.10", "<none>", "53/UDP,53/TCP,9153/TCP"]
    );
    assert!(system.contains("pod/coredns-"), "{system}");
    assert_eq!(kubectl.out("run testpod --image=busybox -- sleep 3600"), "pod/testpod created\n");
    kubectl.out("wait --for=condition=Ready pod/testpod --timeout=60s");
    kubectl.out("rollout status deploy/nginx-app --timeout=60s");
    let file = kubectl.out("exec testpod -- cat /etc/resolv.conf");
    let lines: Vec<&str> = file.lines().collect();
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
    assert!(lines.contains(&"nameserver 10.96.0.10"), "{file}");
    // What the host searches comes behind the cluster's own domains.
    assert!(lines.iter().any(|line| *line == search || line.starts_with(&format!("{search} "))), "{file}");
    assert!(lines.contains(&"options ndots:5"), "{file}");
    let ip = kubectl.out("get service nginx-app -o jsonpath={.spec.clusterIP}");
    let said = kubectl.out("exec testpod -- nslookup -type=a nginx-app.default.svc.cluster.local");
    for part in ["Server:\t\t10.96.0.10", "Address:\t10.96.0.10:53", &format!("Address: {ip}")] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    // busybox asks for every domain of the search list and ends with an error, since not all have the name.
    let said = kubectl.run("exec testpod -- nslookup nginx-app").stdout;
    assert!(said.contains(&format!("Name:\tnginx-app.default.svc.cluster.local\nAddress: {ip}")), "{said}");
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
