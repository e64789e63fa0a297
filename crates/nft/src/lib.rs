//! nftables and connection tracking over netlink, without the `nft` tool and without a C library.
//!
//! * [`model`] and [`rule`]: tables, chains, sets, maps and rules as plain values. Their `Display` is what
//!   `nft list ruleset` prints, so a rule set can be read and compared as text without root. Names that are words of
//!   the tool's language (`reject`, `policy`) work in the kernel, but such a listing does not load again: avoid them.
//! * [`Batch`]: changes that the kernel commits together or not at all ([`Batch::apply`]). A refused change names the
//!   object it was about.
//! * [`masquerade`]: the one static rule of a host or a node.
//! * [`Monitor`]: tells when somebody else has changed a table.
//! * [`census`]: what the kernel holds, listed.
//! * [`conntrack`]: finds and deletes connection-tracking entries, and hears of new ones.
//! * [`log`]: hears what rules tell of packets.
//!
//! Everything acts on the network namespace of the calling thread at the moment the [`Socket`] is opened.
//!
//! Why our own encoder: the tool costs a process and a text parser per change (72 s against 0.07 s for 10,000
//! Services), the C libraries do not fit a static binary, and the crates encode `numgen` or maps wrongly.
//! Wire format: `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h` and `nfnetlink_conntrack.h` of the kernel.

mod batch;
pub mod census;
pub mod conntrack;
mod display;
mod encode;
mod error;
mod expr;
pub mod log;
pub mod masquerade;
pub mod model;
mod monitor;
mod protocol;
pub mod rule;
mod socket;
mod typeof_data;
mod uapi;
mod wire;

pub use batch::Batch;
pub use error::{Error, Refusal, Subject};
pub use model::{
    Base, Chain, ChainType, Data, Element, ElementData, Family, Hook, Object, Policy, Set, SetFlags, Table,
    TableName, Type, Types, Value, Verdict,
};
pub use monitor::Monitor;
pub use protocol::Protocol;
pub use rule::{Assign, Key, Limit, Log, NatTarget, Op, Reject, Rule, Stmt, Unit};
pub use socket::Socket;
