//! `skiff status`.

use std::process::ExitCode;

use clap::Args;
use cluster::Profile;
use cluster::kubeconfig::Kubeconfig;
use serde::Serialize;

use super::existing;
use crate::control::{Answer, Request, ask};
use crate::output::Print;

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    print: Print,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    name: String,
    daemon: String,
    node: String,
    address: Option<String>,
    pods: String,
    kubeconfig: String,
}

/// Prints how the cluster is; exit status 0 when its node is ready, 3 when it does not run, 1 otherwise.
pub fn run(name: &str, options: &Options) -> anyhow::Result<ExitCode> {
    let profile = existing(name)?;
    let answer = ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?;
    let status = answer.and_then(|a| if let Answer::Status(status) = a { Some(status) } else { None });
    let stopped = || "Stopped".to_owned();
    let report = Report {
        name: name.to_owned(),
        daemon: status.as_ref().map_or_else(stopped, |s| s.daemon.clone()),
        node: status.as_ref().map_or_else(stopped, |s| s.node.clone()),
        address: profile.network()?.map(|n| n.node.to_string()),
        pods: status
            .as_ref()
            .map_or_else(String::new, |s| format!("{} of {} running", s.pods_running, s.pods)),
        kubeconfig: configured(&profile).to_owned(),
    };
    options.print.print(&report, text)?;
    Ok(match status {
        Some(status) if status.node == "Ready" => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::from(3),
    })
}

fn configured(profile: &Profile) -> &'static str {
    if Kubeconfig::of_user().is_current(&profile.name) { "Configured" } else { "Not current" }
}

fn text(report: &Report) -> String {
    let address = report.address.as_deref().unwrap_or_default();
    let lines = [
        ("cluster", report.name.as_str()),
        ("daemon", &report.daemon),
        ("node", &report.node),
        ("address", address),
        ("pods", &report.pods),
        ("kubeconfig", &report.kubeconfig),
    ];
    lines.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}
