//! One endpoint: its connections, and what is known of its health.
//!
//! An endpoint outlives the routing tables that name it: a change of routes keeps its connections, its latency and its
//! failures. Of HTTP/1.1 connections the last one used is the first to be used again, by the thread whose runtime it
//! belongs to: another one would be woken through that. HTTP/2 has one for all requests.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::h1::{Connection, Fault, this_thread};
use super::resolve::resolve;
use super::stream::Stream;
use super::tls::Greeting;
use crate::annotations::upstream::Protocol;
use crate::body::Outgoing;

/// Idle connections that are kept: as many as there were requests at a time, so that no crowd connects anew each time.
const IDLE: usize = 2048;
/// How long they are kept.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Requests that a connection serves.
const REQUESTS: u32 = 10_000;
/// How long an endpoint is left alone after its first failure; doubled with each that follows.
const REST: u64 = 1_000;
const LONGEST_REST: u64 = 10_000;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An address of a Pod, or of a Service.
    Socket(SocketAddr),
    /// A name outside of the cluster.
    Name(String, u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// How endpoints are spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pub protocol: Protocol,
    pub greeting: Option<Greeting>,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub address: Address,
    /// [`Address`] as it is logged.
    pub text: Box<str>,
    transport: Transport,
    /// When it was first seen.
    pub born: Instant,
    #[expect(clippy::vec_box, reason = "each request moves one out and in")]
    idle: Mutex<Vec<Box<Connection>>>,
    http2: Mutex<Option<SendRequest<Outgoing>>>,
    connecting: tokio::sync::Mutex<()>,
    /// Requests under way.
    pub active: AtomicU32,
    failures: AtomicU32,
    /// Left alone until then, in milliseconds since `born`.
    rests_until: AtomicU64,
    /// Moving average of the time to an answer, in microseconds.
    pub(super) latency: AtomicU64,
    measured: AtomicU64,
}

impl Endpoint {
    pub fn new(address: Address, transport: Transport) -> Self {
        Self {
            text: address.to_string().into(),
            address,
            transport,
            born: Instant::now(),
            idle: Mutex::default(),
            http2: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            active: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            rests_until: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            measured: AtomicU64::new(0),
        }
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it may be asked; one that has failed is left alone for a while.
    pub fn is_well(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0 || self.age() >= self.rests_until.load(Ordering::Relaxed)
    }

    /// It could not be reached, or did not answer.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let rest = (REST << failures.min(8)).min(LONGEST_REST);
        self.rests_until.store(self.age() + rest, Ordering::Relaxed);
    }

    /// It has answered by now, after so long.
    pub fn answered(&self, now: Instant, after: Duration) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        // Older figures count for less the longer ago they were measured (ten seconds to a third).
        let now = now.saturating_duration_since(self.born).as_millis() as u64;
        let since = now.saturating_sub(self.measured.swap(now, Ordering::Relaxed));
        let weight = (-(since as f64) / 10_000.0).exp();
        let old = self.latency.load(Ordering::Relaxed) as f64;
        let new = old * weight + after.as_micros() as f64 * (1.0 - weight);
        self.latency.store(new as u64, Ordering::Relaxed);
    }

    /// What a request there is expected to cost.
    pub fn cost(&self) -> u64 {
        let waiting = u64::from(self.active.load(Ordering::Relaxed)) + 1;
        self.latency.load(Ordering::Relaxed).saturating_add(1).saturating_mul(waiting)
    }

    pub fn protocol(&self) -> Protocol {
        self.transport.protocol
    }

    /// Whether it is spoken to with TLS.
    pub fn secure(&self) -> bool {
        self.transport.greeting.is_some()
    }

    /// An idle connection of this thread's that is still there.
    pub fn idle(&self, now: Instant) -> Option<Box<Connection>> {
        let thread = this_thread();
        loop {
            let mut connection = {
                let mut idle = self.idle.lock();
                let last = idle.iter().rposition(|connection| connection.thread == thread)?;
                idle.remove(last)
            };
            if now.duration_since(connection.since) <= IDLE_FOR && connection.stream.is_idle() {
                return Some(connection);
            }
        }
    }

    /// Takes a connection back.
    pub fn keep(&self, connection: Box<Connection>) {
        if connection.served >= REQUESTS {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < IDLE {
            idle.push(connection);
        }
    }

    /// Drops idle connections that have stood too long.
    pub fn prune(&self) {
        self.idle.lock().retain(|connection| connection.since.elapsed() <= IDLE_FOR);
    }

    /// A new connection.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub async fn connect(&self, limit: Duration) -> Result<Box<Connection>, Fault> {
        Ok(Box::new(Connection::new(self.stream(limit).await?)))
    }

    async fn stream(&self, limit: Duration) -> Result<Stream, Fault> {
        let connected = tokio::time::timeout(limit, self.dial()).await;
        connected.map_err(|_| Fault::ConnectTimeout)?.map_err(Fault::Connect)
    }

    async fn dial(&self) -> io::Result<Stream> {
        let address = match &self.address {
            Address::Socket(address) => *address,
            Address::Name(name, port) => resolve(name, *port).await?,
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(Greeting { config, name }) = &self.transport.greeting else {
            return Ok(Stream::Plain(stream));
        };
        let name = match (name, &self.address) {
            (Some(name), _) => name.clone(),
            (None, Address::Socket(address)) => ServerName::from(address.ip()),
            (None, Address::Name(name, _)) => ServerName::try_from(name.clone())
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?,
        };
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// The connection for all requests over HTTP/2.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub async fn http2(&self, limit: Duration) -> Result<SendRequest<Outgoing>, Fault> {
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let _one = self.connecting.lock().await;
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let stream = TokioIo::new(self.stream(limit).await?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).adaptive_window(true);
        builder.keep_alive_interval(IDLE_FOR).max_header_list_size(128 << 10);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::spawn(async move {
            // Requests under way hear of its end themselves.
            let _ = connection.await;
        });
        *self.http2.lock() = Some(sender.clone());
        Ok(sender)
    }

    fn open(&self) -> Option<SendRequest<Outgoing>> {
        self.http2.lock().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }
}

/// A request under way at an endpoint; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Endpoint>);

impl Busy {
    pub fn at(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
