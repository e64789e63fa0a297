//! Targets as chains and map elements: the exact-N layout, one table per family.
//!
//! ```text
//! map svc4 { ipv4_addr . inet_proto . inet_service : verdict }        frontend -> goto n3 | o3 | m3-a10800 | ...
//! map ep4  { ... . numgen random mod 2 : ip daddr . th dport }        frontend, slot -> endpoint
//! chain n3 { dnat ip to <frontend> . numgen random mod 3 map @ep4 }   made once per N and kept
//! ```
//! A chain is named by what it does: where its frontends live (nothing: an address; `np`: the node's own addresses),
//! whose source it replaces (`n` nobody's, `m` everybody's, `o` outsiders', `l` nobody's, and insiders go elsewhere),
//! the number of endpoints, and the seconds of affinity. Adding an endpoint is one element and another verdict;
//! removing one moves the last slot into the hole. With affinity the slot gives a number that stays with the endpoint
//! (`pick4`), and the number is what is remembered per client (`aff4`): a client whose endpoint is gone draws again.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use nft::rule::{ct_state, ct_status, fib_type};
use nft::{
    Assign, Chain, ChainType, Data, Element, Family, Hook, Key, NatTarget, Op, Reject, Rule, Set, SetFlags,
    Stmt, Table, Type, Types, Value, Verdict,
};

use crate::model::{Action, Endpoints, Forward, Frontend, Ip, Masquerade, NodeView, Place, Target};

/// The name of our tables.
pub const TABLE: &str = "skiff-proxy";
/// The bit of the packet mark that asks for masquerading.
pub const MARK: u32 = 0x4000;
/// Most clients remembered per map; then new ones are served without memory.
const REMEMBERED: u32 = 262_144;

/// Where the frontends of a chain live, and so which maps it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Addresses.
    Address,
    /// The node's own addresses.
    Node,
    /// Addresses, for insiders under `externalTrafficPolicy: Local`.
    InsideAddress,
    /// The node's own addresses, for insiders.
    InsideNode,
}

const SCOPES: [Scope; 4] = [Scope::Address, Scope::Node, Scope::InsideAddress, Scope::InsideNode];

impl Scope {
    fn prefix(self) -> &'static str {
        match self {
            Self::Address => "",
            Self::Node => "np",
            Self::InsideAddress => "in",
            Self::InsideNode => "innp",
        }
    }

    fn inside(self) -> Self {
        match self {
            Self::Address | Self::InsideAddress => Self::InsideAddress,
            Self::Node | Self::InsideNode => Self::InsideNode,
        }
    }

    fn of(place: &Place) -> Self {
        match place {
            Place::Address(_) => Self::Address,
            Place::Node(_) => Self::Node,
        }
    }
}

/// The maps of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Map {
    /// Frontend -> verdict.
    Services,
    /// Frontend, slot -> endpoint.
    Endpoints,
    /// Frontend, slot -> number of the endpoint.
    Pick,
    /// Frontend, number -> endpoint.
    Numbered,
    /// Client, frontend -> number; filled by the rules themselves.
    Affinity,
    /// Frontend -> refused or dropped, before translation.
    Unserved,
}

fn map_name(map: Map, scope: Scope, ip: Ip) -> String {
    let base = match map {
        Map::Services => "svc",
        Map::Endpoints => "ep",
        Map::Pick => "pick",
        Map::Numbered => "epa",
        Map::Affinity => "aff",
        Map::Unserved => "noep",
    };
    format!("{}{base}{}", scope.prefix(), if ip == Ip::V4 { "4" } else { "6" })
}

fn hairpin_name(ip: Ip) -> &'static str {
    if ip == Ip::V4 { "hairpin4" } else { "hairpin6" }
}

fn vips_name(ip: Ip) -> &'static str {
    if ip == Ip::V4 { "vips4" } else { "vips6" }
}

/// What identifies a forwarding chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainKey {
    ip: Ip,
    scope: Scope,
    masquerade: Masquerade,
    /// Insiders are looked up in the maps of the inside scope first.
    divert: bool,
    endpoints: usize,
    affinity: Option<u32>,
}

impl ChainKey {
    /// The table of the chain.
    pub fn ip(&self) -> Ip {
        self.ip
    }

    /// Its name.
    pub fn name(&self) -> String {
        let kind = match (self.divert, self.masquerade) {
            (true, _) => "l",
            (false, Masquerade::Never) => "n",
            (false, Masquerade::Always) => "m",
            (false, Masquerade::Outsiders) => "o",
        };
        let affinity = self.affinity.map(|s| format!("-a{s}")).unwrap_or_default();
        format!("{}{kind}{}{affinity}", self.scope.prefix(), self.endpoints)
    }

    /// The chain with its rules.
    pub fn chain(&self, node: &NodeView) -> Chain {
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

fn prefix(key: Key, net: &IpNet) -> Stmt {
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

/// The words of a family.
struct Words {
    family: Family,
    src: Key,
    dst: Key,
    addr: Type,
}

impl Words {
    fn new(ip: Ip) -> Self {
        match ip {
            Ip::V4 => Self { family: Family::Ip, src: Key::IpSaddr, dst: Key::IpDaddr, addr: Type::Ipv4Addr },
            Ip::V6 => {
                Self { family: Family::Ip6, src: Key::Ip6Saddr, dst: Key::Ip6Daddr, addr: Type::Ipv6Addr }
            }
        }
    }

    fn front(&self, scope: Scope) -> Vec<Key> {
        match scope {
            Scope::Address | Scope::InsideAddress => vec![self.dst, Key::L4proto, Key::ThDport],
            Scope::Node | Scope::InsideNode => vec![Key::L4proto, Key::ThDport],
        }
    }

    fn sets(&self, scope: Scope, ip: Ip) -> Vec<Set> {
        let front = self.front(scope);
        let types: Vec<Type> = front.iter().map(Key::data_type).collect();
        let with = |last| Types::Typeof([&front[..], &[last]].concat());
        let endpoint = || Data::Value(Types::Typeof(vec![self.dst, Key::ThDport]));
        let name = |map| map_name(map, scope, ip);
        let verdicts = |map| Set::map(name(map), Types::Plain(types.clone()), Data::Verdict);
        let mut sets = vec![
            verdicts(Map::Services),
            // The modulus is a note for readers of the listing; chains of every N use the map.
            Set::map(name(Map::Endpoints), with(Key::Random(2)), endpoint()),
            Set::map(name(Map::Pick), with(Key::Random(2)), Data::Value(Types::Typeof(vec![Key::Mark]))),
            Set::map(name(Map::Numbered), with(Key::Mark), endpoint()),
            Set {
                size: Some(REMEMBERED),
                ..Set::map(
                    name(Map::Affinity),
                    Types::Plain([&[self.addr][..], &types].concat()),
                    Data::Value(Types::Plain(vec![Type::Mark])),
                )
                .with_flags(SetFlags { dynamic: true, timeout: true, interval: false })
            },
        ];
        if matches!(scope, Scope::Address | Scope::Node) {
            sets.push(verdicts(Map::Unserved));
        }
        sets
    }
}

/// The family's table without any frontend: all sets, and the chains that the kernel calls.
pub fn skeleton(ip: Ip, node: &NodeView) -> Table {
    let words = Words::new(ip);
    let mut table = Table::new(words.family, TABLE);
    table.sets = SCOPES.iter().flat_map(|scope| words.sets(*scope, ip)).collect();
    table.sets.push(Set::new(hairpin_name(ip), Types::Plain(vec![words.addr, words.addr])));
    table.sets.push(Set::new(vips_name(ip), Types::Plain(vec![words.addr])));
    let jump = |chain: &str| Stmt::Verdict(Verdict::Jump(chain.to_owned()));
    let vmap = |scope, map| Stmt::Vmap(words.front(scope), map_name(map, scope, ip));
    let local = Stmt::Match(Key::FibDaddrType, Op::Is(fib_type::LOCAL));
    let fresh = Stmt::Match(Key::CtState, Op::Any(ct_state::NEW));
    let base = Chain::base;
    let unanswered: Vec<Rule> = node
        .service_cidrs
        .iter()
        .filter(|net| Ip::of(net.network()) == ip)
        .map(|net| Rule::new(vec![prefix(words.dst, net), jump("unanswered")]))
        .collect();
    let early = vec![Rule::new(vec![fresh, jump("unserved")])];
    table.chains = vec![
        Chain::new(
            "services",
            vec![
                Rule::new(vec![vmap(Scope::Address, Map::Services)]),
                Rule::new(vec![local.clone(), vmap(Scope::Node, Map::Services)]),
            ],
        ),
        Chain::new(
            "unserved",
            vec![
                Rule::new(vec![vmap(Scope::Address, Map::Unserved)]),
                Rule::new(vec![local, vmap(Scope::Node, Map::Unserved)]),
            ],
        ),
        // Still sent to a cluster address after translation: another port of a Service, or of nobody.
        Chain::new(
            "unanswered",
            vec![
                Rule::new(vec![
                    Stmt::InSet(vec![words.dst], vips_name(ip).into()),
                    Stmt::Verdict(Verdict::Goto("refuse".into())),
                ]),
                Rule::new(vec![Stmt::Verdict(Verdict::Drop)]),
            ],
        ),
        Chain::new(
            "refuse",
            vec![
                Rule::new(vec![
                    Stmt::Match(Key::L4proto, Op::Eq(Value::Proto(6))),
                    Stmt::Reject(Reject::TcpReset),
                ]),
                Rule::new(vec![Stmt::Reject(Reject::PortUnreachable)]),
            ],
        ),
        base("early-in", ChainType::Filter, Hook::Prerouting, -110, early.clone()),
        base("early-out", ChainType::Filter, Hook::Output, -110, early),
        base("nat-in", ChainType::Nat, Hook::Prerouting, -100, vec![Rule::new(vec![jump("services")])]),
        base("nat-out", ChainType::Nat, Hook::Output, -100, vec![Rule::new(vec![jump("services")])]),
        base("late-through", ChainType::Filter, Hook::Forward, 0, unanswered.clone()),
        base("late-out", ChainType::Filter, Hook::Output, 0, unanswered),
        base(
            "postrouting",
            ChainType::Nat,
            Hook::Postrouting,
            100,
            vec![
                Rule::new(vec![
                    Stmt::Match(Key::Mark, Op::Masked { mask: MARK, value: MARK }),
                    Stmt::SetMark(Assign::And(!MARK)),
                    Stmt::Masquerade,
                ]),
                Rule::new(vec![
                    Stmt::Match(Key::CtStatus, Op::Any(ct_status::DNAT)),
                    Stmt::InSet(vec![words.src, words.dst], hairpin_name(ip).into()),
                    Stmt::Masquerade,
                ]),
            ],
        ),
    ];
    table
}

/// An endpoint in its slot, with the number it keeps while the frontend lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    addr: SocketAddr,
    number: u32,
}

/// Endpoints in slots 0..N.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    slots: Vec<Slot>,
    next: u32,
}

/// Numbers stay below the mark bit, which is added to them.
const NUMBERS: u32 = MARK;

impl Slots {
    /// The addresses, by slot.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.slots.iter().map(|s| s.addr).collect()
    }

    /// The same frontend with other endpoints: who stays keeps its slot as far as there are no holes.
    pub fn with(&self, endpoints: &Endpoints) -> Self {
        let wanted: BTreeSet<SocketAddr> = endpoints.iter().copied().collect();
        let known: BTreeSet<SocketAddr> = self.slots.iter().map(|s| s.addr).collect();
        let mut next = self.next;
        let mut taken: BTreeSet<u32> =
            self.slots.iter().filter(|s| wanted.contains(&s.addr)).map(|s| s.number).collect();
        let mut fresh = wanted.difference(&known).map(|addr| {
            // Numbers go round, so that a new endpoint does not inherit the clients of one that just left.
            while taken.contains(&(next % NUMBERS)) && taken.len() < NUMBERS as usize {
                next += 1;
            }
            let number = next % NUMBERS;
            next = (number + 1) % NUMBERS;
            taken.insert(number);
            Slot { addr: *addr, number }
        });
        let mut slots: Vec<Option<Slot>> = self
            .slots
            .iter()
            .map(|s| wanted.contains(&s.addr).then_some(*s).or_else(|| fresh.next()))
            .collect();
        slots.extend(fresh.map(Some));
        let mut hole = 0;
        while hole < slots.len() {
            if slots[hole].is_none() {
                slots.swap_remove(hole);
            } else {
                hole += 1;
            }
        }
        Self { slots: slots.into_iter().flatten().collect(), next }
    }
}

/// A frontend as it is, or will be, in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    target: Target,
    slots: Slots,
    insiders: Slots,
}

impl Placed {
    /// Places a target; `before` is where the same frontend is now.
    pub fn new(target: &Target, before: Option<&Self>) -> Self {
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
        let own = |addr: &IpAddr| Element::new(vec![(*addr).into(), (*addr).into()]);
        let shared = &mut parts.shared;
        shared.extend(self.target.hairpins.iter().map(|addr| (hairpin_name(ip).to_owned(), own(addr))));
        if let (Place::Address(addr), true) = (&frontend.place, self.target.cluster_ip) {
            shared.push((vips_name(ip).to_owned(), Element::new(vec![(*addr).into()])));
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

/// What a frontend is made of.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// Set and element; no other frontend has them.
    pub elements: Vec<(String, Element)>,
    /// Set and element that other frontends may need as well.
    pub shared: Vec<(String, Element)>,
    /// Chains that the elements go to.
    pub chains: Vec<ChainKey>,
}

impl Parts {
    fn forward(&mut self, ip: Ip, scope: Scope, key: &[Value], forward: &Forward, slots: &Slots) {
        let slots = &slots.slots;
        let chain = ChainKey {
            ip,
            scope,
            masquerade: forward.masquerade,
            divert: forward.insiders.is_some(),
            endpoints: slots.len(),
            affinity: forward.affinity.filter(|_| !slots.is_empty()),
        };
        self.chains.push(chain);
        let goto = Element::verdict(key.to_vec(), Verdict::Goto(chain.name()));
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

/// The complete table of a family: what a full replacement loads, and what a reader may compare with the kernel's.
pub fn table<'a>(
    ip: Ip,
    node: &NodeView,
    placed: impl IntoIterator<Item = (&'a Frontend, &'a Placed)>,
) -> Table {
    let mut table = skeleton(ip, node);
    let mut chains = BTreeSet::new();
    let mut shared: BTreeSet<(String, Vec<Value>)> = BTreeSet::new();
    let mut elements: HashMap<String, Vec<Element>> = HashMap::new();
    for (frontend, placed) in placed.into_iter().filter(|(f, _)| f.place.ip() == ip) {
        let parts = placed.parts(frontend);
        chains.extend(parts.chains);
        for (set, element) in parts.elements {
            elements.entry(set).or_default().push(element);
        }
        for (set, element) in parts.shared {
            if shared.insert((set.clone(), element.key.clone())) {
                elements.entry(set).or_default().push(element);
            }
        }
    }
    for set in &mut table.sets {
        set.elements = elements.remove(&set.name).unwrap_or_default();
    }
    table.chains.extend(chains.iter().map(|key| key.chain(node)));
    table
}
