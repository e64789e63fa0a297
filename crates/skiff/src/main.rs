//! The skiff binary: arguments in, wiring, signals, drain.
//!
//! One file serves under several names: `skiff` (and `minikube`) is the command line; `skiff-shim` is the process that
//! is the node and makes containers; `serve`, `wget`, ... are the programs of the built-in image. The name decides
//! before any thread exists, because the shim must stay single-threaded.

mod cli;
mod commands;
mod control;
mod daemon;
#[cfg(test)]
mod docs;
mod doctor;
mod output;
mod program;
mod reference;
mod tutorial;
mod ui;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let name = args.first().map(String::as_str).unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let rest = args.get(1..).unwrap_or_default();
    if let Some(code) = toolbox::run(name, rest) {
        return code;
    }
    // The built-in image's entry point is this binary, so `kubectl run ... -- sleep 3600` arrives as `skiff sleep 3600`.
    if let Some((applet, rest)) = rest.split_first()
        && let Some(code) = toolbox::run(applet, rest)
    {
        return code;
    }
    runtime::shim::enter_if_asked();
    cli::main()
}
