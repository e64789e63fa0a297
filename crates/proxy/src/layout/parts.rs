//! A frontend as elements and chains.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use nft::{Element, Value, Verdict};

use crate::layout::chains::{ChainKey, ForwardKey};
use crate::layout::slots::{Slot, Slots};
use crate::layout::{MARK, Map, Scope, hairpin_name, map_name, vips_name};
use crate::model::{Action, Forward, Frontend, Ip, Masquerade, Place, Target};

/// A frontend as it is, or will be, in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    target: Arc<Target>,
    slots: Slots,
    insiders: Slots,
}

impl Placed {
    /// Places a target; `before` is where the same frontend is now.
    pub fn new(target: &Arc<Target>, before: Option<&Self>) -> Self {
        let empty = Slots::default();
        let (slots, insiders) = before.map_or((&empty, &empty), |b| (&b.slots, &b.insiders));
        let forward = match &target.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        };
        let none = Vec::new();
        Self {
            target: target.clone(),
            slots: slots.with(forward.map_or(&none, |f| &f.endpoints)),
            insiders: insiders.with(forward.and_then(|f| f.insiders.as_ref()).unwrap_or(&none)),
        }
    }

    /// Every endpoint that connections may be with.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.slots.slots.iter().chain(&self.insiders.slots).map(|slot| slot.addr)
    }

    /// All elements that stand for a frontend, with the sets they belong to, and the chains they need.
    pub fn parts(&self, frontend: &Frontend) -> Parts {
        let mut parts = Parts::default();
        let ip = frontend.place.ip();
        let scope = Scope::of(&frontend.place);
        let key = front_key(frontend);
        let unserved = |verdict| (map_name(Map::Unserved, scope, ip), Element::verdict(key.clone(), verdict));
        match &self.target.action {
            Action::Refuse => parts.elements.push(unserved(Verdict::Goto("refuse".into()))),
            Action::Drop => parts.elements.push(unserved(Verdict::Drop)),
            Action::Forward(forward) => {
                parts.forward(ip, scope, &key, forward, &self.slots);
                if forward.insiders.is_some() {
                    let inside = Forward { masquerade: Masquerade::Never, insiders: None, ..forward.clone() };
                    parts.forward(ip, scope.inside(), &key, &inside, &self.insiders);
                }
            }
        }
        parts.sources(ip, &key, &self.target.sources);
        parts.shared.extend(self.target.hairpins.iter().map(|addr| Shared::Hairpin(*addr)));
        if let (Place::Address(addr), true) = (frontend.place, self.target.cluster_ip) {
            parts.shared.push(Shared::ClusterIp(addr));
        }
        parts
    }
}

fn front_key(frontend: &Frontend) -> Vec<Value> {
    let (protocol, port) = (Value::Proto(frontend.protocol.number()), Value::Port(frontend.port));
    match frontend.place {
        Place::Address(addr) => vec![addr.into(), protocol, port],
        Place::Node(_) => vec![protocol, port],
    }
}

/// An element that several frontends may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// An endpoint of this node, which may reach itself through a Service.
    Hairpin(IpAddr),
    /// An address whose other ports are refused.
    ClusterIp(IpAddr),
}

impl Shared {
    /// The family that it is of.
    pub fn ip(&self) -> Ip {
        let (Self::Hairpin(addr) | Self::ClusterIp(addr)) = self;
        Ip::of(*addr)
    }

    /// Set and element.
    pub fn element(&self) -> (&'static str, Element) {
        match *self {
            Self::Hairpin(addr) => (hairpin_name(self.ip()), Element::new(vec![addr.into(), addr.into()])),
            Self::ClusterIp(addr) => (vips_name(self.ip()), Element::new(vec![addr.into()])),
        }
    }
}

/// What a frontend is made of.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// Set and element; no other frontend has them.
    pub elements: Vec<(String, Element)>,
    /// What other frontends may need as well.
    pub shared: Vec<Shared>,
    /// Chains that the elements go to.
    pub chains: Vec<ChainKey>,
}

impl Parts {
    fn sources(&mut self, ip: Ip, key: &[Value], networks: &[IpNet]) {
        if networks.is_empty() {
            return;
        }
        let chain = ChainKey::Sources(ip, networks.to_vec());
        let jump = Element::verdict(key.to_vec(), Verdict::Jump(chain.name()));
        self.elements.push((map_name(Map::Sources, Scope::Address, ip), jump));
        self.chains.push(chain);
    }

    fn forward(&mut self, ip: Ip, scope: Scope, key: &[Value], forward: &Forward, slots: &Slots) {
        let slots = &slots.slots;
        let chain = ForwardKey {
            ip,
            scope,
            masquerade: forward.masquerade,
            divert: forward.insiders.is_some(),
            endpoints: slots.len(),
            affinity: forward.affinity.filter(|_| !slots.is_empty()),
        };
        self.chains.push(ChainKey::Forward(chain));
        let goto = Element::verdict(key.to_vec(), Verdict::Goto(ChainKey::Forward(chain).name()));
        self.elements.push((map_name(Map::Services, scope, ip), goto));
        let by = |last| [key, &[last]].concat();
        let endpoint = |slot: &Slot| vec![slot.addr.ip().into(), Value::Port(slot.addr.port())];
        for (i, slot) in slots.iter().enumerate() {
            let here = by(Value::Integer(i as u32));
            if chain.affinity.is_none() {
                let element = Element::value(here, endpoint(slot));
                self.elements.push((map_name(Map::Endpoints, scope, ip), element));
                continue;
            }
            let number = Value::Mark(slot.number);
            self.elements.push((map_name(Map::Pick, scope, ip), Element::value(here, vec![number])));
            // The mark carries the wish for masquerading too, so each number is there with and without it.
            for mark in [slot.number, slot.number | MARK] {
                let element = Element::value(by(Value::Mark(mark)), endpoint(slot));
                self.elements.push((map_name(Map::Numbered, scope, ip), element));
                if forward.masquerade == Masquerade::Never {
                    break;
                }
            }
        }
    }
}
