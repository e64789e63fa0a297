//! `skiff start`: runs the daemon in the background, shows its steps, points kubectl at it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use cluster::kubeconfig::Kubeconfig;
use cluster::pki::{Authority, Subject};
use cluster::{API_PORT, MAX_NODES, Member, Profile};

use super::node::tell;
use super::{flag, need_root};
use crate::control::{NodeChange, Reply, Request, ask};
use crate::ui::Steps;

/// How the cluster is started.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many nodes it has, all on this machine: what is missing is added, none is ever removed.
    #[arg(short, long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: Option<u8>,
}

/// Starts the cluster, or those of its nodes that do not run.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    need_root()?;
    let profile = Profile::new(name)?;
    let began = Instant::now();
    let mut steps = Steps::new();
    let started = match start_members(&profile, options.nodes.unwrap_or(1), &mut steps) {
        Ok(started) => started,
        Err(error) => {
            steps.failed();
            return Err(error);
        }
    };
    if started == 0 {
        point_kubectl(&profile)?;
        println!("The cluster {name:?} runs already; kubectl uses it.");
        return Ok(());
    }
    steps.begin("Pointing kubectl at it");
    point_kubectl(&profile)?;
    steps.done();
    let time = began.elapsed().as_secs_f64();
    anstream::eprintln!("Done in {time:.1} s: kubectl now uses {name:?} and its namespace \"default\".");
    anstream::eprintln!("Next: kubectl get nodes; remove it all: sudo skiff delete{}", flag(name));
    Ok(())
}

/// Starts all known nodes, the control plane's first, and new ones until there are so many; gives how many it started.
fn start_members(profile: &Profile, nodes: u8, steps: &mut Steps) -> anyhow::Result<usize> {
    let mut started = 0;
    for member in Member::all(profile) {
        started += usize::from(start_member(&member, steps)?);
    }
    while Member::all(profile).len() < usize::from(nodes) {
        started += usize::from(start_member(&Member::next(profile)?, steps)?);
    }
    Ok(started)
}

/// Starts a node unless it runs; gives whether it did.
pub fn start_member(member: &Member, steps: &mut Steps) -> anyhow::Result<bool> {
    if ask(&member.control_socket(), &Request::Status, |_| ())?.is_some() {
        return Ok(false);
    }
    if member.is_control_plane() {
        start_daemon(member, |news| match news {
            Reply::Step(text) => steps.begin(text),
            other => steps.news(other),
        })?;
    } else {
        steps.begin(&format!("Starting node {}", member.name()));
        start_daemon(member, |news| steps.news(news))?;
        tell(member, NodeChange::Started, steps)?;
    }
    Ok(true)
}

/// Runs a node's daemon in the background until it says that the node is up.
fn start_daemon(member: &Member, mut news: impl FnMut(&Reply)) -> anyhow::Result<()> {
    let profile = &member.profile;
    cluster::files::make_public_dir(&member.state_dir())?;
    let log_path = member.log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.with_context(|| format!("open {}", log_path.display()))?;
    let mut daemon = Command::new("/proc/self/exe")
        .args(["--profile", &profile.name, "daemon", "--node", &member.number.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the daemon")?;
    let stdout = daemon.stdout.take().context("read from the daemon")?;
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line.context("read from the daemon")?).context("read from the daemon")? {
            Reply::Done(_) => return Ok(()),
            Reply::Failed(reason) => {
                daemon.wait().context("wait for the daemon")?;
                bail!(reason);
            }
            other => news(&other),
        }
    }
    let status = daemon.wait().context("wait for the daemon")?;
    bail!("the daemon ended early ({status}); its last words: sudo skiff logs -n 20{}", flag(&profile.name))
}

fn point_kubectl(profile: &Profile) -> anyhow::Result<()> {
    let network = profile.network()?.context("the cluster has no address yet; try again in a moment")?;
    let authority = Authority::open(&profile.pki())?;
    // kubeadm's names: bound to cluster-admin by the group.
    let admin = authority.client(Subject { user: "kubernetes-admin", groups: &["system:masters"] })?;
    let server = format!("https://{}:{API_PORT}", network.node);
    Kubeconfig::of_user().set(&profile.name, &server, &authority.certificate_pem, &admin)?;
    Ok(())
}
