//! `skiff node`: the nodes of a cluster, all on this machine, each with an address and Pods of its own.

use anyhow::{Context, bail};
use clap::Subcommand;
use cluster::{Member, Profile};
use serde::Serialize;

use super::delete::remove_dirs;
use super::start::start_member;
use super::stop::stop_member;
use super::{existing, need_root, need_start};
use crate::control::{Answer, NodeChange, Request, ask};
use crate::daemon::network;
use crate::output::Print;
use crate::program::{advice, is_minikube};
use crate::ui::{Steps, table};

/// Add nodes to the cluster, list, stop, start and delete them.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes with their addresses.
    #[command(visible_alias = "ls")]
    List(Print),
    /// Add a node.
    Add,
    /// Start a stopped node again.
    Start {
        /// Its name, as `skiff node list` shows it, or short: m02.
        name: String,
    },
    /// Stop a node; Pods that somebody replaces move to the others.
    Stop {
        /// Its name, as `skiff node list` shows it, or short: m02.
        name: String,
    },
    /// Take a node out of the cluster for good.
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name, as `skiff node list` shows it, or short: m02.
        name: String,
    },
}

/// Does what is asked of the nodes of a cluster.
pub fn run(profile: &str, what: Node) -> anyhow::Result<()> {
    let profile = existing(profile)?;
    match what {
        Node::List(print) => return list(&profile, print),
        Node::Add => with_steps(|steps| add(&profile, steps)),
        Node::Start { name } => with_steps(|steps| start(&profile, &name, steps)),
        Node::Stop { name } => with_steps(|steps| stop(&profile, &name, steps)),
        Node::Delete { name } => with_steps(|steps| delete(&profile, &name, steps)),
    }
    .map(|said| anstream::eprintln!("{said}"))
}

/// Shows steps; gives what there is to say at the end.
fn with_steps(work: impl FnOnce(&mut Steps) -> anyhow::Result<String>) -> anyhow::Result<String> {
    need_root()?;
    let mut steps = Steps::new();
    let outcome = work(&mut steps);
    if outcome.is_err() {
        steps.failed();
    }
    steps.done();
    outcome
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: String,
    role: &'static str,
    address: String,
    status: String,
}

fn list(profile: &Profile, print: Print) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for member in Member::all(profile) {
        let status = match ask(&member.control_socket(), &Request::Status, |_| ())? {
            Some(Answer::Status(status)) => status.node,
            _ => "Stopped".to_owned(),
        };
        lines.push(Line {
            name: member.name(),
            role: if member.is_control_plane() { "control-plane" } else { "worker" },
            address: network::address(&member)?.map(|a| a.to_string()).unwrap_or_default(),
            status,
        });
    }
    print.print(&lines, |lines| {
        if is_minikube() {
            return lines.iter().map(|line| format!("{}\t{}\n", line.name, line.address)).collect();
        }
        let row = |l: &Line| vec![l.name.clone(), l.role.to_owned(), l.address.clone(), l.status.clone()];
        table(&["NAME", "ROLE", "ADDRESS", "STATUS"], &lines.iter().map(row).collect::<Vec<_>>())
    })
}

fn add(profile: &Profile, steps: &mut Steps) -> anyhow::Result<String> {
    need_running(profile)?;
    let member = Member::next(profile)?;
    start_member(&member, steps)?;
    Ok(format!("Node {:?} is part of the cluster.", member.name()))
}

fn start(profile: &Profile, name: &str, steps: &mut Steps) -> anyhow::Result<String> {
    let member = Member::find(profile, name)?;
    if !member.is_control_plane() {
        need_running(profile)?;
    }
    start_member(&member, steps)?;
    Ok(format!("Node {:?} runs.", member.name()))
}

fn stop(profile: &Profile, name: &str, steps: &mut Steps) -> anyhow::Result<String> {
    let member = worker(profile, name, "stop")?;
    let name = member.name();
    if runs(profile)? {
        drain(&member, steps)?;
        stop_member(&member, steps)?;
        tell(&member, NodeChange::Stopped, steps)?;
    } else {
        stop_member(&member, steps)?;
    }
    Ok(format!(
        "Node {name:?} is stopped; start it again: {}",
        advice(&format!("node start {name}"), &profile.name)
    ))
}

fn delete(profile: &Profile, name: &str, steps: &mut Steps) -> anyhow::Result<String> {
    let member = worker(profile, name, "delete")?;
    need_running(profile)?;
    drain(&member, steps)?;
    stop_member(&member, steps)?;
    steps.begin("Removing its files");
    tell(&member, NodeChange::Deleted, steps)?;
    remove_dirs(&[member.run_dir(), member.state_dir()])?;
    Ok(format!("Node {:?} is gone.", member.name()))
}

/// A node that can come and go while the cluster runs.
fn worker(profile: &Profile, name: &str, verb: &str) -> anyhow::Result<Member> {
    let member = Member::find(profile, name)?;
    if member.is_control_plane() {
        let name = &profile.name;
        bail!("node {name:?} runs the control plane; {verb} the whole cluster: {}", advice(verb, name));
    }
    Ok(member)
}

fn drain(member: &Member, steps: &mut Steps) -> anyhow::Result<()> {
    steps.begin("Moving its Pods");
    tell(member, NodeChange::Drain, steps)
}

/// Tells the control plane.
pub fn tell(member: &Member, change: NodeChange, steps: &mut Steps) -> anyhow::Result<()> {
    let socket = member.profile.control_plane().control_socket();
    let answer = ask(&socket, &Request::Node { name: member.name(), change }, |news| steps.news(news))?;
    answer.map(drop).with_context(|| need_start(&member.profile))
}

fn runs(profile: &Profile) -> anyhow::Result<bool> {
    Ok(ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?.is_some())
}

fn need_running(profile: &Profile) -> anyhow::Result<()> {
    if runs(profile)? { Ok(()) } else { bail!(need_start(profile)) }
}
