//! Keeps the kernel in step with the model: one transaction per round, of the differences only.

use std::collections::{HashMap, HashSet};

use nft::{Batch, Element, Family, Socket, TableName};

use crate::layout::{self, ChainKey, Parts, Placed};
use crate::model::{Frontend, Ip, Model, NodeView};

/// What we know to be in the kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    node: NodeView,
    families: Vec<Ip>,
    placed: HashMap<Frontend, Placed>,
    chains: HashSet<ChainKey>,
    /// How many frontends need a shared element.
    shared: HashMap<(Ip, String, Element), usize>,
    /// False until the first full replacement, and after a refused transaction.
    known: bool,
}

fn name_of(ip: Ip) -> TableName {
    TableName::new(if ip == Ip::V4 { Family::Ip } else { Family::Ip6 }, layout::TABLE)
}

impl Kernel {
    /// Nothing is known of the kernel yet; the first [`Self::sync`] replaces everything.
    pub fn new(node: NodeView) -> Self {
        let mut kernel = Self::default();
        kernel.set_node(node);
        kernel
    }

    /// Another view of the node: everything is replaced by the next [`Self::sync`].
    pub fn set_node(&mut self, node: NodeView) {
        let nets = node.service_cidrs.iter().chain(&node.pod_cidrs).map(ipnet::IpNet::addr);
        let mut all = nets.chain(node.addresses.iter().copied());
        self.families = if all.any(|addr| addr.is_ipv6()) { vec![Ip::V4, Ip::V6] } else { vec![Ip::V4] };
        self.node = node;
        self.known = false;
    }

    /// Whether the kernel holds what our books say.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// A frontend as it is in the kernel.
    pub fn placed(&self, frontend: &Frontend) -> Option<&Placed> {
        self.placed.get(frontend)
    }

    /// All frontends as they are in the kernel.
    pub fn all_placed(&self) -> &HashMap<Frontend, Placed> {
        &self.placed
    }

    /// The families that the node has.
    pub fn families(&self) -> &[Ip] {
        &self.families
    }

    /// The complete table of a family as it should be in the kernel now.
    pub fn table(&self, ip: Ip) -> nft::Table {
        layout::table(ip, &self.node, &self.placed)
    }

    /// Brings the kernel in step: the differences of the changed frontends, or everything when nothing is known.
    ///
    /// # Errors
    /// When the kernel refuses. Then the old rules are still in force and the next call replaces everything.
    pub fn sync(
        &mut self,
        socket: &mut Socket,
        model: &Model,
        changed: &HashSet<Frontend>,
    ) -> Result<(), nft::Error> {
        if !self.known {
            return self.replace(socket, model);
        }
        let batch = self.step(model, changed);
        let result = batch.apply(socket);
        // The kernel kept the old rules while our books already hold the new ones.
        self.known = result.is_ok();
        result
    }

    /// Replaces all tables by what the model asks for, in one transaction.
    ///
    /// # Errors
    /// When the kernel refuses; the old rules are still in force.
    pub fn replace(&mut self, socket: &mut Socket, model: &Model) -> Result<(), nft::Error> {
        // Slots of before are kept where known, so that affinity and balance survive.
        let before = std::mem::take(&mut self.placed);
        self.shared.clear();
        self.chains.clear();
        self.known = false;
        for (frontend, target) in model.iter().filter(|(f, _)| self.families.contains(&f.place.ip())) {
            let placed = Placed::new(target, before.get(frontend));
            let parts = placed.parts(frontend);
            self.chains.extend(parts.chains);
            for (set, element) in parts.shared {
                *self.shared.entry((frontend.place.ip(), set, element)).or_default() += 1;
            }
            self.placed.insert(*frontend, placed);
        }
        let mut batch = Batch::new();
        self.families.iter().for_each(|ip| batch.replace_table(&self.table(*ip)));
        batch.apply(socket)?;
        self.known = true;
        Ok(())
    }

    /// The transaction of the changed frontends; our books are updated as if it were committed.
    pub fn step(&mut self, model: &Model, changed: &HashSet<Frontend>) -> Batch {
        let mut edits = Edits::default();
        for frontend in changed.iter().filter(|f| self.families.contains(&f.place.ip())) {
            let ip = frontend.place.ip();
            let before = self.placed.remove(frontend);
            let after = model.get(frontend).map(|target| Placed::new(target, before.as_ref()));
            let old = before.map(|placed| placed.parts(frontend)).unwrap_or_default();
            let new = after.as_ref().map(|placed| placed.parts(frontend)).unwrap_or_default();
            for key in new.chains.iter().filter(|key| !self.chains.contains(*key)) {
                edits.chains.push(key.clone());
            }
            edits.exclusive(ip, &old, &new);
            self.chains.extend(new.chains);
            for (set, element) in new.shared {
                let count = self.shared.entry((ip, set, element)).or_default();
                *count += 1;
            }
            for (set, element) in old.shared {
                let count = self.shared.entry((ip, set.clone(), element.clone())).or_default();
                *count = count.saturating_sub(1);
                edits.released.push((ip, set, element));
            }
            for item in after.iter().flat_map(|placed| placed.parts(frontend).shared) {
                edits.wanted.push((ip, item.0, item.1));
            }
            if let Some(placed) = after {
                self.placed.insert(*frontend, placed);
            }
        }
        self.batch(edits)
    }

    fn batch(&mut self, edits: Edits) -> Batch {
        let mut batch = Batch::new();
        let mut chains: Vec<ChainKey> = edits.chains;
        chains.sort_unstable();
        chains.dedup();
        for key in chains {
            batch.add_chain_with_rules(&name_of(key.ip()), &key.chain(&self.node));
        }
        for ((ip, set), elements) in &edits.removed {
            batch.delete_elements(&name_of(*ip), set, elements);
        }
        for ((ip, set), elements) in &edits.added {
            batch.add_elements(&name_of(*ip), set, elements);
        }
        // Shared elements are in the kernel exactly while somebody counts on them; adding one that is there is fine.
        let gone: HashSet<_> =
            edits.released.into_iter().filter(|item| self.shared.get(item) == Some(&0)).collect();
        for item in &gone {
            self.shared.remove(item);
            batch.delete_elements(&name_of(item.0), &item.1, [&item.2]);
        }
        for (ip, set, element) in edits.wanted {
            batch.add_elements(&name_of(ip), &set, [&element]);
        }
        batch
    }
}

#[derive(Debug, Default)]
struct Edits {
    chains: Vec<ChainKey>,
    removed: HashMap<(Ip, String), Vec<Element>>,
    added: HashMap<(Ip, String), Vec<Element>>,
    released: Vec<(Ip, String, Element)>,
    wanted: Vec<(Ip, String, Element)>,
}

impl Edits {
    fn exclusive(&mut self, ip: Ip, old: &Parts, new: &Parts) {
        let was: HashSet<&(String, Element)> = old.elements.iter().collect();
        let will: HashSet<&(String, Element)> = new.elements.iter().collect();
        for (set, element) in old.elements.iter().filter(|item| !will.contains(*item)) {
            self.removed.entry((ip, set.clone())).or_default().push(element.clone());
        }
        for (set, element) in new.elements.iter().filter(|item| !was.contains(*item)) {
            self.added.entry((ip, set.clone())).or_default().push(element.clone());
        }
    }
}
