//! What a Corefile asks of this server.
//!
//! Every directive is either done or refused with its line; none is taken and then ignored, except what this server does
//! anyway (`health`, `ready`, `prometheus` and `reload`, at CoreDNS's ports).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hickory_proto::rr::Name;

use crate::cache::{Cache, Lives};
use crate::corefile::{self, Error, Line};
use crate::forward::{Forwarder, Policy, Target, Upstreams};
use crate::hosts::Hosts;
use crate::rewrite::{self, Rule};
use crate::zone::Zone;

mod directives;

use directives::{name, server};

/// All server blocks. A question goes to the one with the longest zone that its name is in.
#[derive(Debug)]
pub struct Config {
    pub(crate) servers: Vec<Server>,
}

/// One server block.
#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) zones: Vec<Name>,
    pub(crate) log: bool,
    pub(crate) errors: bool,
    pub(crate) shuffle: bool,
    pub(crate) finds_loops: bool,
    pub(crate) lameduck: Duration,
    pub(crate) rewrites: Vec<Rule>,
    pub(crate) hosts: Option<(Hosts, Through)>,
    pub(crate) kubernetes: Option<Kubernetes>,
    pub(crate) forwards: Vec<Arc<Forward>>,
}

/// For which names a directive lets the next one answer what it does not know.
#[derive(Debug, Default)]
pub(crate) struct Through(Option<Vec<Name>>);

impl Through {
    pub(crate) fn lets(&self, name: &Name) -> bool {
        self.0.as_ref().is_some_and(|zones| zones.is_empty() || zones.iter().any(|zone| zone.zone_of(name)))
    }

    fn read(line: &Line) -> Result<Self, Error> {
        Ok(Self(Some(line.words[1..].iter().map(|word| name(word, line.number)).collect::<Result<_, _>>()?)))
    }
}

/// How the cluster's names are answered.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    pub(crate) ttl: u32,
    /// Where the names of Pods stand, unless they are answered.
    pub(crate) no_pods: Option<Name>,
    /// Reverse zones that are the cluster's.
    pub(crate) reverse: Vec<Name>,
    pub(crate) through: Through,
}

/// Servers for a zone.
#[derive(Debug)]
pub(crate) struct Forward {
    from: Name,
    except: Vec<Name>,
    pub(crate) forwarder: Forwarder,
    /// Questions come back to this server, so none is sent.
    pub(crate) loops: AtomicBool,
}

impl Config {
    /// Reads a Corefile for a cluster of this domain.
    ///
    /// # Errors
    /// Names the first line that cannot be honoured.
    pub fn read(text: &str, domain: &Name) -> Result<Self, Error> {
        let blocks = corefile::parse(text)?;
        if blocks.is_empty() {
            return Err(Error::new(1, "no server block; there must be one, as in `.:53 {`"));
        }
        let mut servers: Vec<Server> = Vec::new();
        for block in &blocks {
            let server = server(block, domain)?;
            let known = servers.iter().flat_map(|s| &s.zones).find(|zone| server.zones.contains(zone));
            if let Some(zone) = known {
                return Err(Error::new(block.keys.number, format!("zone {zone} has a server block already")));
            }
            if server.kubernetes.is_some() && servers.iter().any(|s| s.kubernetes.is_some()) {
                return Err(Error::new(
                    block.keys.number,
                    "directive \"kubernetes\" may stand in one block only",
                ));
            }
            servers.push(server);
        }
        Ok(Self { servers })
    }

    /// Everything is asked of the servers in a file, as resolvers do.
    pub(crate) fn relay(resolv_conf: &Path) -> Self {
        let targets = vec![Target::File(resolv_conf.to_owned())];
        let upstreams = Upstreams { policy: Policy::Sequential, ..Upstreams::new(targets) };
        let forward = Forward {
            from: Name::root(),
            except: Vec::new(),
            forwarder: Forwarder::new(upstreams, Some(Cache::new(Lives::all(30)))),
            loops: AtomicBool::new(false),
        };
        Self {
            servers: vec![Server {
                zones: vec![Name::root()],
                forwards: vec![Arc::new(forward)],
                ..Server::default()
            }],
        }
    }

    /// The block that a name belongs to.
    pub(crate) fn server(&self, name: &Name) -> Option<&Server> {
        let labels = |s: &Server| s.zones.iter().filter(|z| z.zone_of(name)).map(Name::num_labels).max();
        self.servers.iter().filter_map(|s| Some((labels(s)?, s))).max_by_key(|(n, _)| *n).map(|(_, s)| s)
    }

    /// How long answers go on once the server is to end.
    pub(crate) fn lameduck(&self) -> Duration {
        self.servers.iter().map(|s| s.lameduck).max().unwrap_or_default()
    }
}

impl Server {
    /// Who is asked for a name: the servers of the longest zone that it is in.
    pub(crate) fn forward(&self, name: &Name) -> Option<&Arc<Forward>> {
        (self.forwards.iter())
            .filter(|f| f.from.zone_of(name) && !f.except.iter().any(|zone| zone.zone_of(name)))
            .max_by_key(|f| f.from.num_labels())
    }

    pub(crate) fn rewritten(&self, name: &Name) -> Option<Name> {
        rewrite::rewritten(&self.rewrites, name)
    }
}

impl Kubernetes {
    /// Whether a name is in the zones that are answered: the cluster's own, or one of the reverse zones.
    pub(crate) fn covers(&self, zone: &Zone, name: &Name) -> bool {
        zone.origin().zone_of(name) || self.reverse.iter().any(|reverse| reverse.zone_of(name))
    }

    /// Whether a name of no known address is the cluster's all the same.
    pub(crate) fn claims(&self, name: &Name) -> bool {
        self.reverse.iter().any(|zone| zone.zone_of(name)) && !self.through.lets(name)
    }
}
