//! Directives, one function each: from words to what the server is to do, or to what is wrong with them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hickory_proto::rr::Name;

use super::{Forward, Kubernetes, Server, Through};
use crate::cache::{Cache, Lives};
use crate::corefile::{Block, Directive, Error, Line};
use crate::forward::{Forwarder, Policy, Target, Upstreams};
use crate::hosts::Hosts;
use crate::rewrite::{Match, Rule};

/// A fully qualified name.
pub(super) fn name(word: &str, line: usize) -> Result<Name, Error> {
    let mut name = Name::from_ascii(word)
        .map_err(|_| Error::new(line, format!("{word:?} is not a DNS name")))?
        .to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

fn number(word: &str, line: usize, most: u32) -> Result<u32, Error> {
    let outside = || Error::new(line, format!("{word:?} is not a whole number from 0 to {most}"));
    word.parse().ok().filter(|n| *n <= most).ok_or_else(outside)
}

fn words(line: &Line) -> Vec<&str> {
    line.words.iter().map(String::as_str).collect()
}

fn not_understood(line: &Line) -> Error {
    Error::new(line.number, format!("{:?} is not understood here", line.words.join(" ")))
}

/// `.:53`, `example.org`, `dns://example.org.:53`.
fn zone(key: &str, line: usize) -> Result<Name, Error> {
    let plain = key.strip_prefix("dns://").unwrap_or(key);
    if plain.contains("://") {
        return Err(Error::new(line, format!("{key:?}: this server speaks plain DNS (dns://) only")));
    }
    match plain.rsplit_once(':') {
        Some((zone, "53")) => name(zone, line),
        Some((_, port)) => {
            Err(Error::new(line, format!("port {port:?}: this server listens on port 53 only")))
        }
        None => name(plain, line),
    }
}

pub(super) fn server(block: &Block, domain: &Name) -> Result<Server, Error> {
    let mut server = Server::default();
    let at = block.keys.number;
    for key in block.keys.words.iter().flat_map(|word| word.split(',')).filter(|key| !key.is_empty()) {
        server.zones.push(zone(key, at)?);
    }
    let (mut lives, mut forwards) = (None, Vec::new());
    for directive in &block.directives {
        let head = &directive.head;
        let single =
            ["kubernetes", "hosts", "cache", "health", "ready", "prometheus", "log", "loadbalance", "loop"];
        let twice = |d: &&Directive| d.head.words[0] == head.words[0];
        if single.contains(&head.words[0].as_str()) && block.directives.iter().filter(twice).count() > 1 {
            return Err(Error::new(head.number, format!("directive {:?} stands here twice", head.words[0])));
        }
        match words(head)[..] {
            ["ready"] | ["reload", ..] | ["ready", ":8181"] => bare(directive)?,
            ["prometheus"] | ["prometheus", ":9153"] => bare(directive)?,
            ["errors"] => {
                bare(directive)?;
                server.errors = true;
            }
            ["log"] | ["log", "."] => {
                bare(directive)?;
                server.log = true;
            }
            ["loop"] => {
                bare(directive)?;
                server.finds_loops = true;
            }
            ["loadbalance"] | ["loadbalance", "round_robin"] => {
                bare(directive)?;
                server.shuffle = true;
            }
            ["health"] | ["health", ":8080"] => server.lameduck = health(directive)?,
            ["cache", ..] => lives = Some(cache(directive)?),
            ["hosts", ..] => server.hosts = Some(hosts(directive)?),
            ["kubernetes", ..] => server.kubernetes = Some(kubernetes(directive, domain)?),
            ["rewrite", ..] => {
                bare(directive)?;
                server.rewrites.push(rewrite(head)?);
            }
            ["forward", ..] => forwards.push(forward(directive)?),
            ["health" | "ready" | "prometheus", address, ..] => {
                let what = format!("{address:?}: {} has the port of the add-on's Pod only", head.words[0]);
                return Err(Error::new(head.number, what));
            }
            ["errors" | "log" | "loop" | "loadbalance", ..] => return Err(not_understood(head)),
            [unknown, ..] => {
                let what = format!("unknown directive {unknown:?}; known are: {KNOWN}");
                return Err(Error::new(head.number, what));
            }
            [] => {}
        }
    }
    let forwarder = |upstreams| Forwarder::new(upstreams, lives.clone().map(Cache::new));
    server.forwards = (forwards.into_iter())
        .map(|Asked { from, except, upstreams }| {
            Arc::new(Forward { from, except, forwarder: forwarder(upstreams), loops: AtomicBool::new(false) })
        })
        .collect();
    Ok(server)
}

const KNOWN: &str = "cache, errors, forward, health, hosts, kubernetes, loadbalance, log, loop, prometheus, ready, \
                     reload, rewrite";

/// A directive that has no block.
fn bare(directive: &Directive) -> Result<(), Error> {
    directive.body.first().map_or(Ok(()), |line| Err(not_understood(line)))
}

fn health(directive: &Directive) -> Result<Duration, Error> {
    let mut lameduck = Duration::ZERO;
    for line in &directive.body {
        match words(line)[..] {
            ["lameduck", time] => lameduck = duration(time, line.number)?,
            _ => return Err(not_understood(line)),
        }
    }
    Ok(lameduck)
}

/// `5s`, `500ms`, `1m`, or seconds.
fn duration(word: &str, line: usize) -> Result<Duration, Error> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &word[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => return Err(Error::new(line, format!("{word:?} is no time; write it as 500ms, 5s or 1m"))),
    };
    let millis = u64::from(number(digits, line, 3_600_000)?) * unit;
    Ok(Duration::from_millis(millis))
}

/// Longest lives that CoreDNS gives (seconds).
const SUCCESS: u32 = 3600;
const DENIAL: u32 = 1800;

fn cache(directive: &Directive) -> Result<Lives, Error> {
    let at = directive.head.number;
    let mut lives = Lives { success: SUCCESS, denial: DENIAL, ..Lives::all(0) };
    match words(&directive.head)[1..] {
        [] => {}
        [ttl] => {
            let ttl = number(ttl, at, SUCCESS)?;
            (lives.success, lives.denial) = (ttl, ttl.min(DENIAL));
        }
        _ => return Err(not_understood(&directive.head)),
    }
    for line in &directive.body {
        let zones = |words: &[&str]| -> Result<Vec<Name>, Error> {
            match words {
                [] => Ok(vec![Name::root()]),
                all => all.iter().map(|word| name(word, line.number)).collect(),
            }
        };
        match words(line)[..] {
            ["disable", "success", ref rest @ ..] => lives.no_success = zones(rest)?,
            ["disable", "denial", ref rest @ ..] => lives.no_denial = zones(rest)?,
            _ => return Err(not_understood(line)),
        }
    }
    Ok(lives)
}

fn hosts(directive: &Directive) -> Result<(Hosts, Through), Error> {
    if directive.head.words.len() > 1 {
        let what =
            "files of hosts cannot be read by the add-on's Pod; write the lines into the block of \"hosts\"";
        return Err(Error::new(directive.head.number, what));
    }
    let mut hosts = Hosts::default();
    let (mut through, mut reverse) = (Through::default(), true);
    for line in &directive.body {
        let at = line.number;
        match words(line)[..] {
            ["fallthrough", ..] => through = Through::read(line)?,
            ["ttl", seconds] => hosts.ttl = number(seconds, at, 65_535)?,
            ["no_reverse"] => reverse = false,
            [addr, ref names @ ..] if !names.is_empty() => {
                let not_one = |_| Error::new(at, format!("{addr:?} is not an IP address"));
                let addr: IpAddr = addr.parse().map_err(not_one)?;
                for word in names {
                    hosts.add(addr, name(word, at)?);
                }
            }
            _ => return Err(not_understood(line)),
        }
    }
    if !reverse {
        hosts.without_reverse();
    }
    Ok((hosts, through))
}

fn kubernetes(directive: &Directive, domain: &Name) -> Result<Kubernetes, Error> {
    let at = directive.head.number;
    let mut reverse = Vec::new();
    let mut named = false;
    for word in &directive.head.words[1..] {
        let zone = name(word, at)?;
        let arpa = ["in-addr.arpa.", "ip6.arpa."]
            .iter()
            .any(|a| Name::from_ascii(a).is_ok_and(|a| a.zone_of(&zone)));
        if arpa {
            reverse.push(zone);
        } else if zone == *domain {
            named = true;
        } else {
            return Err(Error::new(at, format!("zone {word:?}: the domain of this cluster is {domain}")));
        }
    }
    if !named {
        return Err(Error::new(at, format!("the domain of this cluster, {domain}, is missing")));
    }
    let mut kubernetes = Kubernetes { ttl: 5, no_pods: pods(domain), reverse, through: Through::default() };
    for line in &directive.body {
        match words(line)[..] {
            ["pods", "insecure"] => kubernetes.no_pods = None,
            ["pods", "disabled"] => kubernetes.no_pods = pods(domain),
            ["ttl", seconds] => kubernetes.ttl = number(seconds, line.number, 3600)?,
            ["fallthrough", ..] => kubernetes.through = Through::read(line)?,
            _ => return Err(not_understood(line)),
        }
    }
    Ok(kubernetes)
}

fn pods(domain: &Name) -> Option<Name> {
    domain.prepend_label("pod").ok()
}

/// `rewrite [continue|stop] name [exact|prefix|suffix|substring] FROM TO [answer auto]`.
fn rewrite(line: &Line) -> Result<Rule, Error> {
    let all = words(line);
    let mut rest = &all[1..];
    let goes_on = rest.first() == Some(&"continue");
    if let ["continue" | "stop", more @ ..] = rest {
        rest = more;
    }
    let ["name", more @ ..] = rest else { return Err(not_understood(line)) };
    let more = more.strip_suffix(&["answer", "auto"]).unwrap_or(more);
    let (by, from, to) = match more {
        [from, to] | ["exact", from, to] => (Match::Exact, from, to),
        ["prefix", from, to] => (Match::Prefix, from, to),
        ["suffix", from, to] => (Match::Suffix, from, to),
        ["substring", from, to] => (Match::Substring, from, to),
        _ => return Err(not_understood(line)),
    };
    let text = |word: &str| match by {
        Match::Exact => name(word, line.number).map(|name| name.to_ascii()),
        Match::Suffix => Ok(format!("{}.", word.trim_end_matches('.').to_ascii_lowercase())),
        Match::Prefix | Match::Substring => Ok(word.to_ascii_lowercase()),
    };
    if from.is_empty() {
        return Err(not_understood(line));
    }
    Ok(Rule { by, from: text(from)?, to: text(to)?, goes_on })
}

struct Asked {
    from: Name,
    except: Vec<Name>,
    upstreams: Upstreams,
}

fn forward(directive: &Directive) -> Result<Asked, Error> {
    let head = &directive.head;
    let ["forward", from, ref to @ ..] = words(head)[..] else { return Err(not_understood(head)) };
    if to.is_empty() {
        return Err(Error::new(head.number, "forward needs a zone and at least one server or file"));
    }
    let targets = to.iter().map(|word| target(word, head.number)).collect::<Result<_, _>>()?;
    let mut asked =
        Asked { from: name(from, head.number)?, except: Vec::new(), upstreams: Upstreams::new(targets) };
    for line in &directive.body {
        match words(line)[..] {
            ["except", ref zones @ ..] if !zones.is_empty() => {
                for zone in zones {
                    asked.except.push(name(zone, line.number)?);
                }
            }
            ["force_tcp"] => asked.upstreams.force_tcp = true,
            // Which is what this server does.
            ["prefer_udp"] => {}
            ["policy", "random"] => asked.upstreams.policy = Policy::Random,
            ["policy", "round_robin"] => asked.upstreams.policy = Policy::RoundRobin,
            ["policy", "sequential"] => asked.upstreams.policy = Policy::Sequential,
            ["max_concurrent", most] => {
                asked.upstreams.in_flight = number(most, line.number, 1_000_000)? as usize;
            }
            _ => return Err(not_understood(line)),
        }
    }
    Ok(asked)
}

fn target(word: &str, line: usize) -> Result<Target, Error> {
    let plain = word.strip_prefix("dns://").unwrap_or(word);
    if plain.starts_with('/') {
        return Ok(Target::File(plain.into()));
    }
    let bare = plain.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
    let what = || format!("{word:?} is neither an address of a server, with or without port, nor a file");
    bare.or_else(|_| plain.parse()).map(Target::Server).map_err(|_| Error::new(line, what()))
}
