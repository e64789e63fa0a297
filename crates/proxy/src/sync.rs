//! Keeps the kernel in step with the model: one transaction per round, of the differences only.

use std::collections::{HashMap, HashSet};

use nft::{Batch, Element, Family, Refusal, Socket, Subject, TableName};

use crate::layout::{self, ChainKey, Parts, Placed, Shared};
use crate::model::{Frontend, Ip, Model, NodeView};

/// What we know to be in the kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    node: NodeView,
    families: Vec<Ip>,
    placed: HashMap<Frontend, Placed>,
    chains: HashSet<ChainKey>,
    /// How many frontends need a shared element.
    shared: HashMap<Shared, u32>,
    /// Left out because the kernel refuses them; tried again when they change and when the node does.
    refused: HashSet<Frontend>,
    /// False until the first full replacement, and after a refused transaction.
    known: bool,
}

/// How a [`Kernel::sync`] went.
#[derive(Debug, Default)]
pub struct Synced {
    /// Everything was replaced.
    pub whole: bool,
    /// The differences were refused, which is why everything was replaced.
    pub mended: Option<nft::Error>,
    /// Frontends that had to be left out, and why.
    pub refused: Vec<(Frontend, Refusal)>,
}

/// So many times the frontends that the kernel refuses are left out and the rest is tried again.
const TRIES: usize = 32;

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
        self.refused.clear();
        self.known = false;
    }

    /// Somebody else has changed our tables: everything is replaced by the next [`Self::sync`].
    pub fn set_unknown(&mut self) {
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

    /// The tables that are ours, whatever families the node has.
    pub fn tables() -> [TableName; 2] {
        [Ip::V4, Ip::V6].map(name_of)
    }

    /// The complete table of a family as it should be in the kernel now.
    pub fn table(&self, ip: Ip) -> nft::Table {
        layout::table(ip, &self.node, &self.placed)
    }

    /// Brings the kernel in step: by the differences of the changed frontends or, when nothing is known or they are refused,
    /// by everything. A frontend that the kernel refuses even then is left out, so that the rest goes in.
    ///
    /// # Errors
    /// When the kernel refuses for another reason. Then the old rules are still in force and the next call replaces
    /// everything.
    pub fn sync(
        &mut self,
        socket: &mut Socket,
        model: &Model,
        changed: &HashSet<Frontend>,
    ) -> Result<Synced, nft::Error> {
        self.refused.retain(|frontend| !changed.contains(frontend));
        let mut synced = Synced::default();
        if self.known {
            let Err(error) = self.step(model, changed).apply(socket) else { return Ok(synced) };
            // The kernel kept the old rules while our books already hold the new ones.
            self.known = false;
            synced.mended = Some(error);
        }
        synced.whole = true;
        while let Err(error) = self.replace(socket, model) {
            let culprits = self.culprits(&error);
            if culprits.is_empty() || synced.refused.len() >= TRIES {
                return Err(error);
            }
            self.refused.extend(culprits.iter().map(|(frontend, _)| *frontend));
            synced.refused.extend(culprits);
        }
        Ok(synced)
    }

    /// The frontends that a refused replacement was about, with what the kernel said of them.
    fn culprits(&self, error: &nft::Error) -> Vec<(Frontend, Refusal)> {
        let is_about = |parts: &Parts, subject: &Subject| match subject {
            Subject::Element { set, key } => {
                let own = parts.elements.iter().any(|(of, e)| of == set && e.key == *key);
                own || parts.shared.iter().map(Shared::element).any(|(of, e)| of == set && e.key == *key)
            }
            Subject::Chain(name) => parts.chains.iter().any(|key| key.name() == *name),
            Subject::Other => false,
        };
        let mut found = Vec::new();
        for (frontend, placed) in &self.placed {
            let parts = placed.parts(frontend);
            let refusal = error.refusals().iter().find(|refusal| is_about(&parts, &refusal.subject));
            found.extend(refusal.map(|refusal| (*frontend, refusal.clone())));
        }
        found
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
        let wanted = model.iter().filter(|(f, _)| !self.refused.contains(f));
        for (frontend, target) in wanted.filter(|(f, _)| self.families.contains(&f.place.ip())) {
            let placed = Placed::new(target, before.get(frontend));
            let parts = placed.parts(frontend);
            self.chains.extend(parts.chains);
            for shared in parts.shared {
                *self.shared.entry(shared).or_default() += 1;
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
            for shared in &new.shared {
                let count = self.shared.entry(*shared).or_default();
                if *count == 0 {
                    edits.wanted.push(*shared);
                }
                *count += 1;
            }
            for shared in &old.shared {
                let count = self.shared.entry(*shared).or_default();
                *count = count.saturating_sub(1);
            }
            edits.released.extend(old.shared);
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
        let gone: HashSet<Shared> =
            edits.released.into_iter().filter(|shared| self.shared.get(shared) == Some(&0)).collect();
        for shared in &gone {
            self.shared.remove(shared);
            let (set, element) = shared.element();
            batch.delete_elements(&name_of(shared.ip()), set, [&element]);
        }
        for shared in edits.wanted {
            let (set, element) = shared.element();
            batch.add_elements(&name_of(shared.ip()), set, [&element]);
        }
        batch
    }
}

#[derive(Debug, Default)]
struct Edits {
    chains: Vec<ChainKey>,
    removed: HashMap<(Ip, String), Vec<Element>>,
    added: HashMap<(Ip, String), Vec<Element>>,
    released: Vec<Shared>,
    wanted: Vec<Shared>,
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
