//! `skiff ssh`: a shell in the node, which is the shim's network and mount namespace. No daemon and no key is needed,
//! because the node's file system is this machine's, with the containers' mounts on top.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use cluster::Member;
use nix::sched::{CloneFlags, setns};

use super::{existing, need_root, need_start};
use crate::program::advice;

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub struct Options {
    /// The node, as `node list` shows it, or short: m02 [default: the first].
    #[arg(short, long, value_name = "NAME")]
    node: Option<String>,
    /// What to run there; one word is given to a shell. Without it: a shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Becomes a shell, or the command, in the node.
pub fn run(name: &str, options: &Options) -> anyhow::Result<ExitCode> {
    need_root()?;
    let profile = existing(name)?;
    let member = match &options.node {
        Some(node) => Member::find(&profile, node)?,
        None => profile.control_plane(),
    };
    let Some(pid) = runtime::shim::holder(&member.run_dir()) else {
        bail!(match member.is_control_plane() {
            true => need_start(&profile),
            false => {
                let start = advice(&format!("node start {}", member.name()), name);
                format!("the node {:?} does not run; start it: {start}", member.name())
            }
        });
    };
    let here = std::env::current_dir();
    for (kind, flag) in [("net", CloneFlags::CLONE_NEWNET), ("mnt", CloneFlags::CLONE_NEWNS)] {
        let path = format!("/proc/{pid}/ns/{kind}");
        let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
        setns(namespace, flag).with_context(|| format!("enter {path}"))?;
    }
    // Entering a mount namespace moves to its root.
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here);
    }
    let shell = std::env::var("SHELL").ok().filter(|shell| std::path::Path::new(shell).exists());
    let shell = shell.unwrap_or_else(|| "/bin/sh".to_owned());
    let mut command = match options.command.as_slice() {
        [] => Command::new(&shell),
        [line] => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", line]);
            command
        }
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
    };
    let error = command.exec();
    bail!("run {:?} in the node: {error}", command.get_program())
}
