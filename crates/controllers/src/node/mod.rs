//! Nodes: addresses for their Pods ([`ipam`]), their health and taints ([`health`]), and the eviction of Pods that do
//! not tolerate those ([`eviction`]).

mod eviction;
mod health;
mod ipam;

pub(crate) use eviction::run as run_eviction;
pub(crate) use health::run as run_health;
pub(crate) use ipam::run as run_ipam;
