//! `skiff flows`: connections as the nodes' kernels see them, with names, verdict and the policy that decided.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::sync::mpsc::channel;

use anstyle::{AnsiColor, Style};
use anyhow::bail;
use clap::Args;
use cluster::Member;
use k8s_openapi::api::core::v1::Service;
use netpol::flows::{Outcome, Place, Seen};

use super::api::{said, with_client};
use super::policy::{addresses_of, all};
use super::{existing, need_root, need_start};
use crate::control::{FlowsWanted, Reply, Request, ask};
use crate::output::{Output, Print};

/// What `--help` says below the flags.
pub const HELP: &str = "\
Without -f: the connections that are tracked now, and the last ones that were denied. With -f: each new one as its first
packet passes or is dropped. Denied ones are always heard of, ten a second and set of rules at most; allowed ones only
while somebody looks, so nothing is spent when nobody does. `audited` is what a policy with the annotation
skiff.dev/audit: \"true\" would have denied. Probes of the node are left out.

Examples:
  sudo skiff flows -f --denied
  sudo skiff flows -f --pod shop/cart
  sudo skiff flows -o json";

/// Options of `flows`.
#[derive(Debug, Args)]
pub struct Options {
    /// Show new ones as they come, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only those that were denied, or audited.
    #[arg(long)]
    denied: bool,
    /// Only those from or to this Pod, NAME or NAMESPACE/NAME.
    #[arg(long)]
    pod: Option<String>,
    /// The namespace of a Pod without one.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    print: Print,
}

/// Prints connections of all nodes of the cluster.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    need_root()?;
    let profile = existing(name)?;
    let pod = options.pod.as_ref().map(|pod| match pod.contains('/') {
        true => pod.clone(),
        false => format!("{}/{pod}", options.namespace),
    });
    let wanted = FlowsWanted { follow: options.follow, denied: options.denied, pod };
    let services = services(name)?;
    let (tx, rx) = channel();
    let nodes = Member::all(&profile);
    for member in nodes {
        let (tx, wanted) = (tx.clone(), wanted.clone());
        std::thread::spawn(move || {
            let socket = member.control_socket();
            let mut gone = false;
            let asked = ask(&socket, &Request::Flows(wanted), |reply| {
                if let Reply::Flow(seen) = reply {
                    gone |= tx.send(Ok(seen.as_ref().clone())).is_err();
                }
            });
            match asked {
                Ok(Some(_)) => {}
                // A node that is stopped sees nothing; without the first one there is no cluster.
                Ok(None) if !member.is_control_plane() => {}
                Ok(None) => drop(tx.send(Err(anyhow::anyhow!(need_start(&member.profile))))),
                Err(error) => drop(tx.send(Err(error))),
            }
        });
    }
    drop(tx);
    let mut all = Vec::new();
    for seen in rx {
        let seen: Seen = seen?;
        match (options.follow, options.print.output) {
            (true, Output::Text) => show(&line(&seen, &services))?,
            (true, Output::Json) => show(&(serde_json::to_string(&seen)? + "\n"))?,
            (true, Output::Yaml) => bail!("-f prints lines of text or of JSON; say -o json"),
            (false, _) => all.push(seen),
        }
    }
    if options.follow {
        return Ok(());
    }
    all.sort_by_key(|seen| seen.time);
    options.print.print(&all, |all| match all.as_slice() {
        [] => "No connections; see new ones as they come: skiff flows -f\n".to_owned(),
        all => all.iter().map(|seen| line(seen, &services)).collect(),
    })
}

fn show(line: &str) -> anyhow::Result<()> {
    anstream::print!("{line}");
    Ok(std::io::stdout().flush()?)
}

/// The names of Services' addresses, as far as the API tells them now.
fn services(profile: &str) -> anyhow::Result<BTreeMap<IpAddr, String>> {
    let services: Vec<Service> =
        with_client(profile, async |client| all(&client).await.map_err(|error| said(profile, error)))?;
    let rows = services.iter().flat_map(|service| {
        let name = client::ObjectKey::of(service).to_string();
        addresses_of(service).into_iter().map(move |address| (address, name.clone()))
    });
    Ok(rows.collect())
}

/// One line: time, verdict, who, to whom, why.
fn line(seen: &Seen, services: &BTreeMap<IpAddr, String>) -> String {
    const GREEN: Style = AnsiColor::Green.on_default();
    const RED: Style = AnsiColor::Red.on_default();
    const YELLOW: Style = AnsiColor::Yellow.on_default();
    const DIM: Style = Style::new().dimmed();
    let (style, word) = match seen.outcome {
        Outcome::Allowed => (GREEN, "allowed"),
        Outcome::Denied => (RED, "denied"),
        Outcome::Audited => (YELLOW, "audited"),
    };
    let who = |place: &Place| place.pod.clone().unwrap_or_else(|| place.address.ip().to_string());
    let service = seen.asked.map_or_else(String::new, |asked| match services.get(&asked.ip()) {
        Some(name) => format!(" {DIM}(Service {name}){DIM:#}"),
        None => format!(" {DIM}(asked for {asked}){DIM:#}"),
    });
    let by = match (seen.policies.as_slice(), &seen.direction) {
        ([], _) => "no policy speaks of it".to_owned(),
        (policies, Some(direction)) => {
            let rule = seen.rule.as_ref().map_or_else(|| direction.clone(), Clone::clone);
            format!("{} {rule}", policies.join(", "))
        }
        (policies, None) => policies.join(", "),
    };
    let time = seen.time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    format!(
        "{DIM}{time}{DIM:#}  {style}{word:7}{style:#}  {} -> {} {}/{}{service}  {DIM}{by}{DIM:#}\n",
        who(&seen.from),
        who(&seen.to),
        seen.to.address.port(),
        seen.protocol.to_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_line_names_both_ends_the_service_and_the_policy() {
        let seen: Seen = serde_json::from_value(serde_json::json!({
            "time": "2026-01-01T10:00:00Z", "node": "n", "outcome": "denied", "protocol": "TCP",
            "from": {"address": "10.244.0.2:4000", "pod": "d/a"}, "to": {"address": "10.244.0.3:80", "pod": "d/b"},
            "asked": "10.96.0.9:80", "direction": "ingress", "policies": ["NetworkPolicy d/p"]}))
        .unwrap();
        let services = BTreeMap::from([("10.96.0.9".parse().unwrap(), "d/web".to_owned())]);
        let plain = anstream::adapter::strip_str(&line(&seen, &services)).to_string();
        assert!(
            plain.ends_with("  denied   d/a -> d/b 80/tcp (Service d/web)  NetworkPolicy d/p ingress\n"),
            "{plain}"
        );
        let open =
            Seen { outcome: Outcome::Allowed, policies: Vec::new(), direction: None, asked: None, ..seen };
        assert!(line(&open, &services).contains("no policy speaks of it"));
    }
}
