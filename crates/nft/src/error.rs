//! What can go wrong, with the object that it went wrong about.

use std::fmt;
use std::io;

use crate::model::Value;

/// What a refused change was about, for who wants to leave it out the next time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An element of a set or a map.
    Element {
        /// Name of the set.
        set: String,
        /// Key.
        key: Vec<Value>,
    },
    /// A chain, or a rule in it.
    Chain(String),
    /// Anything else, or the kernel did not say.
    Other,
}

/// One change that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The object, to be compared.
    pub subject: Subject,
    /// The object the change was about, as in `map ip skiff ep4, element 10.96.0.1 . tcp . 80 . 0`.
    pub object: String,
    /// The kernel's error number.
    pub errno: i32,
    /// The kernel's own words, when it gave any.
    pub message: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, nix::errno::Errno::from_raw(self.errno).desc())?;
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

/// A failed request; nothing of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the netlink socket failed.
    #[error("netlink {call}")]
    Netlink {
        /// The call that failed.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the whole transaction; the list names each object it complained about.
    #[error("nftables transaction refused: {}", List(.0))]
    Refused(Vec<Refusal>),
    /// The kernel's answer cannot be understood.
    #[error("netlink answer not understood: {0}")]
    Answer(&'static str),
    /// A value does not fit where the caller put it.
    #[error("{object}: {problem}")]
    Invalid {
        /// The object that holds the value.
        object: String,
        /// What does not fit.
        problem: String,
    },
}

impl Error {
    pub(crate) fn last(call: &'static str) -> Self {
        Self::Netlink { call, source: io::Error::last_os_error() }
    }

    /// The refused changes; empty when the transaction did not fail in the kernel.
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Self::Refused(list) => list,
            _ => &[],
        }
    }
}

struct List<'a>(&'a [Refusal]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, refusal) in self.0.iter().take(5).enumerate() {
            write!(f, "{}{refusal}", if i == 0 { "" } else { "; " })?;
        }
        match self.0.len().checked_sub(5) {
            Some(more) if more > 0 => write!(f, "; and {more} more"),
            _ => Ok(()),
        }
    }
}
