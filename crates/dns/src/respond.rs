//! From the bytes of a question to the bytes of an answer: `rewrite`, then `hosts`, `kubernetes` and `forward`, which is
//! the order in which CoreDNS asks its plugins, whatever the order in the Corefile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use parking_lot::{Mutex, RwLock};

use crate::answer::{Answer, answer, authority};
use crate::config::{Config, Forward, Server};
use crate::forward::{Error, UDP_SIZE};
use crate::metrics::Metrics;
use crate::zone::Zone;

/// How a question came, which limits the size of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The largest answer by UDP, whatever a client offers: larger datagrams arrive in pieces or not at all.
const MOST_BY_UDP: u16 = 4096;
/// What every client can take (RFC 1035).
const LEAST_BY_UDP: u16 = 512;

/// Answers questions: from the zone, if there is one, and from upstreams.
#[derive(Debug)]
pub(crate) struct Responder {
    pub(crate) zone: Option<Arc<RwLock<Zone>>>,
    config: RwLock<Arc<Config>>,
    /// Names that only this server has asked upstreams for, and by whose way.
    probes: Mutex<Vec<(Name, Arc<Forward>)>>,
    pub(crate) metrics: Metrics,
}

/// What to do about a datagram.
pub(crate) enum Step {
    /// Nothing: it is no question.
    Ignore,
    /// Send this.
    Answer(Vec<u8>),
    /// Ask others first: [`Responder::finish`].
    Forward(Box<Pending>),
}

/// A question that waits for an upstream.
pub(crate) struct Pending {
    request: Request,
    /// Who is asked; nobody, when the Corefile names nobody.
    by: Option<Arc<Forward>>,
    /// What is asked upstream; the target of an alias, or the question itself.
    ask: Query,
    /// Goes before the upstream's records.
    alias: Option<Record>,
}

struct Request {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
    transport: Transport,
    /// The name under which the question is looked up, where a rule says so.
    rewritten: Option<Name>,
    log: bool,
    errors: bool,
}

impl Request {
    /// What is looked up.
    fn looked_up(&self) -> Query {
        let mut query = self.query.clone();
        if let Some(name) = &self.rewritten {
            query.set_name(name.clone());
        }
        query
    }
}

impl Responder {
    /// A server of this zone that does what the Corefile says.
    pub(crate) fn new(zone: Option<Arc<RwLock<Zone>>>, config: Config) -> Self {
        let responder = Self {
            zone,
            config: RwLock::new(Arc::new(Config { servers: Vec::new() })),
            probes: Mutex::default(),
            metrics: Metrics::default(),
        };
        responder.configure(config);
        responder
    }

    /// From now on another Corefile holds. Questions on their way end by the old one.
    pub(crate) fn configure(&self, config: Config) {
        let ttl = config.servers.iter().find_map(|server| Some(server.kubernetes.as_ref()?.ttl));
        if let (Some(zone), Some(ttl)) = (&self.zone, ttl) {
            zone.write().set_ttl(ttl);
        }
        self.probes.lock().clear();
        *self.config.write() = Arc::new(config);
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.read().clone()
    }

    /// Asks upstreams, where the Corefile says `loop`, for names that nobody else asks for: if one comes back here, the
    /// upstream asks us, and every outside name would go round for ever.
    pub(crate) async fn find_loops(&self) {
        for server in self.config().servers.iter().filter(|server| server.finds_loops) {
            for zone in &server.zones {
                let label = || rand::random::<u64>().to_string();
                let below = Name::from_labels([label(), label()].iter().map(String::as_bytes));
                let Ok(name) = below.and_then(|name| name.append_domain(zone)) else { continue };
                let Some(forward) = server.forward(&name) else { continue };
                self.probes.lock().push((name.clone(), forward.clone()));
                // What it answers is of no interest.
                let _ = forward.forwarder.ask(&Query::query(name, RecordType::HINFO), false, false).await;
            }
        }
    }

    fn note_loop(&self, query: &Query) {
        if query.query_type != RecordType::HINFO {
            return;
        }
        if let Some((_, forward)) = self.probes.lock().iter().find(|(name, _)| *name == query.name)
            && !forward.loops.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                servers = ?forward.forwarder.servers(),
                "these servers ask this one: names outside of the cluster are not answered until the Corefile changes; \
                 name other servers in its directive forward"
            );
        }
    }

    /// Answers at once what can be answered from memory.
    pub(crate) fn begin(&self, bytes: &[u8], transport: Transport) -> Step {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => return malformed(bytes),
        };
        if message.metadata.message_type != MessageType::Query {
            return Step::Ignore;
        }
        let [query] = &message.queries[..] else {
            return plain(&message.metadata, ResponseCode::FormErr);
        };
        self.metrics.request(if transport == Transport::Udp { "udp" } else { "tcp" }, query.query_type);
        if message.metadata.op_code != OpCode::Query {
            self.metrics.response(ResponseCode::NotImp);
            return plain(&message.metadata, ResponseCode::NotImp);
        }
        let mut request = Request {
            metadata: message.metadata,
            query: query.clone(),
            edns: message.edns.clone(),
            transport,
            rewritten: None,
            log: false,
            errors: false,
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return self.answer(&request, ResponseCode::BADVERS, Vec::new(), Vec::new(), Vec::new(), false);
        }
        self.note_loop(query);
        let config = self.config();
        let found = config.server(&query.name);
        request.log = found.is_some_and(|server| server.log);
        request.errors = found.is_some_and(|server| server.errors);
        // Whole zones are for no client of ours.
        let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
        match found.filter(|_| !transfer) {
            Some(server) => {
                request.rewritten = server.rewritten(&query.name);
                self.decide(request, &config, server)
            }
            None => self.answer(&request, ResponseCode::Refused, Vec::new(), Vec::new(), Vec::new(), false),
        }
    }

    fn decide(&self, request: Request, config: &Config, server: &Server) -> Step {
        let mut ask = request.looked_up();
        let (found, soa) = self.look_up(server, &ask);
        let soa: Vec<Record> = soa.into_iter().collect();
        let none = Vec::new;
        match found {
            Answer::Records(answers, further) => {
                let answers = if server.shuffle { rotated(answers) } else { answers };
                self.answer(&request, ResponseCode::NoError, answers, none(), further, true)
            }
            Answer::NoData => self.answer(&request, ResponseCode::NoError, none(), soa, none(), true),
            Answer::NoName => self.answer(&request, ResponseCode::NXDomain, none(), soa, none(), true),
            Answer::Refused => self.answer(&request, ResponseCode::Refused, none(), none(), none(), false),
            Answer::NotSynced | Answer::Unknown => {
                self.answer(&request, ResponseCode::ServFail, none(), none(), none(), false)
            }
            Answer::NotOurs => {
                let by = server.forward(&ask.name).cloned();
                Step::Forward(Box::new(Pending { request, by, ask, alias: None }))
            }
            Answer::Alias(alias) => {
                let (alias, target) = *alias;
                let by = config.server(&target).and_then(|server| server.forward(&target)).cloned();
                ask.set_name(target);
                Step::Forward(Box::new(Pending { request, by, ask, alias: Some(alias) }))
            }
        }
    }

    /// What is known here, and the authority of what is not there.
    fn look_up(&self, server: &Server, ask: &Query) -> (Answer, Option<Record>) {
        if let Some((hosts, through)) = &server.hosts {
            match hosts.answer(&ask.name, ask.query_type) {
                Some(found) => return (found, None),
                None if !through.lets(&ask.name) => return (Answer::Unknown, None),
                None => {}
            }
        }
        let (Some(kubernetes), Some(zone)) = (&server.kubernetes, &self.zone) else {
            return (Answer::NotOurs, None);
        };
        let zone = zone.read();
        let found = match answer(&zone, &ask.name, ask.query_class, ask.query_type) {
            _ if kubernetes.no_pods.as_ref().is_some_and(|pods| pods.zone_of(&ask.name)) => Answer::NoName,
            Answer::NoName if kubernetes.through.lets(&ask.name) => Answer::NotOurs,
            Answer::NotOurs if kubernetes.claims(&ask.name) => Answer::NoName,
            Answer::Records(..) | Answer::NoData | Answer::NotSynced
                if !kubernetes.covers(&zone, &ask.name) =>
            {
                Answer::NotOurs
            }
            found => found,
        };
        let negative = matches!(found, Answer::NoData | Answer::NoName);
        let soa = negative.then(|| authority(&zone));
        (found, soa)
    }

    /// Asks upstream and makes the answer.
    pub(crate) async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { request, by, ask, alias } = pending;
        let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let reply = match &by {
            Some(forward) if !forward.loops.load(Ordering::Relaxed) => {
                self.metrics.forwarded.fetch_add(1, Ordering::Relaxed);
                forward.forwarder.ask(&ask, dnssec, request.metadata.checking_disabled).await
            }
            Some(_) => Err(Error::Loop),
            None => Err(Error::NoServers(Vec::new())),
        };
        let authoritative = alias.is_some();
        let step = match reply {
            Ok(reply) => {
                let code = reply.metadata.response_code;
                let answers = alias.into_iter().chain(reply.answers).collect();
                let further = reply.additionals;
                self.answer(&request, code, answers, reply.authorities, further, authoritative)
            }
            Err(error) => {
                if request.errors {
                    tracing::error!(%error, name = %ask.name, kind = %ask.query_type, "not answered");
                }
                let code = match error {
                    Error::Busy => ResponseCode::Refused,
                    Error::NoServers(_) | Error::Silent(_) | Error::Loop => ResponseCode::ServFail,
                };
                // The alias itself is known whatever becomes of its target.
                self.answer(
                    &request,
                    code,
                    alias.into_iter().collect(),
                    Vec::new(),
                    Vec::new(),
                    authoritative,
                )
            }
        };
        match step {
            Step::Answer(bytes) => bytes,
            Step::Ignore | Step::Forward(_) => Vec::new(),
        }
    }

    fn answer(
        &self,
        request: &Request,
        code: ResponseCode,
        mut answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
        authoritative: bool,
    ) -> Step {
        self.metrics.response(code);
        if request.log {
            let (name, kind) = (&request.query.name, request.query.query_type);
            tracing::info!(%name, %kind, transport = ?request.transport, ?code, "asked");
        }
        if let Some(rewritten) = &request.rewritten {
            // Clients take records of the name that they asked for only.
            for record in answers.iter_mut().filter(|record| record.name == *rewritten) {
                record.name = request.query.name.clone();
            }
        }
        let mut message = Message::response(request.metadata.id, request.metadata.op_code);
        message.metadata = Metadata::response_from_request(&request.metadata);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_available = true;
        message.queries = vec![request.query.clone()];
        message.answers = answers;
        message.authorities = authorities;
        message.additionals = additionals;
        if let Some(asked) = &request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_SIZE).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        let limit = match (request.transport, &request.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => LEAST_BY_UDP,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(LEAST_BY_UDP, MOST_BY_UDP),
        };
        match fitted(message, usize::from(limit)) {
            Some(bytes) => Step::Answer(bytes),
            None => plain(&request.metadata, ResponseCode::ServFail),
        }
    }
}

/// Records of equal worth begin with another one each time, so that clients that take the first spread.
fn rotated(mut answers: Vec<Record>) -> Vec<Record> {
    let aliases = answers.iter().take_while(|r| r.record_type() == RecordType::CNAME).count();
    let equal = &mut answers[aliases..];
    if equal.len() > 1 {
        let by = rand::random_range(0..equal.len());
        equal.rotate_left(by);
    }
    answers
}

/// The message within a size: first without what is merely helpful, then cut and marked so (RFC 2181, 9).
fn fitted(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let within = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = within(&message) {
        return Some(bytes);
    }
    message.additionals.clear();
    if let Some(bytes) = within(&message) {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let all = std::mem::take(&mut message.answers);
    let mut best = within(&message)?;
    // As many records as fit: `fits` do, `too_many` do not.
    let (mut fits, mut too_many) = (0, all.len() + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        message.answers = all[..middle].to_vec();
        match within(&message) {
            Some(bytes) => (best, fits) = (bytes, middle),
            None => too_many = middle,
        }
    }
    Some(best)
}

/// An answer without a question, for what cannot be understood further.
fn plain(metadata: &Metadata, code: ResponseCode) -> Step {
    let mut message = Message::error_msg(metadata.id, metadata.op_code, code);
    message.metadata.recursion_desired = metadata.recursion_desired;
    message.to_vec().map_or(Step::Ignore, Step::Answer)
}

/// What does not parse is told so, if it has at least a header and asks.
fn malformed(bytes: &[u8]) -> Step {
    let is_query = bytes.get(2).is_some_and(|flags| flags & 0x80 == 0);
    match bytes {
        [high, low, ..] if bytes.len() >= 12 && is_query => {
            let metadata =
                Metadata::new(u16::from_be_bytes([*high, *low]), MessageType::Query, OpCode::Query);
            plain(&metadata, ResponseCode::FormErr)
        }
        _ => Step::Ignore,
    }
}
