//! `skiff addons`: the daemon does it, we show it.

use anyhow::bail;
use clap::Subcommand;
use cluster::Profile;

use super::{ask_running, existing, need_root};
use crate::control::{AddonLine, Answer, Request};
use crate::output::{Output, Print};
use crate::program::{advice, did_you_mean, is_minikube};
use crate::ui::Steps;

/// List what can be added to the cluster, and add or remove it.
#[derive(Debug, Subcommand)]
pub enum Addons {
    /// List the add-ons.
    #[command(visible_alias = "ls")]
    List(Print),
    /// Add one, and wait until it runs.
    Enable {
        /// Its name, such as ingress.
        addon: String,
    },
    /// Print the addresses by which this machine reaches one.
    Open {
        /// Its name, such as ingress.
        addon: String,
    },
    /// Remove one with all its objects.
    Disable {
        /// Its name, such as ingress.
        addon: String,
    },
}

/// Does one of the add-on commands.
pub fn run(name: &str, command: Addons) -> anyhow::Result<()> {
    need_root()?;
    let profile = existing(name)?;
    match command {
        Addons::List(print) => {
            let Answer::Addons(lines) = ask_running(&profile, &Request::AddonList, |_| ())? else {
                bail!("the daemon is of another version; stop it, then: {}", advice("start", name));
            };
            match (is_minikube(), print.output) {
                (true, Output::Json | Output::Yaml) => print.print(&by_name(name, &lines), |_| String::new()),
                _ => print.print(&lines, |lines| listing(name, lines)),
            }
        }
        Addons::Enable { addon } => enable(&profile, &addon),
        Addons::Open { addon } => open(&profile, &addon),
        Addons::Disable { addon } => {
            let request = Request::AddonDisable { addon: addon.clone() };
            change(&profile, &request, &format!("Disabling {addon}"))?;
            println!("The '{addon}' addon is disabled");
            Ok(())
        }
    }
}

/// Adds an add-on and waits until it runs.
pub fn enable(profile: &Profile, addon: &str) -> anyhow::Result<()> {
    let request = Request::AddonEnable { addon: addon.to_owned() };
    change(profile, &request, &format!("Enabling {addon}"))?;
    println!("The '{addon}' addon is enabled");
    Ok(())
}

fn open(profile: &Profile, addon: &str) -> anyhow::Result<()> {
    let answer = ask_running(profile, &Request::AddonList, |_| ())?;
    let lines = if let Answer::Addons(lines) = answer { lines } else { Vec::new() };
    let near = did_you_mean(addon, lines.iter().map(|line| line.name.as_str()));
    let Some(line) = lines.iter().find(|line| line.name == addon) else {
        bail!("there is no add-on {addon:?}{near}");
    };
    if !line.enabled {
        let enable = advice(&format!("addons enable {addon}"), &profile.name);
        bail!("the add-on {addon:?} is not enabled; do so: {enable}");
    }
    super::service::addresses(&profile.name, &line.namespace)
}

/// What scripts of minikube read: `{"ingress": {"Profile": "minikube", "Status": "enabled"}}`.
fn by_name(profile: &str, lines: &[AddonLine]) -> serde_json::Value {
    let one = |line: &AddonLine| {
        let status = if line.enabled { "enabled" } else { "disabled" };
        (line.name.clone(), serde_json::json!({"Profile": profile, "Status": status}))
    };
    lines.iter().map(one).collect::<serde_json::Map<_, _>>().into()
}

fn change(profile: &Profile, request: &Request, step: &str) -> anyhow::Result<()> {
    let mut steps = Steps::new();
    steps.begin(step);
    let outcome = ask_running(profile, request, |news| steps.news(news));
    match &outcome {
        Ok(_) => steps.done(),
        Err(_) => steps.failed(),
    }
    outcome.map(drop)
}

/// The table as minikube draws it.
fn listing(profile: &str, lines: &[AddonLine]) -> String {
    let head = ["ADDON NAME", "PROFILE", "STATUS", "MAINTAINER"].map(str::to_owned);
    let row = |line: &AddonLine| {
        let status = if line.enabled { "enabled ✅" } else { "disabled" };
        [line.name.clone(), profile.to_owned(), status.to_owned(), line.maintainer.clone()]
    };
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(lines.iter().map(row)).collect();
    // The mark takes two columns of a terminal.
    let width = |cell: &str| cell.chars().count() + cell.matches('✅').count();
    let widths: Vec<usize> =
        (0..4).map(|i| rows.iter().map(|row| width(&row[i])).max().unwrap_or(0)).collect();
    let rule: String = widths.iter().map(|w| format!("|{}", "-".repeat(w + 2))).collect::<String>() + "|\n";
    let mut text = rule.clone();
    for (i, row) in rows.iter().enumerate() {
        for (cell, wide) in row.iter().zip(&widths) {
            text += &format!("| {cell}{} ", " ".repeat(wide - width(cell)));
        }
        text += "|\n";
        if i == 0 {
            text += &rule;
        }
    }
    text + &rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_minikubes() {
        let line = |enabled| AddonLine {
            name: "ingress".into(),
            enabled,
            maintainer: "skiff".into(),
            namespace: "ingress-nginx".into(),
        };
        let text = listing("demo", &[line(true), line(false)]);
        let wanted = "\
|------------|---------|------------|------------|
| ADDON NAME | PROFILE | STATUS     | MAINTAINER |
|------------|---------|------------|------------|
| ingress    | demo    | enabled ✅ | skiff      |
| ingress    | demo    | disabled   | skiff      |
|------------|---------|------------|------------|
";
        assert_eq!(text, wanted);
    }
}
