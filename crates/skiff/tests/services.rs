//! Services as a user of kubectl and curl sees them: from another machine's point of view, which here is the host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use testkit::cluster::Cluster;
use testkit::command::{Ran, program, run};
use testkit::kubectl::Kubectl;
use testkit::machine::Machine;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(30);
const NGINX: &str = "Welcome to nginx!";
const HTTPD: &str = "It works!";

#[test]
fn services_are_reached_from_the_host() {
    let before = Machine::now();
    {
        let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "services");
        let kubectl = cluster.kubectl();
        for name in ["nginx", "httpd", "busybox"] {
            cluster.skiff(&format!("image load {}", images::tar(name).display())).out();
        }
        an_application_and_a_client(&kubectl);
        two_load_balancers_share_a_port_and_no_address(&kubectl);
        source_ranges_are_enforced(&kubectl);
        without_endpoints_it_is_refused_at_once(&kubectl);
        a_change_of_type_takes_and_releases(&kubectl);
        other_classes_and_no_node_ports(&kubectl);
        addresses_survive_a_crash(&cluster, &kubectl);
        a_deleted_service_gives_its_address_back(&kubectl);
    }
    eventually("the machine is as before", SOON, || {
        let difference = Machine::now().difference(&before);
        if !difference.is_empty() {
            eprintln!("still different:\n{difference}");
        }
        difference.is_empty().then_some(())
    });
}

fn curl(address: &str) -> Ran {
    program("curl", &["-sS", "--noproxy", "*", "--max-time", "5", &format!("http://{address}")])
}

fn fetches(address: &str, page: &str) {
    eventually(&format!("{address} shows {page}"), SOON, || {
        curl(address).stdout.contains(page).then_some(())
    });
}

/// Edits an object as a user at a terminal does: the editor is a sed script.
fn edit(kubectl: &Kubectl, object: &str, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    let editor = dir.path().join("editor");
    std::fs::write(&editor, format!("#!/bin/sh\nexec sed -i '{script}' \"$1\"\n")).unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let out = run(kubectl.command().args(["edit", "service", object]).env("KUBE_EDITOR", &editor)).out();
    assert_eq!(out, format!("service/{object} edited\n"));
}

/// Columns of `kubectl get service NAME`: type, cluster address, external address, ports.
fn columns(kubectl: &Kubectl, name: &str) -> [String; 4] {
    let shown = kubectl.out(&format!("get service {name} --no-headers"));
    let words: Vec<String> = shown.split_whitespace().map(str::to_owned).collect();
    [words[1].clone(), words[2].clone(), words[3].clone(), words[4].clone()]
}

/// The address of a Service's load balancer, as soon as it has one.
fn external(kubectl: &Kubectl, name: &str) -> String {
    eventually(&format!("{name} has an address"), SOON, || {
        let service = kubectl.json(&format!("get service {name}"));
        let ingress = &service["status"]["loadBalancer"]["ingress"][0];
        (ingress["ipMode"] == "VIP").then(|| ingress["ip"].as_str().unwrap().to_owned())
    })
}

/// What the rest works on; the tutorial's own steps to it are tests/tutorial.rs.
fn an_application_and_a_client(kubectl: &Kubectl) {
    kubectl.out("create deploy nginx-app --image=nginx:latest --replicas=3");
    kubectl.out("create service nodeport nginx-app --tcp=80:80");
    kubectl.out("run testpod --image=busybox -- sleep 3600");
    kubectl.out("rollout status deploy/nginx-app --timeout=60s");
    kubectl.out("wait pod/testpod --for=condition=Ready --timeout=60s");
}

fn two_load_balancers_share_a_port_and_no_address(kubectl: &Kubectl) {
    kubectl.out("create deploy httpd --image=httpd:latest");
    kubectl.out("expose deploy nginx-app --name=one --type=LoadBalancer --port=80");
    kubectl.out("expose deploy httpd --name=two --type=LoadBalancer --port=80");
    let (one, two) = (external(kubectl, "one"), external(kubectl, "two"));
    assert_ne!(one, two);
    let listed = kubectl.out("get services");
    assert!(!listed.contains("<pending>") && listed.contains(&one) && listed.contains(&two), "{listed}");
    assert!(columns(kubectl, "one")[3].starts_with("80:3"), "a node port as well");
    fetches(&one, NGINX);
    fetches(&two, HTTPD);
    assert!(kubectl.out(&format!("exec testpod -- wget -qO- http://{two}")).contains(HTTPD), "from a Pod");
    let port = curl(&format!("{one}:81"));
    assert_eq!(port.code, Some(7), "another port is refused: {port:?}");
    eventually("the Event", SOON, || {
        let events = kubectl.out("get events --field-selector involvedObject.name=one");
        events.contains("EnsuredLoadBalancer").then_some(())
    });
}

fn source_ranges_are_enforced(kubectl: &Kubectl) {
    let one = external(kubectl, "one");
    let only = |ranges: &str| {
        let change = format!("{{\"spec\":{{\"loadBalancerSourceRanges\":{ranges}}}}}");
        kubectl.args(&["patch", "service", "one", "-p", &change]).out();
    };
    only("[\"10.244.0.0/16\"]");
    // curl's code for a time-out.
    eventually("the host is shut out", SOON, || (curl(&one).code == Some(28)).then_some(()));
    assert!(kubectl.out(&format!("exec testpod -- wget -qO- http://{one}")).contains(NGINX));
    only("[\"192.168.0.0/16\"]");
    fetches(&one, NGINX);
    // The code of what busybox' `timeout` ends.
    let url = format!("http://{one}");
    let shut = kubectl.args(&["exec", "testpod", "--", "timeout", "2", "wget", "-qO-", &url]);
    assert_eq!(shut.code, Some(143), "{shut:?}");
    only("null");
    fetches(&one, NGINX);
    let bad =
        kubectl.args(&["patch", "service", "one", "-p", "{\"spec\":{\"loadBalancerSourceRanges\":[\"x\"]}}"]);
    assert!(bad.err().contains("spec.LoadBalancerSourceRanges[0]: Invalid value: \"x\""));
}

fn without_endpoints_it_is_refused_at_once(kubectl: &Kubectl) {
    let two = external(kubectl, "two");
    kubectl.out("scale deploy httpd --replicas=0");
    eventually("refused", SOON, || (curl(&two).code == Some(7)).then_some(()));
    kubectl.out("scale deploy httpd --replicas=1");
    fetches(&two, HTTPD);
}

fn a_change_of_type_takes_and_releases(kubectl: &Kubectl) {
    let before = external(kubectl, "one");
    edit(kubectl, "one", "s/type: LoadBalancer/type: ClusterIP/");
    let [kind, _, outside, ports] = columns(kubectl, "one");
    assert_eq!([&*kind, &*outside, &*ports], ["ClusterIP", "<none>", "80/TCP"]);
    eventually("nobody answers", SOON, || (!curl(&before).ok).then_some(()));
    edit(kubectl, "one", "s/type: ClusterIP/type: LoadBalancer/");
    assert_eq!(external(kubectl, "one"), before, "the lowest free address");
    fetches(&before, NGINX);
    edit(kubectl, "one", "s/type: LoadBalancer/type: NodePort/");
    assert_eq!(columns(kubectl, "one")[2], "<none>");
    edit(kubectl, "one", "s/type: NodePort/type: LoadBalancer/");
    fetches(&external(kubectl, "one"), NGINX);
}

fn other_classes_and_no_node_ports(kubectl: &Kubectl) {
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  {more}\n  \
             selector: {{app: nginx-app}}\n  ports: [{{port: 80}}]\n"
        )
    };
    kubectl.apply(&service("foreign", "loadBalancerClass: example.com/own"));
    kubectl.apply(&service("bare", "allocateLoadBalancerNodePorts: false"));
    let bare = external(kubectl, "bare");
    assert_eq!(columns(kubectl, "bare")[3], "80/TCP");
    fetches(&bare, NGINX);
    let foreign = kubectl.json("get service foreign");
    assert!(foreign["status"]["loadBalancer"].as_object().unwrap().is_empty(), "{foreign}");
    kubectl.out("delete service foreign bare");
}

fn addresses_survive_a_crash(cluster: &Cluster, kubectl: &Kubectl) {
    let (one, two) = (external(kubectl, "one"), external(kubectl, "two"));
    cluster.kill_daemon();
    assert!(curl(&one).stdout.contains(NGINX), "the kernel forwards without us");
    cluster.skiff("start").out();
    assert_eq!((external(kubectl, "one"), external(kubectl, "two")), (one.clone(), two.clone()));
    fetches(&one, NGINX);
    fetches(&two, HTTPD);
}

fn a_deleted_service_gives_its_address_back(kubectl: &Kubectl) {
    let one = external(kubectl, "one");
    kubectl.out("delete service one");
    eventually("nobody answers", SOON, || (!curl(&one).ok).then_some(()));
    kubectl.out("expose deploy httpd --name=three --type=LoadBalancer --port=80");
    assert_eq!(external(kubectl, "three"), one);
    fetches(&one, HTTPD);
}
