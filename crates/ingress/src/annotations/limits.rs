//! How much one client may ask for.

use ipnet::IpNet;

use super::Annotation;
use super::value::{networks, number, size};

/// The family's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Requests a second.
    pub rps: u32,
    /// Requests a minute.
    pub rpm: u32,
    /// So many times a limit may come at once.
    pub burst: u32,
    /// Requests at a time.
    pub connections: u32,
    /// Bytes a second of an answer.
    pub rate: u64,
    /// Bytes of an answer that come as fast as they can.
    pub rate_after: u64,
    /// Clients without limits.
    pub free: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rps: 0, rpm: 0, burst: 5, connections: 0, rate: 0, rate_after: 0, free: vec![] }
    }
}

impl Limits {
    /// Whether clients are counted.
    pub fn counts(&self) -> bool {
        self.rps > 0 || self.rpm > 0 || self.connections > 0
    }
}

/// Kilobytes, or a size with its unit.
fn kilobytes(value: &str) -> Result<u64, String> {
    match value.bytes().all(|b| b.is_ascii_digit()) {
        true => size(&format!("{value}k")),
        false => size(value),
    }
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::guard("limit-rps", |p, v| Ok(p.limits.rps = number(v)?)),
    Annotation::guard("limit-rpm", |p, v| Ok(p.limits.rpm = number(v)?)),
    Annotation::guard("limit-burst-multiplier", |p, v| Ok(p.limits.burst = number::<u32>(v)?.max(1))),
    Annotation::guard("limit-connections", |p, v| Ok(p.limits.connections = number(v)?)),
    Annotation::guard("limit-rate", |p, v| Ok(p.limits.rate = kilobytes(v)?)),
    Annotation::guard("limit-rate-after", |p, v| Ok(p.limits.rate_after = kilobytes(v)?)),
    Annotation::guard("limit-whitelist", |p, v| Ok(p.limits.free = networks(v)?)),
    Annotation::guard("limit-allowlist", |p, v| Ok(p.limits.free = networks(v)?)),
];
