//! A cluster from `skiff start` to `skiff delete`, driven by the real kubectl, on real containers and real packets.
//!
//! One test, because a machine has one set of links and rules to compare before and after; its steps are functions
//! named by what they prove.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::program;
use testkit::kubectl::Kubectl;
use testkit::machine::Machine;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_cluster_from_start_to_delete() {
    let before = Machine::now();
    {
        let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "e2e");
        let kubectl = cluster.kubectl();
        images_are_loaded(&cluster);
        the_node_is_ready(&kubectl, &cluster);
        an_application_is_deployed_and_exposed(&kubectl);
        a_pod_resolves_and_fetches_it(&kubectl);
        logs_and_exec_show_what_runs(&kubectl);
        it_scales(&kubectl);
        bad_input_is_answered_as_upstream_does(&kubectl);
        every_kubectl_speaks_to_it(&kubectl);
        secrets_are_roots_alone();
        a_second_start_changes_nothing(&cluster);
        a_killed_daemon_loses_no_acknowledged_write(&cluster, &kubectl);
        a_stop_keeps_what_the_cluster_remembers(&cluster, &kubectl);
        deleted_things_go_away(&kubectl);
    }
    before.is_again(SOON);
}

fn images_are_loaded(cluster: &Cluster) {
    for name in ["nginx", "httpd", "busybox"] {
        let tar = images::tar(name);
        let out = cluster.skiff(&format!("image load {}", tar.display())).out();
        assert!(out.contains(&format!("docker.io/library/{name}:latest")), "{out}");
    }
    let list = cluster.skiff("image ls").out();
    assert!(list.starts_with("IMAGE ") && list.contains("localhost/skiff:latest"), "{list}");
    assert!(cluster.skiff("image load /nowhere.tar").err().contains("/nowhere.tar"));
}

fn the_node_is_ready(kubectl: &Kubectl, cluster: &Cluster) {
    let nodes = kubectl.out("get nodes -o wide");
    assert!(nodes.contains(" Ready "), "{nodes}");
    let ip = cluster.skiff("ip").out();
    assert!(nodes.contains(ip.trim()), "{ip} in {nodes}");
    let system = kubectl.out("get service,pods -n kube-system");
    assert!(system.contains("service/kube-dns") && system.contains("10.96.0.10"), "{system}");
    assert!(system.contains("53/UDP,53/TCP,9153/TCP"), "{system}");
    eventually("coredns is ready", SOON, || {
        kubectl.out("get pods -n kube-system -l k8s-app=kube-dns").contains("1/1     Running").then_some(())
    });
    let namespaces = kubectl.out("get ns");
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        assert!(namespaces.contains(name), "{namespaces}");
    }
}

fn an_application_is_deployed_and_exposed(kubectl: &Kubectl) {
    let line = "create deploy nginx-app --image=nginx:latest --replicas=3";
    assert_eq!(kubectl.out(line), "deployment.apps/nginx-app created\n");
    assert_eq!(kubectl.out("expose deploy nginx-app --port=80"), "service/nginx-app exposed\n");
    let service = kubectl.out("get service nginx-app");
    assert!(service.starts_with("NAME        TYPE        CLUSTER-IP"), "{service}");
    assert!(service.contains("ClusterIP") && service.contains("80/TCP"), "{service}");
    kubectl.out("rollout status deploy/nginx-app --timeout=30s");
    let pods = kubectl.out("get pods -o wide");
    assert_eq!(pods.matches("1/1     Running").count(), 3, "{pods}");
    assert_eq!(pods.matches(" 10.244.").count(), 3, "{pods}");
    let slices = kubectl.json("get endpointslices -l kubernetes.io/service-name=nginx-app");
    assert_eq!(slices["items"][0]["endpoints"].as_array().map(Vec::len), Some(3), "{slices}");
    let described = kubectl.out("describe deploy nginx-app");
    assert!(described.contains("ScalingReplicaSet"), "{described}");
}

fn a_pod_resolves_and_fetches_it(kubectl: &Kubectl) {
    assert_eq!(kubectl.out("run testpod --image=busybox -- sleep 3600"), "pod/testpod created\n");
    kubectl.out("wait --for=condition=Ready pod/testpod --timeout=30s");
    let resolv = kubectl.out("exec testpod -- cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.96.0.10"), "{resolv}");
    assert!(resolv.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{resolv}");
    assert!(resolv.contains("options ndots:5"), "{resolv}");
    let address = kubectl.json("get service nginx-app")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    // busybox asks for every search domain and complains about those without the name: its exit status is 1, anywhere.
    let lookup = kubectl.run("exec testpod -- nslookup nginx-app").stdout;
    assert!(lookup.contains("Name:\tnginx-app.default.svc.cluster.local"), "{lookup}");
    assert!(lookup.contains(&address) && lookup.contains("10.96.0.10:53"), "{lookup}");
    let page = kubectl.out("exec testpod -- wget -qO- nginx-app");
    assert!(page.contains("<title>Welcome to nginx!</title>"), "{page}");
    let kubernetes = kubectl.run("exec testpod -- nslookup kubernetes.default").stdout;
    assert!(kubernetes.contains("10.96.0.1"), "{kubernetes}");
    let unknown = kubectl.run("exec testpod -- nslookup no-such-service.default.svc.cluster.local");
    assert!(unknown.stdout.contains("NXDOMAIN") && unknown.code == Some(1), "{unknown:?}");
}

fn logs_and_exec_show_what_runs(kubectl: &Kubectl) {
    let access = eventually("nginx logs the request", SOON, || {
        let logs = kubectl.out("logs -l app=nginx-app --tail=50");
        logs.contains("GET / HTTP/1.1").then_some(logs)
    });
    assert!(access.contains("200"), "{access}");
    let code = kubectl.args(&["exec", "testpod", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((code.code, code.stdout.as_str()), (Some(7), "out\n"), "{code:?}");
    assert!(code.stderr.starts_with("err\n"), "{code:?}");
    let hosts = kubectl.out("exec testpod -- cat /etc/hosts");
    assert!(hosts.contains("testpod"), "{hosts}");
    let described = kubectl.out("describe pod testpod");
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(described.contains(reason), "{reason} in {described}");
    }
}

fn it_scales(kubectl: &Kubectl) {
    kubectl.out("scale deploy nginx-app --replicas=5");
    kubectl.out("rollout status deploy/nginx-app --timeout=30s");
    kubectl.out("scale deploy nginx-app --replicas=2");
    eventually("two are left", SOON, || {
        let pods = kubectl.json("get pods -l app=nginx-app");
        (pods["items"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
}

fn bad_input_is_answered_as_upstream_does(kubectl: &Kubectl) {
    let missing = kubectl.run("get pod nothing").err();
    assert_eq!(missing, "Error from server (NotFound): pods \"nothing\" not found\n");
    let twice = kubectl.run("create deploy nginx-app --image=nginx").err();
    assert_eq!(twice, "error: failed to create deployment: deployments.apps \"nginx-app\" already exists\n");
    let name = kubectl.run("create configmap Bad_Name").err();
    assert!(name.contains("a lowercase RFC 1123 subdomain must consist of"), "{name}");
    let kind = kubectl.run("get nonsense").err();
    assert!(kind.contains("the server doesn't have a resource type \"nonsense\""), "{kind}");
    kubectl.out("run lost --image=localhost/no/such:image --image-pull-policy=Never");
    eventually("a missing image is said", SOON, || {
        kubectl.out("get pod lost").contains("ErrImageNeverPull").then_some(())
    });
    kubectl.out("delete pod lost --now");
}

fn every_kubectl_speaks_to_it(kubectl: &Kubectl) {
    for binary in testkit::kubectl::binaries() {
        let this = kubectl.with_binary(binary.clone());
        let shown = binary.display();
        assert!(this.out("get nodes").contains("Ready"), "{shown}");
        this.out("create configmap said --from-literal=by=kubectl");
        assert_eq!(this.json("get configmap said")["data"]["by"], "kubectl", "{shown}");
        this.out("label configmap said seen=yes");
        this.out("delete configmap said");
        assert_eq!(this.out("exec testpod -- echo hello"), "hello\n", "{shown}");
    }
}

fn secrets_are_roots_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for dir in ["/run/skiff/e2e", "/var/lib/skiff/e2e/pki", "/var/lib/skiff/e2e/images"] {
        assert_eq!(mode(dir), 0o700, "{dir}");
    }
    for file in
        ["/var/lib/skiff/e2e/store.redb", "/var/lib/skiff/e2e/pki/ca.key", "/var/lib/skiff/e2e/daemon.log"]
    {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}

fn a_second_start_changes_nothing(cluster: &Cluster) {
    let pid = cluster.daemon_pid();
    assert!(cluster.skiff("start").out().contains("runs already"));
    assert_eq!(cluster.daemon_pid(), pid);
    assert!(cluster.skiff("status").out().contains("node: Ready"));
}

fn a_killed_daemon_loses_no_acknowledged_write(cluster: &Cluster, kubectl: &Kubectl) {
    let containers = running(kubectl);
    let written = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (kubectl, written) = (kubectl.clone(), written.clone());
        std::thread::spawn(move || {
            let create = |i: &u32| {
                let name = format!("write-{i}");
                let created = kubectl.args(&["create", "configmap", &name, &format!("--from-literal=n={i}")]);
                written.fetch_add(usize::from(created.ok), Ordering::Relaxed);
                created.ok
            };
            (0..200).take_while(create).collect::<Vec<u32>>()
        })
    };
    eventually("some writes are acknowledged", SOON, || (written.load(Ordering::Relaxed) >= 5).then_some(()));
    cluster.kill_daemon();
    let acknowledged = writer.join().unwrap();
    assert!(!acknowledged.is_empty() && acknowledged.len() < 200, "{} writes", acknowledged.len());
    cluster.skiff("start").out();
    for i in &acknowledged {
        assert_eq!(kubectl.json(&format!("get configmap write-{i}"))["data"]["n"], i.to_string());
    }
    eventually("Pods run as before", SOON, || {
        let now = running(kubectl);
        if now != containers {
            eprintln!("before {containers:#?}\nnow {now:#?}");
        }
        (now == containers).then_some(())
    });
    assert_eq!(kubectl.out("exec testpod -- echo back"), "back\n");
    assert!(kubectl.out("exec testpod -- wget -qO- nginx-app").contains("Welcome to nginx!"));
}

/// Container ids of all Pods with their restart counts: equal when nothing was restarted.
fn running(kubectl: &Kubectl) -> Vec<String> {
    let pods = kubectl.json("get pods -A");
    let statuses = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|p| p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default());
    let show = |s: Value| format!("{} {} {}", s["containerID"], s["restartCount"], s["ready"]);
    let mut all: Vec<String> = statuses.map(show).collect();
    all.sort();
    all
}

fn a_stop_keeps_what_the_cluster_remembers(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("stop").out();
    assert_eq!(cluster.skiff("status").code, Some(3));
    cluster.skiff("start").out();
    eventually("Pods are back", SOON, || {
        let pods = kubectl.out("get pods");
        (pods.matches("1/1     Running").count() == 3).then_some(())
    });
    eventually("the application answers", SOON, || {
        let page = kubectl.run("exec testpod -- wget -qO- nginx-app");
        page.stdout.contains("Welcome to nginx!").then_some(())
    });
}

fn deleted_things_go_away(kubectl: &Kubectl) {
    kubectl.out("delete deploy,service nginx-app");
    kubectl.out("delete pod testpod --now");
    eventually("all Pods are gone", SOON, || {
        kubectl.json("get pods")["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let links = program("ip", &["-o", "link"]).out();
    assert!(!links.contains("nginx"), "{links}");
}
