//! What can go wrong with links, addresses and namespaces.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// Result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a change.
    #[error("{what}: {}", errno.desc())]
    Refused {
        /// What was to be done, with its object.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A system call or a file under `/proc/sys` failed.
    #[error("{what}: {source}")]
    System {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer made no sense.
    #[error("{what}: unexpected answer from the kernel: {detail}")]
    Protocol {
        /// What was asked.
        what: String,
        /// What came.
        detail: String,
    },
    /// The firewall refused the masquerade rule.
    #[error("masquerade rule")]
    Masquerade(#[from] nft::Error),
    /// No address is left.
    #[error("no address left in {0}")]
    Exhausted(String),
    /// An address belongs to another Pod, or to no range of this node.
    #[error("address {address} of pod {pod}: {reason}")]
    Address {
        /// The address.
        address: std::net::IpAddr,
        /// The Pod's uid.
        pod: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The wanted subnet is used by something else on this machine.
    #[error("subnet {subnet} is in use: the host already has a route to {by}")]
    SubnetInUse {
        /// The wanted subnet.
        subnet: ipnet::IpNet,
        /// The network that it collides with.
        by: ipnet::IpNet,
    },
    /// A helper thread died.
    #[error("{0}: its thread panicked")]
    Thread(&'static str),
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}

/// Everything that went wrong while taking something down: one failure does not keep the rest from going.
#[derive(Debug)]
pub struct Errors(pub Vec<Error>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Runs every step and gathers what failed.
#[derive(Default)]
pub(crate) struct Teardown(Vec<Error>);

impl Teardown {
    pub fn step(&mut self, result: Result<()>) {
        self.0.extend(result.err());
    }

    pub fn finish(self) -> Result<(), Errors> {
        if self.0.is_empty() { Ok(()) } else { Err(Errors(self.0)) }
    }
}
