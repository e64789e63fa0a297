//! The routing table: host, then path -> location.
//!
//! A host is looked up exactly, then as the one label of a wildcard, then among the rules without host; there is no way
//! back from a host whose paths do not match. Of paths an exact one wins, then the longest prefix; a host in which a
//! regular expression is used matches all its paths as case-insensitive expressions, longest text first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use client::ObjectKey;
use http::uri::Authority;
use regex::bytes::{Regex, RegexBuilder};

use crate::annotations::{Rewrite, Settings};
use crate::certificates::Certificates;

/// Where requests of one Service port go.
#[derive(Debug)]
pub struct Backend {
    /// Addresses of the endpoints that serve; none is answered with 503.
    pub endpoints: Vec<Authority>,
    next: AtomicUsize,
}

impl Backend {
    /// A backend with these endpoints; the first to be asked is any of them.
    pub fn new(endpoints: Vec<Authority>) -> Self {
        Self { endpoints, next: AtomicUsize::new(rand::random_range(0..1024)) }
    }

    /// The next endpoint, one after the other.
    pub fn pick(&self) -> Option<&Authority> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.endpoints.get(turn.checked_rem(self.endpoints.len())?)
    }
}

/// What a matched request meets.
#[derive(Debug)]
pub struct Location {
    /// The Ingress that says so.
    pub ingress: ObjectKey,
    /// Where requests go.
    pub backend: Arc<Backend>,
    /// What the Ingress's annotations say.
    pub settings: Arc<Settings>,
    /// The Ingress lists the host under `tls`.
    pub tls: bool,
    /// The path's expression, where its captures are asked for.
    pattern: Option<Regex>,
}

impl Location {
    /// A location without a path, as a default backend has it.
    pub fn new(ingress: ObjectKey, backend: Arc<Backend>, settings: Arc<Settings>, tls: bool) -> Self {
        Self { ingress, backend, settings, tls, pattern: None }
    }

    /// The path that the backend gets instead of the one that was asked for.
    pub fn rewritten(&self, path: &[u8]) -> Option<Vec<u8>> {
        let Rewrite(parts) = self.settings.rewrite.as_ref()?;
        let captures = self.pattern.as_ref()?.captures(path)?;
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(&part.text);
            out.extend_from_slice(part.capture.and_then(|n| captures.get(n)).map_or(b"", |m| m.as_bytes()));
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
    exact: HashMap<Box<[u8]>, Arc<Location>>,
    prefixes: HashMap<Box<[u8]>, Arc<Location>>,
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

/// Host and path to location, and host to certificate.
#[derive(Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Paths>,
    /// By what follows `*.`.
    wildcards: HashMap<Box<str>, Paths>,
    any: Paths,
    /// Certificates by the names under `tls`.
    pub certificates: Certificates,
}

impl Table {
    /// The location of a request; `host` in lower case without port, `path` as [`crate::path::normal`] makes it.
    pub fn find(&self, host: &str, path: &[u8]) -> Option<&Arc<Location>> {
        let wildcard = || self.wildcards.get(host.split_once('.')?.1);
        self.hosts.get(host).or_else(wildcard).unwrap_or(&self.any).find(path)
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
}

/// Rules in the order of their age; of two that say the same the first stays.
#[derive(Default)]
pub struct Builder(HashMap<String, HostRules>);

impl Builder {
    /// Adds a path of a host; an empty host is all those that no rule names.
    pub fn path(&mut self, host: &str, path: &str, kind: PathType, location: Location) {
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        self.host(host).rules.push(Rule { path, kind, location });
    }

    /// Makes a host known and says where requests go that none of its paths matches.
    pub fn otherwise(&mut self, host: &str, location: Location) {
        self.host(host).otherwise.get_or_insert(location);
    }

    fn host(&mut self, host: &str) -> &mut HostRules {
        self.0.entry(host.to_ascii_lowercase()).or_default()
    }

    /// The table; `broken` hears of expressions that cannot be used.
    pub fn finish(self, certificates: Certificates, mut broken: impl FnMut(&ObjectKey, String)) -> Table {
        let mut table = Table { certificates, ..Table::default() };
        for (host, rules) in self.0 {
            let paths = rules.finish(&mut broken);
            match host.strip_prefix("*.") {
                _ if host.is_empty() => table.any = paths,
                Some(rest) => drop(table.wildcards.insert(rest.into(), paths)),
                None => drop(table.hosts.insert(host.into(), paths)),
            }
        }
        table
    }
}

impl HostRules {
    fn finish(self, broken: &mut impl FnMut(&ObjectKey, String)) -> Paths {
        let mut paths = Paths { otherwise: self.otherwise.map(Arc::new), ..Paths::default() };
        if self.rules.iter().any(|r| r.location.settings.regex) {
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
        let text = format!("^{path}");
        match RegexBuilder::new(&text).case_insensitive(true).size_limit(1 << 20).build() {
            Ok(pattern) => {
                location.pattern = Some(pattern.clone());
                out.push((pattern, Arc::new(location)));
            }
            Err(error) => {
                broken(&location.ingress, format!("path {path:?} is no usable expression: {error}"))
            }
        }
    }
    out
}
