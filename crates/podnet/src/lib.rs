//! Namespaces, links, addresses, routes: the Pods' network, natively over netlink.
//!
//! * [`HostNetwork`]: what a cluster needs of the host (a bridge, a link per node, routing, one masquerade rule).
//! * [`NodeNetwork`]: a node's own namespace (its `eth0`, default route, settings, masquerade of what leaves the cluster).
//! * [`PeerRoutes`]: a node's routes to the Pods of the other nodes.
//! * [`AnsweredAddresses`]: the further addresses that a node answers for.
//! * [`PodNetwork`]: a node's Pods, each with a /32 (and /128) on a veth of its own, routed by the node.
//! * [`cni::Cni`]: the same by other people's plugins.
//!
//! All of it is level-triggered: every call may be repeated, finds what is there, and makes what is missing, so a crash at
//! any point is repaired by the next start. Planning (which subnet, which address, which messages) is pure; the edge is
//! one blocking netlink socket. What always holds: no Pod's address is translated on the way to another Pod; nobody needs
//! ARP or asks for neighbours; a namespace that dies takes its links with it. Never here: Services, policies, names, containers.
//!
//! Specifications: rtnetlink(7), veth(4), Documentation/networking/ip-sysctl.rst of the kernel.

mod answered;
mod arp;
pub mod cni;
mod error;
mod guard;
mod host;
mod ipam;
mod message;
mod names;
mod netlink;
mod netns;
mod node;
mod peers;
mod pod;
pub mod subnet;
mod sysctl;

pub use answered::AnsweredAddresses;
pub use error::{Error, Errors, Result};
pub use host::{HostNetwork, used_networks, used_networks6};
pub use names::{GATEWAY4, GATEWAY6, bridge};
pub use netns::within;
pub use node::NodeNetwork;
pub use peers::{PeerRoutes, Peers};
pub use pod::PodNetwork;
pub use sysctl::has_ipv6;
