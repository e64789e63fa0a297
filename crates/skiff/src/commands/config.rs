//! `skiff config`: what commands without flags mean, kept for the user.

use anyhow::bail;
use clap::Subcommand;
use cluster::Settings;

use super::existing;
use crate::output::Print;
use crate::program::{did_you_mean, name};
use crate::ui::table;

/// Names that can be set, and what they do.
const KNOWN: [(&str, &str); 1] = [("profile", "the cluster that commands without -p mean")];
/// Names that minikube's scripts set and that have no meaning where there is no machine to size and no driver to choose.
const NEEDLESS: [&str; 8] = [
    "driver",
    "vm-driver",
    "memory",
    "cpus",
    "disk-size",
    "container-runtime",
    "WantUpdateNotification",
    "ReminderWaitPeriodInHours",
];

/// Read and change what commands without flags mean.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Set a name to a value.
    Set {
        /// The name; `config view` lists those that there are.
        name: String,
        /// Its value.
        value: String,
    },
    /// Print what a name is set to.
    Get {
        /// The name.
        name: String,
    },
    /// Forget what a name is set to.
    Unset {
        /// The name.
        name: String,
    },
    /// List all names and values.
    #[command(visible_alias = "list")]
    View(Print),
}

/// Does one of the config commands.
pub fn run(command: Config) -> anyhow::Result<()> {
    match command {
        Config::Set { name: key, .. } if NEEDLESS.contains(&key.as_str()) => {
            let needs = "there is no machine to size and no driver to choose";
            anstream::eprintln!("{} has no use for {key:?}: {needs}. Nothing is changed.", name());
        }
        Config::Set { name, value } => {
            check(&name)?;
            existing(&value)?;
            Settings::of_user()?.set(&name, Some(&value))?;
        }
        Config::Get { name } => {
            check(&name)?;
            match Settings::of_user()?.get(&name) {
                Some(value) => println!("{value}"),
                None => bail!("{name:?} is not set"),
            }
        }
        Config::Unset { name } => {
            check(&name)?;
            Settings::of_user()?.set(&name, None)?;
        }
        Config::View(print) => {
            let settings = Settings::of_user()?;
            print.print(settings.values(), |values| {
                let value = |name: &str| values.get(name).cloned().unwrap_or_default();
                let row = |(name, does): (&str, &str)| vec![name.to_owned(), value(name), does.to_owned()];
                table(&["NAME", "VALUE", "MEANING"], &KNOWN.map(row))
            })?;
        }
    }
    Ok(())
}

fn check(name: &str) -> anyhow::Result<()> {
    let known = KNOWN.map(|(known, _)| known);
    if known.contains(&name) {
        return Ok(());
    }
    bail!("there is nothing to set called {name:?}{}", did_you_mean(name, known));
}
