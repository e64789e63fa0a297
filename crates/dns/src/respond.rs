//! From the bytes of a question to the bytes of an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use parking_lot::RwLock;

use crate::answer::{Answer, answer, authority};
use crate::forward::{Error, Forwarder, UDP_SIZE};
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
    pub(crate) forwarder: Forwarder,
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
}

impl Responder {
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
        let request = Request {
            metadata: message.metadata,
            query: query.clone(),
            edns: message.edns.clone(),
            transport,
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return self.answer(&request, ResponseCode::BADVERS, Vec::new(), Vec::new(), Vec::new(), false);
        }
        self.decide(request)
    }

    fn decide(&self, request: Request) -> Step {
        let query = &request.query;
        let (found, soa) = match &self.zone {
            None => (Answer::NotOurs, None),
            Some(zone) => {
                let zone = zone.read();
                let found = answer(&zone, &query.name, query.query_class, query.query_type);
                let negative = matches!(found, Answer::NoData | Answer::NoName);
                (found, negative.then(|| authority(&zone)))
            }
        };
        let soa: Vec<Record> = soa.into_iter().collect();
        let none = Vec::new;
        match found {
            Answer::Records(answers, further) => {
                self.answer(&request, ResponseCode::NoError, rotated(answers), none(), further, true)
            }
            Answer::NoData => self.answer(&request, ResponseCode::NoError, none(), soa, none(), true),
            Answer::NoName => self.answer(&request, ResponseCode::NXDomain, none(), soa, none(), true),
            Answer::Refused => self.answer(&request, ResponseCode::Refused, none(), none(), none(), false),
            Answer::NotSynced => self.answer(&request, ResponseCode::ServFail, none(), none(), none(), false),
            // Whole zones are for no client of ours.
            Answer::NotOurs if matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) => {
                self.answer(&request, ResponseCode::Refused, none(), none(), none(), false)
            }
            Answer::NotOurs => {
                let ask = query.clone();
                Step::Forward(Box::new(Pending { request, ask, alias: None }))
            }
            Answer::Alias(alias) => {
                let (alias, target) = *alias;
                let mut ask = query.clone();
                ask.set_name(target);
                Step::Forward(Box::new(Pending { request, ask, alias: Some(alias) }))
            }
        }
    }

    /// Asks upstream and makes the answer.
    pub(crate) async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { request, ask, alias } = pending;
        self.metrics.forwarded.fetch_add(1, Ordering::Relaxed);
        let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let reply = self.forwarder.ask(&ask, dnssec, request.metadata.checking_disabled).await;
        let authoritative = alias.is_some();
        let step = match reply {
            Ok(reply) => {
                let code = reply.metadata.response_code;
                let answers = alias.into_iter().chain(reply.answers).collect();
                let further = reply.additionals;
                self.answer(&request, code, answers, reply.authorities, further, authoritative)
            }
            Err(error) => {
                tracing::debug!(%error, name = %ask.name, "not forwarded");
                let code = match error {
                    Error::Busy => ResponseCode::Refused,
                    Error::NoServers(_) | Error::Silent(_) => ResponseCode::ServFail,
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
        answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
        authoritative: bool,
    ) -> Step {
        self.metrics.response(code);
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
