//! From case to case on one node: rules reach the kernel by their differences, over connections that are still known.

use std::collections::BTreeSet;

use netpol::Desired;
use netpol::sync::Kernel;
use netpol::verdict::Verdict;

use super::net::Cluster;
use super::{Cell, Objects, cells, said};

/// The node and how far it has come.
pub struct Walk {
    cluster: Cluster,
    socket: nft::Socket,
    kernel: Kernel,
    cases: u32,
}

impl Walk {
    pub fn new() -> Self {
        let cluster = Cluster::new();
        let socket = cluster.node.within(|| nft::Socket::open().unwrap());
        Self { cluster, socket, kernel: Kernel::new(), cases: 0 }
    }

    /// Holds explanation, rules and real packets against what should be: `open` says of each connection whether it is
    /// made, `look` has the explanation of each. Gives how many are open and how many are refused.
    pub fn case(
        &mut self,
        name: &str,
        objects: &Objects,
        open: impl Fn(Cell) -> bool,
        mut look: impl FnMut(Cell, &Verdict) -> bool,
    ) -> (usize, usize) {
        let expected: BTreeSet<Cell> = cells().filter(|cell| open(*cell)).collect();
        let world = objects.world();
        let desired = Desired::of(&world);
        for cell in cells() {
            let verdict = said(&world, &desired, cell);
            let agreed = verdict.allows() == expected.contains(&cell) && look(cell, &verdict);
            assert!(agreed, "{name}: {cell:?} {verdict:?} {}", shown(objects));
        }
        self.kernel.sync(&mut self.socket, &desired).unwrap();
        if self.cases == 0 {
            // Only there once rules track connections; packets of those that were cut must not begin new ones.
            self.cluster.node.sh("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose");
        }
        netpol::cut::forbidden(&mut self.socket, self.kernel.held(), &[]).unwrap();
        let made = self.cluster.made(self.cases, &expected);
        self.cases += 1;
        let wrong: Vec<&Cell> = made.symmetric_difference(&expected).collect();
        let table = || self.kernel.table(nft::Family::Ip);
        assert!(wrong.is_empty(), "{name}: {wrong:?} of {}\n{}", shown(objects), table());
        (expected.len(), cells().count() - expected.len())
    }
}

fn shown(objects: &Objects) -> String {
    format!("{:#?} {:#?}", objects.cluster_policies, objects.policies)
}
