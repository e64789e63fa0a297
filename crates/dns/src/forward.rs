//! Names of the outside world, asked of servers that are given by address or stand in a `resolv.conf`.
//!
//! Every question goes out from a socket of its own, so that port and id are both unknown to whoever would forge an
//! answer (RFC 5452). A truncated answer is asked for again by TCP. The file is looked at again when it has changed,
//! at most once a second and only when somebody asks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cache::{Cache, Key};

/// How long one server may take for one try.
const PATIENCE: Duration = Duration::from_secs(2);
/// Tries per server.
const TRIES: usize = 2;
/// Questions that may be on their way at once, unless told otherwise.
const IN_FLIGHT: usize = 1000;
/// Least time between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);
/// What we take by UDP: fits every path (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1232;

/// Why a question has no answer from outside.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files name no server, or are not there.
    #[error("no upstream servers in {0:?}")]
    NoServers(Vec<Target>),
    /// More questions than we keep track of.
    #[error("as many questions as may be are on their way already")]
    Busy,
    /// What is sent upstream comes back.
    #[error("the upstream servers ask this server")]
    Loop,
    /// No server gave an answer.
    #[error("no answer from {0:?}")]
    Silent(Vec<SocketAddr>),
}

/// One place where servers are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This server.
    Server(SocketAddr),
    /// The servers of this `resolv.conf`, as it is at the time.
    File(PathBuf),
}

/// Which server is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Any of them.
    Random,
    /// Each in turn.
    RoundRobin,
    /// Always the first that answers, as resolvers do.
    Sequential,
}

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Upstreams {
    /// In order.
    pub targets: Vec<Target>,
    /// Who is asked first.
    pub policy: Policy,
    /// Ask by TCP alone.
    pub force_tcp: bool,
    /// Questions that may be on their way at once.
    pub in_flight: usize,
}

impl Upstreams {
    /// These servers, with what else is usual.
    pub fn new(targets: Vec<Target>) -> Self {
        Self { targets, policy: Policy::Random, force_tcp: false, in_flight: IN_FLIGHT }
    }
}

#[derive(Debug, Default)]
struct Servers {
    list: Arc<[SocketAddr]>,
    stamps: Vec<Option<(SystemTime, u64)>>,
    looked: Option<Instant>,
}

/// Asks upstream servers and remembers what they say.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Upstreams,
    servers: Mutex<Servers>,
    turn: AtomicUsize,
    cache: Option<Cache>,
    flights: Semaphore,
}

impl Forwarder {
    /// Asks these servers; without a cache, each time.
    pub fn new(upstreams: Upstreams, cache: Option<Cache>) -> Self {
        let flights = Semaphore::new(upstreams.in_flight.min(Semaphore::MAX_PERMITS));
        Self { upstreams, servers: Mutex::default(), turn: AtomicUsize::new(0), cache, flights }
    }

    /// The servers as they are named now.
    pub fn servers(&self) -> Arc<[SocketAddr]> {
        let mut servers = self.servers.lock();
        let now = Instant::now();
        if servers.looked.is_some_and(|at| now.duration_since(at) < LOOK) {
            return servers.list.clone();
        }
        let first = servers.looked.replace(now).is_none();
        let stamps: Vec<_> = (self.upstreams.targets.iter())
            .filter_map(|target| match target {
                Target::File(file) => Some(file),
                Target::Server(_) => None,
            })
            .map(|file| std::fs::metadata(file).and_then(|m| Ok((m.modified()?, m.len()))).ok())
            .collect();
        if first || stamps.contains(&None) || stamps != servers.stamps {
            servers.stamps = stamps;
            let mut list = Vec::new();
            for target in &self.upstreams.targets {
                let named = match target {
                    Target::Server(server) => vec![*server],
                    Target::File(file) => read(file),
                };
                list.extend(named.into_iter().filter(|server| !list.contains(server)).collect::<Vec<_>>());
            }
            servers.list = list.into();
            tracing::debug!(servers = ?servers.list, "upstream servers");
        }
        servers.list.clone()
    }

    /// The servers in the order in which they are to be asked this time.
    fn in_order(&self) -> Vec<SocketAddr> {
        let mut servers = self.servers().to_vec();
        if servers.len() > 1 {
            let first = match self.upstreams.policy {
                Policy::Sequential => 0,
                Policy::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % servers.len(),
                Policy::Random => rand::random_range(0..servers.len()),
            };
            servers.rotate_left(first);
        }
        servers
    }

    /// Answers a question; of the message, only its sections and code are meant for the client.
    ///
    /// # Errors
    /// When there is nobody to ask or nobody answers.
    pub async fn ask(&self, query: &Query, dnssec: bool, checking_disabled: bool) -> Result<Message, Error> {
        let key = Key {
            name: query.name.clone(),
            kind: query.query_type,
            class: query.query_class,
            dnssec,
            checking_disabled,
        };
        if let Some(message) = self.cache.as_ref().and_then(|cache| cache.get(&key, Instant::now())) {
            return Ok(message);
        }
        let _permit = self.flights.try_acquire().map_err(|_| Error::Busy)?;
        let servers = self.in_order();
        if servers.is_empty() {
            return Err(Error::NoServers(self.upstreams.targets.clone()));
        }
        let tcp = self.upstreams.force_tcp;
        let mut second_best = None;
        for _ in 0..TRIES {
            for server in servers.iter() {
                match exchange(*server, tcp, query, dnssec, checking_disabled).await {
                    Ok(message) if usable(&message) => {
                        if let Some(cache) = &self.cache {
                            cache.put(key, &message, Instant::now());
                        }
                        return Ok(message);
                    }
                    Ok(message) => second_best = Some(message),
                    Err(error) => tracing::debug!(%server, %error, name = %query.name, "upstream"),
                }
            }
            // An error that a server tells is an answer; asking it again gives the same.
            if let Some(message) = second_best {
                return Ok(message);
            }
        }
        Err(Error::Silent(servers))
    }
}

fn usable(message: &Message) -> bool {
    !matches!(
        message.metadata.response_code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp | ResponseCode::FormErr
    )
}

/// The servers of a `resolv.conf` (resolv.conf(5)); none when the file cannot be read.
fn read(file: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
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

async fn exchange(
    server: SocketAddr,
    tcp: bool,
    query: &Query,
    dnssec: bool,
    checking_disabled: bool,
) -> io::Result<Message> {
    let mut request = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.metadata.checking_disabled = checking_disabled;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_SIZE).set_version(0).set_dnssec_ok(dnssec);
    request.set_edns(edns);
    let bytes = request.to_vec().map_err(io::Error::other)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    if !tcp {
        let reply = timeout(PATIENCE, by_udp(server, &bytes, &request)).await.map_err(late)??;
        if !reply.metadata.truncation {
            return Ok(reply);
        }
    }
    timeout(PATIENCE, by_tcp(server, &bytes, &request)).await.map_err(late)?
}

/// Whether a message answers what was asked; anything else is a stray or a forgery.
fn belongs(reply: &Message, request: &Message) -> bool {
    reply.metadata.id == request.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == request.queries
}

async fn by_udp(server: SocketAddr, bytes: &[u8], request: &Message) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Ok(reply) = Message::from_vec(&buffer[..len])
            && belongs(&reply, request)
        {
            return Ok(reply);
        }
    }
}

async fn by_tcp(server: SocketAddr, bytes: &[u8], request: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    let reply = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if belongs(&reply, request) { Ok(reply) } else { Err(io::Error::other("answers another question")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn servers_are_read_from_the_file_as_resolvers_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# comment\nsearch a b\nnameserver 127.0.0.53\n nameserver 1.1.1.1 # here\n\
                    nameserver\nnameserver nonsense\nnameserver fd00::1\nnameserver 1.1.1.1\noptions edns0\n";
        std::fs::write(&file, text).unwrap();
        let addrs: Vec<String> = read(file.path()).iter().map(ToString::to_string).collect();
        assert_eq!(addrs, ["127.0.0.53:53", "1.1.1.1:53", "[fd00::1]:53"]);
        assert!(read(Path::new("/does/not/exist")).is_empty());
    }
}
