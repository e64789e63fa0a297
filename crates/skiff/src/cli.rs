//! The command line: what can be said, and who does it.

use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::commands;

/// Kubernetes with its whole network in one small binary.
///
/// A cluster is a node of its own on this machine: no Docker, no virtual machine. `skiff start` makes it and points
/// kubectl at it; everything else is kubectl as ever.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, disable_help_subcommand = true)]
#[command(
    after_help = "Examples:\n  sudo skiff start                     make a cluster, or start it again\n  sudo skiff image load nginx.tar      give it an image without a registry\n  kubectl create deploy web --image=nginx && kubectl expose deploy web --port=80\n  sudo skiff delete                    leave nothing behind"
)]
pub struct Cli {
    /// The cluster's name; also its kubeconfig context and its node.
    #[arg(short, long, global = true, env = "SKIFF_PROFILE", default_value = "skiff")]
    pub profile: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster or start it again, and point kubectl at it.
    Start {
        #[command(flatten)]
        options: commands::start::Options,
    },
    /// Stop Pods and node; objects, images and volumes stay.
    Stop,
    /// Stop the cluster and remove all that it made on this machine.
    Delete {
        /// All clusters of this machine.
        #[arg(long)]
        all: bool,
    },
    /// Say how the cluster is. Exit status 0 when it runs and its node is ready.
    Status {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print the node's address.
    Ip,
    /// Print the daemon's log.
    Logs {
        /// Go on as the log grows.
        #[arg(short, long)]
        follow: bool,
        /// Only so many lines from its end.
        #[arg(short = 'n', long)]
        lines: Option<usize>,
    },
    /// Give the cluster images, list and remove them.
    #[command(subcommand)]
    Image(Image),
    /// Add nodes to the cluster, list, stop, start and delete them.
    #[command(subcommand)]
    Node(Node),
    /// Print the versions of skiff and of the Kubernetes API that it serves.
    Version,
    /// Print the completion script of a shell: source <(skiff completion bash).
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Run a node in the foreground; `start` calls this.
    #[command(hide = true)]
    Daemon {
        /// The node's number; the first one runs the control plane.
        #[arg(long, default_value_t = 1)]
        node: u8,
    },
    /// Serve the cluster's DNS; the coredns Pod runs this.
    #[command(hide = true)]
    Dns {
        #[command(flatten)]
        options: commands::dns::Options,
    },
}

/// Give the cluster images, list and remove them.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load images from a tar that `docker save`, `podman save` or `skopeo` wrote. They stand in for their registry.
    Load {
        /// The tar, plain or compressed.
        file: PathBuf,
    },
    /// Pull an image from its registry.
    Pull {
        /// The image, such as nginx or ghcr.io/org/app:1.
        image: String,
    },
    /// List the images.
    #[command(alias = "list")]
    Ls {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove an image; running containers keep theirs.
    #[command(alias = "remove")]
    Rm {
        /// The image.
        image: String,
    },
}

/// Add nodes to the cluster, list, stop, start and delete them.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes with their addresses.
    #[command(alias = "ls")]
    List {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
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
    #[command(alias = "rm")]
    Delete {
        /// Its name, as `skiff node list` shows it, or short: m02.
        name: String,
    },
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
    /// For machines.
    Yaml,
}

impl Output {
    /// Prints a value in this form; `text` makes the human one.
    pub fn print<T: serde::Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        match self {
            Self::Text => anstream::print!("{}", text(value)),
            Self::Json => println!("{}", serde_json::to_string_pretty(value)?),
            Self::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        }
        Ok(())
    }
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let profile = cli.profile.as_str();
    let outcome = match cli.command {
        Command::Start { options } => commands::start::run(profile, &options),
        Command::Stop => commands::stop::run(profile),
        Command::Delete { all } => commands::delete::run(profile, all),
        Command::Status { output } => return report(commands::status::run(profile, output)),
        Command::Ip => commands::status::ip(profile),
        Command::Logs { follow, lines } => commands::logs::run(profile, follow, lines),
        Command::Image(image) => commands::image::run(profile, image),
        Command::Node(node) => commands::node::run(profile, node),
        Command::Version => commands::status::version(),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut std::io::stdout());
            Ok(())
        }
        Command::Daemon { node } => crate::daemon::run(profile, node),
        Command::Dns { options } => commands::dns::run(&options),
    };
    report(outcome.map(|()| ExitCode::SUCCESS))
}

fn report(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    const RED: Style = AnsiColor::Red.on_default();
    outcome.unwrap_or_else(|error| {
        anstream::eprintln!("{RED}error:{RED:#} {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
