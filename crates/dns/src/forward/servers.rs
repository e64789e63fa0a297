//! Which servers there are, how they fare, and the connections that wait for the next question.
//!
//! The files are looked at again when they have changed, at most once a second and only when somebody asks.

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;

use super::exchange::Connection;
use crate::cache::Ask;
use crate::name::Qname;
use crate::wire::{IN, kind};

/// Least time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// Connections kept per server.
const IDLE: usize = 32;

/// One place where servers are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This server.
    Server(SocketAddr),
    /// This server, asked by TLS (RFC 7858).
    Tls(SocketAddr),
    /// The servers of this `resolv.conf`, as it is at the time.
    File(PathBuf),
}

/// How servers are found to be down, and up again.
#[derive(Debug, Clone)]
pub struct Health {
    /// Failures in a row after which a server is passed over; 0 never does.
    pub max_fails: u32,
    /// Time between two probes of one that failed.
    pub interval: Duration,
    /// Whether probes ask for recursion.
    pub recurse: bool,
    /// What probes ask for.
    pub domain: Qname,
}

impl Default for Health {
    fn default() -> Self {
        Self { max_fails: 2, interval: Duration::from_millis(500), recurse: true, domain: Qname::ROOT }
    }
}

impl Health {
    /// A probe; any answer will do.
    pub(super) fn ask(&self) -> Ask {
        Ask::plain(&self.domain, kind::NS, IN)
    }
}

/// How TLS is spoken.
#[derive(Clone)]
pub struct Tls {
    /// Whom to trust, and who we are.
    pub config: Arc<rustls::ClientConfig>,
    /// The name that the server's certificate must be for; its address otherwise.
    pub name: Option<ServerName<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Default for Tls {
    /// The public authorities, and no certificate of our own.
    fn default() -> Self {
        static PUBLIC: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
        let config = PUBLIC.get_or_init(|| {
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            Arc::new(Self::speaking(roots).with_no_client_auth())
        });
        Self { config: config.clone(), name: None }
    }
}

type Wanting = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

impl Tls {
    /// Trusts these authorities.
    pub fn speaking(roots: rustls::RootCertStore) -> Wanting {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = rustls::DEFAULT_VERSIONS;
        match rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions) {
            Ok(builder) => builder.with_root_certificates(roots),
            Err(error) => unreachable!("ring speaks the default versions: {error}"),
        }
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) by_tls: bool,
    /// As CoreDNS calls it in its metrics.
    pub(super) label: String,
    fails: AtomicU32,
    probed: AtomicBool,
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// Questions that went out over a connection that was there, and such that needed a new one.
    pub(super) reused: AtomicU64,
    pub(super) opened: AtomicU64,
}

impl Server {
    fn new(addr: SocketAddr, by_tls: bool) -> Self {
        let label = if by_tls { format!("tls://{addr}") } else { addr.to_string() };
        Self {
            addr,
            by_tls,
            label,
            fails: AtomicU32::new(0),
            probed: AtomicBool::new(false),
            idle: Mutex::default(),
            reused: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    pub(super) fn is_down(&self, health: &Health) -> bool {
        health.max_fails > 0 && self.fails.load(Ordering::Relaxed) >= health.max_fails
    }

    /// Counts a failure; whether the caller is to probe from now on.
    pub(super) fn failed(&self, health: &Health) -> bool {
        self.fails.fetch_add(1, Ordering::Relaxed);
        health.max_fails > 0 && !self.probed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn answered(&self) {
        self.fails.store(0, Ordering::Relaxed);
        self.probed.store(false, Ordering::Relaxed);
    }

    /// A connection that waits for a question.
    pub(super) fn take(&self, expire: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|(_, since)| since.elapsed() < expire);
        idle.pop().map(|(connection, _)| connection)
    }

    /// Keeps a connection for the next question.
    pub(super) fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE {
            idle.push((connection, Instant::now()));
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Servers {
    list: Arc<[Arc<Server>]>,
    stamps: Vec<Option<(SystemTime, u64)>>,
    looked: Option<Instant>,
}

impl Servers {
    /// The servers that the targets name now. Those that were there before are the same ones.
    pub(super) fn list(&mut self, targets: &[Target]) -> Arc<[Arc<Server>]> {
        let now = Instant::now();
        if self.looked.is_some_and(|at| now.duration_since(at) < LOOK) {
            return self.list.clone();
        }
        let first = self.looked.replace(now).is_none();
        let stamps: Vec<_> = (targets.iter())
            .filter_map(|target| match target {
                Target::File(file) => Some(file),
                Target::Server(_) | Target::Tls(_) => None,
            })
            .map(|file| std::fs::metadata(file).and_then(|m| Ok((m.modified()?, m.len()))).ok())
            .collect();
        if first || stamps.contains(&None) || stamps != self.stamps {
            self.stamps = stamps;
            let mut list: Vec<Arc<Server>> = Vec::new();
            for target in targets {
                let (named, by_tls) = match target {
                    Target::Server(server) => (vec![*server], false),
                    Target::Tls(server) => (vec![*server], true),
                    Target::File(file) => (read(file), false),
                };
                for addr in named {
                    let same = |server: &&Arc<Server>| server.addr == addr && server.by_tls == by_tls;
                    if list.iter().any(|server| same(&server)) {
                        continue;
                    }
                    let known = self.list.iter().find(same).cloned();
                    list.push(known.unwrap_or_else(|| Arc::new(Server::new(addr, by_tls))));
                }
            }
            self.list = list.into();
            tracing::debug!(servers = ?self.list.iter().map(|s| &s.label).collect::<Vec<_>>(), "upstream servers");
        }
        self.list.clone()
    }
}

/// A file's text; nothing when it cannot be read. A Corefile may name any file, so devices and pipes are left alone and no
/// more is read than any `resolv.conf` has.
fn text_of(file: &Path) -> String {
    const MOST: u64 = 64 << 10;
    let mut text = String::new();
    if std::fs::metadata(file).is_ok_and(|about| about.is_file())
        && let Ok(file) = std::fs::File::open(file)
        && file.take(MOST).read_to_string(&mut text).is_err()
    {
        text.clear();
    }
    text
}

/// The servers of a `resolv.conf` (resolv.conf(5)); none when the file cannot be read.
fn read(file: &Path) -> Vec<SocketAddr> {
    let text = text_of(file);
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(addr) = words.next().and_then(|a| a.parse::<IpAddr>().ok()) {
            let server = SocketAddr::new(addr, 53);
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
    }
    servers
}

/// The domains of a `resolv.conf` that resolvers search.
pub(crate) fn searched(file: &Path) -> Vec<String> {
    let text = text_of(file);
    // The last line of either kind counts.
    let last = text.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.map(str::to_owned).collect())
    });
    last.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn servers_and_domains_are_read_from_the_file_as_resolvers_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# comment\nsearch x\nnameserver 127.0.0.53\n nameserver 1.1.1.1 # here\nsearch a b\n\
                    nameserver\nnameserver nonsense\nnameserver fd00::1\nnameserver 1.1.1.1\noptions edns0\n";
        std::fs::write(&file, text).unwrap();
        let addrs: Vec<String> = read(file.path()).iter().map(ToString::to_string).collect();
        assert_eq!(addrs, ["127.0.0.53:53", "1.1.1.1:53", "[fd00::1]:53"]);
        assert_eq!(searched(file.path()), ["a", "b"]);
        assert!(read(Path::new("/does/not/exist")).is_empty());
        assert!(searched(Path::new("/does/not/exist")).is_empty());
        assert!(searched(Path::new("/dev/zero")).is_empty(), "not read for ever");
    }

    #[test]
    fn a_server_is_down_after_failures_in_a_row() {
        let (health, server) = (Health::default(), Server::new("127.0.0.1:53".parse().unwrap(), false));
        assert!(server.failed(&health) && !server.failed(&health), "probed once");
        assert!(server.is_down(&health));
        server.answered();
        assert!(!server.is_down(&health) && server.failed(&health));
        let never = Health { max_fails: 0, ..Health::default() };
        assert!((0..9).all(|_| !server.failed(&never)) && !server.is_down(&never));
    }
}
