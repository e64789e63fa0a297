//! Types of Services, ports and reach.

use std::net::UdpSocket;
use std::time::Duration;

use testkit::eventually;

use crate::world::{SOON, World};

pub fn rows_25_to_28_types_change_into_each_other(w: &World) {
    w.service("target", "pod: s3", "");
    let name = "target.default.svc.cluster.local";
    // 25: ClusterIP to ExternalName.
    w.service("changing", "app: web", "");
    w.patch("changing", &format!(r#"{{"spec":{{"type":"ExternalName","externalName":"{name}"}}}}"#));
    assert!(w.get("changing")["spec"]["clusterIP"].is_null(), "the cluster address is given back");
    eventually("the name leads to the other Service", SOON, || {
        (w.fetches_by_name("near", "changing").by == "s3").then_some(())
    });
    // 26: ExternalName to ClusterIP.
    w.patch("changing", r#"{"spec":{"type":"ClusterIP","externalName":null}}"#);
    w.answered_by("near", &w.cluster_ip("changing"), &["s1", "s2", "s3"]);
    w.fetches_by_name("far", "changing");
    // 27: ExternalName to NodePort.
    w.patch("changing", &format!(r#"{{"spec":{{"type":"ExternalName","externalName":"{name}"}}}}"#));
    w.patch("changing", r#"{"spec":{"type":"NodePort","externalName":null}}"#);
    let port = w.node_port("changing");
    for (_, address) in &w.nodes {
        w.fetches("near", &format!("{address}:{port}"));
        w.answers_host(&format!("{address}:{port}"));
    }
    // 28: NodePort to ExternalName.
    w.patch("changing", &format!(r#"{{"spec":{{"type":"ExternalName","externalName":"{name}"}}}}"#));
    let spec = &w.get("changing")["spec"];
    assert!(spec["clusterIP"].is_null() && spec["ports"][0]["nodePort"].is_null(), "{spec}");
    w.service("heir", "app: web", &format!("type: NodePort\n  ports: [{{port: 80, nodePort: {port}}}]"));
    w.delete("changing target heir");
}

pub fn row_29_a_node_port_on_every_address(w: &World) {
    w.service("open", "pod: s3", "type: NodePort");
    assert_eq!(w.fetches_by_name("near", "open").by, "s3");
    assert_eq!(w.fetches("near", &w.cluster_ip("open")).by, "s3");
    let port = w.node_port("open");
    for (_, address) in &w.nodes {
        assert_eq!(w.fetches("far", &format!("{address}:{port}")).by, "s3");
        assert_eq!(w.answers_host(&format!("{address}:{port}")).by, "s3");
    }
    let loopback = w.cluster.skiff(&format!("ssh curl -s --max-time 2 http://127.0.0.1:{port}")).out();
    assert!(loopback.contains("Hostname: s3"), "on the node's loopback: {loopback}");
    w.delete("open");
}

pub fn rows_30_31_35_36_affinity(w: &World) {
    let sticky = "sessionAffinity: ClientIP\n  type: NodePort";
    w.service("sticky", "app: web", sticky);
    let cluster = w.cluster_ip("sticky");
    let node = format!("{}:{}", w.nodes[0].1, w.node_port("sticky"));
    let sticks = |to: &str| {
        w.fetches("far", to);
        assert_eq!(w.who("far", to, 10).len(), 1, "{to}");
    };
    // 36, 35: from the beginning.
    sticks(&cluster);
    sticks(&node);
    // 31, 30: off and on again.
    w.patch("sticky", r#"{"spec":{"sessionAffinity":"None"}}"#);
    w.answered_by("far", &cluster, &["s1", "s2", "s3"]);
    w.answered_by("far", &node, &["s1", "s2", "s3"]);
    w.patch("sticky", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#);
    for to in [&cluster, &node] {
        eventually("it sticks again", SOON, || (w.who("far", to, 10).len() == 1).then_some(()));
    }
    // service.go: the time-out ends it; three draws after it are not all the same but once in nine times.
    w.patch("sticky", r#"{"spec":{"sessionAffinityConfig":{"clientIP":{"timeoutSeconds":1}}}}"#);
    let script = format!(
        "for i in 1 2 3; do timeout 2 wget -qO- http://{cluster}/ | head -1; timeout 2 wget -qO- http://{node}/ | head -1; sleep 1.5; done"
    );
    eventually("a client that rests draws again", SOON, || {
        let out = w.kubectl.args(&["exec", "far", "--", "sh", "-c", &script]).out();
        let lines: Vec<&str> = out.lines().collect();
        let differ = |of: usize| lines.iter().skip(of).step_by(2).any(|line| *line != lines[of]);
        (lines.len() == 6 && differ(0) && differ(1)).then_some(())
    });
    w.delete("sticky");
}

pub fn rows_38_39_40_endpoints_and_ports(w: &World) {
    // 38: none, one, both, the other, none.
    w.service("basic", "basic: \"yes\"", "");
    let ip = w.cluster_ip("basic");
    w.is_refused("near", &ip);
    w.kubectl.out("label pod s1 basic=yes");
    w.answered_by("near", &ip, &["s1"]);
    w.kubectl.out("label pod s3 basic=yes");
    w.answered_by("near", &ip, &["s1", "s3"]);
    w.kubectl.out("label pod s1 basic-");
    w.answered_by("near", &ip, &["s3"]);
    w.kubectl.out("label pod s3 basic-");
    w.is_refused("near", &ip);
    // 39: TCP and UDP on one port; one of them goes.
    let both = "type: NodePort\n  ports:\n  - {name: t, port: 80, targetPort: 8080}\n  - {name: u, port: 80, targetPort: 9000, protocol: UDP}";
    w.service("both", "pod: s3", both);
    let port = w.node_port("both");
    assert_eq!(port, w.get("both")["spec"]["ports"][1]["nodePort"].to_string());
    let to = format!("{}:{port}", w.nodes[0].1);
    w.answers_host(&to);
    echoes(&to);
    w.patch("both", r#"{"spec":{"ports":[{"name":"t","port":80,"targetPort":8080}]}}"#);
    eventually("UDP is no longer served", SOON, || echo(&to).is_none().then_some(()));
    assert_eq!(w.answers_host(&to).by, "s3");
    // 40: two named ports of different Pods.
    w.kubectl.out("label pod s1 s3 multi=yes");
    let named = "ports:\n  - {name: one, port: 80, targetPort: at-s1}\n  - {name: three, port: 81, targetPort: at-s3}";
    w.service("multi", "multi: \"yes\"", named);
    let ip = w.cluster_ip("multi");
    w.answered_by("near", &ip, &["s1"]);
    w.answered_by("near", &format!("{ip}:81"), &["s3"]);
    w.kubectl.out("label pod s1 s3 multi-");
    w.delete("basic both multi");
}

/// What a UDP server sends back to this machine, if anything.
pub fn echo(to: &str) -> Option<()> {
    ask(&UdpSocket::bind("0.0.0.0:0").unwrap(), to)
}

pub fn ask(socket: &UdpSocket, to: &str) -> Option<()> {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(b"hello", to).ok()?;
    let mut buffer = [0; 16];
    (socket.recv(&mut buffer).ok()? == 5).then_some(())
}

pub fn echoes(to: &str) {
    eventually(&format!("{to} sends UDP back"), SOON, || echo(to));
}

pub fn service_go_reach(w: &World) {
    w.service("reach", "pod: s1", "externalIPs: [203.0.113.7]");
    let ip = w.cluster_ip("reach");
    // A Pod's address is kept through the cluster address, from its own node and from another.
    for pod in ["near", "far"] {
        assert_eq!(w.fetches(pod, &ip).client, w.pod_ip(pod));
    }
    // A Pod reaches itself through its own Service.
    let own =
        w.kubectl.args(&["exec", "s1", "--", "wget", "-qO-", "--timeout=2", &format!("http://{ip}/")]).out();
    assert!(own.contains("Hostname: s1"), "{own}");
    // An external address that no node has.
    for pod in ["near", "far"] {
        assert_eq!(w.fetches(pod, "203.0.113.7").by, "s1");
    }
    // A port more and one less on a live Service.
    w.patch("reach", r#"{"spec":{"ports":[{"name":"a","port":80,"targetPort":8080},{"name":"b","port":81,"targetPort":8080}]}}"#);
    w.fetches("near", &format!("{ip}:81"));
    w.patch("reach", r#"{"spec":{"ports":[{"name":"b","port":81,"targetPort":8080}]}}"#);
    w.is_refused("near", &ip);
    w.fetches("near", &format!("{ip}:81"));
    // Labels by which a Service is another proxy's, or nobody's, on and off.
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        w.kubectl.out(&format!("label service reach {label}=x"));
        w.is_silent("near", &format!("{ip}:81"));
        w.kubectl.out(&format!("label service reach {label}-"));
        w.fetches("near", &format!("{ip}:81"));
    }
    // Down and up again, with the same address.
    w.delete("reach");
    w.is_silent("near", &format!("{ip}:81"));
    w.service("reach", "pod: s3", &format!("clusterIP: {ip}"));
    w.answered_by("far", &ip, &["s3"]);
    w.delete("reach");
}

pub fn service_go_node_ports(w: &World) {
    w.service("ports", "pod: s1", "type: NodePort");
    let port = w.node_port("ports");
    let to = format!("{}:{port}", w.nodes[1].1);
    w.answers_host(&to);
    // UDP on the same port later.
    w.patch("ports", &format!(r#"{{"spec":{{"ports":[{{"name":"t","port":80,"targetPort":8080,"nodePort":{port}}},{{"name":"u","port":80,"protocol":"UDP","targetPort":9000,"nodePort":{port}}}]}}}}"#));
    echoes(&to);
    w.answers_host(&to);
    // Another Service may not have it, and a port outside of the range nobody, at birth and later.
    let with = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: rival}}\nspec:\n  type: NodePort\n  ports: [{{port: 80, nodePort: {port}}}]\n"
        )
    };
    assert!(w.refused(&with(&port)).contains("port is already allocated"));
    assert!(w.refused(&with("80")).contains("not in the valid range"));
    let change = r#"{"spec":{"ports":[{"name":"t","port":80,"nodePort":40000}]}}"#;
    let said = w.kubectl.args(&["patch", "service", "ports", "--type=merge", "-p", change]).err();
    assert!(said.contains("not in the valid range"), "{said}");
    // Released with its Service, nothing is left listening, and it can be had again.
    w.delete("ports");
    eventually("nobody listens", SOON, || (w.code(&to) == "000" && echo(&to).is_none()).then_some(()));
    w.service(
        "ports",
        "pod: s3",
        &format!("type: NodePort\n  ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]"),
    );
    assert_eq!(w.answers_host(&to).by, "s3");
    w.delete("ports");
}

pub fn networking_go_matrix(w: &World) {
    let both = "type: NodePort\n  ports:\n  - {name: http, port: 80, targetPort: 8080}\n  - {name: udp, port: 90, targetPort: 9000, protocol: UDP}";
    w.service("matrix", "app: web", both);
    let (ip, port) = (w.cluster_ip("matrix"), w.node_port("matrix"));
    let udp = w.get("matrix")["spec"]["ports"][1]["nodePort"].to_string();
    let all = ["s1", "s2", "s3"];
    for pod in ["near", "far"] {
        w.answered_by(pod, &ip, &all);
        w.answered_by(pod, &format!("{}:{port}", w.nodes[1].1), &all);
    }
    for (_, address) in &w.nodes {
        echoes(&format!("{address}:{udp}"));
    }
    // From a node to a Service.
    let node = w.cluster.skiff(&format!("ssh curl -s --max-time 2 http://{ip}")).out();
    assert!(node.contains("Hostname: "), "{node}");
    // Requests of 2 kB.
    let url = format!("http://{ip}/{}", "x".repeat(2048));
    let long = w.kubectl.args(&["exec", "near", "--", "timeout", "2", "wget", "-qO-", &url]).out();
    assert!(long.contains(&"x".repeat(2048)));
    // An endpoint less; then no node port.
    w.kubectl.out("label pod s2 app-");
    w.answered_by("near", &ip, &["s1", "s3"]);
    w.kubectl.out("label pod s2 app=web");
    w.patch("matrix", r#"{"spec":{"type":"ClusterIP"}}"#);
    w.has_code(&format!("{}:{port}", w.nodes[0].1), "000");
    w.fetches("near", &ip);
    // Rules come back after an external flush.
    w.cluster.skiff("ssh nft delete table ip skiff-proxy").out();
    w.answered_by("near", &ip, &all);
    w.delete("matrix");
}
