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

mod chains;
mod parts;
mod slots;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use nft::rule::{ct_state, ct_status, fib_type};
use nft::{
    Assign, Chain, ChainType, Data, Element, Family, Hook, Key, Op, Reject, Rule, Set, SetFlags, Stmt, Table,
    Type, Types, Value, Verdict,
};

use crate::model::{Frontend, Ip, NodeView, Place};
use chains::prefix;

pub use chains::{ChainKey, ForwardKey};
pub use parts::{Parts, Placed, Shared};
pub use slots::{Slot, Slots};

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
    /// Frontend -> from where it may be reached, before translation.
    Sources,
}

fn map_name(map: Map, scope: Scope, ip: Ip) -> String {
    let base = match map {
        Map::Services => "svc",
        Map::Endpoints => "ep",
        Map::Pick => "pick",
        Map::Numbered => "epa",
        Map::Affinity => "aff",
        Map::Unserved => "noep",
        Map::Sources => "from",
    };
    format!("{}{base}{}", scope.prefix(), if ip == Ip::V4 { "4" } else { "6" })
}

fn hairpin_name(ip: Ip) -> &'static str {
    if ip == Ip::V4 { "hairpin4" } else { "hairpin6" }
}

fn vips_name(ip: Ip) -> &'static str {
    if ip == Ip::V4 { "vips4" } else { "vips6" }
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
        if scope == Scope::Address {
            sets.push(verdicts(Map::Sources));
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
    // A late packet of an ended connection would leave untranslated, and its receiver would reset the connection.
    let invalid =
        Rule::new(vec![Stmt::Match(Key::CtState, Op::Any(ct_state::INVALID)), Stmt::Verdict(Verdict::Drop)]);
    let through = std::iter::once(invalid).chain(unanswered.clone()).collect();
    let loopback = match ip {
        Ip::V4 => Some(IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)),
        Ip::V6 => None,
    };
    // Answers to the node itself come to its own address and are translated back only later.
    let strangers = loopback.map(|net| {
        let outside = Stmt::Match(Key::Iifname, Op::Ne(Value::ifname("lo")));
        Rule::new(vec![outside, prefix(words.dst, &net), Stmt::Verdict(Verdict::Drop)])
    });
    // What the node asks of its loopback's node ports must come back to it.
    let homeward = loopback.map(|net| {
        let sent_on = Stmt::Match(Key::CtStatus, Op::Any(ct_status::DNAT));
        Rule::new(vec![prefix(words.src, &net), sent_on, Stmt::Masquerade])
    });
    let early = vec![
        Rule::new(vec![fresh.clone(), vmap(Scope::Address, Map::Sources)]),
        Rule::new(vec![fresh, jump("unserved")]),
    ];
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
        base(
            "early-in",
            ChainType::Filter,
            Hook::Prerouting,
            -110,
            strangers.into_iter().chain(early.clone()).collect(),
        ),
        base("early-out", ChainType::Filter, Hook::Output, -110, early),
        base("nat-in", ChainType::Nat, Hook::Prerouting, -100, vec![Rule::new(vec![jump("services")])]),
        base("nat-out", ChainType::Nat, Hook::Output, -100, vec![Rule::new(vec![jump("services")])]),
        base("late-through", ChainType::Filter, Hook::Forward, 0, through),
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
            ]
            .into_iter()
            .chain(homeward)
            .collect(),
        ),
    ];
    table
}

/// The complete table of a family: what a full replacement loads, and what a reader may compare with the kernel's.
pub fn table<'a>(
    ip: Ip,
    node: &NodeView,
    placed: impl IntoIterator<Item = (&'a Frontend, &'a Placed)>,
) -> Table {
    let mut table = skeleton(ip, node);
    let mut chains = BTreeSet::new();
    let mut shared: BTreeSet<Shared> = BTreeSet::new();
    let mut elements: HashMap<String, Vec<Element>> = HashMap::new();
    for (frontend, placed) in placed.into_iter().filter(|(f, _)| f.place.ip() == ip) {
        let parts = placed.parts(frontend);
        chains.extend(parts.chains);
        for (set, element) in parts.elements {
            elements.entry(set).or_default().push(element);
        }
        shared.extend(parts.shared);
    }
    for (set, element) in shared.iter().map(Shared::element) {
        elements.entry(set.to_owned()).or_default().push(element);
    }
    for set in &mut table.sets {
        set.elements = elements.remove(&set.name).unwrap_or_default();
    }
    table.chains.extend(chains.iter().map(|key| key.chain(node)));
    table
}
