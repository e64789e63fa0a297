//! The command line: what can be said, and who does it. Each command's own words stand in its file below `commands/`.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{commands, program};

/// Kubernetes with its whole network in one small binary.
///
/// A cluster is a node of its own on this machine: no Docker, no virtual machine. `skiff start` makes it and points
/// kubectl at it; everything else is kubectl as ever. Called as `minikube` it answers the same commands.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, disable_help_subcommand = true)]
#[command(
    after_help = "Examples:\n  sudo skiff start                     make a cluster, or start it again\n  sudo skiff image load nginx.tar      give it an image without a registry\n  kubectl create deploy web --image=nginx && kubectl expose deploy web --port=80\n  sudo skiff delete                    leave nothing behind"
)]
pub struct Cli {
    /// The cluster's name; also its kubeconfig context and its node. [default: the one of `profile`, else skiff]
    #[arg(short, long, global = true, env = "SKIFF_PROFILE", hide_env_values = true, value_name = "NAME")]
    profile: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster or start it again, and point kubectl at it.
    Start(commands::start::Options),
    /// Stop Pods and node; objects, images and volumes stay.
    Stop(commands::stop::Options),
    /// Stop the cluster and remove all that it made on this machine.
    Delete(commands::delete::Options),
    /// Say how the cluster is. Exit status 0 when it runs and its node is ready.
    Status(commands::status::Options),
    /// Print the node's address.
    Ip(commands::ip::Options),
    /// Print the addresses of Services that this machine reaches.
    Service(commands::service::Options),
    /// Say that no tunnel is needed, and list the addresses that this machine reaches.
    Tunnel(crate::output::Print),
    /// Explain network policies: who may talk to whom, and which rule says so.
    #[command(subcommand)]
    Policy(commands::policy::Policy),
    /// Show the connections of Pods: who, to whom, allowed or denied, and by which policy.
    #[command(after_help = commands::flows::HELP)]
    Flows(commands::flows::Options),
    /// Give the cluster images, list, save and remove them.
    #[command(subcommand)]
    Image(commands::image::Image),
    /// Add nodes to the cluster, list, stop, start and delete them.
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Check this machine and say what to do about each finding. Exit status 1 when no cluster can run on it.
    Doctor(crate::output::Print),
    /// Run a shell or a command in the node's network and mounts.
    Ssh(commands::ssh::Options),
    /// Print the daemon's log.
    Logs(commands::logs::Options),
    /// Run kubectl on this cluster: skiff kubectl -- get pods -A.
    Kubectl(commands::kubectl::Options),
    /// Say what there is instead of a dashboard.
    Dashboard,
    /// Show or choose the cluster that commands without -p mean, or list all.
    Profile(commands::profile::Options),
    /// Read and change what commands without flags mean.
    #[command(subcommand)]
    Config(commands::config::Config),
    /// Point kubectl at the cluster again.
    UpdateContext,
    /// List what can be added to the cluster, and add or remove it.
    #[command(subcommand)]
    Addons(commands::addons::Addons),
    /// Go through a course of Kubernetes networking, live, in a cluster of its own; needs no registry.
    Tutorial(commands::tutorial::Options),
    /// Look at Ingresses.
    #[command(subcommand)]
    Ingress(commands::ingress::Ingress),
    /// Print the versions of skiff and of the Kubernetes API that it serves.
    Version(commands::version::Options),
    /// Print the completion script of a shell: source <(skiff completion bash).
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages; `make install` calls this.
    #[command(hide = true)]
    Man {
        /// The directory that they go to.
        dir: std::path::PathBuf,
    },
    /// Print docs/commands.md; `make docs` calls this.
    #[command(hide = true)]
    Reference,
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
    /// Serve the cluster's Ingresses; the ingress-nginx-controller Pod runs this.
    #[command(hide = true)]
    IngressController {
        #[command(flatten)]
        options: commands::ingress_controller::Options,
    },
}

/// The whole command line under the name that we were called by.
pub fn command() -> clap::Command {
    Cli::command().name(program::name())
}

/// As a shell tells of SIGPIPE: 128 and the signal's number.
const BROKEN_PIPE: i32 = 141;

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    end_quietly_with_the_reader();
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = parsed.unwrap_or_else(|error| error.exit());
    report(run(cli))
}

/// Whoever reads our output may have enough of it (`skiff logs | head`): then we end as other programs do, without a word.
fn end_quietly_with_the_reader() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What `println!` and clap's generators say.
        let said = panic.payload_as_str().unwrap_or_default();
        if said.starts_with("failed ") && (said.contains("Broken pipe") || said.contains("BrokenPipe")) {
            std::process::exit(BROKEN_PIPE);
        }
        otherwise(panic);
    }));
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let named = cli.profile.clone();
    let profile = commands::profile::chosen(cli.profile)?;
    let profile = profile.as_str();
    match cli.command {
        Command::Start(options) => commands::start::run(profile, &options),
        Command::Stop(options) => commands::stop::run(profile, &options),
        Command::Delete(options) => commands::delete::run(profile, &options),
        Command::Status(options) => return commands::status::run(profile, &options),
        Command::Ip(options) => commands::ip::run(profile, &options),
        Command::Service(options) => commands::service::run(profile, options),
        Command::Tunnel(print) => commands::service::tunnel(profile, print),
        Command::Policy(policy) => return commands::policy::run(profile, policy),
        Command::Flows(options) => commands::flows::run(profile, &options),
        Command::Image(image) => commands::image::run(profile, image),
        Command::Node(node) => commands::node::run(profile, node),
        Command::Doctor(print) => return commands::doctor::run(profile, print),
        Command::Ssh(options) => return commands::ssh::run(profile, &options),
        Command::Logs(options) => commands::logs::run(profile, &options),
        Command::Kubectl(options) => return commands::kubectl::run(profile, &options),
        Command::Dashboard => commands::dashboard::run(profile),
        Command::Profile(options) => commands::profile::run(profile, options),
        Command::Config(config) => commands::config::run(config),
        Command::UpdateContext => commands::start::update_context(profile),
        Command::Tutorial(options) => return commands::tutorial::run(named.as_deref(), &options),
        Command::Version(options) => commands::version::run(&options),
        Command::Addons(addons) => commands::addons::run(profile, addons),
        Command::Ingress(command) => return commands::ingress::run(profile, &command),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut command(), program::name(), &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => clap_mangen::generate_to(command(), dir).map_err(Into::into),
        Command::Reference => {
            print!("{}", crate::reference::text(Cli::command()));
            Ok(())
        }
        Command::Daemon { node } => crate::daemon::run(profile, node),
        Command::Dns { options } => commands::dns::run(&options),
        Command::IngressController { options } => commands::ingress_controller::run(&options),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn report(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

/// Prints what went wrong.
pub fn complain(error: &anyhow::Error) {
    const RED: Style = AnsiColor::Red.on_default();
    anstream::eprintln!("{RED}error:{RED:#} {}", crate::output::chain(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn misspelt_commands_and_flags_get_a_suggestion() {
        let said = |line: &str| match Cli::try_parse_from(line.split(' ')) {
            Ok(_) => panic!("{line} should be refused"),
            Err(error) => error.to_string(),
        };
        assert!(said("skiff strat").contains("'start'"), "{}", said("skiff strat"));
        assert!(said("skiff delete --al").contains("'--all'"), "{}", said("skiff delete --al"));
        assert!(said("skiff status -o jsno").contains("'json'"), "{}", said("skiff status -o jsno"));
    }
}
