//! Pods speak with their own addresses only: what the kernel's reverse path filter does for IPv4 it does not know for IPv6,
//! so a rule of the node's own does it there.

use nft::{Batch, Chain, ChainType, Family, Hook, Key, Op, Rule, Socket, Stmt, Table, Verdict};

use crate::error::Result;
use crate::names::VETH_PREFIX;

/// The name of the firewall table.
const TABLE: &str = "skiff-guard";
/// Before connection tracking, as the kernel's own filter is.
const RAW: i32 = -300;

/// What comes from a Pod's link goes on only if the way back leads there.
fn table() -> Table {
    let stray = Rule::new(vec![
        Stmt::Match(Key::Iifname, Op::NameBegins(VETH_PREFIX)),
        Stmt::Match(Key::FibSaddrOif, Op::Is(0)),
        Stmt::Verdict(Verdict::Drop),
    ]);
    let mut table = Table::new(Family::Ip6, TABLE);
    table.chains = vec![Chain::base("prerouting", ChainType::Filter, Hook::Prerouting, RAW, vec![stray])];
    table
}

/// Puts the rule in force in the calling thread's network namespace.
pub(crate) fn ensure() -> Result<()> {
    let mut batch = Batch::new();
    batch.replace_table(&table());
    Ok(batch.apply(&mut Socket::open()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_way_back_leads_to_passes() {
        assert_eq!(
            table().to_string(),
            "table ip6 skiff-guard {\n\
             \tchain prerouting {\n\
             \t\ttype filter hook prerouting priority raw; policy accept;\n\
             \t\tiifname \"veth*\" fib saddr . iif oif 0 drop\n\
             \t}\n\
             }\n"
        );
    }
}
