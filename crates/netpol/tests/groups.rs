//! The cases of upstream's NetworkPolicy suite (kubernetes test/e2e/network/netpol), group by group: nine Pods, every pair,
//! two ports, three protocols. What is expected is written down by hand for each case; the rules, the explanation and
//! real packets must all agree with it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::walk::Walk;
use common::{NAMESPACES, Objects, PODS, policy};
use serde_json::{Value, json};

/// Pods by namespace and name.
const XA: usize = 0;
const XB: usize = 1;
const YA: usize = 3;
const YB: usize = 4;
const ZA: usize = 6;
const ZC: usize = 8;

fn is_in(pod: usize, namespace: &str) -> bool {
    NAMESPACES[pod / 3] == namespace
}

fn is(pod: usize, name: &str) -> bool {
    PODS[pod % 3] == name
}

/// A node that goes from case to case.
struct Bench(Walk);

impl Bench {
    fn new() -> Self {
        Self(Walk::new())
    }

    /// Holds what is there against what should be: `open` says of each connection whether it is made.
    fn case(&mut self, name: &str, objects: &Objects, open: impl Fn(usize, usize, &str, u16) -> bool) {
        self.0.case(name, objects, |(from, to, p, port)| open(from, to, p, port), |_, _| true);
    }

    /// A case of policies alone, each in a namespace.
    fn policies(
        &mut self,
        name: &str,
        specs: &[(&str, Value)],
        open: impl Fn(usize, usize, &str, u16) -> bool,
    ) {
        self.case(name, &Objects::new(named(specs)), open);
    }
}

fn named(specs: &[(&str, Value)]) -> Vec<Value> {
    specs.iter().enumerate().map(|(i, (namespace, spec))| policy(namespace, &format!("p{i}"), spec)).collect()
}

/// The Pods of that name.
fn pods(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

/// The namespace of that name.
fn namespace(name: &str) -> Value {
    json!({"matchLabels": {"ns": name}})
}

/// What may come to a's of the policy's namespace.
fn ingress_to_a(rules: Value) -> Value {
    json!({"podSelector": pods("a"), "policyTypes": ["Ingress"], "ingress": rules})
}

fn egress_from_a(rules: Value) -> Value {
    json!({"podSelector": pods("a"), "policyTypes": ["Egress"], "egress": rules})
}

#[test]
fn defaults() {
    let mut bench = Bench::new();
    let all = |types: Value| json!({"podSelector": {}, "policyTypes": types});
    bench.policies("default deny ingress", &[("x", all(json!(["Ingress"])))], |_, to, _, _| !is_in(to, "x"));
    bench.policies("default deny all", &[("x", all(json!(["Ingress", "Egress"])))], |from, to, _, _| {
        !is_in(to, "x") && !is_in(from, "x")
    });
    let allow = json!({"podSelector": {}, "ingress": [{}]});
    bench.policies("allow all", &[("x", allow)], |_, _, _, _| true);
    let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    bench.policies("deny other namespaces", &[("x", own)], |from, to, _, _| {
        is_in(from, "x") || !is_in(to, "x")
    });
}

#[test]
fn peers() {
    let mut bench = Bench::new();
    let mut to_xa = |name: &str, from: Value, open: &dyn Fn(usize) -> bool| {
        let spec = ingress_to_a(json!([{"from": from}]));
        bench.policies(name, &[("x", spec)], |from, to, _, _| to != XA || open(from));
    };
    to_xa("pods of the own namespace", json!([{"podSelector": pods("b")}]), &|from| from == XB);
    to_xa("all namespaces", json!([{"namespaceSelector": {}}]), &|_| true);
    to_xa("one namespace", json!([{"namespaceSelector": namespace("y")}]), &|from| is_in(from, "y"));
    let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    to_xa("expressions on pods", json!([{"podSelector": expression("pod", "In", json!(["b"]))}]), &|from| {
        from == XB
    });
    to_xa(
        "expressions on namespaces",
        json!([{"namespaceSelector": expression("ns", "In", json!(["y"]))}]),
        &|from| is_in(from, "y"),
    );
    to_xa(
        "pod or namespace: two peers",
        json!([{"namespaceSelector": namespace("y")}, {"podSelector": pods("b")}]),
        &|from| is_in(from, "y") || from == XB,
    );
    to_xa(
        "pod and namespace: one peer",
        json!([{"namespaceSelector": namespace("y"), "podSelector": pods("b")}]),
        &|from| from == YB,
    );
    to_xa(
        "several selectors with NotIn and In",
        json!([{"namespaceSelector": expression("ns", "NotIn", json!(["x"])), "podSelector": expression("pod", "In", json!(["b", "c"]))}]),
        &|from| !is_in(from, "x") && !is(from, "a"),
    );
    to_xa(
        "any of several selectors",
        json!([{"podSelector": pods("b")}, {"podSelector": pods("c")}]),
        &|from| is_in(from, "x") && !is(from, "a"),
    );
    to_xa(
        "a single pod in another namespace",
        json!([{"namespaceSelector": namespace("z"), "podSelector": pods("c")}]),
        &|from| from == ZC,
    );
    let by_name = json!({"matchLabels": {"kubernetes.io/metadata.name": "y"}});
    to_xa("the namespaces' default label", json!([{"namespaceSelector": by_name}]), &|from| is_in(from, "y"));
    let by_name = expression("kubernetes.io/metadata.name", "In", json!(["y", "z"]));
    to_xa("the same by expression", json!([{"namespaceSelector": by_name}]), &|from| !is_in(from, "x"));
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let allow = ingress_to_a(json!([{"from": [{"namespaceSelector": {}}]}]));
    bench.policies("one target over deny-all", &[("x", deny), ("x", allow)], |_, to, _, _| {
        !is_in(to, "x") || to == XA
    });
}

#[test]
fn ports() {
    let mut bench = Bench::new();
    let tcp_80 = json!([{"ports": [{"port": 80}]}]);
    bench.policies("a number", &[("x", ingress_to_a(tcp_80.clone()))], |_, to, p, port| {
        to != XA || (p == "TCP" && port == 80)
    });
    let tcp_81 = json!([{"ports": [{"port": 81}]}]);
    bench.policies(
        "stacked policies",
        &[("x", ingress_to_a(tcp_80)), ("x", ingress_to_a(tcp_81))],
        |_, to, p, _| to != XA || p == "TCP",
    );
    let by_name = json!([{"ports": [{"port": "serve-81-tcp"}]}]);
    // Only Pods with odd numbers have a port of that name.
    bench.policies(
        "a name on ingress",
        &[("x", ingress_to_a(by_name.clone())), ("y", ingress_to_a(by_name))],
        |_, to, p, port| !(to == XA || to == YA) || (to == YA && p == "TCP" && port == 81),
    );
    let both =
        json!([{"from": [{"namespaceSelector": namespace("y")}], "ports": [{"port": "serve-80-tcp"}]}]);
    bench.policies("a name from a namespace", &[("x", ingress_to_a(both))], |from, to, p, port| {
        to != XA || (is_in(from, "y") && p == "TCP" && port == 80)
    });
    let out = json!([{"ports": [{"port": "serve-81-tcp"}]}]);
    bench.policies(
        "a name on egress is the destination's",
        &[("x", egress_from_a(out))],
        |from, to, p, port| from != XA || (!to.is_multiple_of(2) && p == "TCP" && port == 81),
    );
    let any = json!([{"ports": [{"protocol": "UDP"}]}]);
    bench.policies("any port of one protocol", &[("x", ingress_to_a(any))], |_, to, p, _| {
        to != XA || p == "UDP"
    });
    let range = json!([{"ports": [{"port": 79, "endPort": 80}]}]);
    bench.policies("a range", &[("x", ingress_to_a(range))], |_, to, p, port| {
        to != XA || (p == "TCP" && port == 80)
    });
}

#[test]
fn dynamics() {
    let mut bench = Bench::new();
    let allow = |rules: Value| Objects::new(named(&[("x", ingress_to_a(rules))]));
    bench.case("before the update", &allow(json!([{"ports": [{"port": 81}]}])), |_, to, p, port| {
        to != XA || (p == "TCP" && port == 81)
    });
    bench.case("an updated policy", &allow(json!([{"ports": [{"port": 80}]}])), |_, to, p, port| {
        to != XA || (p == "TCP" && port == 80)
    });
    let mut by_namespace =
        allow(json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns2": "updated"}}}]}]));
    bench.case("before the namespace has the label", &by_namespace, |_, to, _, _| to != XA);
    by_namespace.namespace_labels.insert("y", json!({"ns": "y", "ns2": "updated"}));
    bench.case("a relabelled namespace", &by_namespace, |from, to, _, _| to != XA || is_in(from, "y"));
    let peer =
        json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod2": "updated"}}}]}]);
    let mut by_pod = allow(peer);
    bench.case("before the pod has the label", &by_pod, |_, to, _, _| to != XA);
    by_pod.pod_labels[YB] = json!({"pod": "b", "pod2": "updated"});
    bench.case("a relabelled pod is allowed", &by_pod, |from, to, _, _| to != XA || from == YB);
    let from_y = |from| is_in(from, "y");
    let mut moved = allow(
        json!([{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]}]),
    );
    bench.case("before addresses change", &moved, |from, to, _, _| to != XA || from_y(from));
    moved.places.swap(XB, YB);
    let now_in_y = |from| from == XB || (from_y(from) && from != YB);
    bench.case("a peer's address is another Pod's", &moved, |from, to, _, _| to != XA || now_in_y(from));
    moved.places.swap(XA, ZA);
    bench.case("so is the target's", &moved, |from, to, _, _| to != ZA || now_in_y(from));
    let target = json!({"podSelector": {"matchLabels": {"target": "isolated"}}, "policyTypes": ["Ingress"]});
    let mut denied = Objects::new(named(&[("x", target)]));
    bench.case("before it is a target", &denied, |_, _, _, _| true);
    denied.pod_labels[XA] = json!({"pod": "a", "target": "isolated"});
    bench.case("a relabelled pod is denied", &denied, |_, to, _, _| to != XA);
    bench.case("enforcement ends with the policy", &Objects::new(Vec::new()), |_, _, _, _| true);
}

#[test]
fn egress() {
    let mut bench = Bench::new();
    bench.policies("deny by selector", &[("x", egress_from_a(json!([])))], |from, _, _, _| from != XA);
    let whole = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    bench.policies("deny a whole namespace", &[("x", whole)], |from, _, _, _| !is_in(from, "x"));
    let both = json!({"podSelector": pods("a"), "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": pods("b")}]}], "egress": [{"to": [{"podSelector": pods("b")}]}]});
    bench.policies("ingress and egress in one policy", &[("x", both)], |from, to, _, _| {
        (to != XA || from == XB) && (from != XA || to == XB)
    });
    bench.policies(
        "the client's denial beats the server's permission",
        &[("x", egress_from_a(json!([]))), ("y", ingress_to_a(json!([{}])))],
        |from, _, _, _| from != XA,
    );
    let there = json!([{"to": [{"namespaceSelector": namespace("y"), "podSelector": pods("a")}]}]);
    bench.policies("to a namespace's pod", &[("x", egress_from_a(there))], |from, to, _, _| {
        from != XA || to == YA
    });
    let mut block = |name: &str, to: Value, open: &dyn Fn(usize) -> bool| {
        bench.policies(name, &[("x", egress_from_a(json!([{"to": to}])))], |from, to, _, _| {
            from != XA || open(to)
        });
    };
    let only_ya = json!([{"ipBlock": {"cidr": "10.244.0.14/32"}}]);
    block("one address", only_ya, &|to| to == YA);
    let but_ya = json!([{"ipBlock": {"cidr": "10.244.0.0/24", "except": ["10.244.0.14/32"]}}]);
    block("all but one", but_ya, &|to| to != YA);
    let again = json!([{"ipBlock": {"cidr": "10.244.0.0/24", "except": ["10.244.0.14/32"]}}, {"ipBlock": {"cidr": "10.244.0.14/32"}}]);
    block("excepted and allowed again", again, &|_| true);
}

#[test]
fn combination() {
    let mut bench = Bench::new();
    let narrow = json!([{"ports": [{"port": 81}]}]);
    bench.policies(
        "allow-all wins over narrow ingress",
        &[("x", ingress_to_a(narrow.clone())), ("x", ingress_to_a(json!([{}])))],
        |_, _, _, _| true,
    );
    bench.policies(
        "the same for egress",
        &[("x", egress_from_a(narrow)), ("x", egress_from_a(json!([{}])))],
        |_, _, _, _| true,
    );
    bench.policies(
        "ingress and egress are independent",
        &[("x", ingress_to_a(json!([]))), ("x", egress_from_a(json!([{}])))],
        |_, to, _, _| to != XA,
    );
}

#[test]
fn protocol_safety() {
    let mut bench = Bench::new();
    let only = |protocol: &str| ingress_to_a(json!([{"ports": [{"protocol": protocol, "port": 80}]}]));
    bench.policies("an SCTP rule is none for TCP", &[("x", only("SCTP"))], |_, to, p, port| {
        to != XA || (p == "SCTP" && port == 80)
    });
    let isolating = json!({"podSelector": pods("a"), "ingress": [{"ports": [{"protocol": "SCTP"}]}]});
    bench.policies("an SCTP-only policy isolates TCP too", &[("x", isolating)], |_, to, p, _| {
        to != XA || p == "SCTP"
    });
    bench.policies("a UDP rule is none for TCP", &[("x", only("UDP"))], |_, to, p, port| {
        to != XA || (p == "UDP" && port == 80)
    });
}

#[test]
fn udp_and_sctp() {
    let mut bench = Bench::new();
    for protocol in ["UDP", "SCTP"] {
        let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        bench.policies("default deny", &[("x", deny)], |_, to, _, _| !is_in(to, "x"));
        let port = json!([{"ports": [{"protocol": protocol, "port": 81}]}]);
        bench.policies("a port", &[("x", ingress_to_a(port))], |_, to, p, port| {
            to != XA || (p == protocol && port == 81)
        });
        let peer = json!([{"from": [{"namespaceSelector": namespace("y"), "podSelector": pods("a")}],
            "ports": [{"protocol": protocol, "port": 80}]}]);
        bench.policies("a namespace's pod", &[("x", ingress_to_a(peer))], |from, to, p, port| {
            to != XA || (from == YA && p == protocol && port == 80)
        });
    }
}
