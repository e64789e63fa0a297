//! `skiff ingress`: what becomes of Ingresses that were written for ingress-nginx.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use ingress::lint::{Report, lint};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress as Object;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

use super::api;
use crate::output::Print;

/// Looks at Ingresses.
#[derive(Debug, Subcommand)]
pub enum Ingress {
    /// Say which annotations of Ingresses are honoured, differ or are refused, and what they silently rely on.
    ///
    /// Without -f the Ingresses of the cluster are read. The exit code is 1 where something is refused or unknown.
    Lint(Options),
}

/// Options of `lint`.
#[derive(Debug, Args)]
pub struct Options {
    /// Files with manifests, or - for the standard input.
    #[arg(short, long = "filename")]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    print: Print,
}

/// Does what is asked.
pub fn run(profile: &str, command: &Ingress) -> anyhow::Result<ExitCode> {
    let Ingress::Lint(options) = command;
    let found = if options.filename.is_empty() { of_cluster(profile)? } else { of_files(&options.filename)? };
    let reports = lint(&found.ingresses, &found.secrets);
    options.print.print(&reports, |reports| text(reports))?;
    Ok(if reports.iter().any(Report::fails) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is looked at: Ingresses, and the Secrets that they may name.
#[derive(Debug, Default)]
struct Found {
    ingresses: Vec<Object>,
    secrets: Vec<Secret>,
}

fn of_cluster(profile: &str) -> anyhow::Result<Found> {
    api::with_client(profile, async |client| {
        let list = Api::<Object>::all(client.clone()).list(&ListParams::default()).await;
        let ingresses = list.map_err(|error| api::said(profile, error)).context("list Ingresses")?.items;
        let certificates = ListParams::default().fields("type=kubernetes.io/tls");
        let list = Api::<Secret>::all(client).list(&certificates).await;
        let secrets = list.map_err(|error| api::said(profile, error)).context("list Secrets")?.items;
        Ok(Found { ingresses, secrets })
    })
}

fn of_files(files: &[PathBuf]) -> anyhow::Result<Found> {
    let mut all = Found::default();
    for file in files {
        let shown = file.display();
        let text = match file.as_os_str() == "-" {
            true => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("read the standard input")?;
                text
            }
            false => std::fs::read_to_string(file).with_context(|| format!("read {shown}"))?,
        };
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("read {shown}: it is no YAML"))?;
        for document in documents {
            take(document, &mut all).with_context(|| format!("read {shown}"))?;
        }
    }
    Ok(all)
}

/// The Ingresses and Secrets of a manifest, which may be a list; other kinds are not looked at.
fn take(value: Value, out: &mut Found) -> anyhow::Result<()> {
    if let Some(items) = value.get("items").and_then(Value::as_array) {
        return items.iter().try_for_each(|item| take(item.clone(), out));
    }
    let name = value["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
    match value["kind"].as_str() {
        Some("Ingress") => {
            out.ingresses.push(serde_json::from_value(value).with_context(|| format!("Ingress {name}"))?)
        }
        Some("Secret") => {
            out.secrets.push(serde_json::from_value(value).with_context(|| format!("Secret {name}"))?);
        }
        _ => {}
    }
    Ok(())
}

fn text(reports: &[Report]) -> String {
    let mut out = String::new();
    for report in reports {
        out += &format!("{}\n", report.ingress);
        if report.findings.is_empty() {
            out += "  nothing to say: what it asks for is the API's\n";
        }
        for finding in &report.findings {
            let why = if finding.why.is_empty() { String::new() } else { format!(": {}", finding.why) };
            out += &format!("  {:<9} {}{why}\n", finding.verdict.word(), finding.subject);
        }
    }
    let failing = reports.iter().filter(|report| report.fails()).count();
    out + &format!("{} looked at, {failing} with something that does not work here\n", count(reports.len()))
}

fn count(number: usize) -> String {
    match number {
        1 => "1 Ingress".into(),
        other => format!("{other} Ingresses"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn manifests_are_read_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.yaml");
        let manifests = "\
apiVersion: v1
kind: Service
metadata: {name: web}
---
apiVersion: v1
kind: Secret
metadata: {name: web}
data: {tls.crt: \"\"}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: web
  annotations:
    nginx.ingress.kubernetes.io/enable-cors: \"true\"
    nginx.ingress.kubernetes.io/server-snippet: return 200;
spec:
  defaultBackend: {service: {name: web, port: {number: 80}}}
";
        std::fs::write(&file, manifests).unwrap();
        let found = of_files(&[file]).unwrap();
        assert_eq!((found.ingresses.len(), found.secrets.len()), (1, 1));
        let reports = lint(&found.ingresses, &found.secrets);
        let shown = text(&reports);
        assert!(shown.starts_with("default/web\n  refused   server-snippet: is not supported: "), "{shown}");
        assert!(shown.contains("  honoured  enable-cors\n"), "{shown}");
        assert!(
            shown.ends_with("1 Ingress looked at, 1 with something that does not work here\n"),
            "{shown}"
        );
        assert!(of_files(&[dir.path().join("none")]).unwrap_err().to_string().contains("none"));
    }
}
