//! The peer: the rules that kube-proxy's nftables mode makes of Services with two endpoints, written down as text and
//! loaded by the `nft` tool as kube-proxy does. A chain per Service and per endpoint, a map from frontends to chains.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::services::{endpoint, vip};

const HEAD: &str = "\
table ip kube-proxy {
 map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
 chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
 chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting {
  type nat hook postrouting priority srcnat
  meta mark & 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
 }
}
";

fn chains(out: &mut String, i: u32, second: u32) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "add chain ip kube-proxy service-{i}");
    for n in [0, second] {
        let ip = endpoint(i, n);
        let _ = writeln!(
            out,
            "add chain ip kube-proxy endpoint-{i}-{n}\n\
             add rule ip kube-proxy endpoint-{i}-{n} ip saddr {ip} jump mark-for-masquerade\n\
             add rule ip kube-proxy endpoint-{i}-{n} meta l4proto tcp dnat to {ip}:8080"
        );
    }
    let _ = writeln!(
        out,
        "add rule ip kube-proxy service-{i} ip daddr {} tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade\n\
         add rule ip kube-proxy service-{i} numgen random mod 2 vmap {{ 0 : goto endpoint-{i}-0, 1 : goto endpoint-{i}-{second} }}",
        vip(i)
    );
}

/// The whole table.
pub fn table(services: u32) -> String {
    let mut out = HEAD.to_owned();
    for i in 0..services {
        chains(&mut out, i, 1);
        let _ = writeln!(
            out,
            "add element ip kube-proxy service-ips {{ {} . tcp . 80 : goto service-{i} }}",
            vip(i)
        );
    }
    out
}

/// One endpoint of the first Service replaced, back and forth.
pub fn change(round: u32) -> String {
    let (gone, new) = if round.is_multiple_of(2) { (1, 2) } else { (2, 1) };
    let mut out = "flush chain ip kube-proxy service-0\nflush chain ip kube-proxy endpoint-0-0\n".to_owned();
    chains(&mut out, 0, new);
    let _ = writeln!(
        out,
        "flush chain ip kube-proxy endpoint-0-{gone}\ndelete chain ip kube-proxy endpoint-0-{gone}"
    );
    out
}

/// Loads a text in the calling thread's network namespace; gives the time it took.
pub fn load(text: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft; install it: apt-get install nftables")?;
    nft.stdin.take().context("nft's input")?.write_all(text.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(
        output.status.success(),
        "nft refused the peer's rules: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(began.elapsed())
}
