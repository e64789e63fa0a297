//! The chains that Services share: one that forwards per kind and number of endpoints, one that tells clients apart per
//! list of networks, whatever the number of Services.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use ipnet::IpNet;
use nft::rule::fib_type;
use nft::{Assign, Chain, Key, NatTarget, Op, Rule, Stmt, Verdict};

use crate::layout::{MARK, Map, Scope, Words, map_name};
use crate::model::{Ip, Masquerade, NodeView};

/// What identifies a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainKey {
    /// It forwards.
    Forward(ForwardKey),
    /// It drops what does not come from one of these networks.
    Sources(Ip, Vec<IpNet>),
}

impl ChainKey {
    /// The table of the chain.
    pub fn ip(&self) -> Ip {
        match self {
            Self::Forward(key) => key.ip,
            Self::Sources(ip, _) => *ip,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Self::Forward(key) => key.name(),
            // Too long to be spelled out; the rules of the chain do.
            Self::Sources(_, networks) => {
                let mut hasher = DefaultHasher::new();
                networks.hash(&mut hasher);
                format!("from-{:016x}", hasher.finish())
            }
        }
    }

    /// The chain with its rules.
    pub fn chain(&self, node: &NodeView) -> Chain {
        match self {
            Self::Forward(key) => key.chain(node),
            Self::Sources(ip, networks) => {
                let src = Words::new(*ip).src;
                let end = |verdict| Stmt::Verdict(verdict);
                let mut rules: Vec<Rule> = networks
                    .iter()
                    .map(|net| Rule::new(vec![prefix(src, net), end(Verdict::Return)]))
                    .collect();
                rules.push(Rule::new(vec![end(Verdict::Drop)]));
                Chain::new(self.name(), rules)
            }
        }
    }
}

/// What identifies a forwarding chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardKey {
    pub(crate) ip: Ip,
    pub(crate) scope: Scope,
    pub(crate) masquerade: Masquerade,
    /// Insiders are looked up in the maps of the inside scope first.
    pub(crate) divert: bool,
    pub(crate) endpoints: usize,
    pub(crate) affinity: Option<u32>,
}

impl ForwardKey {
    fn name(&self) -> String {
        let kind = match (self.divert, self.masquerade) {
            (true, _) => "l",
            (false, Masquerade::Never) => "n",
            (false, Masquerade::Always) => "m",
            (false, Masquerade::Outsiders) => "o",
        };
        let affinity = self.affinity.map(|s| format!("-a{s}")).unwrap_or_default();
        format!("{}{kind}{}{affinity}", self.scope.prefix(), self.endpoints)
    }

    fn chain(&self, node: &NodeView) -> Chain {
        let words = Words::new(self.ip);
        let front = words.front(self.scope);
        let pods = pods(node, self.ip);
        let mut rules = Vec::new();
        if self.divert {
            let inside = map_name(Map::Services, self.scope.inside(), self.ip);
            let vmap = Stmt::Vmap(front.clone(), inside);
            rules.extend(pods.iter().map(|net| Rule::new(vec![prefix(words.src, net), vmap.clone()])));
            let own = Stmt::Match(Key::FibSaddrType, Op::Is(fib_type::LOCAL));
            rules.push(Rule::new(vec![own, vmap]));
        }
        if self.endpoints == 0 {
            rules.push(Rule::new(vec![Stmt::Verdict(Verdict::Drop)]));
            return Chain::new(self.name(), rules);
        }
        let mark = mark_rule(self.masquerade, words.src, &pods);
        let name = |map| map_name(map, self.scope, self.ip);
        let slot = Key::Random(self.endpoints as u32);
        let by = |last| [&front[..], &[last]].concat();
        match self.affinity {
            None => {
                rules.extend(mark);
                rules.push(dnat(by(slot), name(Map::Endpoints)));
            }
            Some(seconds) => {
                let draw = Rule::new(vec![Stmt::SetMark(Assign::Map(by(slot), name(Map::Pick)))]);
                let client = [&[words.src][..], &front].concat();
                let remembered =
                    Rule::new(vec![Stmt::SetMark(Assign::Map(client.clone(), name(Map::Affinity)))]);
                let forget = Rule::new(vec![Stmt::Forget {
                    set: name(Map::Affinity),
                    keys: client.clone(),
                    data: Some(Key::Mark),
                }]);
                let remember = Rule::new(vec![Stmt::Update {
                    set: name(Map::Affinity),
                    keys: client,
                    timeout: Some(Duration::from_secs(u64::from(seconds))),
                    data: Some(Key::Mark),
                }]);
                let go = dnat(by(Key::Mark), name(Map::Numbered));
                rules.extend([draw.clone(), remembered, remember.clone()]);
                rules.extend(mark.clone());
                rules.push(go.clone());
                // Only reached when the remembered endpoint is gone; an update alone would keep its number.
                rules.extend([draw, forget, remember]);
                rules.extend(mark);
                rules.push(go);
            }
        }
        Chain::new(self.name(), rules)
    }
}

fn dnat(keys: Vec<Key>, map: String) -> Rule {
    Rule::new(vec![Stmt::Dnat(NatTarget::Map(keys, map))])
}

pub(crate) fn prefix(key: Key, net: &IpNet) -> Stmt {
    Stmt::Match(key, Op::Prefix(net.network(), net.prefix_len()))
}

fn mark_rule(masquerade: Masquerade, src: Key, pods: &[IpNet]) -> Option<Rule> {
    let mark = Stmt::SetMark(Assign::Or(MARK));
    match masquerade {
        Masquerade::Never => None,
        Masquerade::Always => Some(Rule::new(vec![mark])),
        // Without knowing the Pods' networks nobody can be told from outsiders.
        Masquerade::Outsiders if pods.is_empty() => None,
        Masquerade::Outsiders => {
            let mut stmts: Vec<Stmt> = pods
                .iter()
                .map(|net| Stmt::Match(src, Op::NotPrefix(net.network(), net.prefix_len())))
                .collect();
            stmts.extend([Stmt::Match(Key::FibSaddrType, Op::IsNot(fib_type::LOCAL)), mark]);
            Some(Rule::new(stmts))
        }
    }
}

fn pods(node: &NodeView, ip: Ip) -> Vec<IpNet> {
    node.pod_cidrs.iter().filter(|net| Ip::of(net.network()) == ip).copied().collect()
}
