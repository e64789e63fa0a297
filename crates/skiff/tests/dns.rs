//! Cluster DNS beyond the tutorial: a libc of another kind, the host's name, and a Corefile that is edited while Pods ask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
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
    the_server_may_do_nothing_but_its_work(&kubectl);
    an_application_and_a_client(&kubectl);
    a_pod_with_glibc_asks_too(&kubectl);
    every_row_is_answered_in_a_pod(&kubectl);
    the_host_has_a_name(&cluster, &kubectl);
    no_answer_is_lost_while_the_server_is_replaced(&kubectl);
    answers_go_on_without_the_api_server(&cluster, &kubectl);
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

/// Not root, no capability but the one that its port needs, and nothing to write to.
fn the_server_may_do_nothing_but_its_work(kubectl: &Kubectl) {
    let status = kubectl.out("-n kube-system exec deploy/coredns -- cat /proc/1/status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["65532"; 4]);
    let bind = 1u64 << 10;
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let all = u64::from_str_radix(&field(set)[0], 16).unwrap();
        assert_eq!(all & !bind, 0, "{set} {all:x}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
}

const ROWS: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "set"}, "spec": {"clusterIP": "None",
        "selector": {"app": "set"}, "ports": [{"name": "http", "port": 80}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "eager"}, "spec": {"clusterIP": "None",
        "selector": {"app": "unready"}, "publishNotReadyAddresses": true, "ports": [{"name": "http", "port": 80}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "lazy"}, "spec": {"clusterIP": "None",
        "selector": {"app": "unready"}, "ports": [{"name": "http", "port": 80}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "named"},
        "spec": {"selector": {"app": "set"}, "ports": [{"name": "http", "port": 80}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {"type": "ExternalName",
        "externalName": "named.default.svc.cluster.local"}},
    {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "set"}, "spec": {"serviceName": "set", "replicas": 2,
        "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "set"}},
        "template": {"metadata": {"labels": {"app": "set"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "localhost/skiff:latest", "args": ["serve"]}]}}}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "unready", "labels": {"app": "unready"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "localhost/skiff:latest", "args": ["serve"],
            "readinessProbe": {"exec": {"command": ["false"]}}}]}}]}"#;

/// The rows of the specification's tables that a Pod can ask for by glibc's getent and by busybox.
fn every_row_is_answered_in_a_pod(kubectl: &Kubectl) {
    kubectl.apply(ROWS);
    kubectl.out("rollout status statefulset/set --timeout=60s");
    let field = |what: &str, path: &str| kubectl.out(&format!("get {what} -o jsonpath={path}"));
    let pod = |name: &str| {
        eventually(name, SOON, || {
            Some(field(&format!("pod/{name}"), "{.status.podIP}")).filter(|ip| !ip.is_empty())
        })
    };
    let (first, second, unready) = (pod("set-0"), pod("set-1"), pod("unready"));
    let named = field("service/named", "{.spec.clusterIP}");
    let reversed = |ip: &str| ip.split('.').rev().collect::<Vec<_>>().join(".") + ".in-addr.arpa";
    let dashed = format!("{}.default.pod", first.replace('.', "-"));
    let zone = "svc.cluster.local";
    let getent = [
        ("SVC.NS.svc.ZONE (ClusterIP) A", "ahostsv4 named".to_owned(), vec![named.clone()]),
        ("reverse of a cluster IP PTR", format!("hosts {named}"), vec![format!("named.default.{zone}")]),
        ("SVC.NS.svc.ZONE (headless) A", "ahostsv4 set".to_owned(), vec![first.clone(), second.clone()]),
        ("HOST.SVC.NS.svc.ZONE (headless) A", "ahostsv4 set-1.set".to_owned(), vec![second.clone()]),
        ("reverse of an endpoint PTR", format!("hosts {second}"), vec![format!("set-1.set.default.{zone}")]),
        (
            "SVC.NS.svc.ZONE (ExternalName) with the target's A",
            "ahostsv4 alias".to_owned(),
            vec![named.clone()],
        ),
        ("a-b-c-d.NS.pod.ZONE A", format!("ahostsv4 {dashed}"), vec![first.clone()]),
        ("publishNotReadyAddresses", "ahostsv4 eager".to_owned(), vec![unready.clone()]),
    ];
    for (row, args, expected) in &getent {
        eventually(row, SOON, || {
            let said = kubectl.run(&format!("exec glibc -- /getent {args}")).stdout;
            expected.iter().all(|part| said.contains(part)).then_some(())
        });
    }
    let lookups = [
        ("dns-version.ZONE TXT", "txt", "dns-version.cluster.local".to_owned(), "1.1.0".to_owned()),
        ("SVC.NS.svc.ZONE (ClusterIP) A", "a", format!("named.default.{zone}"), named.clone()),
        (
            "_PORT._PROTO.SVC.NS.svc.ZONE (ClusterIP) SRV",
            "srv",
            format!("_http._tcp.named.default.{zone}"),
            format!("0 100 80 named.default.{zone}"),
        ),
        ("reverse of a cluster IP PTR", "ptr", reversed(&named), format!("named.default.{zone}")),
        ("SVC.NS.svc.ZONE (headless) A", "a", format!("set.default.{zone}"), first.clone()),
        ("HOST.SVC.NS.svc.ZONE (headless) A", "a", format!("set-0.set.default.{zone}"), first.clone()),
        (
            "_PORT._PROTO.SVC.NS.svc.ZONE (headless) SRV",
            "srv",
            format!("_http._tcp.set.default.{zone}"),
            format!("80 set-0.set.default.{zone}"),
        ),
        ("reverse of an endpoint PTR", "ptr", reversed(&first), format!("set-0.set.default.{zone}")),
        (
            "SVC.NS.svc.ZONE (ExternalName) CNAME",
            "cname",
            format!("alias.default.{zone}"),
            format!("named.default.{zone}"),
        ),
        ("a-b-c-d.NS.pod.ZONE A", "a", format!("{dashed}.cluster.local"), first.clone()),
        ("publishNotReadyAddresses", "a", format!("eager.default.{zone}"), unready.clone()),
        ("unknown service", "a", format!("nope.default.{zone}"), "NXDOMAIN".to_owned()),
        ("headless without ready endpoints", "a", format!("lazy.default.{zone}"), "NXDOMAIN".to_owned()),
        (
            "ExternalName with port labels",
            "srv",
            format!("_http._tcp.alias.default.{zone}"),
            "NXDOMAIN".to_owned(),
        ),
    ];
    for (row, kind, name, expected) in &lookups {
        let said = kubectl.run(&format!("exec testpod -- nslookup -type={kind} {name}.")).stdout;
        assert!(said.contains(expected), "{row}: no {expected} in {said}");
    }
    let said = kubectl.run(&format!("exec testpod -- nslookup -type=aaaa named.default.{zone}.")).stdout;
    assert!(!said.contains("NXDOMAIN") && !said.contains("Name:"), "another type is no data: {said}");
    kubectl.out("delete statefulset/set pod/unready --wait=false");
}

/// An address at which the host reaches the cluster's DNS.
fn dns_for_the_host(kubectl: &Kubectl) -> String {
    kubectl.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outer-dns", "namespace": "kube-system"}, "spec": {
            "type": "LoadBalancer", "selector": {"k8s-app": "kube-dns"},
            "ports": [{"port": 53, "protocol": "UDP"}]}}"#,
    );
    eventually("DNS has an address for the host", SOON, || {
        let path = "{.status.loadBalancer.ingress[0].ip}";
        let ip = kubectl.out(&format!("-n kube-system get service outer-dns -o jsonpath={path}"));
        (!ip.is_empty() && answered(&ip, Duration::from_millis(200))).then_some(ip)
    })
}

/// Whether one datagram, sent once from a port of its own, is answered with the address of Service `kubernetes`.
fn answered(server: &str, patience: Duration) -> bool {
    let mut asked = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in "kubernetes.default.svc.cluster.local".split('.') {
        asked.push(label.len() as u8);
        asked.extend_from_slice(label.as_bytes());
    }
    asked.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 512];
    let sent = socket.connect((server, 53)).and_then(|()| socket.send(&asked));
    sent.and_then(|_| socket.recv(&mut buffer)).is_ok_and(|len| buffer[..len].ends_with(&[10, 96, 0, 1]))
}

/// Several servers, then each replaced, while somebody asks every few milliseconds and never twice.
fn no_answer_is_lost_while_the_server_is_replaced(kubectl: &Kubectl) {
    let server = dns_for_the_host(kubectl);
    let done = AtomicBool::new(false);
    let (asked, lost) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut lost) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                asked += 1;
                lost += u32::from(!answered(&server, Duration::from_secs(5)));
                std::thread::sleep(Duration::from_millis(5));
            }
            (asked, lost)
        });
        let system = |line: &str| kubectl.out(&format!("-n kube-system {line}"));
        for line in [
            "scale deploy/coredns --replicas=2",
            "rollout restart deploy/coredns",
            "scale deploy/coredns --replicas=1",
        ] {
            system(line);
            system("rollout status deploy/coredns --timeout=90s");
            eventually(line, Duration::from_secs(90), || {
                let pods = system("get pods -l k8s-app=kube-dns --no-headers");
                (!pods.contains("Terminating")).then_some(())
            });
        }
        done.store(true, Ordering::SeqCst);
        asking.join().unwrap()
    });
    assert!(asked > 100 && lost == 0, "{lost} of {asked} questions were not answered");
}

/// The API server, its controllers and the proxy stand still; whoever asks notices nothing.
fn answers_go_on_without_the_api_server(cluster: &Cluster, kubectl: &Kubectl) {
    let server = dns_for_the_host(kubectl);
    let daemon = nix::unistd::Pid::from_raw(cluster.daemon_pid());
    let signal = |signal| nix::sys::signal::kill(daemon, signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let answers = (0..50).filter(|_| answered(&server, Duration::from_secs(5))).count();
    signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(answers, 50);
    kubectl.out("-n kube-system delete service outer-dns");
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
