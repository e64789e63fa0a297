//! What a Corefile asks of this server.
//!
//! Every directive is either done or refused with its line; none is taken and then ignored, except what this server does
//! anyway (`health`, `ready`, `prometheus` and `reload`, at CoreDNS's ports).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::cache::{Cache, Lives};
use crate::corefile::{self, Error, Line};
use crate::forward::{Forwarder, Policy, Target, Upstreams};
use crate::hosts::Hosts;
use crate::metrics::Counters;
use crate::name::{Domain, Qname};
use crate::rewrite::{self, Asked, Rewritten, Rule};
use crate::template::Template;
use crate::wire::code;
use crate::zone::Options;

mod directives;
mod words;

use directives::server;
use words::domain;

/// All server blocks. A question goes to the one with the longest zone that its name is in.
#[derive(Debug, Default)]
pub struct Config {
    pub(crate) servers: Vec<Arc<Server>>,
    /// SHA-512 of the text, by which its versions are told apart.
    pub(crate) digest: String,
}

/// One server block.
#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) zones: Vec<Domain>,
    /// The directives, by name.
    pub(crate) plugins: Vec<String>,
    pub(crate) log: Option<Log>,
    pub(crate) errors: bool,
    pub(crate) shuffle: bool,
    pub(crate) finds_loops: bool,
    pub(crate) no_any: bool,
    /// The largest datagram, whatever a client offers.
    pub(crate) most_by_udp: Option<u16>,
    pub(crate) lameduck: Duration,
    pub(crate) rewrites: Vec<Rule>,
    pub(crate) autopath: Option<Autopath>,
    pub(crate) templates: Vec<Template>,
    pub(crate) hosts: Option<(Hosts, Through)>,
    pub(crate) kubernetes: Option<Kubernetes>,
    pub(crate) forwards: Vec<Arc<Forward>>,
    pub(crate) counters: Arc<Counters>,
}

/// Which answers are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) success: bool,
    pub(crate) denial: bool,
    pub(crate) error: bool,
}

impl Log {
    pub(crate) const ALL: Self = Self { success: true, denial: true, error: true };

    pub(crate) fn wants(self, code: u16, empty: bool) -> bool {
        match code {
            code::NOERROR if !empty => self.success,
            code::NOERROR | code::NXDOMAIN => self.denial,
            _ => self.error,
        }
    }
}

/// Search lists that are walked here, so that a client needs not.
#[derive(Debug, Clone)]
pub(crate) struct Autopath {
    /// Names in these are completed.
    pub(crate) zones: Vec<Domain>,
    /// The list begins with the domains of the client's namespace.
    pub(crate) of_pods: bool,
    /// And ends with these.
    pub(crate) searches: Vec<Domain>,
}

/// For which names a directive lets the next one answer what it does not know.
#[derive(Debug, Default)]
pub(crate) struct Through(Option<Vec<Domain>>);

impl Through {
    pub(crate) fn lets(&self, name: &Qname) -> bool {
        self.0.as_ref().is_some_and(|zones| zones.is_empty() || zones.iter().any(|zone| zone.holds(name)))
    }

    fn read(line: &Line) -> Result<Self, Error> {
        let zones = line.words[1..].iter().map(|word| domain(word, line.number));
        Ok(Self(Some(zones.collect::<Result<_, _>>()?)))
    }
}

/// How the cluster's names are answered.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    pub(crate) ttl: u32,
    pub(crate) options: Options,
    /// Reverse zones that are the cluster's.
    pub(crate) reverse: Vec<Domain>,
    pub(crate) through: Through,
}

/// Servers for a zone.
#[derive(Debug)]
pub(crate) struct Forward {
    from: Domain,
    except: Vec<Domain>,
    pub(crate) forwarder: Arc<Forwarder>,
    /// Questions come back to this server, so none is sent.
    pub(crate) loops: AtomicBool,
}

impl Config {
    /// Reads a Corefile for a cluster of this domain.
    ///
    /// # Errors
    /// Names the first line that cannot be honoured.
    pub fn read(text: &str, cluster: &Domain) -> Result<Self, Error> {
        let blocks = corefile::parse(text)?;
        if blocks.is_empty() {
            return Err(Error::new(1, "no server block; there must be one, as in `.:53 {`"));
        }
        let mut servers: Vec<Server> = Vec::new();
        for block in &blocks {
            let server = server(block, cluster)?;
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
        // Search lists need to know whose Pod asks, wherever the directive stands.
        let follow_pods = servers.iter().any(|s| s.autopath.as_ref().is_some_and(|path| path.of_pods));
        servers
            .iter_mut()
            .filter_map(|s| s.kubernetes.as_mut())
            .for_each(|k| k.options.follow_pods = follow_pods);
        let digest = ring::digest::digest(&ring::digest::SHA512, text.as_bytes());
        let digest = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { servers: servers.into_iter().map(Arc::new).collect(), digest })
    }

    /// Everything is asked of the servers in a file, as resolvers do.
    pub(crate) fn relay(resolv_conf: &Path) -> Self {
        let targets = vec![Target::File(resolv_conf.to_owned())];
        let upstreams = Upstreams { policy: Policy::Sequential, ..Upstreams::new(targets) };
        let forward = Forward {
            from: Domain::root(),
            except: Vec::new(),
            forwarder: Arc::new(Forwarder::new(upstreams, Some(Cache::new(Lives::at_most(30))))),
            loops: AtomicBool::new(false),
        };
        let forwards = vec![Arc::new(forward)];
        Self {
            servers: vec![Arc::new(Server { zones: vec![Domain::root()], forwards, ..Server::default() })],
            ..Self::default()
        }
    }

    /// The block that a name belongs to.
    pub(crate) fn server(&self, name: &Qname) -> Option<&Arc<Server>> {
        let labels = |s: &Server| s.zones.iter().filter(|z| z.holds(name)).map(Domain::labels).max();
        self.servers.iter().filter_map(|s| Some((labels(s)?, s))).max_by_key(|(n, _)| *n).map(|(_, s)| s)
    }

    /// How the cluster's names are answered.
    pub(crate) fn kubernetes(&self) -> Option<&Kubernetes> {
        self.servers.iter().find_map(|server| server.kubernetes.as_ref())
    }

    /// How long answers go on once the server is to end.
    pub(crate) fn lameduck(&self) -> Duration {
        self.servers.iter().map(|s| s.lameduck).max().unwrap_or_default()
    }
}

impl Server {
    /// The zone under which questions are counted.
    pub(crate) fn label(&self) -> String {
        self.zones.first().map_or_else(|| ".".to_owned(), Domain::to_string)
    }

    /// Who is asked for a name: the servers of the longest zone that it is in.
    pub(crate) fn forward(&self, name: &Qname) -> Option<&Arc<Forward>> {
        (self.forwards.iter())
            .filter(|f| f.from.holds(name) && !f.except.iter().any(|zone| zone.holds(name)))
            .max_by_key(|f| f.from.labels())
    }

    pub(crate) fn rewritten(&self, asked: &Asked<'_>) -> Option<Rewritten> {
        rewrite::rewritten(&self.rewrites, asked)
    }
}

impl Kubernetes {
    /// Whether a name is in one of the reverse zones.
    pub(crate) fn reverses(&self, name: &Qname) -> bool {
        self.reverse.iter().any(|reverse| reverse.holds(name))
    }
}
