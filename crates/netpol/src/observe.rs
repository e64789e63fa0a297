//! From the kernel's messages to [`Seen`] connections: who the addresses are and which policy decided.
//!
//! What is dropped, or would be, comes from the log group of the profiles' last rules, ten a second and profile; allowed
//! connections come from connection tracking, and only while somebody looks. Who decided is asked of the same function
//! that the rules come from: profiles are shared, so a rule alone does not say whose it is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nft::Protocol;
use nft::conntrack::{self, Entry, IpFamily, NewConnections, Tuple};
use nft::log::{Listener, Packet};
use parking_lot::RwLock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use crate::explain::{deciding, policy_name};
use crate::flows::{Flows, Outcome, Place, Question, Seen};
use crate::isolation::Isolation;
use crate::layout::{LOG_GROUP, Told};
use crate::model::World;
use crate::permit::Direction;
use crate::report::Reporter;
use crate::verdict::{Decision, End, verdict};

/// A client sends its first packet again and again; it is one connection for so long.
const SAME: Duration = Duration::from_secs(70);
/// First packets remembered for that.
const REMEMBERED: usize = 4096;
/// Allowed connections that are named in a second; more are left out.
const BUDGET: u32 = 1000;
/// How often it is asked whether anybody still looks.
const LOOK: Duration = Duration::from_secs(2);

/// What the observer of a node is made from.
pub(crate) struct Observer {
    pub node: String,
    pub node_ips: Vec<IpAddr>,
    pub world: Arc<RwLock<World>>,
    pub flows: Flows,
    pub reporter: Reporter,
}

/// Tells what the kernel tells until `stop`. What cannot be listened to is logged and left out: enforcement needs it not.
pub(crate) async fn observe(observer: Observer, stop: CancellationToken) {
    let questions = observer.flows.questions();
    let told = heard(Listener::open(LOG_GROUP), "refused connections are not heard of (needs nfnetlink_log)");
    let mut watch = Watch { observer, known: HashMap::new(), budget: (Instant::now(), 0) };
    stop.run_until_cancelled(watch.run(told, questions)).await;
}

struct Watch {
    observer: Observer,
    /// First packets and when they were seen.
    known: HashMap<(Tuple, Direction), Instant>,
    /// The second that is spent, and how much of it.
    budget: (Instant, u32),
}

impl Watch {
    async fn run(&mut self, told: Option<AsyncFd<Listener>>, questions: Option<UnboundedReceiver<Question>>) {
        let mut questions = questions;
        let mut allowed: Option<AsyncFd<NewConnections>> = None;
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = readable(told.as_ref()) => {
                    let mut packets = Vec::new();
                    if let Some(listener) = &told && let Err(error) = listener.get_ref().read(|packet| packets.push(packet)) {
                        tracing::debug!(%error, "messages of refused connections");
                    }
                    packets.iter().for_each(|packet| self.told(packet));
                }
                () = readable(allowed.as_ref()) => {
                    let mut entries = Vec::new();
                    if let Some(connections) = &allowed && let Err(error) = connections.get_ref().read(|entry| entries.push(entry)) {
                        tracing::debug!(%error, "messages of new connections");
                    }
                    entries.iter().for_each(|entry| self.passed(entry));
                }
                () = self.observer.flows.watched(), if allowed.is_none() => {
                    allowed = heard(NewConnections::open(), "allowed connections are not heard of");
                }
                _ = look.tick(), if allowed.is_some() => {
                    if !self.observer.flows.is_watched() {
                        allowed = None;
                    }
                }
                Some(question) = next(&mut questions) => {
                    // Who no longer waits needs no answer.
                    let _ = question.send(self.current());
                }
            }
        }
    }

    /// A packet that a profile's last rule told of.
    fn told(&mut self, packet: &Packet) {
        let Some(told) = Told::of(&packet.prefix) else { return };
        let now = Instant::now();
        if self.known.len() >= REMEMBERED {
            self.known.retain(|_, since| now.duration_since(*since) < SAME);
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
        }
        let before = self.known.insert((packet.tuple, told.direction), now);
        if before.is_some_and(|before| now.duration_since(before) < SAME) {
            return;
        }
        let tuple = packet.tuple;
        let world = self.observer.world.read();
        let (from, to) = (End::at(&world, tuple.src.ip()), End::at(&world, tuple.dst.ip()));
        let own = if told.direction == Direction::Ingress { to.pod } else { from.pod };
        let isolation = own.and_then(|pod| Isolation::of(&world, pod, told.direction));
        // The policies that isolate the Pod are those that refuse: the rule that told has said so already.
        let refusing = isolation.iter().flat_map(|isolation| isolation.refusing());
        let keys: Vec<client::ObjectKey> = refusing.map(|policy| policy.key.clone()).collect();
        let seen = Seen {
            outcome: if told.audit { Outcome::Audited } else { Outcome::Denied },
            direction: Some(told.direction.word().to_owned()),
            policies: keys.iter().map(policy_name).collect(),
            ..self.seen(&tuple, None, &from, &to)
        };
        if !told.audit
            && let Some(refused) = from.pod.or(to.pod)
        {
            self.observer.reporter.connection_refused(refused, &keys, &seen);
        }
        drop(world);
        self.observer.flows.tell(seen);
    }

    /// A connection whose first packet has passed.
    fn passed(&mut self, entry: &Entry) {
        let (since, spent) = &mut self.budget;
        if since.elapsed() >= Duration::from_secs(1) {
            (*since, *spent) = (Instant::now(), 0);
        }
        *spent += 1;
        if *spent <= BUDGET
            && let Some(seen) = self.allowed(entry)
        {
            self.observer.flows.tell(seen);
        }
    }

    /// A tracked connection to or from a Pod; those of the node to its own Pods are its probes.
    fn allowed(&self, entry: &Entry) -> Option<Seen> {
        let tuple = Tuple { dst: entry.reply.src, ..entry.original };
        let world = self.observer.world.read();
        let (from, to) = (End::at(&world, tuple.src.ip()), End::at(&world, tuple.dst.ip()));
        let of_node = self.observer.node_ips.contains(&tuple.src.ip()) || tuple.src.ip().is_loopback();
        if of_node || (from.pod.is_none() && to.pod.is_none()) {
            return None;
        }
        let asked = Some(entry.original.dst).filter(|asked| *asked != tuple.dst);
        let mut seen = self.seen(&tuple, asked, &from, &to);
        if let Some(protocol) = protocol(tuple.protocol) {
            let verdict = verdict(&world, from, to, protocol, tuple.dst.port());
            let deciding_side = Direction::BOTH.into_iter().rev().find(|direction| {
                matches!(verdict.of(*direction), Decision::Permitted(_) | Decision::Audited(_))
            });
            if let Some(direction) = deciding_side {
                let decision = verdict.of(direction);
                seen.direction = Some(direction.word().to_owned());
                seen.policies = deciding(decision).iter().map(policy_name).collect();
                if let Decision::Permitted(origin) = decision {
                    seen.rule = Some(origin.to_string());
                }
            }
        }
        Some(seen)
    }

    fn seen(&self, tuple: &Tuple, asked: Option<SocketAddr>, from: &End<'_>, to: &End<'_>) -> Seen {
        let place = |address, end: &End<'_>| Place { address, pod: end.pod.map(|pod| pod.key.to_string()) };
        Seen {
            time: Timestamp::now(),
            node: self.observer.node.clone(),
            outcome: Outcome::Allowed,
            protocol: protocol(tuple.protocol)
                .map_or_else(|| tuple.protocol.to_string(), |protocol| protocol.word().to_owned()),
            from: place(tuple.src, from),
            to: place(tuple.dst, to),
            asked,
            direction: None,
            policies: Vec::new(),
            rule: None,
        }
    }

    /// What connection tracking has now.
    fn current(&self) -> Vec<Seen> {
        let list = || -> Result<Vec<Entry>, nft::Error> {
            let mut socket = nft::Socket::open()?;
            let mut all = Vec::new();
            for family in [IpFamily::V4, IpFamily::V6] {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    all.extend(conntrack::list(&mut socket, family, protocol.number())?);
                }
            }
            Ok(all)
        };
        match list() {
            Ok(entries) => entries.iter().filter_map(|entry| self.allowed(entry)).collect(),
            Err(error) => {
                tracing::warn!(%error, "the connections of this node cannot be listed");
                Vec::new()
            }
        }
    }
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

/// A socket that the runtime wakes for; what keeps it from that is logged.
fn heard<T: AsRawFd>(socket: Result<T, nft::Error>, without: &'static str) -> Option<AsyncFd<T>> {
    let socket =
        socket.map_err(|error| tracing::warn!(error = &error as &dyn std::error::Error, without)).ok()?;
    // SAFETY: the socket owns its descriptor as long as it lives, and gives it to nobody.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(|error| tracing::warn!(%error, without)).ok()
}

/// Resolves when something waits; the caller then reads all of it.
async fn readable<T: AsRawFd>(socket: Option<&AsyncFd<T>>) {
    match socket {
        None => std::future::pending().await,
        Some(socket) => match socket.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn next(questions: &mut Option<UnboundedReceiver<Question>>) -> Option<Question> {
    match questions {
        None => std::future::pending().await,
        Some(questions) => questions.recv().await,
    }
}
