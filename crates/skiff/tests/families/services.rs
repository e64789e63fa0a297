//! Services of either family and of both: their addresses and slices, and traffic on IPv6 by every way.

use serde_json::Value;
use testkit::eventually;
use testkit::kubectl::Kubectl;

use crate::SOON;
use crate::ask::{bracketed, curl, echoed, families, fetch, host_gets, internal, ips, pod_ips, shows, texts};

/// Makes a Service of the servers; gives the object.
pub fn service(kubectl: &Kubectl, name: &str, more: &str) -> Value {
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: web}}, \
         ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: udp, port: 81, targetPort: 8081, protocol: UDP}}]{more}}}}}"
    ));
    kubectl.json(&format!("get service {name}"))
}

/// Families of the slices of a Service that have an endpoint on each node.
pub fn slices(kubectl: &Kubectl, name: &str) -> String {
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
pub fn services_of_every_family(kubectl: &Kubectl) {
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

/// "Granular Checks: Services Secondary IP Family": pod-, node- and endpoint-Service by HTTP and UDP, node ports on both
/// nodes, load balancers, endpoints on the node's network, hairpin, changes of endpoints, refusal without any.
pub fn traffic_on_ipv6(kubectl: &Kubectl) {
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
