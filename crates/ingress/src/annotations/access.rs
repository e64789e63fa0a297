//! Which addresses may come in.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Annotation;
use super::value::{holds, networks};

/// The family's settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// `satisfy: any`: the right address or the right password is enough.
    pub any: bool,
}

impl Access {
    pub fn allows(&self, client: IpAddr) -> bool {
        !holds(&self.deny, client) && (self.allow.is_empty() || holds(&self.allow, client))
    }
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::guard("whitelist-source-range", |p, v| Ok(p.access.allow = networks(v)?)),
    Annotation::guard("allowlist-source-range", |p, v| Ok(p.access.allow = networks(v)?)),
    Annotation::guard("denylist-source-range", |p, v| Ok(p.access.deny = networks(v)?)),
    Annotation::guard("satisfy", |p, v| {
        p.access.any = match v {
            "any" => true,
            "all" => false,
            _ => return Err(format!("{v:?} is neither \"any\" nor \"all\"")),
        };
        Ok(())
    }),
];
