//! Directives, one function each: from words to what the server is to do, or to what is wrong with them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use super::words::{
    bare, class, code, domain, domains, duration, name, not_understood, number, record_type, regex, words,
    zone,
};
use super::{Autopath, Forward, Kubernetes, Log, Server, Through};
use crate::cache::{Cache, Half, Lives, Prefetch, Stale};
use crate::corefile::{Block, Directive, Error};
use crate::forward::Forwarder;
use crate::hosts::Hosts;
use crate::name::Domain;
use crate::template::{Line, Template};
use crate::wire::{Section, code};
use crate::zone::{Options, Pods};

mod forward;
mod rewrite;

const KNOWN: &str = "any, autopath, bufsize, cache, errors, forward, health, hosts, kubernetes, loadbalance, log, loop, \
                     prometheus, ready, reload, rewrite, template";

/// Directives that may stand in a block once.
const SINGLE: [&str; 13] = [
    "any",
    "autopath",
    "bufsize",
    "cache",
    "errors",
    "health",
    "hosts",
    "kubernetes",
    "loadbalance",
    "log",
    "loop",
    "prometheus",
    "ready",
];

pub(super) fn server(block: &Block, cluster: &Domain) -> Result<Server, Error> {
    let mut server = Server::default();
    let at = block.keys.number;
    for key in block.keys.words.iter().flat_map(|word| word.split(',')).filter(|key| !key.is_empty()) {
        server.zones.push(zone(key, at)?);
    }
    let (mut lives, mut forwards) = (None, Vec::new());
    for directive in &block.directives {
        let head = &directive.head;
        let own = head.words[0].as_str();
        let twice = |d: &&Directive| d.head.words[0] == own;
        if SINGLE.contains(&own) && block.directives.iter().filter(twice).count() > 1 {
            return Err(Error::new(head.number, format!("directive {own:?} stands here twice")));
        }
        if !server.plugins.iter().any(|known| known == own) {
            server.plugins.push(own.to_owned());
        }
        match own {
            "cache" => lives = Some(cache(directive)?),
            "forward" => forwards.push(forward::read(directive)?),
            _ => plain(&mut server, directive, cluster)?,
        }
    }
    server.forwards = (forwards.into_iter())
        .map(|asked: forward::Asked| {
            let forwarder = Arc::new(Forwarder::new(asked.upstreams, lives.clone().map(Cache::new)));
            let loops = AtomicBool::new(false);
            Arc::new(Forward { from: asked.from, except: asked.except, forwarder, loops })
        })
        .collect();
    Ok(server)
}

/// Directives that need to know of no other.
fn plain(server: &mut Server, directive: &Directive, cluster: &Domain) -> Result<(), Error> {
    let head = &directive.head;
    match words(head)[..] {
        ["ready"] | ["reload", ..] | ["ready", ":8181"] | ["prometheus"] | ["prometheus", ":9153"] => {
            bare(directive)?;
        }
        ["errors"] => {
            bare(directive)?;
            server.errors = true;
        }
        ["log"] | ["log", "."] => server.log = Some(log(directive)?),
        ["loop"] => {
            bare(directive)?;
            server.finds_loops = true;
        }
        ["any"] => {
            bare(directive)?;
            server.no_any = true;
        }
        ["bufsize"] => server.most_by_udp = Some(crate::wire::UDP_SIZE),
        ["bufsize", size] => {
            let size = number(size, head.number, 4096)?.max(512);
            server.most_by_udp = Some(size as u16);
        }
        ["loadbalance"] | ["loadbalance", "round_robin"] => {
            bare(directive)?;
            server.shuffle = true;
        }
        ["health"] | ["health", ":8080"] => server.lameduck = health(directive)?,
        ["hosts", ..] => server.hosts = Some(hosts(directive)?),
        ["kubernetes", ..] => server.kubernetes = Some(kubernetes(directive, cluster)?),
        ["rewrite", ..] => server.rewrites.push(rewrite::read(directive)?),
        ["template", ..] => server.templates.push(template(directive, &server.zones)?),
        ["autopath", ..] => server.autopath = Some(autopath(directive, &server.zones)?),
        ["health" | "ready" | "prometheus", address, ..] => {
            let what = format!("{address:?}: {} has the port of the add-on's Pod only", head.words[0]);
            return Err(Error::new(head.number, what));
        }
        ["errors" | "log" | "loop" | "loadbalance" | "any" | "bufsize", ..] => {
            return Err(not_understood(head));
        }
        [unknown, ..] => {
            let what = format!("unknown directive {unknown:?}; known are: {KNOWN}");
            return Err(Error::new(head.number, what));
        }
        [] => {}
    }
    Ok(())
}

fn log(directive: &Directive) -> Result<Log, Error> {
    let Some((line, rest)) = directive.body.split_first() else { return Ok(Log::ALL) };
    let mut log = Log::default();
    let ["class", ref classes @ ..] = words(line)[..] else { return Err(not_understood(line)) };
    for class in classes {
        match *class {
            "all" => log = Log::ALL,
            "success" => log.success = true,
            "denial" => log.denial = true,
            "error" => log.error = true,
            _ => return Err(not_understood(line)),
        }
    }
    rest.first().map_or(Ok(log), |line| Err(not_understood(line)))
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

fn cache(directive: &Directive) -> Result<Lives, Error> {
    let at = directive.head.number;
    let head = words(&directive.head);
    let (mut lives, zones) = match head[1..] {
        [] => (Lives::default(), &[][..]),
        [ttl, ref zones @ ..] if ttl.bytes().all(|b| b.is_ascii_digit()) => {
            (Lives::at_most(number(ttl, at, 3600)?), zones)
        }
        ref zones => (Lives::default(), zones),
    };
    if !zones.is_empty() {
        return Err(Error::new(
            at,
            "a cache of some zones only; write `disable success ZONE` for the others",
        ));
    }
    for line in &directive.body {
        let at = line.number;
        match words(line)[..] {
            ["disable", "success", ref rest @ ..] => lives.success.not_of = domains(rest, at)?,
            ["disable", "denial", ref rest @ ..] => lives.denial.not_of = domains(rest, at)?,
            ["success", ref rest @ ..] => half(&mut lives.success, rest, at)?,
            ["denial", ref rest @ ..] => half(&mut lives.denial, rest, at)?,
            ["servfail", time] => lives.failure = duration(time, at)?.as_secs().min(300) as u32,
            ["keepttl"] => lives.keep_ttl = true,
            ["prefetch", amount, ref rest @ ..] => lives.prefetch = Some(prefetch(amount, rest, at)?),
            ["serve_stale", ref rest @ ..] => {
                let (time, verify) = match rest {
                    [] => ("1h", false),
                    [time] | [time, "immediate"] => (*time, false),
                    [time, "verify"] => (*time, true),
                    _ => return Err(not_understood(line)),
                };
                lives.stale = Some(Stale { extra: duration(time, at)?, verify });
            }
            _ => return Err(not_understood(line)),
        }
    }
    Ok(lives)
}

/// `CAPACITY [TTL] [MINTTL]`.
fn half(half: &mut Half, words: &[&str], line: usize) -> Result<(), Error> {
    let [most, ttls @ ..] = words else { return Err(Error::new(line, "a capacity is missing")) };
    half.most = number(most, line, 100_000)?.max(1) as usize;
    match ttls {
        [] => {}
        [longest] => half.longest = number(longest, line, 86_400)?,
        [longest, shortest] => {
            half.longest = number(longest, line, 86_400)?;
            half.shortest = number(shortest, line, half.longest)?;
        }
        _ => return Err(Error::new(line, "expected CAPACITY [TTL] [MINTTL]")),
    }
    Ok(())
}

/// `AMOUNT [DURATION [PERCENTAGE%]]`.
fn prefetch(amount: &str, rest: &[&str], line: usize) -> Result<Prefetch, Error> {
    let amount = number(amount, line, u32::MAX)?;
    let mut prefetch = Prefetch { amount, within: Duration::from_secs(60), percentage: 10 };
    if let [within, ..] = rest {
        prefetch.within = duration(within, line)?;
    }
    match rest {
        [] | [_] => {}
        [_, percent] => {
            let digits = percent
                .strip_suffix('%')
                .ok_or_else(|| Error::new(line, format!("{percent:?} is no percentage; write it as 10%")))?;
            prefetch.percentage = number(digits, line, 90)?.max(10);
        }
        _ => return Err(Error::new(line, "expected AMOUNT [DURATION [PERCENTAGE%]]")),
    }
    Ok(prefetch)
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
                    hosts.add(addr, &name(word, at)?);
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

fn kubernetes(directive: &Directive, cluster: &Domain) -> Result<Kubernetes, Error> {
    let at = directive.head.number;
    let mut reverse = Vec::new();
    let mut named = false;
    let trees: Vec<Domain> = ["in-addr.arpa", "ip6.arpa"].into_iter().filter_map(Domain::parse).collect();
    for word in &directive.head.words[1..] {
        let zone = domain(word, at)?;
        if trees.iter().any(|tree| tree.holds(&zone.name())) {
            reverse.push(zone);
        } else if zone == *cluster {
            named = true;
        } else {
            return Err(Error::new(at, format!("zone {word:?}: the domain of this cluster is {cluster}")));
        }
    }
    if !named {
        return Err(Error::new(at, format!("the domain of this cluster, {cluster}, is missing")));
    }
    let options = Options::default();
    let mut kubernetes = Kubernetes { ttl: 5, options, reverse, through: Through::default() };
    for line in &directive.body {
        let options = &mut kubernetes.options;
        match words(line)[..] {
            ["pods", "insecure"] => options.pods = Pods::Insecure,
            ["pods", "verified"] => options.pods = Pods::Verified,
            ["pods", "disabled"] => options.pods = Pods::Disabled,
            ["endpoint_pod_names"] => options.endpoint_pod_names = true,
            ["noendpoints"] => options.no_endpoints = true,
            ["ignore", "empty_service"] => options.ignore_empty = true,
            ["namespaces", ref names @ ..] if !names.is_empty() => {
                options.namespaces = names.iter().map(|name| (*name).to_owned()).collect();
            }
            ["namespace_labels", ref selector @ ..] if !selector.is_empty() => {
                options.namespace_labels = Some(selector.join(" "));
            }
            ["labels", ref selector @ ..] if !selector.is_empty() => {
                options.labels = Some(selector.join(" "))
            }
            ["ttl", seconds] => kubernetes.ttl = number(seconds, line.number, 3600)?,
            ["fallthrough", ..] => kubernetes.through = Through::read(line)?,
            // Until the API has been heard this server answers SERVFAIL instead of not at all.
            ["startup_timeout", time] => {
                duration(time, line.number)?;
            }
            // CoreDNS takes it without effect: targets of aliases are always looked up.
            ["upstream", ..] => {}
            ["endpoint" | "tls" | "kubeconfig" | "apiserver_qps" | "apiserver_burst", ..] => {
                let what =
                    "the add-on's Pod asks the API server with the account of its own; leave this line out";
                return Err(Error::new(line.number, what));
            }
            _ => return Err(not_understood(line)),
        }
    }
    if !kubernetes.options.namespaces.is_empty() && kubernetes.options.namespace_labels.is_some() {
        return Err(Error::new(at, "namespaces and namespace_labels cannot both be set"));
    }
    Ok(kubernetes)
}

/// `template CLASS TYPE [ZONE...]`.
fn template(directive: &Directive, zones: &[Domain]) -> Result<Template, Error> {
    let head = &directive.head;
    let ["template", of, kind, ref own @ ..] = words(head)[..] else { return Err(not_understood(head)) };
    let mut template = Template {
        class: class(of, head.number)?,
        kind: record_type(kind, head.number)?,
        zones: if own.is_empty() { zones.to_vec() } else { domains(own, head.number)? },
        matches: Vec::new(),
        lines: Vec::new(),
        code: code::NOERROR,
        through: Through::default(),
        seen: AtomicU64::new(0),
    };
    for line in &directive.body {
        let at = line.number;
        match words(line)[..] {
            ["match", ref all @ ..] if !all.is_empty() => {
                for word in all {
                    template.matches.push(regex(word, at)?);
                }
            }
            [section @ ("answer" | "additional" | "authority"), ref text @ ..] if !text.is_empty() => {
                let section = match section {
                    "answer" => Section::Answer,
                    "authority" => Section::Authority,
                    _ => Section::Additional,
                };
                let read = Line::read(&text.join(" ")).map_err(|what| Error::new(at, what))?;
                template.lines.push((section, read));
            }
            ["rcode", word] => template.code = code(word, at)?,
            ["fallthrough", ..] => template.through = Through::read(line)?,
            _ => return Err(not_understood(line)),
        }
    }
    if template.matches.is_empty() {
        template.matches.push(regex(".*", head.number)?);
    }
    template.lines.sort_by_key(|(section, _)| *section);
    Ok(template)
}

/// `autopath [ZONE...] RESOLV-CONF|@kubernetes`.
fn autopath(directive: &Directive, zones: &[Domain]) -> Result<Autopath, Error> {
    bare(directive)?;
    let head = &directive.head;
    let ["autopath", ref own @ .., from] = words(head)[..] else { return Err(not_understood(head)) };
    let (of_pods, file) = match from {
        "@kubernetes" => (true, "/etc/resolv.conf"),
        file if file.starts_with('/') => (false, file),
        _ => return Err(Error::new(head.number, format!("{from:?} is neither @kubernetes nor a file"))),
    };
    let searches =
        crate::forward::searched(Path::new(file)).iter().filter_map(|d| Domain::parse(d)).collect();
    let zones = if own.is_empty() { zones.to_vec() } else { domains(own, head.number)? };
    Ok(Autopath { zones, of_pods, searches })
}
