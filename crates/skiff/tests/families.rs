//! IP families: a cluster of two nodes with IPv4 and IPv6, one with IPv6 alone and one with IPv4 alone. Names in quotes are
//! the cases of upstream's `dual_stack.go`; its matrix is run on IPv6, since all other tests run on IPv4.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::program;
use testkit::eventually;
use testkit::kubectl::Kubectl;
use testkit::machine::Machine;

const SOON: Duration = Duration::from_secs(30);
const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

/// A server on each node, a client beside the first of them, and one on the node's own network.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: web, at: near}}
spec:
  nodeName: NODE
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8080", --udp, "8081"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
    env: [{name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web, at: far}}
spec:
  nodeName: LAST
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8080", --udp, "8081"]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: NODE
  containers: [{name: c, image: localhost/skiff:latest, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-node, labels: {app: on-node}}
spec:
  nodeName: LAST
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8090"]
    readinessProbe: {httpGet: {port: 8090}, periodSeconds: 1}
"#;

fn make_pods(kubectl: &Kubectl, node: &str, last: &str) {
    kubectl.apply(&PODS.replace("NODE", node).replace("LAST", last));
    kubectl.out("wait --for=condition=Ready pod/near pod/far pod/client pod/on-node --timeout=60s");
}

/// Each compares the machine before and after: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn both_families_on_two_nodes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Machine::now();
    {
        let cluster = Cluster::start_with(SKIFF, "dual", "--nodes 2");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "dual", "dual-m02");
        nodes_and_pods_have_both(&cluster, &kubectl);
        pods_are_reached_on_both(&kubectl);
        services_of_every_family(&kubectl);
        traffic_on_ipv6(&kubectl);
        names_have_both(&kubectl);
        policies_hold_on_ipv6(&kubectl);
        the_ways_of_the_api_server(&kubectl);
        ingress_on_ipv6(&cluster, &kubectl);
        a_second_start_keeps_all(&cluster, &kubectl);
    }
    before.is_again(Duration::from_secs(60));
}

#[test]
fn one_family_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Machine::now();
    {
        let cluster = Cluster::start_with(SKIFF, "six", "--ip-family ipv6");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "six", "six");
        ipv6_alone(&cluster, &kubectl);
    }
    {
        let cluster = Cluster::start_with(SKIFF, "four", "--ip-family=ipv4");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "four", "four");
        ipv4_alone(&cluster, &kubectl);
    }
    before.is_again(Duration::from_secs(60));
}

/// The strings of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Value::as_str).collect()
}

/// The addresses `[{"ip": ...}]` of a list.
fn ips(list: &Value) -> Vec<String> {
    let all = list.as_array().map_or(&[][..], Vec::as_slice).iter();
    all.filter_map(|row| row["ip"].as_str().map(str::to_owned)).collect()
}

fn internal(node: &Value) -> Vec<String> {
    let rows = node["status"]["addresses"].as_array().unwrap().iter();
    let own = rows.filter(|row| row["type"] == "InternalIP");
    own.map(|row| row["address"].as_str().unwrap().to_owned()).collect()
}

/// `4`, `6`, or `46` for one of each in that order.
fn families<S: AsRef<str>>(addresses: &[S]) -> String {
    let parsed =
        addresses.iter().map(|a| a.as_ref().parse::<IpAddr>().unwrap_or_else(|_| panic!("{}", a.as_ref())));
    parsed.map(|a| if a.is_ipv4() { '4' } else { '6' }).collect()
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn pod_ips(kubectl: &Kubectl, pod: &str) -> Vec<String> {
    ips(&kubectl.json(&format!("get pod {pod}"))["status"]["podIPs"])
}

/// What a Pod gets from a URL within two seconds, or what it says instead.
fn fetch(kubectl: &Kubectl, pod: &str, url: &str) -> String {
    let ran = kubectl.run(&format!("exec {pod} -- wget -q -O - -T 2 {url}"));
    format!("{}{}", ran.stdout, ran.stderr)
}

/// The same from several URLs at once.
fn fetch_all(kubectl: &Kubectl, pod: &str, urls: &[String]) -> Vec<String> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = urls.iter().map(|url| scope.spawn(move || fetch(kubectl, pod, url))).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[track_caller]
fn shows(kubectl: &Kubectl, pod: &str, url: &str, part: &str) {
    let mut last = String::new();
    let began = std::time::Instant::now();
    while began.elapsed() < SOON {
        last = fetch(kubectl, pod, url);
        if last.contains(part) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{pod} does not get {part:?} from {url}: {last}");
}

fn curl(address: &str) -> String {
    let ran =
        program("curl", &["-sS", "-g", "--noproxy", "*", "--max-time", "3", &format!("http://{address}")]);
    format!("{}{}", ran.stdout, ran.stderr)
}

#[track_caller]
fn host_gets(address: &str, part: &str) {
    eventually(&format!("{address} shows {part}"), SOON, || curl(address).contains(part).then_some(()));
}

/// "should have ipv4 and ipv6 internal node ip", "should create pod, add ipv6 and ipv4 ip to pod ips".
fn nodes_and_pods_have_both(cluster: &Cluster, kubectl: &Kubectl) {
    for (name, ranges) in [
        ("dual", ["10.244.0.0/24", "fd00:10:244::/64"]),
        ("dual-m02", ["10.244.1.0/24", "fd00:10:244:1::/64"]),
    ] {
        let node = kubectl.json(&format!("get node {name}"));
        assert_eq!(families(&internal(&node)), "46", "{node}");
        assert_eq!(texts(&node["spec"]["podCIDRs"]), ranges);
        assert_eq!(node["spec"]["podCIDR"], ranges[0]);
    }
    let node = internal(&kubectl.json("get node dual"));
    assert_eq!(cluster.skiff("ip").out().trim(), node[0]);
    let pod = kubectl.json("get pod near");
    let own = ips(&pod["status"]["podIPs"]);
    assert_eq!(families(&own), "46", "{pod}");
    assert_eq!(pod["status"]["podIP"], own[0].as_str());
    assert_eq!(ips(&pod["status"]["hostIPs"]), node);
    assert_eq!(pod["status"]["hostIP"], node[0].as_str());
    let env = kubectl.out("exec near -- env");
    assert!(env.contains(&format!("IPS={}\n", own.join(","))), "{env}");
    assert!(env.contains(&format!("HOSTS={}\n", node.join(","))), "{env}");
    let hosts = kubectl.out("exec near -- cat /etc/hosts");
    assert!(own.iter().all(|ip| hosts.contains(&format!("{ip}\tnear\n"))), "{hosts}");
    let on_node = internal(&kubectl.json("get node dual-m02"));
    assert_eq!(pod_ips(kubectl, "on-node"), on_node);
}

/// "should be able to reach pod on ipv4 and ipv6 ip": on the same node and on another, with the sender's own address.
fn pods_are_reached_on_both(kubectl: &Kubectl) {
    let clients = pod_ips(kubectl, "client");
    for server in ["near", "far"] {
        for (server_ip, client_ip) in pod_ips(kubectl, server).iter().zip(&clients) {
            let url = format!("{}:8080", bracketed(server_ip));
            shows(kubectl, "client", &url, &format!("Hostname: {server}\n"));
            shows(kubectl, "client", &url, &format!("Client: {}:", bracketed(client_ip)));
        }
    }
    // A Pod on the node's network, and the node's own address, from a Pod of another node.
    for ip in pod_ips(kubectl, "on-node") {
        shows(kubectl, "client", &format!("{}:8090", bracketed(&ip)), "Hostname: dual-m02\n");
    }
}

/// Makes a Service of the servers; gives the object.
fn service(kubectl: &Kubectl, name: &str, more: &str) -> Value {
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: web}}, \
         ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: udp, port: 81, targetPort: 8081, protocol: UDP}}]{more}}}}}"
    ));
    kubectl.json(&format!("get service {name}"))
}

/// Families of the slices of a Service that have an endpoint on each node.
fn slices(kubectl: &Kubectl, name: &str) -> String {
    let all = kubectl.json(&format!("get endpointslices -l kubernetes.io/service-name={name}"));
    let full = |slice: &&Value| slice["endpoints"].as_array().is_some_and(|e| e.len() == 2);
    let rows = all["items"].as_array().unwrap().iter().filter(full);
    let mut found: Vec<String> = rows
        .map(|slice| {
            let addresses =
                slice["endpoints"].as_array().unwrap().iter().flat_map(|e| texts(&e["addresses"]));
            format!("{}:{}", slice["addressType"].as_str().unwrap(), families(&addresses.collect::<Vec<_>>()))
        })
        .collect();
    found.sort();
    found.join(" ")
}

/// "should create a single stack service with cluster ip from primary service range", "... with ipv4 cluster ip",
/// "... with ipv6 cluster ip", "... with ipv4,v6 cluster ip", "... with ipv6,v4 cluster ip"; a slice per family of each.
fn services_of_every_family(kubectl: &Kubectl) {
    const FOUR: &str = "IPv4:44";
    const SIX: &str = "IPv6:66";
    let table = [
        ("plain", "", "4", FOUR.to_owned(), "SingleStack"),
        ("four", ", ipFamilies: [IPv4]", "4", FOUR.to_owned(), "SingleStack"),
        ("six", ", ipFamilies: [IPv6]", "6", SIX.to_owned(), "SingleStack"),
        ("prefer", ", ipFamilyPolicy: PreferDualStack", "46", format!("{FOUR} {SIX}"), "PreferDualStack"),
        (
            "four-six",
            ", ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]",
            "46",
            format!("{FOUR} {SIX}"),
            "RequireDualStack",
        ),
        (
            "six-four",
            ", ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]",
            "64",
            format!("{FOUR} {SIX}"),
            "RequireDualStack",
        ),
    ];
    for (name, more, addresses, sliced, policy) in table {
        let spec = &service(kubectl, name, more)["spec"];
        assert_eq!(families(&texts(&spec["clusterIPs"])), addresses, "{name}: {spec}");
        assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
        assert_eq!(spec["ipFamilyPolicy"], policy, "{name}");
        eventually(&format!("slices of {name}"), SOON, || (slices(kubectl, name) == sliced).then_some(()));
        let endpoints = kubectl.json(&format!("get endpoints {name}"));
        let first = ips(&endpoints["subsets"][0]["addresses"]);
        assert_eq!(families(&first), addresses[..1].repeat(2), "Endpoints are of the main family alone");
    }
    // The second family of a live Service comes and goes with its policy, and with it its rules.
    let policy = |policy: &str| {
        let patch = format!(r#"{{"spec":{{"ipFamilyPolicy":"{policy}"}}}}"#);
        kubectl.args(&["patch", "service", "four", "-p", &patch]).out();
        let spec = kubectl.json("get service four")["spec"].clone();
        texts(&spec["clusterIPs"]).iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>()
    };
    let both = policy("RequireDualStack");
    assert_eq!(families(&both), "46");
    shows(kubectl, "client", &bracketed(&both[1]), "Hostname: ");
    assert_eq!(policy("SingleStack"), both[..1]);
    eventually("the second address is refused", SOON, || {
        (!fetch(kubectl, "client", &bracketed(&both[1])).contains("Hostname")).then_some(())
    });
    shows(kubectl, "client", &both[0], "Hostname: ");
}

/// An answer to a datagram from the host.
fn echoed(address: &str, port: u16) -> Option<String> {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(b"ping", (address, port)).ok()?;
    let mut buffer = [0; 16];
    let read = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// "Granular Checks: Services Secondary IP Family": pod-, node- and endpoint-Service by HTTP and UDP, node ports on both
/// nodes, load balancers, endpoints on the node's network, hairpin, changes of endpoints, refusal without any.
fn traffic_on_ipv6(kubectl: &Kubectl) {
    let spec = service(
        kubectl,
        "balanced",
        ", type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]",
    );
    let cluster_ip = bracketed(spec["spec"]["clusterIPs"][0].as_str().unwrap());
    let (http, udp) =
        (spec["spec"]["ports"][0]["nodePort"].as_u64(), spec["spec"]["ports"][1]["nodePort"].as_u64());
    let (http, udp) = (http.unwrap(), u16::try_from(udp.unwrap()).unwrap());
    // From a Pod, from a node, through one's own Service; both servers are found, whose client is the Pod.
    for server in ["near", "far"] {
        shows(kubectl, "client", &cluster_ip, &format!("Hostname: {server}\n"));
        shows(kubectl, "on-node", &cluster_ip, &format!("Hostname: {server}\n"));
        shows(kubectl, "near", &cluster_ip, &format!("Hostname: {server}\n"));
    }
    let own = pod_ips(kubectl, "client")[1].clone();
    shows(kubectl, "client", &cluster_ip, &format!("Client: {}:", bracketed(&own)));
    // Node ports on both nodes, whose Pods are on both.
    for node in ["dual", "dual-m02"] {
        let address = internal(&kubectl.json(&format!("get node {node}")))[1].clone();
        for server in ["near", "far"] {
            host_gets(&format!("{}:{http}", bracketed(&address)), &format!("Hostname: {server}\n"));
        }
        eventually("udp through a node port", SOON, || (echoed(&address, udp)? == "ping").then_some(()));
        shows(kubectl, "client", &format!("{}:{http}", bracketed(&address)), "Hostname: ");
    }
    // An address of the load balancer's own per family, in the Service's order.
    let addresses = eventually("the load balancer's addresses", SOON, || {
        let all = ips(&kubectl.json("get service balanced")["status"]["loadBalancer"]["ingress"]);
        (all.len() == 2).then_some(all)
    });
    assert_eq!(families(&addresses), "64");
    for address in &addresses {
        host_gets(&bracketed(address), "Hostname: near\n");
        host_gets(&bracketed(address), "Hostname: far\n");
    }
    eventually("udp through a load balancer", SOON, || (echoed(&addresses[0], 81)? == "ping").then_some(()));
    // Local: the client's own address is seen.
    let patch = r#"{"spec":{"externalTrafficPolicy":"Local"}}"#;
    kubectl.args(&["patch", "service", "balanced", "-p", patch]).out();
    host_gets(&bracketed(&addresses[0]), "Client: [fd00:");
    let gateway = internal(&kubectl.json("get node dual"))[1].replace("::2", "::1");
    host_gets(&bracketed(&addresses[0]), &format!("Client: {}:", bracketed(&gateway)));
    // One family given up: its address goes.
    let patch = r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#;
    kubectl.args(&["patch", "service", "balanced", "-p", patch]).out();
    eventually("the IPv4 address is given back", SOON, || {
        let now = ips(&kubectl.json("get service balanced")["status"]["loadBalancer"]["ingress"]);
        (now == addresses[..1]).then_some(())
    });
    eventually("and answers no more", SOON, || curl(&addresses[1]).contains("curl:").then_some(()));
    // Endpoints on the node's network.
    kubectl.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: of-node}, spec: {selector: {app: on-node}, \
         ipFamilies: [IPv6], ports: [{port: 80, targetPort: 8090}]}}",
    );
    let of_node = kubectl.json("get service of-node")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    shows(kubectl, "client", &bracketed(&of_node), "Hostname: dual-m02\n");
    // Endpoints that change, and none: refused at once.
    kubectl.args(&["patch", "service", "six", "-p", r#"{"spec":{"selector":{"at":"far"}}}"#]).out();
    let six = bracketed(kubectl.json("get service six")["spec"]["clusterIP"].as_str().unwrap());
    eventually("only one is left", SOON, || {
        (0..6).all(|_| fetch(kubectl, "client", &six).contains("Hostname: far\n")).then_some(())
    });
    kubectl.args(&["patch", "service", "six", "-p", r#"{"spec":{"selector":{"at":"nowhere"}}}"#]).out();
    shows(kubectl, "client", &six, "refused");
    // Endpoints written by hand are mirrored into slices of their family.
    let far = pod_ips(kubectl, "far")[1].clone();
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: by-hand}}, spec: {{ipFamilies: [IPv6], ports: [{{port: 80, \
         targetPort: 8080}}]}}}}\n---\n{{apiVersion: v1, kind: Endpoints, metadata: {{name: by-hand}}, subsets: \
         [{{addresses: [{{ip: '{far}'}}], ports: [{{port: 8080}}]}}]}}"
    ));
    let by_hand = kubectl.json("get service by-hand")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    shows(kubectl, "client", &bracketed(&by_hand), "Hostname: far\n");
}

/// AAAA and PTR records of Services and Pods, asked over either family.
fn names_have_both(kubectl: &Kubectl) {
    // The host has both as well, and is reached by its name.
    let told = kubectl.out("exec client -- nslookup host.skiff.internal");
    let host: Vec<&str> = told.lines().skip(2).filter_map(|line| line.strip_prefix("Address: ")).collect();
    assert_eq!(families(&host), "46", "{told}");
    let server = std::net::TcpListener::bind((host[1], 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe host";
            // Whoever goes away needs no answer.
            let _ = std::io::Write::write_all(&mut stream.unwrap(), answer.as_bytes());
        }
    });
    shows(kubectl, "client", &format!("http://[{}]:{port}/", host[1]), "the host");
    let spec = kubectl.json("get service prefer")["spec"].clone();
    let both = texts(&spec["clusterIPs"]);
    let servers = kubectl.json("get service kube-dns -n kube-system")["spec"].clone();
    assert_eq!(texts(&servers["clusterIPs"]), ["10.96.0.10", "fd00:10:96::a"]);
    for server in texts(&servers["clusterIPs"]) {
        let told = eventually("both addresses of a name", SOON, || {
            let told = kubectl
                .run(&format!("exec client -- nslookup prefer.default.svc.cluster.local {server}"))
                .stdout;
            both.iter().all(|ip| told.contains(&format!("Address: {ip}\n"))).then_some(told)
        });
        assert!(told.contains(server), "{told}");
    }
    for ip in &both {
        let told = kubectl.out(&format!("exec client -- nslookup {ip}"));
        assert!(told.contains("prefer.default.svc.cluster.local"), "{told}");
    }
    kubectl.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, \
         ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 8080}]}}",
    );
    let pods: Vec<String> = ["near", "far"].iter().flat_map(|pod| pod_ips(kubectl, pod)).collect();
    eventually("a headless Service's Pods", SOON, || {
        let told = kubectl.run("exec client -- nslookup headless").stdout;
        pods.iter().all(|ip| told.contains(ip.as_str())).then_some(())
    });
    eventually("a Pod's name", SOON, || {
        let told = kubectl.run(&format!("exec client -- nslookup {}", pods[1])).stdout;
        told.contains("headless.default.svc.cluster.local").then_some(())
    });
    shows(kubectl, "client", "six-four", "Hostname: ");
}

/// A policy is no way around on the second family: what it forbids on one it forbids on both.
fn policies_hold_on_ipv6(kubectl: &Kubectl) {
    let urls = |pod: &str| -> Vec<String> {
        pod_ips(kubectl, pod).iter().map(|ip| format!("{}:8080", bracketed(ip))).collect()
    };
    let servers = [urls("near"), urls("far")];
    let services: Vec<String> = texts(&kubectl.json("get service prefer")["spec"]["clusterIPs"])
        .iter()
        .map(|ip| bracketed(ip))
        .collect();
    let policy = |rest: &str| {
        kubectl.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {{{rest}}}}}"
        ));
    };
    // What the client can reach, in the order of `all`: each way of near, of far, and the Service.
    let all: Vec<String> = servers.iter().flatten().chain(&services).cloned().collect();
    let reached = |urls: &[String]| -> String {
        let sign = |said: &String| if said.contains("Hostname") { '+' } else { '-' };
        fetch_all(kubectl, "client", urls).iter().map(sign).collect()
    };
    let truth = |wanted: &str, why: &str| {
        let mut last = String::new();
        let began = std::time::Instant::now();
        while began.elapsed() < SOON {
            last = reached(&all);
            if last == wanted {
                return;
            }
        }
        panic!("{why}: {wanted} was wanted of {all:?}, not {last}");
    };
    truth("++++++", "no policy");
    policy("podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]");
    truth("------", "no ingress");
    policy(
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]",
    );
    truth("++++++", "ingress from a label");
    // By address: a block of one family says nothing of the other.
    let own = pod_ips(kubectl, "client");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '{}/128'}}}}]}}]",
        own[1]
    ));
    truth("-+-+-+", "ingress from an IPv6 block");
    policy("podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]");
    truth("+-+-+-", "ingress from all of IPv4");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '::/0', except: ['{}/128']}}}}]}}]",
        own[1]
    ));
    truth("------", "ingress from all of IPv6 but one");
    policy("podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]");
    truth("------", "no egress");
    let gateway = internal(&kubectl.json("get node dual"));
    let node: Vec<String> = gateway.iter().map(|ip| format!("{}:8443", bracketed(ip))).collect();
    let at_node = fetch_all(kubectl, "client", &node);
    assert!(at_node.iter().all(|said| said.contains("timed out")), "{at_node:?}");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: client}}}}, egress: [{{to: [{{ipBlock: {{cidr: '{}/128'}}}}]}}]",
        pod_ips(kubectl, "far")[1]
    ));
    eventually("egress to one IPv6 address", SOON, || (reached(&all[..4]) == "---+").then_some(()));
    kubectl.out("delete networkpolicy p");
    truth("++++++", "no policy any more");
}

/// Logs, exec and port-forward go by the kubelet of each node; Pods reach the API server by its Service.
fn the_ways_of_the_api_server(kubectl: &Kubectl) {
    for pod in ["near", "far"] {
        assert!(kubectl.out(&format!("logs {pod}")).contains("serves http 8080"), "{pod}");
    }
    let proxied = kubectl.out("get --raw /api/v1/namespaces/default/services/http:six-four:http/proxy/");
    assert!(proxied.contains("Hostname: "), "{proxied}");
    let kubernetes = kubectl.json("get service kubernetes")["spec"].clone();
    assert_eq!(texts(&kubernetes["clusterIPs"]), ["10.96.0.1"]);
    let cidrs = kubectl.json("get servicecidr kubernetes")["spec"].clone();
    assert_eq!(texts(&cidrs["cidrs"]), ["10.96.0.0/12", "fd00:10:96::/108"]);
    let records = kubectl.out("get ipaddresses --no-headers");
    assert!(records.lines().any(|line| line.starts_with("fd00:10:96::a ")), "{records}");
}

fn ingress_on_ipv6(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("addons enable ingress").out();
    kubectl.out("create ingress web --rule=/*=six-four:80");
    let pods = eventually("the controller has a node", SOON, || {
        let pods = kubectl.json("get pods -n ingress-nginx");
        pods["items"][0]["spec"]["nodeName"].is_string().then_some(pods)
    });
    let node = pods["items"][0]["spec"]["nodeName"].as_str().unwrap();
    for address in internal(&kubectl.json(&format!("get node {node}"))) {
        host_gets(&bracketed(&address), "Hostname: ");
    }
}

fn a_second_start_keeps_all(cluster: &Cluster, kubectl: &Kubectl) {
    let refused = cluster.skiff("start --ip-family ipv4").err();
    assert!(refused.contains("was made with dual") && refused.contains("delete"), "{refused}");
    let before = (pod_ips(kubectl, "near"), pod_ips(kubectl, "far"));
    cluster.kill_daemon();
    cluster.skiff("start").out();
    kubectl.out("wait --for=condition=Ready pod/near pod/far --timeout=60s");
    assert_eq!((pod_ips(kubectl, "near"), pod_ips(kubectl, "far")), before);
    shows(kubectl, "client", &format!("{}:8080", bracketed(&before.1[1])), "Hostname: far\n");
}

fn ipv6_alone(cluster: &Cluster, kubectl: &Kubectl) {
    let node = kubectl.json("get node six");
    assert_eq!(families(&internal(&node)), "6");
    assert_eq!(texts(&node["spec"]["podCIDRs"]), ["fd00:10:244::/64"]);
    assert_eq!(families(&pod_ips(kubectl, "near")), "6");
    // The host still comes by IPv4.
    assert_eq!(families(&[cluster.skiff("ip").out().trim()]), "4");
    let balanced = service(kubectl, "balanced", ", type: LoadBalancer");
    assert_eq!(families(&texts(&balanced["spec"]["clusterIPs"])), "6");
    assert_eq!(families(&texts(&kubectl.json("get service kubernetes")["spec"]["clusterIPs"])), "6");
    shows(kubectl, "client", "balanced", "Hostname: ");
    shows(kubectl, "on-node", "balanced.default.svc.cluster.local", "Hostname: ");
    let urls = eventually("two addresses for the host", SOON, || {
        let urls = cluster.skiff("service balanced --url").stdout;
        (urls.lines().count() == 4).then_some(urls)
    });
    for url in urls.lines().filter_map(|line| line.strip_prefix("http://")) {
        assert!(url.starts_with('['), "{urls}");
        host_gets(url, "Hostname: ");
    }
    let refused = kubectl.args(&["create", "service", "clusterip", "x", "--tcp=80", "--clusterip=10.96.0.9"]);
    assert!(refused.stderr.contains("IPv4 is not configured on this cluster"), "{}", refused.stderr);
    kubectl.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, policyTypes: [Ingress]}}",
    );
    let near = format!("{}:8080", bracketed(&pod_ips(kubectl, "near")[0]));
    eventually("the policy holds", SOON, || {
        fetch(kubectl, "client", &near).contains("timed out").then_some(())
    });
    assert!(kubectl.out("logs near").contains("serves http"));
}

fn ipv4_alone(cluster: &Cluster, kubectl: &Kubectl) {
    let node = kubectl.json("get node four");
    assert_eq!(internal(&node), [cluster.skiff("ip").out().trim()]);
    assert_eq!(texts(&node["spec"]["podCIDRs"]), ["10.244.0.0/24"]);
    assert_eq!(families(&pod_ips(kubectl, "near")), "4");
    assert_eq!(families(&texts(&service(kubectl, "plain", "")["spec"]["clusterIPs"])), "4");
    shows(kubectl, "client", "plain", "Hostname: ");
    let dual = "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}], selector: {a: b}}}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dual).unwrap();
    let refused = kubectl.args(&["apply", "-f", file.path().to_str().unwrap()]);
    assert!(
        refused.stderr.contains("this cluster is not configured for dual-stack services"),
        "{}",
        refused.stderr
    );
    let prefer = service(kubectl, "prefer", ", ipFamilyPolicy: PreferDualStack");
    assert_eq!(families(&texts(&prefer["spec"]["clusterIPs"])), "4");
}
