//! `skiff kubectl`: the user's own kubectl, on this cluster whatever the current context is.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::bail;
use clap::Args;
use cluster::kubeconfig::Kubeconfig;

use super::existing;

/// How to come by one.
pub const INSTALL: &str = "install one of the versions 1.27 to 1.33, for example with `apt-get install \
    kubernetes-client`, `snap install kubectl --classic`, or as https://kubernetes.io/docs/tasks/tools/ says";

/// Arguments of `kubectl`.
#[derive(Debug, Args)]
pub struct Options {
    /// What kubectl is told.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Becomes kubectl.
pub fn run(name: &str, options: &Options) -> anyhow::Result<ExitCode> {
    existing(name)?;
    let mut kubectl = Command::new("kubectl");
    kubectl.env("KUBECONFIG", Kubeconfig::of_user().path()).args(["--context", name]);
    let error = kubectl.args(&options.arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!("there is no kubectl on the PATH; {INSTALL}");
    }
    bail!("run kubectl: {error}")
}
