//! `skiff profile`: which cluster is meant when none is named, and which there are.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use cluster::kubeconfig::Kubeconfig;
use cluster::{API_PORT, Member, Profile, Settings};
use serde::Serialize;

use super::existing;
use crate::output::{Output, Print};
use crate::program;
use crate::ui::table;

/// Arguments of `profile`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// The cluster that commands without -p mean from now on; without it: which one they mean.
    name: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all clusters of this machine.
    #[command(visible_alias = "ls")]
    List(Print),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: String,
    status: &'static str,
    address: Option<String>,
    nodes: usize,
    default: bool,
    current_context: bool,
}

/// The cluster that is meant: the named one, else the user's choice, else the one of the program's name.
pub fn chosen(named: Option<String>) -> anyhow::Result<String> {
    if let Some(name) = named {
        return Ok(name);
    }
    let settings = Settings::of_user()?;
    Ok(settings.get("profile").unwrap_or(program::name()).to_owned())
}

/// Shows, switches or lists.
pub fn run(meant: &str, options: Options) -> anyhow::Result<()> {
    match (options.command, options.name) {
        (Some(Command::List(print)), _) => match (program::is_minikube(), print.output) {
            (true, Output::Json | Output::Yaml) => {
                print.print(&as_minikube(&lines(meant)?), |_| String::new())
            }
            _ => print.print(&lines(meant)?, |lines| listing(lines)),
        },
        (None, None) => {
            println!("{meant}");
            Ok(())
        }
        (None, Some(name)) => switch(&name),
    }
}

/// The name by which minikube's users go back to the cluster of the program's own name.
const BACK: &str = "default";

fn switch(name: &str) -> anyhow::Result<()> {
    let name = if name == BACK { program::name() } else { name };
    if name != program::name() {
        existing(name)?;
    }
    let value = (name != program::name()).then_some(name);
    Settings::of_user()?.set("profile", value)?;
    let pointed = Kubeconfig::of_user().switch_to(name)?;
    let kubectl = if pointed { "; kubectl uses it too" } else { "" };
    anstream::eprintln!("Commands without -p mean the cluster {name:?} from now on{kubectl}.");
    Ok(())
}

fn lines(meant: &str) -> anyhow::Result<Vec<Line>> {
    let profiles = Profile::list();
    if profiles.is_empty() {
        bail!("there is no cluster on this machine; make one: {}", program::advice("start", meant));
    }
    let kubeconfig = Kubeconfig::of_user();
    let line = |profile: &Profile| -> anyhow::Result<Line> {
        let address = profile.network()?.map(|network| network.node);
        let up = address.is_some_and(|node| answers((node, API_PORT).into(), &profile.name));
        Ok(Line {
            name: profile.name.clone(),
            status: if up { "Running" } else { "Stopped" },
            address: address.map(|node| node.to_string()),
            nodes: Member::all(profile).len(),
            default: profile.name == meant,
            current_context: kubeconfig.is_current(&profile.name),
        })
    };
    profiles.iter().map(line).collect()
}

/// Whether the API server answers, which needs no root. Without its bridge the address would lead away from this machine.
fn answers(server: SocketAddr, profile: &str) -> bool {
    let bridge = std::path::Path::new("/sys/class/net").join(podnet::bridge(profile));
    bridge.exists() && TcpStream::connect_timeout(&server, Duration::from_millis(500)).is_ok()
}

/// What scripts of minikube read.
fn as_minikube(lines: &[Line]) -> serde_json::Value {
    let one = |line: &Line| {
        let node =
            serde_json::json!({"IP": line.address, "Port": API_PORT, "ControlPlane": true, "Worker": true});
        serde_json::json!({
            "Name": line.name, "Status": line.status, "Active": line.default,
            "Config": {"Name": line.name, "Nodes": [node]},
        })
    };
    serde_json::json!({"invalid": [], "valid": lines.iter().map(one).collect::<Vec<_>>()})
}

fn listing(lines: &[Line]) -> String {
    let mark = |is: bool| if is { "*" } else { "" }.to_owned();
    let row = |line: &Line| {
        let address = line.address.clone().unwrap_or_default();
        let nodes = line.nodes.to_string();
        vec![
            line.name.clone(),
            line.status.to_owned(),
            address,
            nodes,
            mark(line.default),
            mark(line.current_context),
        ]
    };
    let headings = ["PROFILE", "STATUS", "IP", "NODES", "DEFAULT", "KUBECONTEXT"];
    table(&headings, &lines.iter().map(row).collect::<Vec<_>>())
}
