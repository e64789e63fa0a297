//! What a cluster address costs packets: clients, a node and servers in network namespaces, `wrk` through the address and
//! on the direct way. Each way has a client of its own: one that uses both within a minute makes the server drop SYNs.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::netns::Netns;

use crate::figures::{Figures, percentile};
use crate::services::{load, vip};

const DIRECT: &str = "direct";
const SERVERS: u8 = 4;
const SECONDS: u32 = 2;

/// A node with clients at 10.244.0.1x and servers at 10.244.1.x.
struct World {
    node: Netns,
    clients: Vec<Netns>,
    _servers: Vec<Arc<Netns>>,
}

fn server(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, i)
}

impl World {
    fn new(clients: u8) -> Self {
        let node = Netns::new();
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let attach = |name: &str, address: Ipv4Addr| {
            let netns = Netns::new();
            node.sh(&format!(
                "ip link add {name} type veth peer name eth0 netns {}; ip link set {name} up
                 ip addr add 169.254.1.1/32 dev {name}; ip route add {address} dev {name}",
                netns.path()
            ));
            netns.sh(&format!(
                "ip addr add {address}/32 dev eth0; ip link set eth0 up
                 ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 dev eth0"
            ));
            netns
        };
        let serve = |i: u8| {
            let netns = Arc::new(attach(&format!("s{i}"), server(i)));
            let inside = netns.clone();
            // Ends with the process.
            std::thread::spawn(move || inside.within(|| toolbox::run("serve", &[])));
            netns
        };
        let servers = (1..=SERVERS).map(serve).collect();
        let clients =
            (0..clients).map(|i| attach(&format!("c{i}"), Ipv4Addr::new(10, 244, 0, 10 + i))).collect();
        Self { node, clients, _servers: servers }
    }

    fn connects(&self, client: usize, to: SocketAddr) -> anyhow::Result<Vec<Duration>> {
        self.clients[client].within(|| {
            let mut times = Vec::new();
            for _ in 0..300 {
                let began = Instant::now();
                TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("connect")?;
                times.push(began.elapsed());
            }
            Ok(times)
        })
    }

    /// Requests per second and mean latency in microseconds.
    fn wrk(
        &self,
        client: usize,
        to: SocketAddr,
        connections: u32,
        close: bool,
    ) -> anyhow::Result<(f64, f64)> {
        let mut command = Command::new("wrk");
        command.args(["-t1", &format!("-c{connections}"), &format!("-d{SECONDS}s")]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://{to}/"));
        let output = self.clients[client].within(|| command.output());
        let output = output.context("run wrk; install it: apt-get install wrk")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "wrk: {text}");
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()).map(str::to_owned)
        };
        let rate = field("Requests/sec:").and_then(|r| r.parse().ok()).context("wrk's rate")?;
        let latency = field("Latency").and_then(|l| microseconds(&l)).context("wrk's latency")?;
        Ok((rate, latency))
    }
}

fn microseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Adds the figures with few and with so many Services.
pub fn measure(services: u32, figures: &mut Figures) -> anyhow::Result<()> {
    for count in [10, services] {
        let world = World::new(6);
        // The first Service has one backend, the second all of them.
        let all = (1..=SERVERS).map(server).collect();
        world.node.within(|| load(count, &[(0, vec![server(1)]), (1, all)]))?;
        let direct = SocketAddr::from((server(1), 8080));
        let (one, several) = (SocketAddr::from((vip(0), 80)), SocketAddr::from((vip(1), 80)));
        let microseconds = |mut times: Vec<Duration>| percentile(&mut times, 0.5) * 1000.0;
        let (ours, peer) = (world.connects(0, one)?, world.connects(1, direct)?);
        figures.add(&format!("first packet, {count} Services, p50"), "us", microseconds(ours), None);
        figures.beside(DIRECT, microseconds(peer));
        for connections in [1, 16] {
            let (ours, peer) =
                (world.wrk(2, one, connections, false)?, world.wrk(3, direct, connections, false)?);
            let what = format!("keep-alive, {connections} connections, {count} Services");
            figures.add(&what, "us", ours.1, Some("<= 1.1 of direct"));
            figures.beside(DIRECT, peer.1);
        }
        if count == services {
            let peer = world.wrk(3, direct, 16, true)?.0;
            for (what, client, to) in [("one backend", 2, one), ("several backends", 4, several)] {
                let ours = world.wrk(client, to, 16, true)?.0;
                figures.add(&format!("new connections, {what}"), "/s", ours, Some(">= 0.9 of direct"));
                figures.beside(DIRECT, peer);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_units_are_understood() {
        assert_eq!(microseconds("12.50us"), Some(12.5));
        assert_eq!(microseconds("1.20ms"), Some(1200.0));
        assert_eq!(microseconds("2.00s"), Some(2e6));
        assert_eq!(microseconds("2.00"), None);
    }
}
