//! `skiff version`.

use clap::Args;
use serde::Serialize;

use crate::output::Print;
use crate::program;

/// Options of `version`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only skiff's own version.
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    print: Print,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    skiff: &'static str,
    kubernetes: &'static str,
    /// Where scripts of minikube look.
    #[serde(skip_serializing_if = "Option::is_none")]
    minikube_version: Option<String>,
}

/// Prints versions.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let skiff = env!("CARGO_PKG_VERSION");
    let versions = Versions {
        skiff,
        kubernetes: apiserver::paths::GIT_VERSION,
        minikube_version: program::is_minikube().then(|| format!("skiff-{skiff}")),
    };
    options.print.print(&versions, |v| match (options.short, program::is_minikube()) {
        (true, _) => format!("{}\n", v.skiff),
        (false, true) => format!("minikube version: skiff {}\nkubernetes API {}\n", v.skiff, v.kubernetes),
        (false, false) => format!("skiff {}\nkubernetes API {}\n", v.skiff, v.kubernetes),
    })
}
