//! What is desired, as tables: one per family, with the same names.
//!
//! ```text
//! map isolated-in { type ipv4_addr : verdict }        # address of a Pod : jump profile-3
//! chain forward { ct state established,related accept
//!                 ct state invalid drop
//!                 ip saddr vmap @isolated-out
//!                 ip daddr vmap @isolated-in }
//! chain profile-3 { ip saddr @pods-1 meta l4proto tcp th dport 80 return
//!                   limit rate 10/second log prefix "ingress drop" group 4747
//!                   counter drop }
//! ```
//! Where policies are only audited the last rule is missing, and the log's prefix is another.
//!
//! The cluster's rules of tier Admin stand before all that, each with its own end (return, drop); one that passes goes to
//! `profile-3-rest`, which then has the rest. Those of tier Baseline follow where no NetworkPolicy has decided.
//!
//! What a packet costs does not depend on the number of policies, only on the permits of its two ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nft::rule::ct_state;
use nft::{
    Chain, ChainType, Data, Element, Family, Hook, Key, Limit, Log, Op, Rule, Set, SetFlags, Stmt, Table,
    TableName, Type, Types, Unit, Value, Verdict,
};

use crate::cluster::Action;
use crate::desired::{Desired, Members, Profile, SetKey};
use crate::isolation::{Step, Unpermitted};
use crate::model::{Peer, Port};
use crate::permit::{Direction, Permit};
use crate::track::Touched;

/// The tables' name.
pub const TABLE: &str = "skiff-policy";
/// Both families.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
/// The usual place of filters, after destinations are translated.
const FILTER: i32 = 0;

/// The netfilter log group that hears of what is dropped, or would be.
pub const LOG_GROUP: u16 = 4747;
/// How much each profile may tell; the rest is only counted.
const TOLD: Limit = Limit { rate: 10, unit: Unit::Second, burst: 20 };

/// What the kernel says with a packet that no permit let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Whose profile it met: the destination's or the source's.
    pub direction: Direction,
    /// It passes all the same.
    pub audit: bool,
}

impl Told {
    /// As the log's prefix has it.
    pub fn prefix(self) -> String {
        format!("{} {}", self.direction.word(), if self.audit { "audit" } else { "drop" })
    }

    /// From a log's prefix.
    pub fn of(prefix: &str) -> Option<Self> {
        let all = Direction::BOTH
            .into_iter()
            .flat_map(|direction| [false, true].map(|audit| Self { direction, audit }));
        all.into_iter().find(|told| told.prefix() == prefix)
    }
}

/// The table of a family.
pub fn name_of(family: Family) -> TableName {
    TableName::new(family, TABLE)
}

/// The names of sets and profiles in the kernel; a name is never given twice.
#[derive(Debug, Clone, Default)]
pub struct Names {
    sets: BTreeMap<SetKey, String>,
    profiles: BTreeMap<Arc<Profile>, String>,
    last: u64,
}

impl Names {
    /// Names all that came and forgets what went.
    pub fn follow(&mut self, desired: &Desired, touched: &Touched, is_used: impl Fn(&Arc<Profile>) -> bool) {
        for key in &touched.sets {
            if !desired.sets.contains_key(key) {
                self.sets.remove(key);
            } else if !self.sets.contains_key(key) {
                let kind = match key {
                    SetKey::Port(..) => "ports",
                    SetKey::Peer(peer) if matches!(**peer, Peer::Block(_)) => "block",
                    SetKey::Peer(peer) if matches!(**peer, Peer::Nodes(_)) => "nodes",
                    SetKey::Peer(_) => "pods",
                };
                let name = self.next(kind);
                self.sets.insert(key.clone(), name);
            }
        }
        for profile in &touched.profiles {
            if !is_used(profile) {
                self.profiles.remove(profile);
            } else if !self.profiles.contains_key(profile) {
                let name = self.next("profile");
                self.profiles.insert(profile.clone(), name);
            }
        }
    }

    fn next(&mut self, kind: &str) -> String {
        self.last += 1;
        format!("{kind}-{}", self.last)
    }

    /// The name of a set.
    pub fn set(&self, key: &SetKey) -> &str {
        self.sets.get(key).map_or("", String::as_str)
    }

    /// Profiles and their names.
    pub fn profiles(&self) -> &BTreeMap<Arc<Profile>, String> {
        &self.profiles
    }

    /// The name of a profile.
    pub fn profile(&self, profile: &Arc<Profile>) -> &str {
        self.profiles.get(profile).map_or("", String::as_str)
    }
}

/// The map of isolated addresses of a direction.
pub fn map_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "isolated-in",
        Direction::Egress => "isolated-out",
    }
}

/// The whole table of a family.
pub fn table(family: Family, desired: &Desired, names: &Names) -> Table {
    let mut table = Table::new(family, TABLE);
    for direction in [Direction::Ingress, Direction::Egress] {
        let own = desired.profiles.iter().filter(|((d, addr), _)| *d == direction && is_of(family, *addr));
        let elements = own.map(|((_, addr), profile)| isolated(*addr, profile, names)).collect();
        let map = Set::map(map_of(direction), Types::Plain(vec![address(family)]), Data::Verdict);
        table.sets.push(map.with_elements(elements));
    }
    for (key, members) in &desired.sets {
        let elements = elements(family, key, members);
        table.sets.push(set(family, key, names).with_elements(elements));
    }
    table.chains = names.profiles().keys().flat_map(|profile| chains(family, profile, names)).collect();
    table.chains.extend(base(family));
    table
}

/// Where packets meet the profiles: those that pass the node, and those of Pods to the node itself.
fn base(family: Family) -> [Chain; 2] {
    let (src, dst) = addresses(family);
    let state =
        |bits, verdict| Rule::new(vec![Stmt::Match(Key::CtState, Op::Any(bits)), Stmt::Verdict(verdict)]);
    let known = state(ct_state::ESTABLISHED | ct_state::RELATED, Verdict::Accept);
    // The rest of a connection that was cut.
    let rest = state(ct_state::INVALID, Verdict::Drop);
    let from = Rule::new(vec![Stmt::Vmap(vec![src], map_of(Direction::Egress).to_owned())]);
    let to = Rule::new(vec![Stmt::Vmap(vec![dst], map_of(Direction::Ingress).to_owned())]);
    [
        Chain::base(
            "forward",
            ChainType::Filter,
            Hook::Forward,
            FILTER,
            vec![known.clone(), rest, from.clone(), to],
        ),
        Chain::base("input", ChainType::Filter, Hook::Input, FILTER, vec![known, from]),
    ]
}

/// The names of a profile's chains, each before those that it goes to.
pub fn chain_names(profile: &Arc<Profile>, names: &Names) -> Vec<String> {
    let name = names.profile(profile);
    let rest = profile.passes().then(|| format!("{name}-rest"));
    [name.to_owned()].into_iter().chain(rest).collect()
}

/// A profile's chains, each after those that it goes to.
pub fn chains(family: Family, profile: &Arc<Profile>, names: &Names) -> Vec<Chain> {
    let words = Words { family, profile, names };
    let mut named = chain_names(profile, names).into_iter();
    let name = named.next().unwrap_or_default();
    let Some(rest) = named.next() else {
        let rules = words.steps(&profile.admin, &Verdict::Return).into_iter().chain(words.rest());
        return vec![Chain::new(name, rules.collect())];
    };
    let go_on = Verdict::Goto(rest.clone());
    let mut rules = words.steps(&profile.admin, &go_on);
    rules.push(Rule::new(vec![Stmt::Verdict(go_on)]));
    vec![Chain::new(rest, words.rest()), Chain::new(name, rules)]
}

/// A profile's rules.
struct Words<'a> {
    family: Family,
    profile: &'a Profile,
    names: &'a Names,
}

impl Words<'_> {
    /// What NetworkPolicies say, and after them the cluster's rules of tier Baseline.
    fn rest(&self) -> Vec<Rule> {
        let permit = |permit: &Permit| self.rule(permit, [Stmt::Verdict(Verdict::Return)]);
        let mut rules: Vec<Rule> = self.profile.permits.iter().map(permit).collect();
        match self.profile.unpermitted {
            Unpermitted::Dropped => rules.extend(self.refusal(None)),
            Unpermitted::Told => rules.push(Rule::new(self.tell(true).into())),
            Unpermitted::Open => {}
        }
        if self.profile.unpermitted != Unpermitted::Dropped {
            rules.extend(self.steps(&self.profile.baseline, &Verdict::Return));
        }
        rules
    }

    /// The cluster's rules of a tier, of which one that passes does `pass`.
    fn steps(&self, steps: &[Step], pass: &Verdict) -> Vec<Rule> {
        let step = |step: &Step| match step.action {
            Action::Accept => vec![self.rule(&step.permit, [Stmt::Verdict(Verdict::Return)])],
            Action::Pass => vec![self.rule(&step.permit, [Stmt::Verdict(pass.clone())])],
            Action::Deny => self.refusal(Some(&step.permit)).into(),
        };
        steps.iter().flat_map(step).collect()
    }

    /// Drops what a permit means, or whatever comes here.
    fn refusal(&self, permit: Option<&Permit>) -> [Rule; 2] {
        let rule = |end: [Stmt; 2]| match permit {
            Some(permit) => self.rule(permit, end),
            None => Rule::new(end.into()),
        };
        [rule(self.tell(false)), rule([Stmt::Counter, Stmt::Verdict(Verdict::Drop)])]
    }

    fn tell(&self, audit: bool) -> [Stmt; 2] {
        [Stmt::Limit(TOLD), told(Told { direction: self.profile.direction, audit })]
    }

    /// What is to be done with what a permit means.
    fn rule(&self, permit: &Permit, end: impl IntoIterator<Item = Stmt>) -> Rule {
        let (src, dst) = addresses(self.family);
        let peer = if self.profile.direction == Direction::Ingress { src } else { dst };
        Rule::new(conditions(permit, peer, dst, self.names).into_iter().chain(end).collect())
    }
}

fn told(what: Told) -> Stmt {
    Stmt::Log(Log { prefix: Some(what.prefix()), group: Some(LOG_GROUP) })
}

fn conditions(permit: &Permit, peer: Key, dst: Key, names: &Names) -> Vec<Stmt> {
    let mut stmts = Vec::new();
    if let Some(wanted) = &permit.peer {
        let set = names.set(&SetKey::Peer(wanted.clone()));
        stmts.push(Stmt::InSet(vec![peer], set.to_owned()));
    }
    let is = |protocol: &nft::Protocol| Stmt::Match(Key::L4proto, Op::Eq(Value::Proto(protocol.number())));
    match &permit.port {
        None => {}
        Some(Port::Any(protocol)) => stmts.push(is(protocol)),
        Some(Port::Range(protocol, first, last)) => {
            let port = match first == last {
                true => Op::Eq(Value::Port(*first)),
                false => Op::Range(Value::Port(*first), Value::Port(*last)),
            };
            stmts.extend([is(protocol), Stmt::Match(Key::ThDport, port)]);
        }
        Some(Port::Named(protocol, name)) => {
            let set = names.set(&SetKey::Port(*protocol, name.clone()));
            stmts.extend([is(protocol), Stmt::InSet(vec![dst, Key::ThDport], set.to_owned())]);
        }
    }
    stmts
}

/// A set without its elements.
pub fn set(family: Family, key: &SetKey, names: &Names) -> Set {
    let flags = SetFlags {
        interval: matches!(key, SetKey::Peer(peer) if matches!(**peer, Peer::Block(_))),
        ..SetFlags::default()
    };
    let mut types = vec![address(family)];
    if matches!(key, SetKey::Port(..)) {
        types.push(Type::InetService);
    }
    Set::new(names.set(key), Types::Plain(types)).with_flags(flags)
}

/// A set's elements of a family.
pub fn elements(family: Family, key: &SetKey, members: &Members) -> Vec<Element> {
    match (key, members) {
        (_, Members::Addresses(all)) => {
            let own = all.iter().filter(|addr| is_of(family, **addr));
            own.map(|addr| Element::new(vec![(*addr).into()])).collect()
        }
        (_, Members::Ports(all)) => {
            let own = all.iter().filter(|(addr, _)| is_of(family, *addr));
            own.map(|(addr, port)| Element::new(vec![(*addr).into(), Value::Port(*port)])).collect()
        }
        (SetKey::Peer(peer), Members::Block) => match &**peer {
            Peer::Pods(_) | Peer::Nodes(_) => Vec::new(),
            Peer::Block(ranges) => {
                let own = ranges.iter().filter(|range| is_of(family, range.first));
                let element = |range: &crate::Range| Element {
                    key_end: Some(vec![range.last.into()]),
                    ..Element::new(vec![range.first.into()])
                };
                own.map(element).collect()
            }
        },
        (SetKey::Port(..), Members::Block) => Vec::new(),
    }
}

/// The element that sends an address' packets to its profile.
pub fn isolated(addr: IpAddr, profile: &Arc<Profile>, names: &Names) -> Element {
    Element::verdict(vec![addr.into()], Verdict::Jump(names.profile(profile).to_owned()))
}

/// Whether an address is of a family.
pub fn is_of(family: Family, addr: IpAddr) -> bool {
    addr.is_ipv6() == (family == Family::Ip6)
}

fn address(family: Family) -> Type {
    if family == Family::Ip6 { Type::Ipv6Addr } else { Type::Ipv4Addr }
}

fn addresses(family: Family) -> (Key, Key) {
    match family {
        Family::Ip6 => (Key::Ip6Saddr, Key::Ip6Daddr),
        _ => (Key::IpSaddr, Key::IpDaddr),
    }
}
