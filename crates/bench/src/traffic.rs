//! What a cluster address costs packets: clients, a node and servers in network namespaces, requests through the address
//! and on the direct way. Each way has clients of its own: one that uses both within a minute makes the server drop SYNs.
//!
//! New connections take a server at random on both ways. Clients that each keep to one server would run on its core, and
//! what is then compared is not the way but the scheduler.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::netns::Netns;

use crate::cores::{Pinned, on};
use crate::figures::{Figures, percentile};
use crate::rounds::{ROUNDS, in_turns, medians};
use crate::services::{load, vip};

const DIRECT: &str = "direct";
const SERVERS: u8 = 4;
/// Clients of new connections, one at a time each: so many that none comes back to a port that it had before.
const OPENERS: u8 = 16;
/// How long new connections are opened at a time. Conntrack keeps each for two minutes; longer, and its table would be full.
const ROUND: Duration = Duration::from_millis(250);

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

    /// Median latency of a request, in microseconds. The mean would tell how often the machine stood still.
    fn wrk(&self, client: usize, to: SocketAddr, connections: u32) -> anyhow::Result<f64> {
        let mut command = on(1, "wrk")?;
        command.args(["--latency", "-t1", &format!("-c{connections}"), "-d1s"]);
        command.arg(format!("http://{to}/"));
        let output = self.clients[client].within(|| command.output());
        let output = output.context("run wrk")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "wrk {to}: {text}{}", String::from_utf8_lossy(&output.stderr));
        let median = text.lines().find_map(|l| l.trim().strip_prefix("50%"));
        median
            .and_then(|l| microseconds(l.trim()))
            .with_context(|| format!("wrk's median latency in: {text}"))
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

impl World {
    /// New connections a second, each to one of these addresses, by clients from `first` on.
    fn opened(&self, first: usize, to: &[SocketAddr]) -> anyhow::Result<f64> {
        let clients = &self.clients[first..first + usize::from(OPENERS)];
        std::thread::scope(|scope| {
            let open = |client: &Netns| client.within(|| requests(to));
            let all: Vec<_> = clients.iter().map(|client| scope.spawn(move || open(client))).collect();
            let counts = all.into_iter().map(|one| match one.join() {
                Ok(count) => count,
                Err(_) => Err(anyhow::anyhow!("a client's thread died")),
            });
            let sum: u32 = counts.sum::<anyhow::Result<u32>>()?;
            Ok(f64::from(sum) / ROUND.as_secs_f64())
        })
    }

    fn keep_alive(&self, to: [SocketAddr; 2], count: u32, figures: &mut Figures) -> anyhow::Result<()> {
        // The servers, which are threads of this process, are on the first core, and wrk is on the second.
        let _pinned = Pinned::each(&[std::process::id()])?;
        for connections in [1, 16] {
            let latency = |client: usize, to| self.wrk(client, to, connections);
            let (ours, direct) = medians(&in_turns(ROUNDS, || latency(2, to[0]), || latency(3, to[1]))?);
            let what = format!("keep-alive, {connections} connections, {count} Services");
            figures.add(&what, "us", ours, Some("<= 1.1 of direct"));
            figures.beside(DIRECT, direct);
        }
        Ok(())
    }
}

/// How many requests of one connection each are answered in a round.
fn requests(to: &[SocketAddr]) -> anyhow::Result<u32> {
    let (mut count, began) = (0, Instant::now());
    let mut answer = Vec::new();
    while began.elapsed() < ROUND {
        let to = to[rand::random_range(0..to.len())];
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("connect")?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")?;
        answer.clear();
        stream.read_to_end(&mut answer)?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{to}: {}", String::from_utf8_lossy(&answer));
        count += 1;
    }
    Ok(count)
}

/// Adds the figures with few and with so many Services.
pub fn measure(services: u32, figures: &mut Figures) -> anyhow::Result<()> {
    for count in [10, services] {
        let world = World::new(4 + 4 * OPENERS);
        let servers: Vec<Ipv4Addr> = (1..=SERVERS).map(server).collect();
        // The first Service has one backend, the second all of them.
        world.node.within(|| load(count, &[(0, vec![server(1)]), (1, servers.clone())]))?;
        let direct: Vec<SocketAddr> = servers.iter().map(|ip| SocketAddr::from((*ip, 8080))).collect();
        let (one, several) = (SocketAddr::from((vip(0), 80)), SocketAddr::from((vip(1), 80)));
        let microseconds = |mut times: Vec<Duration>| percentile(&mut times, 0.5) * 1000.0;
        let (ours, peer) = (world.connects(0, one)?, world.connects(1, direct[0])?);
        figures.add(&format!("first packet, {count} Services, p50"), "us", microseconds(ours), None);
        figures.beside(DIRECT, microseconds(peer));
        world.keep_alive([one, direct[0]], count, figures)?;
        if count == services {
            let many = usize::from(OPENERS);
            let ways =
                [("one backend", 4, one, &direct[..1]), ("several backends", 4 + 2 * many, several, &direct)];
            for (what, client, ours, direct) in ways {
                let ours = || world.opened(client, &[ours]);
                let (ours, peer) = medians(&in_turns(ROUNDS, ours, || world.opened(client + many, direct))?);
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
