//! Network policies: how long rules take from the objects to the kernel, what explaining costs, and what packets pay, with
//! two Pods in network namespaces of our own. The peer of a packet's cost is the same node without any policy.

pub mod live;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netpol::model::{PodView, Policy, World};
use netpol::sync::Kernel;
use netpol::track::{Changes, Tracker};
use netpol::verdict::End;
use netpol::{Desired, explain};
use serde_json::{Value, json};
use testkit::netns::Netns;

use crate::figures::{Figures, percentile};
use crate::memory;

const NODE: &str = "bench";
const NAMESPACES: u32 = 20;
const PODS: u32 = 1000;
const POLICIES: u32 = 500;
const ROUNDS: usize = 20;

/// Measures and cleans up.
pub fn measure() -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    rules(&mut figures)?;
    packets(&mut figures)?;
    Ok(figures)
}

fn address(pod: u32) -> IpAddr {
    Ipv4Addr::from(0x0af4_0000 + 1000 + pod).into()
}

fn pod(number: u32) -> anyhow::Result<PodView> {
    PodView::of(&serde_json::from_value(pod_object(number))?, vec![address(number)], NODE)
        .context("a Pod of the benchmark")
}

fn pod_object(number: u32) -> Value {
    json!({
        "metadata": {
            "namespace": namespace(number), "name": format!("pod-{number}"),
            "labels": {"app": format!("app-{}", number / NAMESPACES % 10), "tier": format!("t{}", number % 3)},
        },
        "spec": {"nodeName": NODE, "containers": [
            {"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]},
        ]},
    })
}

/// Where the object of that number is.
fn namespace(number: u32) -> String {
    format!("bench-policy-{}", number % NAMESPACES)
}

/// As people write them: one application may be reached by another one of its namespace, by a tier of another namespace
/// and by some addresses, at a port; every fifth one restricts what goes out.
fn policy(number: u32) -> anyhow::Result<Policy> {
    Policy::of(&serde_json::from_value(policy_object(number))?).context("a policy of the benchmark")
}

fn policy_object(number: u32) -> Value {
    let peers = json!([
        {"podSelector": {"matchLabels": {"app": format!("app-{}", number % 7)}}},
        {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % 4)}},
         "podSelector": {"matchLabels": {"tier": format!("t{}", number % 3)}}},
        {"ipBlock": {"cidr": format!("192.168.{}.0/24", number % 256), "except": [format!("192.168.{}.7/32", number % 256)]}},
    ]);
    let mut spec = json!({
        "podSelector": {"matchLabels": {"app": format!("app-{}", number % 10)}},
        "ingress": [{"from": peers, "ports": [{"port": 8000 + number % 50}, {"port": "http"}]}],
    });
    if number.is_multiple_of(5) {
        spec["egress"] = json!([{"to": peers}, {"ports": [{"port": 53, "protocol": "UDP"}]}]);
    }
    json!({"metadata": {"namespace": namespace(number), "name": format!("policy-{number}")}, "spec": spec})
}

fn world(pods: u32, policies: u32) -> anyhow::Result<World> {
    let pods: anyhow::Result<Vec<PodView>> = (0..pods).map(pod).collect();
    let policies: anyhow::Result<Vec<Policy>> = (0..policies).map(policy).collect();
    let labels = |number: u32| {
        let labels = BTreeMap::from([("team".to_owned(), format!("team-{}", number % 5))]);
        (namespace(number), labels)
    };
    let mut world = World { namespaces: (0..NAMESPACES).map(labels).collect(), ..World::default() };
    world.pods = pods?.into_iter().map(|pod| (pod.key.clone(), pod)).collect();
    world.policies = policies?.into_iter().map(|policy| (policy.key.clone(), policy)).collect();
    Ok(world)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn rules(figures: &mut Figures) -> anyhow::Result<()> {
    let node = Netns::new();
    let mut socket = node.within(nft::Socket::open)?;
    let before = memory::own()?;
    let mut world = world(PODS, POLICIES)?;
    let (mut kernel, mut tracker) = (Kernel::new(), Tracker::default());
    let mut follow = |world: &World, changes: &Changes| {
        let touched = tracker.follow(world, changes);
        kernel.follow(&mut socket, &tracker, &touched)
    };
    let began = Instant::now();
    follow(&world, &Changes::all(&world))?;
    figures.add("1,000 Pods, 500 policies: full build", "ms", milliseconds(began), Some("<= 500"));
    let mut joins = Vec::new();
    for number in 0..ROUNDS {
        let joining = pod(PODS + u32::try_from(number)?)?;
        let began = Instant::now();
        let changes = Changes { pods: [joining.key.clone()].into(), ..Changes::default() };
        world.pods.insert(joining.key.clone(), joining);
        follow(&world, &changes)?;
        joins.push(began.elapsed());
    }
    figures.add("one Pod joins, p50", "ms", percentile(&mut joins, 0.5), Some("<= 5"));
    let mut labelled = Vec::new();
    for number in 0..ROUNDS {
        let name = namespace(u32::try_from(number)?);
        let began = Instant::now();
        let labels = BTreeMap::from([("team".to_owned(), format!("team-{}", number % 7))]);
        world.namespaces.insert(name.clone(), labels);
        let mut changes = Changes::default();
        changes.namespace(&world, &name);
        follow(&world, &changes)?;
        labelled.push(began.elapsed());
    }
    figures.add("one namespace is relabelled, p50", "ms", percentile(&mut labelled, 0.5), Some("<= 50"));
    let mut edits = Vec::new();
    for number in 0..ROUNDS {
        let mut edited = policy(u32::try_from(number)?)?;
        edited.ingress = Some(Vec::new());
        let began = Instant::now();
        let key = edited.key.clone();
        let before = world.policies.insert(key.clone(), edited);
        let mut changes = Changes::default();
        changes.policy(&world, &key.namespace, [before.as_ref(), world.policies.get(&key)]);
        follow(&world, &changes)?;
        edits.push(began.elapsed());
    }
    figures.add("one policy is edited, p50", "ms", percentile(&mut edits, 0.5), Some("<= 50"));
    figures.add("memory of objects and rules", "MB", memory::own()? - before, Some("<= 30"));
    let mut answers = Vec::new();
    for number in 0..200 {
        let began = Instant::now();
        let ends = [address(number), address(PODS - 1 - number)].map(|address| End::at(&world, address));
        std::hint::black_box(explain::explain(&world, ends[0], ends[1], nft::Protocol::Tcp, 8080));
        answers.push(began.elapsed());
    }
    figures.add("explain, p99", "ms", percentile(&mut answers, 0.99), Some("<= 10"));
    Ok(())
}

/// Two Pods on a node, routed as podnet does it.
struct Pair {
    node: Netns,
    pods: [Netns; 2],
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);
const PORT: u16 = 8080;

impl Pair {
    fn new() -> Self {
        let node = Netns::new();
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let pods = [CLIENT, SERVER].map(|own| {
            let pod = Netns::new();
            let link = format!("p{}", own.octets()[3]);
            node.sh(&format!(
                "ip link add {link} address 0a:58:00:00:01:01 type veth peer name eth0 address 0a:58:00:00:02:01 netns {}
                 ip link set {link} up; ip route add {own} dev {link}
                 ip neigh add {own} lladdr 0a:58:00:00:02:01 dev {link} nud permanent",
                pod.path()
            ));
            pod.sh(&format!(
                "ip addr add {own}/32 dev eth0; ip link set eth0 up; ip route add 169.254.1.1 dev eth0
                 ip neigh add 169.254.1.1 lladdr 0a:58:00:00:01:01 dev eth0 nud permanent
                 ip route add default via 169.254.1.1 dev eth0"
            ));
            pod
        });
        // Tracking of connections is not what policies cost: Services have it always.
        node.sh(
            "nft add table ip track; nft 'add chain ip track c { type filter hook forward priority 10; }'
                 nft add rule ip track c ct state new counter",
        );
        Self { node, pods }
    }

    /// Gigabits a second through the node.
    fn throughput(&self, seconds: u32) -> anyhow::Result<f64> {
        let [client, server] = &self.pods;
        let mut serving = server
            .within(|| {
                let mut command = std::process::Command::new("iperf3");
                command.args(["-s", "-1", "-p", "8080"]).stdout(std::process::Stdio::null());
                command.spawn()
            })
            .context("start iperf3; install it: apt-get install iperf3")?;
        let answer = client.within(|| {
            let began = Instant::now();
            loop {
                let mut command = std::process::Command::new("iperf3");
                let output = command
                    .args(["-c", &SERVER.to_string(), "-p", "8080", "-J", "-t", &seconds.to_string()])
                    .output();
                // With -J it ends well also when it does not reach the server.
                let failed = |out: &[u8]| out.windows(7).any(|word| word == b"\"error\"");
                match output {
                    Ok(output) if output.status.success() && !failed(&output.stdout) => {
                        return Ok(output.stdout);
                    }
                    Ok(output) if began.elapsed() > Duration::from_secs(10) => {
                        bail!("iperf3: {}", String::from_utf8_lossy(&output.stdout))
                    }
                    Ok(_) => std::thread::sleep(Duration::from_millis(50)),
                    Err(error) => return Err(error).context("run iperf3"),
                }
            }
        });
        // It may wait for one more: what it counted is the client's to tell.
        let _ = serving.kill();
        serving.wait()?;
        let answer: Value = serde_json::from_slice(&answer?)?;
        let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's answer")?;
        Ok(bits / 1e9)
    }

    /// Microseconds of a request on a connection that stays, and of one on a connection of its own; medians.
    fn latency(&self, requests: usize) -> anyhow::Result<(f64, f64)> {
        let [client, server] = &self.pods;
        let listener = server.within(|| TcpListener::bind(("0.0.0.0", PORT)))?;
        let address = SocketAddr::from((SERVER, PORT));
        let serving = std::thread::spawn(move || -> std::io::Result<()> {
            for _ in 0..=requests {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                let mut byte = [0];
                while stream.read(&mut byte)? == 1 {
                    stream.write_all(&byte)?;
                }
            }
            Ok(())
        });
        let measured = client.within(|| -> std::io::Result<(Vec<Duration>, Vec<Duration>)> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let mut byte = [7];
            let mut kept = Vec::new();
            for _ in 0..requests * 10 {
                let began = Instant::now();
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                kept.push(began.elapsed());
            }
            drop(stream);
            let mut fresh = Vec::new();
            for _ in 0..requests {
                let began = Instant::now();
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                fresh.push(began.elapsed());
            }
            Ok((kept, fresh))
        });
        let (mut kept, mut fresh) = measured.context("requests between two namespaces")?;
        serving.join().map_err(|_| anyhow::anyhow!("the server of the benchmark died"))??;
        Ok((percentile(&mut kept, 0.5) * 1000.0, percentile(&mut fresh, 0.5) * 1000.0))
    }
}

/// A world in which the two Pods may talk, among so many rules: half of them are blocks of the server's own policy, half
/// are those of other Pods.
fn among(rules: u32) -> anyhow::Result<World> {
    let mut world = world(rules / 2, rules / 2)?;
    let blocks: Vec<Value> =
        (0..rules / 2).map(|i| json!({"ipBlock": {"cidr": format!("172.{}.{}.{}/32", 16 + i / 65536, i / 256 % 256, i % 256)}})).collect();
    let mut peers = blocks;
    peers.push(json!({"podSelector": {"matchLabels": {"role": "client"}}}));
    let spec = json!({"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [{"from": peers, "ports": [{"port": PORT}]}]});
    let object = json!({"metadata": {"namespace": "measured", "name": "server"}, "spec": spec});
    let policy = Policy::of(&serde_json::from_value(object)?).context("the policy that is measured")?;
    world.policies.insert(policy.key.clone(), policy);
    world.namespaces.insert("measured".to_owned(), BTreeMap::new());
    for (role, address) in [("client", CLIENT), ("server", SERVER)] {
        let object = json!({"metadata": {"namespace": "measured", "name": role, "labels": {"role": role}},
            "spec": {"nodeName": NODE, "containers": [{"name": "c"}]}});
        let pod =
            PodView::of(&serde_json::from_value(object)?, vec![address.into()], NODE).context("a Pod")?;
        world.pods.insert(pod.key.clone(), pod);
    }
    Ok(world)
}

fn packets(figures: &mut Figures) -> anyhow::Result<()> {
    let pair = Pair::new();
    let mut socket = pair.node.within(nft::Socket::open)?;
    let mut with = |rules: Option<u32>| -> anyhow::Result<()> {
        let world = rules.map_or_else(|| Ok(World::default()), among)?;
        // A new one each time: everything is replaced.
        Kernel::new().sync(&mut socket, &Desired::of(&world))?;
        Ok(())
    };
    let states = [None, Some(10), Some(10_000)];
    let mut all: [Vec<(f64, f64, f64)>; 3] = Default::default();
    // In turns, so that what else the machine does hits all alike.
    for _ in 0..5 {
        for (state, measured) in states.iter().zip(&mut all) {
            with(*state)?;
            let (kept, fresh) = pair.latency(1000)?;
            measured.push((pair.throughput(1)?, kept, fresh));
        }
    }
    let median = |list: &[(f64, f64, f64)], of: fn(&(f64, f64, f64)) -> f64| {
        let mut values: Vec<f64> = list.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let [none, few, many] = &all;
    let mut add = |what: &str, unit: &'static str, of: fn(&(f64, f64, f64)) -> f64, target: &str| {
        for (rules, list) in [("10 rules", few), ("10,000 rules", many)] {
            figures.add(&format!("{what}, {rules}"), unit, median(list, of), Some(target));
            figures.beside("no policy", median(none, of));
        }
    };
    add("throughput", "Gbit/s", |m| m.0, "within 3 %");
    add("request on a kept connection, p50", "us", |m| m.1, "within 3 %");
    add("request on a new connection, p50", "us", |m| m.2, "within 3 %");
    Ok(())
}
