//! How long `skiff start` takes, and what an idle cluster costs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::figures::{Figures, percentile};

const PROFILE: &str = "bench";

/// Starts and deletes clusters, then watches an idle one.
pub fn start(skiff: &Path, runs: usize, idle: u64) -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let run = |verb: &str| -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut command = Command::new(skiff);
        command.args(["-p", PROFILE, verb]).env("KUBECONFIG", dir.path().join("config"));
        let output = command.output().with_context(|| format!("run {}", skiff.display()))?;
        ensure!(output.status.success(), "skiff {verb}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(began.elapsed())
    };
    run("delete")?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        first.push(run("start")?);
        run("stop")?;
        again.push(run("start")?);
        run("delete")?;
    }
    run("start")?;
    // What settles after a start (first leases, image bookkeeping) is not idling yet.
    std::thread::sleep(Duration::from_secs(5));
    let (before, own) = (usage()?, own_cpu()?);
    a_connection_a_second(idle)?;
    let (after, yardstick) = (usage()?, own_cpu()? - own);
    run("delete")?;

    let mut figures = Figures::default();
    figures.add("new cluster to Ready and DNS, median", "ms", percentile(&mut first, 0.5), Some("<= 1500"));
    figures.add("stopped cluster to Ready and DNS, median", "ms", percentile(&mut again, 0.5), None);
    figures.add("idle memory, resident, all processes", "MB", after.resident as f64 / 1e6, Some("<= 80"));
    figures.add("idle memory, proportional (PSS)", "MB", after.proportional as f64 / 1e6, None);
    let busy = (after.ticks - before.ticks) as f64 / idle as f64;
    figures.add("idle CPU, of one core", "%", busy, Some("<= 0.5"));
    figures.beside("a connection a second", yardstick.as_secs_f64() * 100.0 / idle as f64);
    Ok(figures)
}

/// The yardstick of an idle process: opens, uses and closes a loopback connection each second. A virtual machine whose host
/// is busy pays a hundred times more for it than one that has the host for itself.
fn a_connection_a_second(seconds: u64) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen on loopback")?;
    let address = listener.local_addr()?;
    for _ in 0..seconds {
        let mut client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"?")?;
        server.read_exact(&mut [0])?;
        drop((client, server));
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// The CPU time that this process has used.
fn own_cpu() -> anyhow::Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

/// Memory and CPU of all processes of the cluster: daemon, shim and what runs in its Pods.
struct Usage {
    resident: u64,
    proportional: u64,
    /// Hundredths of a second (USER_HZ).
    ticks: u64,
}

/// Other clusters of the machine must not count, and the daemon's name in `comm` is that of the link it was run by.
fn is_ours(cmdline: &str, cgroup: &str) -> bool {
    let daemon = format!("--profile\0{PROFILE}\0daemon");
    let shim = cmdline.starts_with("skiff-shim") && cmdline.contains(&format!("/run/skiff/{PROFILE}/"));
    cmdline.contains(&daemon) || shim || cgroup.contains(&format!("/skiff/{PROFILE}/"))
}

fn usage() -> anyhow::Result<Usage> {
    let mut sum = Usage { resident: 0, proportional: 0, ticks: 0 };
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let is_process = entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        if !is_process || !is_ours(&read("cmdline"), &read("cgroup")) {
            continue;
        }
        let rollup = read("smaps_rollup");
        let field = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        sum.resident += field("Rss:");
        sum.proportional += field("Pss:");
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let tick = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        sum.ticks += tick(11) + tick(12);
    }
    ensure!(sum.resident > 0, "no skiff process runs");
    Ok(sum)
}
