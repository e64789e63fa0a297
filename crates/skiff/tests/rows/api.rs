//! Objects as clients see them.

use serde_json::{Value, json};
use testkit::eventually;

use crate::world::{SOON, World, text};

pub fn rows_32_33_34_37_services(w: &World) {
    // 37, 34: the cluster's own Service is there, in the list of all namespaces as well.
    assert_eq!(w.get("kubernetes")["spec"]["ports"][0]["port"], 443);
    let all = w.kubectl.json("get services -A");
    let is_own =
        |s: &&Value| s["metadata"]["name"] == "kubernetes" && s["metadata"]["namespace"] == "default";
    assert_eq!(all["items"].as_array().unwrap().iter().filter(is_own).count(), 1);
    // 32: the status alone, read, patched, replaced and watched.
    w.service("status", "app: web", "type: LoadBalancer\n  loadBalancerClass: example.com/unknown");
    let version = text(&w.get("status")["metadata"]["resourceVersion"]);
    let condition = |reason: &str| {
        json!({"status": {"conditions": [{"type": "Told", "status": "True", "reason": reason, "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
        .to_string()
    };
    w.kubectl
        .args(&[
            "patch",
            "service",
            "status",
            "--subresource=status",
            "--type=merge",
            "-p",
            &condition("Patched"),
        ])
        .out();
    let mut whole = w.kubectl.json("get service status --subresource=status");
    assert_eq!(whole["status"]["conditions"][0]["reason"], "Patched");
    whole["status"]["conditions"][0]["reason"] = "Replaced".into();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), whole.to_string()).unwrap();
    w.kubectl.args(&["replace", "--subresource=status", "-f", &file.path().display().to_string()]).out();
    let watch = format!(
        "get --raw /api/v1/namespaces/default/services?watch=true&timeoutSeconds=1&resourceVersion={version}"
    );
    let events = w.kubectl.out(&watch);
    let reasons: Vec<String> = events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|e| e["type"] == "MODIFIED" && e["object"]["metadata"]["name"] == "status")
        .filter_map(|e| e["object"]["status"]["conditions"][0]["reason"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(reasons, ["Patched", "Replaced"]);
    assert!(w.get("status")["status"]["loadBalancer"].as_object().is_some_and(|b| b.is_empty()));
    // 33: a collection by label.
    for (name, label) in [("c1", "collect=yes"), ("c2", "collect=yes"), ("c3", "collect=no")] {
        w.service(name, "app: web", "");
        w.kubectl.out(&format!("label service {name} {label}"));
    }
    w.kubectl.out("delete --raw /api/v1/namespaces/default/services?labelSelector=collect=yes");
    let left = w.kubectl.out("get services -l collect -o name");
    assert_eq!(left.trim(), "service/c3");
    w.delete("status c3");
}

pub fn row_41_endpoints(w: &World) {
    let endpoints = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: e, labels: {{e: \"yes\"}}}}\nsubsets:\n- addresses: [{{ip: {ip}}}]\n  ports: [{{name: http, port: 80}}]\n"
        )
    };
    w.kubectl.apply(&endpoints("10.0.0.24"));
    let version = text(&w.kubectl.json("get endpoints e")["metadata"]["resourceVersion"]);
    w.kubectl.apply(&endpoints("10.0.0.25"));
    let change = r#"{"metadata":{"labels":{"patched":"yes"}},"subsets":[{"addresses":[{"ip":"10.0.0.26"}],"ports":[{"name":"http","port":8080}]}]}"#;
    w.kubectl.args(&["patch", "endpoints", "e", "--type=strategic", "-p", change]).out();
    let now = w.kubectl.json("get endpoints e");
    assert_eq!(
        now["subsets"],
        json!([{"addresses": [{"ip": "10.0.0.26"}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}])
    );
    assert_eq!(now["metadata"]["labels"], json!({"e": "yes", "patched": "yes"}));
    w.kubectl.out("delete --raw /api/v1/namespaces/default/endpoints?labelSelector=e=yes");
    let watch = format!(
        "get --raw /api/v1/namespaces/default/endpoints?watch=true&timeoutSeconds=1&labelSelector=e=yes&resourceVersion={version}"
    );
    let kinds: Vec<String> = w
        .kubectl
        .out(&watch)
        .lines()
        .map(|l| text(&serde_json::from_str::<Value>(l).unwrap()["type"]))
        .collect();
    assert_eq!(kinds, ["MODIFIED", "MODIFIED", "DELETED"]);
}

fn slice(name: &str, service: &str, port: (&str, u16), ip: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels: \
         {{kubernetes.io/service-name: {service}, endpointslice.kubernetes.io/managed-by: the-author}}\naddressType: IPv4\n\
         endpoints: [{{addresses: [{ip}]}}]\nports: [{{name: {}, port: {}}}]\n---\n",
        port.0, port.1
    )
}

pub fn rows_44_45_slices(w: &World) {
    let (s1, s3) = (w.pod_ip("s1"), w.pod_ip("s3"));
    let bare = |name: &str, ports: &str| {
        w.kubectl.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: {ports}}}\n"
        ));
        w.cluster_ip(name)
    };
    // 44: each port in a slice of its own.
    let ip = bare("by-port", "[{name: a, port: 80}, {name: b, port: 81}]");
    w.kubectl.apply(&(slice("p1", "by-port", ("a", 8080), &s1) + &slice("p2", "by-port", ("b", 8080), &s3)));
    w.answered_by("near", &ip, &["s1"]);
    w.answered_by("near", &format!("{ip}:81"), &["s3"]);
    // 45: each address in a slice of its own.
    let ip = bare("by-address", "[{name: a, port: 80}]");
    w.kubectl
        .apply(&(slice("a1", "by-address", ("a", 8080), &s1) + &slice("a2", "by-address", ("a", 8080), &s3)));
    w.answered_by("far", &ip, &["s1", "s3"]);
    // endpointslicemirroring.go: hand-written Endpoints serve as well.
    let ip = bare("mirrored", "[{port: 80}]");
    w.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: mirrored}}\nsubsets:\n- addresses: [{{ip: {s3}}}]\n  ports: [{{port: 8080}}]\n"
    ));
    w.answered_by("near", &ip, &["s3"]);
    w.kubectl.out("delete endpointslice p1 p2 a1 a2");
    w.delete("by-port by-address mirrored");
}

fn is_ready(w: &World, name: &str, status: &str) {
    eventually(&format!("ServiceCIDR {name} is ready: {status}"), SOON, || {
        let cidr = w.kubectl.json(&format!("get servicecidr {name}"));
        (cidr["status"]["conditions"][0]["type"] == "Ready"
            && cidr["status"]["conditions"][0]["status"] == *status)
            .then_some(())
    });
}

pub fn rows_46_47_networks_and_addresses(w: &World) {
    // 46: the network named kubernetes.
    is_ready(w, "kubernetes", "True");
    let own = w.kubectl.json("get servicecidr kubernetes");
    assert_eq!(own["spec"]["cidrs"][0], "10.96.0.0/12");
    w.kubectl.out("annotate servicecidr kubernetes patched=yes");
    w.kubectl.out("annotate servicecidr kubernetes patched-");
    assert!(w.kubectl.out("get servicecidrs").contains("kubernetes"));
    let resized = r#"{"spec":{"cidrs":["10.96.0.0/16"]}}"#;
    assert!(
        w.kubectl
            .args(&["patch", "servicecidr", "kubernetes", "--type=merge", "-p", resized])
            .err()
            .contains("immutable")
    );
    // 47: addresses of both families, by hand.
    for (family, name) in [("v4", "192.168.200.7"), ("v6", "2001:db8::7")] {
        w.kubectl.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: IPAddress\nmetadata: {{name: \"{name}\", labels: {{family: {family}}}}}\nspec: {{parentRef: {{group: \"\", resource: services, namespace: default, name: nobody}}}}\n"
        ));
    }
    w.kubectl.out("label ipaddress 192.168.200.7 patched=yes");
    assert_eq!(w.kubectl.out("get ipaddresses -l family -o name").lines().count(), 2);
    w.kubectl.out("delete ipaddress 192.168.200.7 2001:db8::7");
    let web = w.cluster_ip("kubernetes");
    assert_eq!(w.kubectl.json(&format!("get ipaddress {web}"))["spec"]["parentRef"]["name"], "kubernetes");
    // service_cidrs.go: a further network, and a Service with an address of it.
    let with = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: further}}\nspec:\n  type: NodePort\n  clusterIP: {ip}\n  selector: {{pod: s3}}\n  ports: [{{port: 80, targetPort: 8080}}]\n"
        )
    };
    assert!(w.refused(&with("10.200.3.4")).contains("not in the valid range"));
    w.kubectl.apply("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: further}\nspec: {cidrs: [10.200.3.0/24]}\n");
    is_ready(w, "further", "True");
    w.kubectl.apply(&with("10.200.3.4"));
    assert_eq!(w.fetches("near", "10.200.3.4").by, "s3");
    assert_eq!(w.answers_host(&format!("{}:{}", w.nodes[0].1, w.node_port("further"))).by, "s3");
    w.is_silent("far", "10.200.3.5");
    // It goes when its last address is given back.
    w.kubectl.out("delete servicecidr further --wait=false");
    is_ready(w, "further", "False");
    w.delete("further");
    eventually("the network is gone", SOON, || (!w.kubectl.run("get servicecidr further").ok).then_some(()));
}

pub fn networking_go(w: &World) {
    for path in ["/healthz", "/api", "/apis", "/metrics", "/openapi/v2", "/version"] {
        w.kubectl.out(&format!("get --raw {path}"));
    }
    for (_, address) in &w.nodes {
        let health = testkit::command::program(
            "curl",
            &["-s", "--noproxy", "*", &format!("http://{address}:10256/healthz")],
        )
        .out();
        assert!(health.contains("lastUpdated"), "{health}");
    }
    assert_eq!(w.cluster.skiff("ssh curl -s http://127.0.0.1:10249/proxyMode").out(), "nftables");
    // kube_proxy.go: half-closed connections are remembered for an hour.
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    assert_eq!(w.cluster.skiff(&format!("ssh cat {path}")).out().trim(), "3600");
}
