//! CNI plugins, run: Debian's own in real namespaces, and one of ours that writes down what it was told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podnet::cni::{Cni, Error, NetworkConfig, Options, Pod, PortMapping, path_held_by};
use serde_json::{Value, json};
use testkit::eventually;
use testkit::netns::Netns;

/// Writes down how it was called, does what a file of its name and the verb says, and answers.
const FAKE: &str = r#"#!/bin/sh
here=$(dirname "$0"); name=$(basename "$0"); told=$(cat)
printf '%s|%s|%s|%s|%s|%s|%s|%s\n' "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" \
  "$CNI_PATH" "$told" >>"$here/log"
if [ -f "$here/$name.$CNI_COMMAND" ]; then . "$here/$name.$CNI_COMMAND"; fi
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}' ;;
ADD) printf '{"interfaces": [{"name": "eth0", "sandbox": "%s"}], "ips": [{"address": "10.9.0.7/24", "interface": 0}], "by": "%s"}' "$CNI_NETNS" "$name" ;;
esac
"#;

/// One call of the fake.
#[derive(Debug)]
struct Call {
    plugin: String,
    verb: String,
    container: String,
    netns: String,
    rest: Vec<String>,
    told: Value,
}

/// A node with plugins, ours or the system's.
struct Node {
    dir: tempfile::TempDir,
    netns: Netns,
}

impl Node {
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap(), netns: Netns::new() };
        for name in ["first", "second"] {
            node.write(name, FAKE);
            std::fs::set_permissions(node.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// From now on a plugin does this when it is asked that.
    fn does(&self, plugin: &str, verb: &str, script: &str) {
        self.write(&format!("{plugin}.{verb}"), script);
    }

    fn forgets(&self, plugin: &str, verb: &str) {
        std::fs::remove_file(self.path(&format!("{plugin}.{verb}"))).unwrap();
    }

    async fn open(&self, config: &Value) -> Result<Cni, Error> {
        let node = self.netns.as_fd().try_clone_to_owned().unwrap();
        let options = Options {
            config: NetworkConfig::parse(config.to_string().as_bytes()).unwrap(),
            plugin_dirs: vec![self.dir.path().to_owned(), "/usr/lib/cni".into()],
            state_dir: self.path("state"),
            ranges: vec!["10.244.3.0/24".parse().unwrap()],
            patience: Duration::from_secs(20),
        };
        Cni::open(Arc::new(node), options).await
    }

    /// What the fakes were asked since the last time.
    fn calls(&self) -> Vec<Call> {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("log"));
        let call = |line: &str| {
            let mut fields: Vec<String> = line.splitn(8, '|').map(str::to_owned).collect();
            let told = serde_json::from_str(&fields.pop().unwrap()).unwrap();
            let rest = fields.split_off(4);
            let [plugin, verb, container, netns] = fields.try_into().unwrap();
            Call { plugin, verb, container, netns, rest, told }
        };
        log.lines().map(call).collect()
    }

    /// The same in short.
    fn asked(&self) -> Vec<String> {
        self.calls().iter().map(|call| format!("{} {}", call.plugin, call.verb)).collect()
    }
}

fn two(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "plugins": [
        {"type": "first", "own": [1], "capabilities": {"ipRanges": true}}, {"type": "second"}]})
}

fn pod(uid: &str) -> Pod {
    Pod { uid: uid.into(), namespace: "ns".into(), name: "web".into(), ports: Vec::new() }
}

fn path(netns: &Netns) -> PathBuf {
    path_held_by(std::process::id().cast_signed(), netns.as_fd()).unwrap()
}

async fn add(cni: &Cni, uid: &str, netns: &Netns) -> Result<Vec<IpAddr>, Error> {
    cni.add(&pod(uid), netns.as_fd(), &path(netns)).await
}

fn alive(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(|uid| (*uid).to_owned()).collect()
}

#[tokio::test]
async fn a_chain_is_told_what_the_specification_says() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let cni = node.open(&two("1.1.0")).await.unwrap();
    assert_eq!(node.asked(), ["first VERSION", "second VERSION", "first STATUS", "second STATUS"]);
    let addresses = add(&cni, "u-1", &sandbox).await.unwrap();
    assert_eq!(addresses, ["10.9.0.7".parse::<IpAddr>().unwrap()]);
    let calls = node.calls();
    let [first, second] = &calls[..] else { panic!("{calls:?}") };
    let told = json!({"type": "first", "own": [1], "name": "net", "cniVersion": "1.1.0",
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.244.3.0/24"}]]}});
    assert_eq!((first.verb.as_str(), &first.told), ("ADD", &told));
    let netns = path(&sandbox).display().to_string();
    assert_eq!((first.container.as_str(), &first.netns), ("u-1", &netns));
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=u-1;K8S_POD_UID=u-1";
    let search = format!("{}:/usr/lib/cni", node.dir.path().display());
    assert_eq!(first.rest, ["eth0", args, &search]);
    // Each is given the result of the one before, later ones that of the last.
    assert_eq!(second.told["prevResult"]["by"], "first");
    assert_eq!(second.told["prevResult"]["cniVersion"], "1.1.0");
    assert_eq!(second.told["runtimeConfig"], Value::Null);
    cni.check("u-1").await.unwrap();
    let checks = node.calls();
    let listed = |calls: &[Call]| -> Vec<String> {
        calls.iter().map(|c| format!("{} {}", c.plugin, c.verb)).collect()
    };
    assert_eq!(listed(&checks), ["first CHECK", "second CHECK"]);
    assert!(checks.iter().all(|call| call.told["prevResult"]["by"] == "second" && call.netns == netns));
    cni.del("u-1").await.unwrap();
    let dels = node.calls();
    assert_eq!(listed(&dels), ["second DEL", "first DEL"]);
    assert!(dels.iter().all(|call| call.told["prevResult"]["by"] == "second" && call.container == "u-1"));
    assert_eq!(dels[1].told["runtimeConfig"], json!({"ipRanges": [[{"subnet": "10.244.3.0/24"}]]}));
    // It is forgotten now, and what was never there is fine.
    cni.del("u-1").await.unwrap();
    cni.check("u-1").await.unwrap();
    assert!(node.asked().is_empty());
}

#[tokio::test]
async fn older_versions_are_asked_only_what_they_know() {
    let (node, sandbox) = (Node::new(), Netns::new());
    for (version, verbs) in [
        ("0.3.1", &["ADD", "DEL"][..]),
        ("0.4.0", &["ADD", "CHECK", "DEL"]),
        ("1.0.0", &["ADD", "CHECK", "DEL"]),
        ("1.1.0", &["STATUS", "ADD", "CHECK", "GC", "DEL"]),
    ] {
        let cni = node.open(&two(version)).await.unwrap();
        add(&cni, "u", &sandbox).await.unwrap();
        cni.check("u").await.unwrap();
        assert!(cni.collect(&alive(&["u"])).await.is_empty());
        cni.del("u").await.unwrap();
        let calls = node.calls();
        let mut asked: Vec<&str> =
            calls.iter().map(|call| call.verb.as_str()).filter(|v| *v != "VERSION").collect();
        asked.dedup();
        assert_eq!(asked, verbs, "{version}");
        assert!(calls.iter().filter(|c| c.verb != "VERSION").all(|call| call.told["cniVersion"] == version));
        let del = calls.iter().find(|call| call.verb == "DEL").unwrap();
        assert_eq!(del.told.get("prevResult").is_some(), version != "0.3.1", "{version}");
    }
    // The highest that all plugins speak; a check that is switched off; no version in common.
    node.does(
        "second",
        "VERSION",
        r#"echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'; exit"#,
    );
    let mut config = two("0.4.0");
    (config["cniVersions"], config["disableCheck"]) = (json!(["1.0.0", "1.1.0"]), true.into());
    let cni = node.open(&config).await.unwrap();
    node.calls();
    add(&cni, "u", &sandbox).await.unwrap();
    cni.check("u").await.unwrap();
    let calls = node.calls();
    assert!(calls.iter().all(|call| call.verb == "ADD" && call.told["cniVersion"] == "1.0.0"), "{calls:?}");
    cni.del("u").await.unwrap();
    let said = node.open(&two("1.1.0")).await.unwrap_err().to_string();
    assert_eq!(
        said,
        r#"CNI plugin "second" speaks 0.4.0, 1.0.0, and the network "net" none of these; change its cniVersion"#
    );
}

#[tokio::test]
async fn what_a_plugin_says_of_its_failure_is_passed_on() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let cni = node.open(&two("1.1.0")).await.unwrap();
    for (script, said) in [
        (
            r#"echo '{"code": 11, "msg": "no address left", "details": "ask again"}'; exit 1"#,
            r#"plugin type="first" failed (ADD): code 11: no address left (ask again)"#,
        ),
        ("echo oops >&2; exit 3", r#"plugin type="first" failed (ADD): exit status: 3: oops"#),
        ("kill -SEGV $$", "signal: 11"),
        ("exit 1", "it said nothing"),
        ("echo nonsense; exit 0", "its answer: it is not JSON"),
        (r#"echo '{"cniVersion": "0.2.0"}'; exit 0"#, "version \"0.2.0\" where 1.1.0 was asked for"),
    ] {
        node.does("first", "ADD", script);
        let error = add(&cni, "u", &sandbox).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    node.forgets("first", "ADD");
    node.does("second", "ADD", r#"echo '{"ips": []}'; exit 0"#);
    let error = add(&cni, "u", &sandbox).await.unwrap_err().to_string();
    assert!(error.contains(r#"type="second" failed (ADD): its answer gives eth0 no address"#), "{error}");
    // Each try after a failed one began with the DEL that it owed.
    let verbs: Vec<String> = node.calls().into_iter().map(|call| call.verb).skip(4).collect();
    assert_eq!(verbs[..4], ["ADD", "DEL", "DEL", "ADD"]);
    assert_eq!(verbs.iter().filter(|verb| *verb == "DEL").count(), 12);
    // One that is not ready keeps the network from being opened.
    node.does("second", "STATUS", r#"echo '{"code": 50, "msg": "the agent is down"}'; exit 1"#);
    let error = node.open(&two("1.1.0")).await.unwrap_err().to_string();
    assert!(error.contains("(STATUS): code 50: the agent is down"), "{error}");
    assert!(node.open(&two("1.0.0")).await.is_ok());
    let missing = json!({"cniVersion": "1.0.0", "name": "net", "type": "no-such-plugin"});
    let error = node.open(&missing).await.unwrap_err().to_string();
    assert!(error.contains("\"no-such-plugin\" is not in") && error.contains("CNI_PATH"), "{error}");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended_with_its_children() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let config = two("0.4.0");
    node.does("first", "ADD", "sleep 300 & echo $! >\"$here/child\"; wait");
    let options = Options {
        config: NetworkConfig::parse(config.to_string().as_bytes()).unwrap(),
        plugin_dirs: vec![node.dir.path().to_owned()],
        state_dir: node.path("state"),
        ranges: Vec::new(),
        patience: Duration::from_secs(2),
    };
    let netns = Arc::new(node.netns.as_fd().try_clone_to_owned().unwrap());
    let cni = Cni::open(netns, options).await.unwrap();
    let error = add(&cni, "u", &sandbox).await.unwrap_err().to_string();
    assert!(error.contains("it has not ended after 2s"), "{error}");
    let child = std::fs::read_to_string(node.path("child")).unwrap();
    let running = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    eventually("the plugin's child has ended", Duration::from_secs(20), || (!running()).then_some(()));
}

#[tokio::test]
async fn what_was_begun_is_ended_after_a_crash() {
    let node = Node::new();
    let (stays, goes, half) = (Netns::new(), Netns::new(), Netns::new());
    let cni = node.open(&two("1.1.0")).await.unwrap();
    add(&cni, "stays", &stays).await.unwrap();
    add(&cni, "goes", &goes).await.unwrap();
    node.does("second", "ADD", "echo '{\"code\": 999, \"msg\": \"half\"}'; exit 1");
    add(&cni, "half", &half).await.unwrap_err();
    drop((cni, goes));
    node.forgets("second", "ADD");
    node.calls();
    // Another life, another configuration: what was made with the old one goes with the old one.
    let mut other = two("1.1.0");
    other["plugins"].as_array_mut().unwrap().pop();
    let cni = node.open(&other).await.unwrap();
    node.does("second", "DEL", "echo '{\"code\": 5, \"msg\": \"busy\"}'; exit 1");
    node.calls();
    let failures = cni.collect(&alive(&["stays"])).await;
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures[0].to_string().contains("(DEL): code 5: busy"), "{failures:?}");
    node.forgets("second", "DEL");
    let calls = node.calls();
    let gc = calls.last().unwrap();
    // What could not be disconnected is still ours to disconnect, and may be spoken of.
    assert_eq!((gc.verb.as_str(), gc.told["cni.dev/valid-attachments"].as_array().unwrap().len()), ("GC", 3));
    assert!(cni.collect(&alive(&["stays"])).await.is_empty());
    let calls = node.calls();
    let mut ended: Vec<String> = calls
        .iter()
        .filter(|call| call.verb == "DEL")
        .map(|call| {
            let known = call.told["prevResult"]["by"].as_str().unwrap_or("nothing").to_owned();
            format!("{} {} {known} {}", call.container, call.plugin, call.netns.is_empty())
        })
        .collect();
    ended.sort();
    assert_eq!(
        ended,
        [
            "goes first second true",
            "goes second second true",
            "half first nothing false",
            "half second nothing false"
        ]
    );
    let gc = calls.last().unwrap();
    let valid = json!([{"containerID": "stays", "ifname": "eth0"}]);
    assert_eq!((gc.plugin.as_str(), &gc.told["cni.dev/valid-attachments"]), ("first", &valid));
    assert_eq!(gc.told["cni.dev/attachments"], valid);
    cni.check("stays").await.unwrap();
    assert_eq!(node.asked(), ["first CHECK", "second CHECK"]);
}

/// Connects from one namespace to a server in another; gives the client's address as the server sees it.
fn seen_source(server: &Netns, address: SocketAddr, client: &Netns, dialled: SocketAddr) -> IpAddr {
    let listener = server.within(|| TcpListener::bind(address).unwrap());
    let client = client.within(|| TcpStream::connect_timeout(&dialled, Duration::from_secs(10)).unwrap());
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut text = String::new();
    (&client).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    peer.ip()
}

fn leases(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("state/networks/pods")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut leases: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
    leases.sort();
    leases
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_bridge_host_local_and_portmap_connect_pods() {
    let node = Node::new();
    node.netns
        .sh("ip link add uplink type bridge; ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up");
    let config = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
         "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]});
    let cni = node.open(&config).await.unwrap();
    let (a, b) = (Netns::new(), Netns::new());
    let port = PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: "tcp".into() };
    let first = Pod { ports: vec![port], ..pod("a") };
    let a_address = cni.add(&first, a.as_fd(), &path(&a)).await.unwrap()[0];
    let b_address = add(&cni, "b", &b).await.unwrap()[0];
    assert_eq!((a_address.to_string(), b_address.to_string()), ("10.244.3.2".into(), "10.244.3.3".into()));
    assert_eq!(leases(node.dir.path()), ["10.244.3.2", "10.244.3.3"]);
    let web = SocketAddr::new(a_address, 80);
    assert_eq!(seen_source(&a, web, &b, web), b_address);
    assert_eq!(seen_source(&a, web, &node.netns, web).to_string(), "10.244.3.1");
    // The port of the node that stands for the Pod's.
    seen_source(&a, web, &b, "192.0.2.2:8080".parse().unwrap());
    seen_source(&a, web, &node.netns, "192.0.2.2:8080".parse().unwrap());
    // Not of the first: this portmap looks for IPv6 rules of a Pod that has no such address.
    cni.check("b").await.unwrap();
    b.sh("ip addr flush dev eth0");
    let error = cni.check("b").await.unwrap_err().to_string();
    assert!(error.contains(r#"type="bridge" failed (CHECK)"#), "{error}");
    cni.del("a").await.unwrap();
    drop(b);
    assert!(cni.collect(&alive(&[])).await.is_empty());
    assert!(leases(node.dir.path()).is_empty());
    assert!(!a.sh("ip -o link").contains("eth0") && !node.netns.sh("ip -o link").contains("veth"));
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_ptp_connects_pods() {
    let node = Node::new();
    let config = json!({"cniVersion": "0.4.0", "name": "pods", "type": "ptp", "ipMasq": false,
        "ipam": {"type": "host-local", "subnet": "10.77.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}});
    let cni = node.open(&config).await.unwrap();
    let (a, b) = (Netns::new(), Netns::new());
    let a_address = add(&cni, "a", &a).await.unwrap()[0];
    let b_address = add(&cni, "b", &b).await.unwrap()[0];
    let web = SocketAddr::new(a_address, 80);
    assert_eq!(seen_source(&a, web, &b, web), b_address);
    cni.check("a").await.unwrap();
    cni.check("b").await.unwrap();
    cni.del("a").await.unwrap();
    cni.del("b").await.unwrap();
    assert!(leases(node.dir.path()).is_empty());
}

#[test]
fn a_namespace_is_found_where_it_is_held() {
    let netns = Netns::new();
    let found = path(&netns);
    let opened: OwnedFd = std::fs::File::open(&found).unwrap().into();
    assert_eq!(
        path_held_by(std::process::id().cast_signed(), opened.as_fd()).unwrap().parent(),
        found.parent()
    );
    let error = path_held_by(1, netns.as_fd()).unwrap_err().to_string();
    assert!(error.contains("process 1 holds no such namespace"), "{error}");
}
