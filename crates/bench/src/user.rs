//! What a person waits for: the tutorial from its first command to its last, and the commands that only look.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::figures::{Figures, percentile};

const PROFILE: &str = "benchuser";
const RUNS: usize = 20;
const LOCAL: [&str; 3] = ["ip", "status", "addons list"];

/// Takes the whole tutorial (with the images of that directory), then asks a running cluster.
pub fn measure(skiff: &Path, images: &Path) -> anyhow::Result<Figures> {
    let home = tempfile::tempdir()?;
    let run = |line: &str| -> anyhow::Result<Duration> {
        let mut command = Command::new(skiff);
        command.args(["-p", PROFILE]).args(line.split(' ')).stdin(Stdio::null());
        command.env("HOME", home.path()).env("KUBECONFIG", home.path().join("config"));
        let began = Instant::now();
        let output = command.output().with_context(|| format!("run {}", skiff.display()))?;
        let time = began.elapsed();
        ensure!(output.status.success(), "skiff {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(time)
    };
    run("delete")?;
    let mut figures = Figures::default();
    let whole = run(&format!("tutorial --yes --brief --images {}", images.display()))?;
    figures.add("tutorial, first command to last", "s", whole.as_secs_f64(), Some("<= 20"));
    run("start")?;
    // What any program's start costs here: the least that a command can take.
    let start = || -> anyhow::Result<Duration> {
        let began = Instant::now();
        Command::new("/bin/true").status().context("run true")?;
        Ok(began.elapsed())
    };
    let mut least = (0..RUNS).map(|_| start()).collect::<anyhow::Result<Vec<Duration>>>()?;
    let least = percentile(&mut least, 0.5);
    for line in LOCAL {
        let times: anyhow::Result<Vec<Duration>> = (0..RUNS).map(|_| run(line)).collect();
        let (mut times, what) = (times?, format!("skiff {line}, median"));
        figures.add(&what, "ms", percentile(&mut times, 0.5), Some("< 20"));
        figures.beside("/bin/true", least);
    }
    run("delete")?;
    Ok(figures)
}
