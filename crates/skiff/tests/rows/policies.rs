//! Which endpoints serve whom: traffic policies, readiness, zones, and what load balancers see of it.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use testkit::eventually;

use crate::types::{ask, echoes};
use crate::world::{SOON, World};

pub fn service_go_internal_policy(w: &World) {
    w.service("inside", "pod: s1", "internalTrafficPolicy: Local");
    let ip = w.cluster_ip("inside");
    assert_eq!(w.fetches("near", &ip).by, "s1");
    let node = w.cluster.skiff(&format!("ssh curl -s --max-time 2 http://{ip}")).out();
    assert!(node.contains("Hostname: s1"), "from the node itself: {node}");
    w.is_silent("far", &ip);
    w.patch("inside", r#"{"spec":{"internalTrafficPolicy":"Cluster"}}"#);
    assert_eq!(w.fetches("far", &ip).by, "s1");
    // An endpoint on its node's network: for Pods of that node and for the node itself, and for nobody elsewhere.
    w.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: on-host, labels: {{pod: on-host}}}}\nspec:\n  nodeName: {}\n  \
         hostNetwork: true\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: \
         'localhost/skiff:latest', command: [serve, --http, \"8090\"]}}\n",
        w.nodes[0].0
    ));
    let local = "internalTrafficPolicy: Local\n  ports: [{port: 80, targetPort: 8090}]";
    w.service("outside", "pod: on-host", local);
    let ip = w.cluster_ip("outside");
    let by = w.fetches("near", &ip).by;
    eventually("from the node itself", SOON, || {
        let node = w.cluster.skiff(&format!("ssh curl -s --max-time 2 http://{ip}")).out();
        node.contains(&format!("Hostname: {by}")).then_some(())
    });
    w.is_silent("far", &ip);
    w.kubectl.out("delete pod on-host --now --wait=false");
    w.delete("inside outside");
}

pub fn service_go_protocols(w: &World) {
    let both = "type: LoadBalancer\n  ports:\n  - {name: t, port: 80, targetPort: 8080}\n  - {name: u, port: 80, targetPort: 9000, protocol: UDP}";
    w.service("two", "pod: s3", both);
    let vip = w.external("two");
    assert_eq!(w.fetches("near", &w.cluster_ip("two")).by, "s3");
    assert_eq!(w.answers_host(&vip).by, "s3");
    echoes(&format!("{vip}:80"));
    // An SCTP Service gets its endpoints; nothing is loaded for it.
    let modules = || std::fs::read_to_string("/proc/modules").unwrap_or_default();
    let before = modules().contains("sctp");
    w.service("sctp", "app: web", "ports: [{port: 5060, protocol: SCTP}]");
    eventually("endpoints of SCTP", SOON, || {
        let slices = w.kubectl.json("get endpointslices -l kubernetes.io/service-name=sctp");
        let slice = &slices["items"][0];
        let is = slice["ports"][0]["protocol"] == "SCTP" && slice["endpoints"].as_array()?.len() == 3;
        is.then_some(())
    });
    let rules = eventually("rules of SCTP", SOON, || {
        let listed = w.cluster.skiff("ssh nft list map ip skiff-proxy svc4").out();
        listed.contains(". sctp . 5060").then_some(listed)
    });
    assert!(rules.contains("goto o3"), "{rules}");
    assert_eq!(modules().contains("sctp"), before);
    w.delete("two sctp");
}

pub fn traffic_distribution_go(w: &World) {
    for ((node, _), zone) in w.nodes.iter().zip(["a", "b"]) {
        w.kubectl.out(&format!("label node {node} topology.kubernetes.io/zone={zone}"));
    }
    w.kubectl.out("label pod s1 s3 zoned=yes");
    w.service("close", "zoned: \"yes\"", "trafficDistribution: PreferClose");
    let ip = w.cluster_ip("close");
    w.answered_by("near", &ip, &["s1"]);
    w.answered_by("far", &ip, &["s3"]);
    let hints = || {
        let slices = w.kubectl.json("get endpointslices -l kubernetes.io/service-name=close");
        let endpoints = slices["items"][0]["endpoints"].as_array().unwrap().clone();
        let of = |e: &serde_json::Value| (e["targetRef"]["name"].to_string(), e["hints"].clone());
        endpoints.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(hints()["\"s3\""]["forZones"][0]["name"], "b");
    // A zone without an endpoint is served by the others.
    w.kubectl.out("label pod s1 zoned-");
    w.answered_by("near", &ip, &["s3"]);
    // By node: s2 shares its zone with s1 and now its node only.
    w.kubectl.out("label pod s2 zoned=yes");
    w.patch("close", r#"{"spec":{"trafficDistribution":"PreferSameNode"}}"#);
    w.answered_by("near", &ip, &["s2"]);
    assert_eq!(hints()["\"s3\""]["forNodes"][0]["name"], w.nodes[1].0.as_str());
    // topology_hints.go: zones in proportion. A control plane's processors are not for Services, so it has to be none.
    w.patch("close", r#"{"metadata":{"annotations":{"service.kubernetes.io/topology-mode":"Auto"}}}"#);
    eventually("no hints with one zone", SOON, || hints().values().all(|h| h.is_null()).then_some(()));
    w.answered_by("near", &ip, &["s2", "s3"]);
    let (first, _) = &w.nodes[0];
    w.kubectl.out(&format!("label node {first} node-role.kubernetes.io/control-plane-"));
    w.answered_by("near", &ip, &["s2"]);
    w.answered_by("far", &ip, &["s3"]);
    let events = || w.kubectl.out("get events --field-selector involvedObject.name=close");
    eventually("the Events", SOON, || {
        let events = events();
        (events.contains("TopologyAwareHintsDisabled") && events.contains("TopologyAwareHintsEnabled"))
            .then_some(())
    });
    w.kubectl.out(&format!("label node {first} node-role.kubernetes.io/control-plane="));
    w.kubectl.out("label pod s2 s3 zoned-");
    w.delete("close");
}

pub fn service_go_readiness(w: &World) {
    let never = "readinessProbe: {exec: {command: [cat, /nothing]}, periodSeconds: 1}";
    let ending = "lifecycle: {preStop: {exec: {command: [sleep, \"40\"]}}}";
    w.kubectl.apply(&(w.server("unready", 0, never) + &w.server("ending", 0, ending)));
    w.kubectl
        .out("run failed --image=localhost/skiff:latest --restart=Never --labels=pod=failed -- cat /nothing");
    w.kubectl.out("wait --for=condition=Ready pod/ending --timeout=60s");
    // publishNotReadyAddresses: unready Pods are served, and found by name.
    w.service("early", "pod: unready", "publishNotReadyAddresses: true\n  type: NodePort");
    let ip = w.cluster_ip("early");
    assert_eq!(w.fetches("far", &ip).by, "unready");
    assert_eq!(w.fetches_by_name("far", "early").by, "unready");
    for (_, address) in &w.nodes {
        assert_eq!(w.answers_host(&format!("{address}:{}", w.node_port("early"))).by, "unready");
    }
    w.patch("early", r#"{"spec":{"publishNotReadyAddresses":false}}"#);
    w.is_refused("far", &ip);
    // No endpoints, and a failed Pod is none even so.
    w.service("ended", "pod: failed", "publishNotReadyAddresses: true");
    eventually("the Pod has failed", SOON, || {
        (w.kubectl.json("get pod failed")["status"]["phase"] == "Failed").then_some(())
    });
    w.is_refused("near", &w.cluster_ip("ended"));
    // Only a terminating endpoint is left: it serves by every policy, and load balancers are told to go elsewhere.
    let local = "type: LoadBalancer\n  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local";
    w.service("last", "pod: ending", local);
    w.service("last-anywhere", "pod: ending", "type: NodePort");
    let health = w.get("last")["spec"]["healthCheckNodePort"].to_string();
    let (first, second) = (&w.nodes[0].1, &w.nodes[1].1);
    w.has_code(&format!("{first}:{health}"), "200");
    w.has_code(&format!("{second}:{health}"), "503");
    w.kubectl.out("delete pod ending --wait=false");
    w.has_code(&format!("{first}:{health}"), "503");
    let (ip, port) = (w.cluster_ip("last"), w.node_port("last"));
    assert_eq!(w.fetches("near", &ip).by, "ending", "internalTrafficPolicy Local, on its node");
    w.is_silent("far", &ip);
    assert_eq!(
        w.answers_host(&format!("{first}:{port}")).by,
        "ending",
        "externalTrafficPolicy Local, on its node"
    );
    assert!(w.host_fetch(&format!("{second}:{port}")).is_none());
    assert_eq!(
        w.fetches("far", &w.cluster_ip("last-anywhere")).by,
        "ending",
        "internalTrafficPolicy Cluster"
    );
    let port = w.node_port("last-anywhere");
    assert_eq!(w.answers_host(&format!("{second}:{port}")).by, "ending", "externalTrafficPolicy Cluster");
    w.kubectl.out("delete pod ending unready failed --now --wait=false");
    w.delete("early ended last last-anywhere");
}

pub fn loadbalancer_go_local(w: &World) {
    w.service("lb", "pod: s1", "type: LoadBalancer\n  externalTrafficPolicy: Local");
    let (vip, port) = (w.external("lb"), w.node_port("lb"));
    let (first, second) = (&w.nodes[0].1, &w.nodes[1].1);
    let gateway = format!("{}.1", first.rsplit_once('.').unwrap().0);
    // The client's address is kept: through the load balancer, through the node's port, and from a Pod.
    assert_eq!(w.answers_host(&vip).client, gateway);
    assert_eq!(w.answers_host(&format!("{first}:{port}")).client, gateway);
    assert!(w.host_fetch(&format!("{second}:{port}")).is_none(), "no endpoint there");
    for pod in ["near", "far"] {
        assert_eq!(w.fetches(pod, &vip).client, w.pod_ip(pod));
    }
    // Affinity holds there too.
    w.patch("lb", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#);
    assert_eq!(w.answers_host(&vip).by, "s1");
    // To the policy Cluster: the health port goes, the source is the node's, every node forwards.
    let health = w.get("lb")["spec"]["healthCheckNodePort"].to_string();
    w.has_code(&format!("{first}:{health}"), "200");
    w.patch("lb", r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#);
    assert!(w.get("lb")["spec"]["healthCheckNodePort"].is_null());
    w.has_code(&format!("{first}:{health}"), "000");
    let by_second = w.answers_host(&format!("{second}:{port}"));
    assert_eq!((by_second.by.as_str(), &by_second.client), ("s1", second));
    eventually("the source is a node's", SOON, || (w.host_fetch(&vip)?.client != gateway).then_some(()));
    // And back, with the same port.
    w.patch(
        "lb",
        &format!(r#"{{"spec":{{"externalTrafficPolicy":"Local","healthCheckNodePort":{health}}}}}"#),
    );
    w.has_code(&format!("{first}:{health}"), "200");
    eventually("the source is kept again", SOON, || (w.host_fetch(&vip)?.client == gateway).then_some(()));
    w.delete("lb");
}

pub fn loadbalancer_go_changes(w: &World) {
    w.kubectl.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: rolling}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: rolling}}\n  \
         strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}\n  template:\n    metadata: {labels: {app: rolling}}\n    spec:\n      \
         containers:\n      - name: c\n        image: localhost/skiff:latest\n        command: [serve, --udp, \"9000\"]\n        \
         readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}\n        lifecycle: {preStop: {exec: {command: [sleep, \"2\"]}}}\n",
    );
    let ports = "type: LoadBalancer\n  ports:\n  - {name: t, port: 80, targetPort: 8080}\n  - {name: u, port: 80, targetPort: 9000, protocol: UDP}";
    w.service("rolling", "app: rolling", ports);
    w.kubectl.out("rollout status deploy/rolling --timeout=60s");
    let vip = w.external("rolling");
    let before = w.answers_host(&vip).by;
    let to = format!("{vip}:80");
    // One UDP client that keeps its port.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    eventually("UDP is sent back", SOON, || ask(&socket, &to));
    w.kubectl.out("rollout restart deploy/rolling");
    let mut failures = 0;
    let mut tries = 0;
    eventually("the update is over", SOON * 2, || {
        for _ in 0..10 {
            tries += 1;
            failures += usize::from(w.host_fetch(&vip).is_none());
        }
        let status = w.kubectl.json("get deploy rolling")["status"].clone();
        let done = status["updatedReplicas"] == 2 && status["replicas"] == 2 && status["readyReplicas"] == 2;
        done.then_some(())
    });
    assert_eq!(failures, 0, "of {tries} requests");
    assert_ne!(w.answers_host(&vip).by, before);
    eventually("the same UDP client is served by the new ones", SOON, || ask(&socket, &to));
    w.delete("rolling");
    w.kubectl.out("delete deploy rolling --wait=false");
}
