//! `skiff policy`: what network policies do, asked of the same function that the kernel's rules are made from. All of it
//! reads the API as the user's kubectl does, so none of it needs root.

mod check;
mod explain;
mod fetch;
mod matrix;

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use clap::Subcommand;
pub use fetch::{addresses_of, all};
use netpol::matrix::Asked;

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Explain network policies: who may talk to whom, and which rule says so.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Say whether a connection is allowed, step by step, with the object and the rule that decides.
    #[command(after_help = EXPLAIN_HELP)]
    Explain(explain::Options),
    /// Say what a policy would change before it is applied.
    #[command(after_help = CHECK_HELP)]
    Check(check::Options),
    /// Show who may talk to whom as a table.
    #[command(after_help = MATRIX_HELP)]
    Matrix(matrix::Options),
}

const EXPLAIN_HELP: &str = "\
The steps are those that a connection takes: the name is looked up, the Service chooses among its endpoints, then the
policies of the source decide whether it may leave (egress) and those of the destination whether it may enter (ingress).
A direction that no policy selects is open. As soon as one does, only what some rule permits passes.
Exit status: 0 allowed, 1 denied, 2 when it cannot be said (there is no such Pod, say).

Examples:
  skiff policy explain --from busybox --to nginx --port 80
  skiff policy explain --from shop/cart --to coredns.kube-system --port 53/udp
  skiff policy explain -n shop --from cart --to pod/db-0 --port 5432 -o json
  skiff policy explain --from busybox --to 8.8.8.8 --port 443";

const CHECK_HELP: &str = "\
The file is what you would give to kubectl apply: it is sent to the API server as a trial, which judges it and stores
nothing. Listed are connections between Pods, and between Pods and an address
outside of the cluster, at the ports that the destination's containers name or the policy names by number.
To try a policy on real traffic without dropping any, give it the annotation skiff.dev/audit: \"true\" and watch
`skiff flows -f`.

Examples:
  skiff policy check -f deny-all.yaml
  kubectl get networkpolicy web -o yaml | sed s/8080/9090/ | skiff policy check -f -";

const MATRIX_HELP: &str = "\
A row is who connects, a column is to whom; `outside` stands for an address that belongs to no Pod. The ports asked
about are those that the destination's containers name (80 if they name none), or the one of --port.

Examples:
  skiff policy matrix
  skiff policy matrix -n shop --port 5432
  skiff policy matrix -A -o json";

/// Does one of them.
pub fn run(profile: &str, command: Policy) -> anyhow::Result<ExitCode> {
    match command {
        Policy::Explain(options) => Ok(explain::run(profile, &options).unwrap_or_else(|error| {
            crate::cli::complain(&error);
            // Not 1, which says that the connection is denied.
            ExitCode::from(2)
        })),
        Policy::Check(options) => check::run(profile, &options).map(|()| ExitCode::SUCCESS),
        Policy::Matrix(options) => matrix::run(profile, &options).map(|()| ExitCode::SUCCESS),
    }
}

/// `80`, `53/udp`.
fn port(text: &str) -> anyhow::Result<Asked> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let word = protocol.to_ascii_uppercase();
    let Some(protocol) = nft::Protocol::parse(Some(&word)).filter(|_| !word.is_empty()) else {
        bail!("there is no protocol {protocol:?}; say tcp, udp or sctp, as in 53/udp")
    };
    let number: u16 = number.parse().with_context(|| format!("read {number:?} as a port, 1 to 65535"))?;
    if number == 0 {
        bail!("there is no port 0; ports are 1 to 65535");
    }
    Ok((protocol, number))
}

/// `1 Pod`, `3 Pods`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn ports_have_a_protocol() {
        assert_eq!(port("80").unwrap(), (nft::Protocol::Tcp, 80));
        assert_eq!(port("53/udp").unwrap(), (nft::Protocol::Udp, 53));
        assert_eq!(port("9/SCTP").unwrap(), (nft::Protocol::Sctp, 9));
        for wrong in ["0", "65536", "http", "80/", "80/icmp", ""] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
