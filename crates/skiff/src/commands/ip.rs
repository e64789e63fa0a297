//! `skiff ip`: the node's address, read from a file.

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::existing;
use crate::output::Print;
use crate::program::advice;

/// Options of `ip`.
#[derive(Debug, Args)]
pub struct Options {
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
    let network = existing(name)?.network()?;
    let start = || format!("the cluster has no address yet; start it: {}", advice("start", name));
    let address = network.with_context(start)?.node.to_string();
    options
        .print
        .print(&Address { node: name.to_owned(), address }, |address| format!("{}\n", address.address))
}
