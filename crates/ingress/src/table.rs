//! The routing table: host, then path -> location.
//!
//! A host is looked up exactly, then as the one label of a wildcard, then among the rules without host; there is no way
//! back from a host whose paths do not match. Of paths an exact one wins, then the longest prefix; a host in which a
//! regular expression is used matches all its paths as case-insensitive expressions, longest text first.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use client::ObjectKey;
use http::HeaderMap;
use regex::bytes::{Regex, RegexBuilder};

use crate::annotations::Policy;
use crate::annotations::routing::Rewrite;
use crate::certificates::Certificates;
use crate::client_tls::Authority;
use crate::configmap::Global;
use crate::metrics::Stats;
use crate::passwords::Users;
use crate::throttle::Zones;
use crate::upstream::Backend;

/// What all locations of one Ingress share: its annotations, and the objects that they name.
#[derive(Debug, Default)]
pub struct Served {
    /// Shared by all Ingresses that say the same.
    pub(crate) policy: Arc<Policy>,
    /// Nobody comes in: something that guards cannot be had.
    pub(crate) closed: bool,
    pub(crate) users: Option<Arc<Users>>,
    pub(crate) authority: Option<Arc<Authority>>,
    pub(crate) zones: Option<Arc<Zones>>,
    pub(crate) headers: HeaderMap,
    pub(crate) auth_headers: HeaderMap,
    pub(crate) default_backend: Option<Arc<Backend>>,
}

/// A second backend of a location.
#[derive(Debug, Clone)]
pub struct Alternative {
    pub(crate) ingress: ObjectKey,
    pub(crate) backend: Arc<Backend>,
    pub(crate) served: Arc<Served>,
}

/// What a matched request meets.
#[derive(Debug, Clone)]
pub struct Location {
    /// The Ingress that says so.
    pub ingress: Arc<ObjectKey>,
    /// Where requests go.
    pub backend: Arc<Backend>,
    /// The Ingress lists the host under `tls`.
    pub tls: bool,
    pub(crate) served: Arc<Served>,
    pub(crate) canary: Option<Alternative>,
    pub(crate) host: Arc<str>,
    pub(crate) path: Box<str>,
    pub(crate) stats: OnceLock<Arc<Stats>>,
    /// The path's expression, where its captures are asked for.
    pattern: Option<Regex>,
}

impl Location {
    /// A location without a path, as a default backend has it.
    pub fn new(ingress: Arc<ObjectKey>, backend: Arc<Backend>, served: Arc<Served>, tls: bool) -> Self {
        Self {
            ingress,
            backend,
            served,
            tls,
            canary: None,
            host: "".into(),
            path: "/".into(),
            stats: OnceLock::new(),
            pattern: None,
        }
    }

    /// The path that the backend gets instead of the one that was asked for.
    pub fn rewritten(&self, path: &[u8]) -> Option<Vec<u8>> {
        let Rewrite(parts) = self.served.policy.routing.rewrite.as_ref()?;
        let captures = self.pattern.as_ref().and_then(|pattern| pattern.captures(path));
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(&part.text);
            let captured = part.capture.zip(captures.as_ref()).and_then(|(n, captures)| captures.get(n));
            out.extend_from_slice(captured.map_or(b"", |m| m.as_bytes()));
        }
        Some(out)
    }
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathType {
    /// Equal.
    Exact,
    /// Equal by segments.
    Prefix,
    /// `ImplementationSpecific`: the text begins so.
    Text,
}

#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<[u8]>, Arc<Location>, foldhash::fast::RandomState>,
    prefixes: HashMap<Box<[u8]>, Arc<Location>, foldhash::fast::RandomState>,
    /// Lengths of the prefixes, longest first.
    lengths: Vec<usize>,
    patterns: Vec<(Regex, Arc<Location>)>,
    otherwise: Option<Arc<Location>>,
}

impl Paths {
    fn find(&self, path: &[u8]) -> Option<&Arc<Location>> {
        let prefix = || self.lengths.iter().find_map(|n| self.prefixes.get(path.get(..*n)?));
        let pattern = || self.patterns.iter().find(|(p, _)| p.is_match(path)).map(|(_, location)| location);
        self.exact.get(path).or_else(prefix).or_else(pattern).or(self.otherwise.as_ref())
    }
}

/// What there is for a request.
#[derive(Debug)]
pub enum Found<'a> {
    /// A location.
    Location(&'a Arc<Location>),
    /// The host has moved to this one (`from-to-www-redirect`).
    Moved(&'a str),
    /// Nothing.
    Nothing,
}

impl<'a> Found<'a> {
    /// The location, if it is one.
    pub fn location(self) -> Option<&'a Arc<Location>> {
        match self {
            Self::Location(location) => Some(location),
            _ => None,
        }
    }
}

type ByHost<T> = HashMap<Box<str>, T, foldhash::fast::RandomState>;

/// Host and path to location, and host to certificate.
#[derive(Debug, Default)]
pub struct Table {
    hosts: ByHost<Arc<Paths>>,
    /// By what follows `*.`.
    wildcards: ByHost<Arc<Paths>>,
    moved: ByHost<Box<str>>,
    any: Arc<Paths>,
    /// Certificates by the names under `tls`.
    pub certificates: Certificates,
    /// Hosts whose clients are asked for certificates.
    asking: ByHost<()>,
    pub(crate) global: Arc<Global>,
}

impl Table {
    /// What there is for a request; `host` in lower case without port, `path` as [`crate::path::normal`] makes it.
    pub fn find(&self, host: &str, path: &[u8]) -> Found<'_> {
        let wildcard = || {
            let (label, rest) = host.split_once('.')?;
            self.wildcards.get(rest).filter(|_| !label.is_empty())
        };
        let paths = self.hosts.get(host).or_else(wildcard);
        if paths.is_none()
            && let Some(to) = self.moved.get(host)
        {
            return Found::Moved(to);
        }
        paths.unwrap_or(&self.any).find(path).map_or(Found::Nothing, Found::Location)
    }

    /// Whether clients that ask for this name are asked for certificates.
    pub(crate) fn asks(&self, host: &str) -> bool {
        let wildcard =
            || host.split_once('.').is_some_and(|(_, rest)| self.asking.contains_key(&*format!("*.{rest}")));
        !self.asking.is_empty() && (self.asking.contains_key(host) || wildcard())
    }
}

struct Rule {
    path: String,
    kind: PathType,
    location: Location,
}

#[derive(Default)]
struct HostRules {
    rules: Vec<Rule>,
    otherwise: Option<Location>,
    canaries: Vec<(String, PathType, Alternative)>,
    aliases: Vec<String>,
    www: bool,
    asking: bool,
}

/// Rules in the order of their age; of two that say the same the first stays.
#[derive(Default)]
pub struct Builder(HashMap<String, HostRules>);

impl Builder {
    /// Adds a path of a host; an empty host is all those that no rule names.
    pub fn path(&mut self, host: &str, path: &str, kind: PathType, location: Location) {
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        self.host(host, &location.served).rules.push(Rule { path, kind, location });
    }

    /// Makes a host known and says where requests go that none of its paths matches.
    pub fn otherwise(&mut self, host: &str, location: Location) {
        self.host(host, &location.served).otherwise.get_or_insert(location);
    }

    /// Adds a second backend to a path that some Ingress has, or will have.
    pub fn canary(&mut self, host: &str, path: &str, kind: PathType, alternative: Alternative) {
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        let rules = self.0.entry(host.to_ascii_lowercase()).or_default();
        rules.canaries.push((path, kind, alternative));
    }

    fn host(&mut self, host: &str, served: &Served) -> &mut HostRules {
        let rules = self.0.entry(host.to_ascii_lowercase()).or_default();
        let routing = &served.policy.routing;
        rules.aliases.extend(routing.aliases.iter().cloned());
        rules.www |= routing.www;
        rules.asking |= served.authority.is_some();
        rules
    }

    /// The table; `broken` hears of what cannot be used.
    pub(crate) fn finish(
        self,
        certificates: Certificates,
        global: Arc<Global>,
        mut broken: impl FnMut(&ObjectKey, String),
    ) -> Table {
        let mut table = Table { certificates, global, ..Table::default() };
        let mut aliases = Vec::new();
        let mut others = Vec::new();
        for (host, rules) in self.0 {
            let nothing = rules.rules.is_empty() && rules.otherwise.is_none();
            aliases.extend(rules.aliases.iter().map(|alias| (alias.clone(), host.clone())));
            if rules.www {
                let other = host.strip_prefix("www.").map_or_else(|| format!("www.{host}"), str::to_owned);
                others.push((other, host.clone()));
            }
            if rules.asking {
                table.asking.insert(host.clone().into(), ());
            }
            let paths = Arc::new(rules.finish(&host, &mut broken));
            if !nothing {
                table.put(&host, paths);
            }
        }
        // By name, so that of two hosts with the same alias the same one always wins.
        aliases.sort();
        for (alias, host) in aliases {
            table.alias(&alias, &host);
        }
        for (other, host) in others {
            if !host.is_empty() && !table.hosts.contains_key(other.as_str()) {
                if let Some(certificate) = table.certificates.find(&host).cloned() {
                    table.certificates.add(&other, &certificate);
                }
                table.moved.insert(other.into(), host.into());
            }
        }
        table
    }
}

impl Table {
    fn put(&mut self, host: &str, paths: Arc<Paths>) {
        match host.strip_prefix("*.") {
            _ if host.is_empty() => self.any = paths,
            Some(rest) => drop(self.wildcards.insert(rest.into(), paths)),
            None => drop(self.hosts.insert(host.into(), paths)),
        }
    }

    fn alias(&mut self, alias: &str, host: &str) {
        let (map, name) = match alias.strip_prefix("*.") {
            Some(rest) => (&self.wildcards, rest),
            None => (&self.hosts, alias),
        };
        if map.contains_key(name) {
            return;
        }
        let paths = match host.strip_prefix("*.") {
            _ if host.is_empty() => Some(&self.any),
            Some(rest) => self.wildcards.get(rest),
            None => self.hosts.get(host),
        };
        let Some(paths) = paths.cloned() else { return };
        self.put(alias, paths);
        if let Some(certificate) = self.certificates.find(host).cloned() {
            self.certificates.add(alias, &certificate);
        }
        if self.asking.contains_key(host) {
            self.asking.insert(alias.into(), ());
        }
    }
}

impl HostRules {
    fn finish(mut self, host: &str, broken: &mut impl FnMut(&ObjectKey, String)) -> Paths {
        for (path, kind, alternative) in std::mem::take(&mut self.canaries) {
            let mut rules = self.rules.iter_mut().filter(|rule| rule.path == path && rule.kind == kind);
            match rules.next() {
                Some(rule) => drop(rule.location.canary.get_or_insert(alternative)),
                None => {
                    let why = format!(
                        "the canary of {host:?} {path:?} has no Ingress with the same host, path and pathType"
                    );
                    broken(&alternative.ingress, why);
                }
            }
        }
        let name: Arc<str> = host.into();
        for rule in &mut self.rules {
            rule.location.host = name.clone();
            rule.location.path = rule.path.as_str().into();
        }
        if let Some(otherwise) = &mut self.otherwise {
            otherwise.host = name;
        }
        let mut paths = Paths { otherwise: self.otherwise.map(Arc::new), ..Paths::default() };
        if self.rules.iter().any(|r| r.location.served.policy.routing.regex) {
            paths.patterns = patterns(self.rules, broken);
            return paths;
        }
        let mut folders = Vec::new();
        for Rule { path, kind, location } in self.rules {
            let location = Arc::new(location);
            let bytes = path.as_bytes();
            match kind {
                PathType::Exact => drop(paths.exact.entry(bytes.into()).or_insert(location)),
                PathType::Text => drop(paths.prefixes.entry(bytes.into()).or_insert(location)),
                PathType::Prefix => {
                    let folder = path.trim_end_matches('/').to_owned();
                    let inside = format!("{folder}/").into_bytes().into();
                    paths.prefixes.entry(inside).or_insert_with(|| location.clone());
                    folders.push((folder, location));
                }
            }
        }
        // After all exact paths, whose age does not matter against these.
        for (folder, location) in folders {
            paths.exact.entry(folder.into_bytes().into()).or_insert(location);
        }
        paths.lengths = paths.prefixes.keys().map(|k| k.len()).collect();
        paths.lengths.sort_unstable_by(|a, b| b.cmp(a));
        paths.lengths.dedup();
        paths
    }
}

/// The paths of a host as ingress-nginx writes them into locations when one of them is an expression.
fn patterns(
    mut rules: Vec<Rule>,
    broken: &mut impl FnMut(&ObjectKey, String),
) -> Vec<(Regex, Arc<Location>)> {
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.len()));
    let mut out = Vec::new();
    for Rule { path, mut location, .. } in rules {
        match pattern(&path) {
            Ok(pattern) => {
                location.pattern = Some(pattern.clone());
                out.push((pattern, Arc::new(location)));
            }
            Err(why) => broken(&location.ingress, why),
        }
    }
    out
}

/// A path as an expression of a host that uses them.
///
/// # Errors
/// Why it is none.
pub fn pattern(path: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(&format!("^{path}")).case_insensitive(true).size_limit(1 << 20).build();
    built.map_err(|error| format!("path {path:?} is no usable expression: {error}"))
}
