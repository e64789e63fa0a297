//! `skiff status`: in our words, or under minikube's name in those that its scripts read.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use cluster::Profile;
use cluster::kubeconfig::Kubeconfig;
use serde::Serialize;

use super::existing;
use crate::control::{Answer, Request, Status, ask};
use crate::output::Print;
use crate::program::{did_you_mean, is_minikube};

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Options {
    /// A line of your own, as minikube's scripts ask: {{.Host}}, {{.Kubelet}}, {{.APIServer}}, {{.Kubeconfig}} or {{.Name}}.
    #[arg(short, long, value_name = "TEXT")]
    format: Option<String>,
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

/// The same in minikube's words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AsMinikube {
    name: String,
    host: String,
    kubelet: String,
    #[serde(rename = "APIServer")]
    api_server: String,
    kubeconfig: String,
    worker: bool,
}

/// Prints how the cluster is; exit status 0 when its node is ready, 3 when it does not run, 1 otherwise.
pub fn run(name: &str, options: &Options) -> anyhow::Result<ExitCode> {
    let profile = existing(name)?;
    let answer = ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?;
    let status = answer.and_then(|a| if let Answer::Status(status) = a { Some(status) } else { None });
    let kubeconfig = configured(&profile).to_owned();
    let as_minikube = in_minikubes_words(name, status.as_ref(), kubeconfig.clone());
    if let Some(format) = &options.format {
        println!("{}", as_minikube.filled(format)?);
    } else if is_minikube() {
        options.print.print(&as_minikube, AsMinikube::text)?;
    } else {
        let stopped = || "Stopped".to_owned();
        let report = Report {
            name: name.to_owned(),
            daemon: status.as_ref().map_or_else(stopped, |s| s.daemon.clone()),
            node: status.as_ref().map_or_else(stopped, |s| s.node.clone()),
            address: profile.network()?.map(|n| n.node.to_string()),
            pods: status
                .as_ref()
                .map_or_else(String::new, |s| format!("{} of {} running", s.pods_running, s.pods)),
            kubeconfig,
        };
        options.print.print(&report, text)?;
    }
    Ok(match status {
        Some(status) if status.node == "Ready" => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::from(3),
    })
}

fn configured(profile: &Profile) -> &'static str {
    if Kubeconfig::of_user().is_current(&profile.name) { "Configured" } else { "Not current" }
}

fn in_minikubes_words(name: &str, status: Option<&Status>, kubeconfig: String) -> AsMinikube {
    let word = |up: bool| if up { "Running" } else { "Stopped" }.to_owned();
    AsMinikube {
        name: name.to_owned(),
        host: word(status.is_some()),
        kubelet: word(status.is_some_and(|status| status.node == "Ready")),
        api_server: word(status.is_some()),
        kubeconfig: if kubeconfig == "Configured" { kubeconfig } else { "Misconfigured".to_owned() },
        worker: false,
    }
}

impl AsMinikube {
    fn fields(&self) -> [(&'static str, &str); 5] {
        [
            ("Name", &self.name),
            ("Host", &self.host),
            ("Kubelet", &self.kubelet),
            ("APIServer", &self.api_server),
            ("Kubeconfig", &self.kubeconfig),
        ]
    }

    fn text(&self) -> String {
        let Self { name, host, kubelet, api_server, kubeconfig, .. } = self;
        format!(
            "{name}\ntype: Control Plane\nhost: {host}\nkubelet: {kubelet}\napiserver: {api_server}\nkubeconfig: {kubeconfig}\n\n"
        )
    }

    /// The template with its fields filled in.
    fn filled(&self, template: &str) -> anyhow::Result<String> {
        let (mut text, mut rest) = (String::new(), template);
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((field, after)) = after.split_once("}}") else { bail!("--format: {{{{ without }}}}") };
            let name = field.trim().trim_start_matches('.');
            let Some((_, value)) = self.fields().into_iter().find(|(known, _)| *known == name) else {
                let near = did_you_mean(name, self.fields().map(|(known, _)| known));
                bail!("--format: there is no field {name:?}{near}");
            };
            text += before;
            text += value;
            rest = after;
        }
        Ok(text + rest)
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn minikubes_words() {
        let status =
            Status { daemon: "Running".into(), node: "Ready".into(), pods_running: 1, pods: 1, pid: 1 };
        let running = in_minikubes_words("demo", Some(&status), "Configured".into());
        assert!(running.text().starts_with("demo\ntype: Control Plane\nhost: Running\n"));
        assert_eq!(running.filled("{{.Host}}/{{ .APIServer }}!").unwrap(), "Running/Running!");
        assert!(running.filled("{{.Hots}}").unwrap_err().to_string().contains("did you mean \"Host\"?"));
        assert!(running.filled("{{.Host").is_err());
        let stopped = in_minikubes_words("demo", None, "Not current".into());
        assert_eq!(stopped.filled("{{.Host}} {{.Kubeconfig}}").unwrap(), "Stopped Misconfigured");
    }
}
