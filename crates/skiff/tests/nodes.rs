//! A cluster of three nodes on one machine: Pods on all of them, packets between them, and nodes that come and go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::program;
use testkit::kubectl::Kubectl;
use testkit::machine::Machine;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn three_nodes_from_start_to_delete() {
    let before = Machine::now();
    {
        let lock = Lock::taken();
        let cluster = Cluster::start_with(env!("CARGO_BIN_EXE_skiff"), "nodes", "--nodes 3");
        let kubectl = cluster.kubectl();
        for name in ["nginx", "busybox"] {
            cluster.skiff(&format!("image load {}", images::tar(name).display())).out();
        }
        lock.dropped_is_free();
        all_are_ready(&cluster, &kubectl);
        pods_are_spread(&kubectl);
        packets_cross_nodes_with_the_pods_own_address(&kubectl);
        every_node_forwards_node_ports(&kubectl);
        an_image_in_use_on_another_node_stays(&cluster, &kubectl);
        a_stopped_nodes_pods_move(&cluster, &kubectl);
        a_started_node_takes_pods_again(&cluster, &kubectl);
        a_deleted_node_is_gone_and_its_name_free(&cluster, &kubectl);
        stop_and_start_bring_all_back(&cluster, &kubectl);
    }
    eventually("the machine is as before", SOON, || {
        let difference = Machine::now().difference(&before);
        if difference.is_empty() {
            return Some(());
        }
        eprintln!("still different:\n{difference}");
        None
    });
}

/// A lock of whoever calls `skiff start`, open in a descriptor that programs inherit, as flock(1) leaves it.
struct Lock(tempfile::NamedTempFile);

impl Lock {
    fn taken() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        fcntl(file.as_file(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        // SAFETY: the descriptor is ours and open.
        assert_eq!(unsafe { nix::libc::flock(file.as_file().as_raw_fd(), nix::libc::LOCK_EX) }, 0);
        Self(file)
    }

    fn dropped_is_free(self) {
        let second = self.0.reopen().unwrap();
        drop(self.0.into_file());
        assert!(
            Flock::lock(second, FlockArg::LockExclusiveNonblock).is_ok(),
            "a daemon holds its caller's lock"
        );
    }
}

fn all_are_ready(cluster: &Cluster, kubectl: &Kubectl) {
    let listed = cluster.skiff("node list").out();
    for (name, role) in [("nodes", "control-plane"), ("nodes-m02", "worker"), ("nodes-m03", "worker")] {
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name));
        assert!(line.is_some_and(|l| l.contains(role) && l.ends_with("Ready")), "{name} in\n{listed}");
        assert_eq!(ready(kubectl, name), "True", "{name}");
    }
    let shown = kubectl.out("get nodes");
    assert_eq!(shown.matches("control-plane").count(), 1, "{shown}");
    let machine: Value = serde_json::from_str(&cluster.skiff("node list -o json").out()).unwrap();
    let addresses = addresses(kubectl);
    assert_eq!(machine[2]["address"], addresses[2].as_str());
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 3, "{addresses:?}");
    assert!(cluster.skiff("start --nodes 2").out().contains("runs already"), "none is taken away");
    let refused = cluster.skiff("node stop m09").err();
    assert!(refused.contains("m09"), "{refused}");
    assert!(cluster.skiff("node stop nodes").err().contains("skiff stop"));
}

fn ready(kubectl: &Kubectl, node: &str) -> String {
    kubectl.out(&format!(r#"get node {node} -o jsonpath={{.status.conditions[?(@.type=="Ready")].status}}"#))
}

fn addresses(kubectl: &Kubectl) -> Vec<String> {
    let line = r#"get nodes -o jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}"#;
    // Each has one per IP family; the machine's list shows what the host comes by.
    let all = kubectl.out(line);
    all.split_whitespace().filter(|address| !address.contains(':')).map(str::to_owned).collect()
}

/// Nodes of the application's Pods that are ready and stay.
fn nodes_of(kubectl: &Kubectl) -> Vec<String> {
    let pods = kubectl.json("get pods -l app=web");
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let pods = pods["items"].as_array().unwrap().iter().filter(ready);
    pods.filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect()
}

fn spread(kubectl: &Kubectl, wanted: &[&str]) {
    eventually(&format!("6 Pods on {wanted:?}"), SOON, || {
        let nodes = nodes_of(kubectl);
        let on: BTreeSet<&str> = nodes.iter().map(String::as_str).collect();
        (nodes.len() == 6 && on == wanted.iter().copied().collect()).then_some(())
    });
}

fn pods_are_spread(kubectl: &Kubectl) {
    kubectl.out("create deploy web --image=nginx --replicas=6");
    kubectl.out("expose deploy web --port=80 --type=NodePort");
    spread(kubectl, &["nodes", "nodes-m02", "nodes-m03"]);
    for (name, node) in [("first", "nodes"), ("third", "nodes-m03")] {
        let place = format!(r#"--overrides={{"spec":{{"nodeName":"{node}"}}}}"#);
        kubectl.args(&["run", name, "--image=busybox", &place, "--", "sleep", "3600"]).out();
    }
    kubectl.out("wait --for=condition=Ready pod/first pod/third --timeout=60s");
}

fn packets_cross_nodes_with_the_pods_own_address(kubectl: &Kubectl) {
    let pods = kubectl.json("get pods -l app=web");
    let on_third = pods["items"].as_array().unwrap().iter().find(|p| p["spec"]["nodeName"] == "nodes-m03");
    let server = on_third.expect("a Pod on the third node");
    let (name, address) = (&server["metadata"]["name"], &server["status"]["podIP"]);
    let url = format!("http://{}/from-first", address.as_str().unwrap());
    // nginx has no such page; that it says so proves the way there and back.
    let asked = kubectl.run(&format!("exec first -- wget -qO- {url}"));
    assert!(asked.stderr.contains("404"), "{asked:?}");
    let client = kubectl.json("get pod first")["status"]["podIP"].as_str().unwrap().to_owned();
    eventually("the server saw the client's own address", SOON, || {
        let logs = kubectl.out(&format!("logs {}", name.as_str().unwrap()));
        logs.lines().any(|l| l.starts_with(&client) && l.contains("/from-first")).then_some(())
    });
    for pod in ["first", "third"] {
        eventually("the Service is found by name from every node", SOON, || {
            let page = kubectl.run(&format!("exec {pod} -- wget -qO- web"));
            page.stdout.contains("Welcome to nginx!").then_some(())
        });
    }
}

fn every_node_forwards_node_ports(kubectl: &Kubectl) {
    let port = kubectl.json("get service web")["spec"]["ports"][0]["nodePort"].to_string();
    for address in addresses(kubectl) {
        eventually("the node's port answers", SOON, || {
            let page = program("curl", &["-sm", "5", &format!("http://{address}:{port}")]);
            page.stdout.contains("Welcome to nginx!").then_some(())
        });
    }
}

fn an_image_in_use_on_another_node_stays(cluster: &Cluster, kubectl: &Kubectl) {
    kubectl.out("delete pod first --now");
    let refused = cluster.skiff("image rm busybox").err();
    assert!(refused.contains("in use"), "{refused}");
}

fn a_stopped_nodes_pods_move(cluster: &Cluster, kubectl: &Kubectl) {
    kubectl.out("delete pod third --now");
    cluster.skiff("node stop m03").out();
    assert_eq!(nodes_of(kubectl).iter().filter(|n| *n == "nodes-m03").count(), 0);
    spread(kubectl, &["nodes", "nodes-m02"]);
    assert_eq!(ready(kubectl, "nodes-m03"), "Unknown");
    assert!(kubectl.out("get nodes").contains("NotReady,SchedulingDisabled"));
    assert!(cluster.skiff("node list").out().contains("Stopped"));
}

fn a_started_node_takes_pods_again(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("node start m03").out();
    assert!(!kubectl.out("get nodes").contains("SchedulingDisabled"));
    eventually("the node is ready", SOON, || (ready(kubectl, "nodes-m03") == "True").then_some(()));
    eventually("its taints are gone", SOON, || {
        kubectl.json("get node nodes-m03")["spec"]["taints"].is_null().then_some(())
    });
    kubectl.out("rollout restart deploy/web");
    kubectl.out("rollout status deploy/web --timeout=60s");
    spread(kubectl, &["nodes", "nodes-m02", "nodes-m03"]);
}

fn a_deleted_node_is_gone_and_its_name_free(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("node delete nodes-m02").out();
    assert!(kubectl.run("get node nodes-m02").err().contains("NotFound"));
    spread(kubectl, &["nodes", "nodes-m03"]);
    cluster.skiff("node add").out();
    assert_eq!(ready(kubectl, "nodes-m02"), "True");
}

fn stop_and_start_bring_all_back(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("stop").out();
    assert!(!cluster.skiff("node list").out().contains("Ready"));
    assert!(cluster.skiff("node add").err().contains("does not run"));
    cluster.skiff("start").out();
    for node in ["nodes", "nodes-m02", "nodes-m03"] {
        eventually("the node is back", SOON, || (ready(kubectl, node) == "True").then_some(()));
    }
    eventually("the application answers", SOON, || (nodes_of(kubectl).len() == 6).then_some(()));
}
