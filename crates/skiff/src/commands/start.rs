//! `skiff start`: runs the daemon in the background, shows its steps, points kubectl at it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use cluster::kubeconfig::Kubeconfig;
use cluster::pki::{Authority, Subject};
use cluster::{API_PORT, Member, Profile};

use super::{flag, need_root};
use crate::control::{Reply, Request, ask};
use crate::ui::Steps;

/// Starts the cluster.
pub fn run(name: &str) -> anyhow::Result<()> {
    need_root()?;
    let profile = Profile::new(name)?;
    let began = Instant::now();
    if ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?.is_some() {
        point_kubectl(&profile)?;
        println!("The cluster {name:?} runs already; kubectl uses it.");
        return Ok(());
    }
    let mut steps = Steps::new();
    if let Err(error) = start_daemon(&profile.control_plane(), &mut steps) {
        steps.failed();
        return Err(error);
    }
    steps.begin("Pointing kubectl at it");
    point_kubectl(&profile)?;
    steps.done();
    let time = began.elapsed().as_secs_f64();
    anstream::eprintln!("Done in {time:.1} s: kubectl now uses {name:?} and its namespace \"default\".");
    anstream::eprintln!("Next: kubectl get nodes; remove it all: sudo skiff delete{}", flag(name));
    Ok(())
}

/// Runs a node's daemon in the background until it says that the node is up.
fn start_daemon(member: &Member, steps: &mut Steps) -> anyhow::Result<()> {
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
            Reply::Step(text) => steps.begin(&text),
            Reply::Detail(text) => steps.detail(&text),
            Reply::Done(_) => return Ok(()),
            Reply::Failed(reason) => {
                daemon.wait().context("wait for the daemon")?;
                bail!(reason);
            }
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
