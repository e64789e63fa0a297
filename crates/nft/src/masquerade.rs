//! One static rule per cluster: traffic that leaves a set of networks takes the address of the interface it leaves by.
//!
//! The host does so for the node network (`skiff-host-<profile>`), a node for its Pods (`skiff-node`). A table of its
//! own, so that making and removing it touches nothing else on the machine.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::batch::Batch;
use crate::error::Error;
use crate::model::{Chain, ChainType, Family, Hook, Table, TableName, Value};
use crate::rule::{Key, Op, Rule, Stmt};
use crate::socket::Socket;

/// Between other tables' port translations and nothing else: the usual place of source translation.
const SRCNAT: i32 = 100;

/// Traffic from `inside` to addresses outside of `inside` and of `keep` is masqueraded: one table per family that
/// `inside` has.
pub fn tables(name: &str, inside: &[IpNet], keep: &[IpNet]) -> Vec<Table> {
    all(name, inside, keep, None)
}

fn all(name: &str, inside: &[IpNet], keep: &[IpNet], bridge: Option<&str>) -> Vec<Table> {
    let families = [Family::Ip, Family::Ip6].into_iter();
    families.filter_map(|family| table(family, name, inside, keep, bridge)).collect()
}

fn table(
    family: Family,
    name: &str,
    inside: &[IpNet],
    keep: &[IpNet],
    bridge: Option<&str>,
) -> Option<Table> {
    let (src, dst) = match family {
        Family::Ip6 => (Key::Ip6Saddr, Key::Ip6Daddr),
        _ => (Key::IpSaddr, Key::IpDaddr),
    };
    let ours = |net: &&IpNet| matches!(net.network(), IpAddr::V6(_)) == (family == Family::Ip6);
    let stay = inside.iter().chain(keep).filter(ours);
    let stay: Vec<Stmt> =
        stay.map(|net| Stmt::Match(dst, Op::NotPrefix(net.network(), net.prefix_len()))).collect();
    // Multicast reaches neighbours only and must keep its sender.
    let multicast = match family {
        Family::Ip6 => Op::NotPrefix(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0u16]), 8),
        _ => Op::NotPrefix(IpAddr::from([224, 0, 0, 0]), 4),
    };
    let rules: Vec<Rule> = inside
        .iter()
        .filter(ours)
        .map(|net| {
            let mut stmts = vec![Stmt::Match(src, Op::Prefix(net.network(), net.prefix_len()))];
            stmts.extend(stay.iter().cloned());
            let beyond = bridge.map(|name| Stmt::Match(Key::Oifname, Op::Ne(Value::ifname(name))));
            stmts.extend(beyond);
            stmts.extend([Stmt::Match(dst, multicast.clone()), Stmt::Masquerade]);
            Rule::new(stmts)
        })
        .collect();
    if rules.is_empty() {
        return None;
    }
    let mut table = Table::new(family, name);
    table.chains = vec![Chain::base("postrouting", ChainType::Nat, Hook::Postrouting, SRCNAT, rules)];
    Some(table)
}

/// Puts the rules in force in the calling thread's network namespace, whatever was there under that name before.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn ensure(name: &str, inside: &[IpNet], keep: &[IpNet]) -> Result<(), Error> {
    let mut batch = Batch::new();
    tables(name, inside, keep).iter().for_each(|table| batch.replace_table(table));
    batch.apply(&mut Socket::open()?)
}

/// The same for networks behind a bridge, whose own frames never count as leaving: where the kernel shows them to its
/// firewall (`br_netfilter`), what a node sends to another node's Pods would lose its sender.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn ensure_beyond(name: &str, inside: &[IpNet], bridge: &str) -> Result<(), Error> {
    let mut batch = Batch::new();
    all(name, inside, &[], Some(bridge)).iter().for_each(|table| batch.replace_table(table));
    batch.apply(&mut Socket::open()?)
}

/// Removes the rules from the calling thread's network namespace; without an error when there are none.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn remove(name: &str) -> Result<(), Error> {
    let mut socket = Socket::open()?;
    for family in [Family::Ip, Family::Ip6] {
        let mut batch = Batch::new();
        batch.delete_table(&TableName::new(family, name));
        batch.apply(&mut socket)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn pods_keep_their_address_inside_the_cluster_only() {
        let tables = tables(
            "skiff-node",
            &["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            &["192.168.49.0/24".parse().unwrap()],
        );
        let text: String = tables.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            "table ip skiff-node {\n\
             \tchain postrouting {\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 ip daddr != 192.168.49.0/24 \
             ip daddr != 224.0.0.0/4 masquerade fully-random\n\
             \t}\n\
             }\n\
             table ip6 skiff-node {\n\
             \tchain postrouting {\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip6 saddr fd00:10:244::/56 ip6 daddr != fd00:10:244::/56 ip6 daddr != ff00::/8 \
             masquerade fully-random\n\
             \t}\n\
             }\n"
        );
    }
}
