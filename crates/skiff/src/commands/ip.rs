//! `skiff ip`: a node's address, read from a file.

use anyhow::Context;
use clap::Args;
use cluster::Member;
use serde::Serialize;

use super::existing;
use crate::daemon::network;
use crate::output::Print;
use crate::program::advice;

/// Options of `ip`.
#[derive(Debug, Args)]
pub struct Options {
    /// The node, as `node list` shows it, or short: m02 [default: the first].
    #[arg(short, long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    print: Print,
}

#[derive(Serialize)]
struct Address {
    node: String,
    address: String,
}

/// Prints the node's address.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    let profile = existing(name)?;
    let member = match &options.node {
        Some(node) => Member::find(&profile, node)?,
        None => profile.control_plane(),
    };
    let start = || format!("the cluster has no address yet; start it: {}", advice("start", name));
    let address = network::address(&member)?.with_context(start)?.to_string();
    options.print.print(&Address { node: member.name(), address }, |address| format!("{}\n", address.address))
}
