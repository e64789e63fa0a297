//! A cluster whose Pods are connected by Debian's CNI plugins: names, Services, probes, host ports and network policies
//! work on that network as on our own, failures are said on the Pod, and nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use testkit::cluster::Cluster;
use testkit::eventually;
use testkit::kubectl::Kubectl;

const SOON: Duration = Duration::from_secs(60);
const PROFILE: &str = "e2ecni";

#[test]
fn cni_plugins_connect_pods() {
    let dir = tempfile::tempdir().unwrap();
    let bridge = dir.path().join("bridge/10-pods.conflist");
    write(&bridge, &bridged());
    let cluster =
        Cluster::start_with(env!("CARGO_BIN_EXE_skiff"), PROFILE, &format!("--cni={}", bridge.display()));
    let kubectl = cluster.kubectl();
    pods_have_the_plugins_addresses_and_reach_services(&kubectl);
    policies_hold_on_a_bridge(&kubectl);
    a_plugins_failure_is_said_and_tried_again(&kubectl);
    a_new_daemon_takes_the_pods_over(&cluster, &kubectl);
    another_network_takes_over(&cluster, &kubectl, dir.path());
}

fn write(path: &Path, config: &serde_json::Value) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, config.to_string()).unwrap();
}

/// Four addresses: the DNS server's and three more.
fn bridged() -> serde_json::Value {
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[
            {"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.13"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]})
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: 'localhost/skiff:latest', {spec}}}]}}}}"
    )
}

fn address(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.json(&format!("get pod {pod}"))["status"]["podIP"].as_str().unwrap_or_default().to_owned()
}

fn wget(kubectl: &Kubectl, url: &str) -> bool {
    kubectl.run(&format!("exec client -- wget -q --timeout=1 -O- {url}")).stdout.contains("Hostname: web")
}

#[track_caller]
fn reaches(kubectl: &Kubectl, url: &str) {
    eventually(&format!("client reaches {url}"), SOON, || wget(kubectl, url).then_some(()));
}

fn pods_have_the_plugins_addresses_and_reach_services(kubectl: &Kubectl) {
    let web = "args: [serve, --http, '8080'], ports: [{containerPort: 8080, hostPort: 8088}], \
               readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}";
    kubectl.apply(&pod("web", web));
    kubectl.apply(&pod("client", "command: [sleep, '3600']"));
    kubectl.out("wait --for=condition=Ready pod/web pod/client --timeout=60s");
    let web = address(kubectl, "web");
    assert!(web.starts_with("10.88.0.1"), "{web}");
    kubectl.out("expose pod web --port=80 --target-port=8080");
    reaches(kubectl, &format!("{web}:8080"));
    reaches(kubectl, "web");
    // A Pod that reaches itself by its Service (whose bare name is its own host name).
    eventually("web reaches itself", SOON, || {
        let itself = kubectl.run("exec web -- wget -q --timeout=1 -O- web.default");
        itself.stdout.contains("Hostname: web").then_some(())
    });
    // The plugin's own way to the Pod, from a Pod and from the machine.
    let node = kubectl.json(&format!("get node {PROFILE}"));
    let node = node["status"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    reaches(kubectl, &format!("{node}:8088"));
    eventually("the machine reaches the host port", SOON, || {
        let url = format!("http://{node}:8088/");
        let curl = std::process::Command::new("curl").args(["-s", "-m", "2", &url]).output().unwrap();
        String::from_utf8_lossy(&curl.stdout).contains("Hostname: web").then_some(())
    });
}

fn policies_hold_on_a_bridge(kubectl: &Kubectl) {
    let web = format!("{}:8080", address(kubectl, "web"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, \
                spec: {podSelector: {matchLabels: {app: web}}}}";
    std::fs::write(file.path(), deny).unwrap();
    let created = kubectl.args(&["create", "-f", &file.path().display().to_string()]);
    // It is enforced, so nobody is warned.
    assert!(created.ok && !created.stderr.contains("Warning"), "{created:?}");
    for url in [web.as_str(), "web"] {
        eventually(&format!("client is refused {url}"), SOON, || (!wget(kubectl, url)).then_some(()));
        assert!(!wget(kubectl, url), "{url}");
    }
    // The node's own agent comes through.
    kubectl.out("wait --for=condition=Ready pod/web --timeout=30s");
    kubectl.out("delete networkpolicy deny");
    reaches(kubectl, &web);
}

fn a_plugins_failure_is_said_and_tried_again(kubectl: &Kubectl) {
    kubectl.apply(&pod("third", "command: [sleep, '3600']"));
    kubectl.out("wait --for=condition=Ready pod/third --timeout=60s");
    kubectl.apply(&pod("fourth", "command: [sleep, '3600']"));
    eventually("the Event of a plugin's failure", SOON, || {
        let events = kubectl.out("get events --field-selector involvedObject.name=fourth");
        (events.contains("FailedCreatePodSandBox")
            && events.contains(r#"plugin type="bridge" failed (ADD): code"#)
            && events.contains("no IP addresses available in range set: 10.88.0.10-10.88.0.13"))
        .then_some(())
    });
    kubectl.out("delete pod third");
    kubectl.out("wait --for=condition=Ready pod/fourth --timeout=60s");
}

fn leases() -> usize {
    let dir = format!("/var/lib/skiff/{PROFILE}/cni/networks/pods");
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.88.")).count()
}

fn a_new_daemon_takes_the_pods_over(cluster: &Cluster, kubectl: &Kubectl) {
    let before = address(kubectl, "web");
    cluster.kill_daemon();
    cluster.skiff("start").out();
    reaches(kubectl, "web");
    assert_eq!(address(kubectl, "web"), before);
    assert_eq!(leases(), 4);
    kubectl.out("delete pod fourth");
    eventually("the address of the deleted Pod is free", SOON, || (leases() == 3).then_some(()));
}

fn another_network_takes_over(cluster: &Cluster, kubectl: &Kubectl, dir: &Path) {
    let config = json!({"cniVersion": "0.4.0", "name": "routed", "type": "ptp", "ipMasq": true,
        "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]}});
    write(&dir.join("ptp/10-routed.conf"), &config);
    let start = format!("start --cni={}", dir.join("ptp").display());
    assert!(cluster.skiff(&start).err().contains("runs with another network"));
    cluster.skiff("stop").out();
    let started = cluster.skiff(&start);
    assert!(started.ok && started.stderr.contains("the CNI plugin \"ptp\" connects the Pods"), "{started:?}");
    kubectl.out("wait --for=condition=Ready pod/web pod/client --timeout=60s");
    eventually("web has an address of the node's range", SOON, || {
        address(kubectl, "web").starts_with("10.244.0.").then_some(())
    });
    reaches(kubectl, "web");
    // What the Pods had of the network before was given back with the plugins of then.
    assert_eq!(leases(), 0);
}
