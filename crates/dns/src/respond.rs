//! From the bytes of a question to the bytes of an answer: `rewrite`, then `autopath`, `template`, `hosts`, `kubernetes` and
//! `forward`, which is the order in which CoreDNS asks its plugins, whatever the order in the Corefile.
//!
//! Working out an answer asks nobody and waits for nothing. Where it needs what only an upstream knows, it says so; once that
//! is known it is worked out again, with it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use parking_lot::{Mutex, RwLock};

use crate::answer::{Verdict, answer, authority};
use crate::cache::{Answered, Ask};
use crate::complete::candidates;
use crate::config::{Config, Forward, Server};
use crate::forward::Error;
use crate::metrics::{Counters, Metrics, Plugin};
use crate::name::Qname;
use crate::rewrite::{Asked, Rewritten};
use crate::wire::{Head, IN, Owner, Question, Records, Response, Section, Wrong, code, kind, refusal};
use crate::zone::Zone;

/// How a question came, which limits the size of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By datagram.
    Udp,
    /// By connection.
    Tcp,
}

/// The largest answer by UDP, whatever a client offers: larger datagrams arrive in pieces or not at all.
const MOST_BY_UDP: u16 = 4096;
/// What every client can take (RFC 1035).
const LEAST_BY_UDP: u16 = 512;
/// Questions that one answer may need of upstreams.
const MOST_NEEDS: usize = 32;

/// Answers questions: from the zone, if there is one, and from upstreams.
#[derive(Debug)]
pub struct Responder {
    pub(crate) zone: Option<Arc<RwLock<Zone>>>,
    config: RwLock<Arc<Config>>,
    /// Names that only this server has asked upstreams for, and by whose way.
    probes: Mutex<Vec<(Qname, Arc<Forward>)>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where questions are counted that are in nobody's zone.
    dropped: Arc<Counters>,
}

/// What to do about a datagram.
pub enum Step {
    /// Nothing: it is no question.
    Ignore,
    /// Send what has been written.
    Answer,
    /// Ask others first: [`Responder::finish`].
    Forward(Box<Pending>),
}

/// A question that waits for an upstream.
pub struct Pending {
    request: Request,
    server: Arc<Server>,
    config: Arc<Config>,
    need: Box<Need>,
}

struct Request {
    question: Question,
    transport: Transport,
    peer: IpAddr,
    started: Instant,
    /// What is looked up instead, where a rule says so.
    rewritten: Option<Rewritten>,
}

/// What only an upstream knows.
struct Need {
    by: Arc<Forward>,
    ask: Ask,
}

/// What upstreams have said so far.
type Told = Vec<(Ask, Result<Answered, Error>)>;

/// How an answer ends.
struct Settled {
    head: Head,
    by: Plugin,
}

impl Responder {
    /// A server of this zone that does what the Corefile says.
    pub fn new(zone: Option<Arc<RwLock<Zone>>>, config: Config) -> Self {
        let metrics = Arc::new(Metrics::default());
        let dropped = metrics.of("dropped");
        let responder = Self { zone, config: RwLock::default(), probes: Mutex::default(), metrics, dropped };
        responder.configure(config);
        responder
    }

    /// From now on another Corefile holds. Questions on their way end by the old one.
    pub(crate) fn configure(&self, mut config: Config) {
        if let (Some(zone), Some(kubernetes)) = (&self.zone, config.kubernetes()) {
            let mut zone = zone.write();
            zone.set_ttl(kubernetes.ttl);
            zone.set_options(kubernetes.options.clone());
        }
        for server in &mut config.servers {
            server.forwards.iter().for_each(|forward| forward.forwarder.count_in(&self.metrics));
            if let Some(server) = Arc::get_mut(server) {
                server.counters = self.metrics.of(&server.label());
            }
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
                let labels = [label(), label()];
                let below = Qname::of(labels.iter().map(String::as_bytes));
                let Some(name) = below.and_then(|name| name.moved(0, zone.wire())) else { continue };
                let Some(forward) = server.forward(&name) else { continue };
                self.probes.lock().push((name.clone(), forward.clone()));
                // What it answers is of no interest.
                let _ = forward.forwarder.ask(&Ask::plain(&name, kind::HINFO, IN)).await;
            }
        }
    }

    fn note_loop(&self, question: &Question) {
        if question.kind != kind::HINFO {
            return;
        }
        if let Some((_, forward)) = self.probes.lock().iter().find(|(name, _)| *name == question.name)
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
    pub fn begin(&self, bytes: &[u8], peer: IpAddr, transport: Transport, out: &mut Response) -> Step {
        let started = Instant::now();
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(Wrong::NoQuestion) => return Step::Ignore,
            Err(Wrong::Told(code)) => {
                let Some(header) = refusal(bytes, code) else { return Step::Ignore };
                self.dropped.asked(transport, peer, 0, false, bytes.len());
                self.dropped.answered(transport, Plugin::None, code, header.len(), started.elapsed());
                out.set(&header);
                return Step::Answer;
            }
        };
        self.note_loop(&question);
        let config = self.config.read();
        let found = config.server(&question.name);
        let counters = found.map_or(&self.dropped, |server| &server.counters);
        counters.asked(transport, peer, question.kind, question.dnssec(), bytes.len());
        out.begin(&question);
        let mut request = Request { question, transport, peer, started, rewritten: None };
        let refused =
            |code| Settled { head: Head { code, authoritative: false, authentic: false }, by: Plugin::None };
        if request.question.edns.is_some_and(|edns| edns.version != 0) {
            self.end(&request, found, &refused(code::BADVERS), out);
            return Step::Answer;
        }
        // Whole zones are for no client of ours.
        let transfer = matches!(request.question.kind, kind::AXFR | kind::IXFR);
        let Some(server) = found.filter(|_| !transfer) else {
            self.end(&request, found, &refused(code::REFUSED), out);
            return Step::Answer;
        };
        let Question { name, kind, class, .. } = &request.question;
        request.rewritten = server.rewritten(&Asked { name, kind: *kind, class: *class, peer, transport });
        match self.settle(&request, &config, server, &Vec::new(), out) {
            Ok(settled) => {
                self.end(&request, found, &settled, out);
                Step::Answer
            }
            Err(need) => {
                let (server, config) = (server.clone(), config.clone());
                Step::Forward(Box::new(Pending { request, server, config, need }))
            }
        }
    }

    /// Asks upstream and makes the answer.
    pub async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { request, server, config, mut need } = pending;
        let mut told = Told::new();
        let mut out = Response::default();
        loop {
            let outcome = need.by.forwarder.ask(&need.ask).await;
            if let Err(error) = &outcome
                && server.errors
            {
                let (name, kind) = (&need.ask.name, RecordType::from(need.ask.kind));
                tracing::error!(%error, %name, %kind, "not answered");
            }
            told.push((need.ask, outcome));
            out.begin(&request.question);
            match self.settle(&request, &config, &server, &told, &mut out) {
                Ok(settled) => {
                    self.end(&request, Some(&server), &settled, &mut out);
                    return out.into_bytes();
                }
                Err(more) => need = more,
            }
        }
    }

    /// What is told to those for whom nobody has time.
    pub(crate) fn give_up(&self, pending: &Pending, out: &mut Response) {
        out.begin(&pending.request.question);
        let head = Head { code: code::REFUSED, authoritative: false, authentic: false };
        self.end(&pending.request, Some(&pending.server), &Settled { head, by: Plugin::Forward }, out);
    }

    /// Works an answer out from what is known here and what upstreams have said so far.
    fn settle(
        &self,
        request: &Request,
        config: &Config,
        server: &Arc<Server>,
        told: &Told,
        out: &mut Response,
    ) -> Result<Settled, Box<Need>> {
        let question = &request.question;
        if server.no_any && question.kind == kind::ANY {
            // RFC 8482, 4.2.
            out.add(Section::Answer, Owner::Asked, kind::HINFO, 8482, |data| {
                data.extend_from_slice(b"\x0dANY obsoleted\x0cSee RFC 8482");
            });
            let head = Head { code: code::NOERROR, authoritative: false, authentic: false };
            return Ok(Settled { head, by: Plugin::Any });
        }
        let (name, kind, class) = match &request.rewritten {
            Some(rewritten) => (&rewritten.name, rewritten.kind, rewritten.class),
            None => (&question.name, question.kind, question.class),
        };
        if request.rewritten.is_some() {
            out.stands_for(name);
        }
        let zone = self.zone.as_ref().map(|zone| zone.read());
        let work = Work { request, config, zone: zone.as_deref(), kind, class, told };
        let first = work.follow(server, name, out)?;
        let completes = first.head.code == code::NXDOMAIN && first.by == Plugin::Kubernetes;
        let names = match (&server.autopath, work.zone) {
            (Some(path), Some(zone)) if completes && matches!(kind, kind::A | kind::AAAA) => {
                candidates(path, zone, name, request.peer)
            }
            _ => Vec::new(),
        };
        for candidate in names {
            out.clear();
            if let Some(settled) = work.complete(config, &candidate, out)? {
                self.metrics.completed();
                return Ok(settled);
            }
        }
        if completes {
            out.clear();
            if let Some(zone) = work.zone {
                authority(zone, Section::Authority, Owner::Named(zone.origin().wire()), out);
            }
        }
        Ok(first)
    }

    fn end(&self, request: &Request, server: Option<&Arc<Server>>, settled: &Settled, out: &mut Response) {
        let (question, mut head) = (&request.question, settled.head);
        if let Some(server) = server {
            if server.shuffle {
                out.rotate();
            }
            if let Some(rewritten) = &request.rewritten {
                head.code = rewritten.code(&server.rewrites, head.code);
                if rewritten.changes_records(&server.rewrites) {
                    change_back(question, rewritten, server, head, out);
                }
            }
        }
        let empty = out.is_empty();
        let most = server.and_then(|server| server.most_by_udp).unwrap_or(MOST_BY_UDP);
        let limit = match (request.transport, &question.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => LEAST_BY_UDP,
            (Transport::Udp, Some(edns)) => edns.size.clamp(LEAST_BY_UDP, most.max(LEAST_BY_UDP)),
        };
        head.authentic &= question.knows_authentic();
        let size = out.finish(question, head, usize::from(limit)).len();
        let took = request.started.elapsed();
        let counters = server.map_or(&self.dropped, |server| &server.counters);
        counters.answered(request.transport, settled.by, head.code, size, took);
        if server.and_then(|server| server.log).is_some_and(|log| log.wants(head.code, empty)) {
            // CoreDNS's common log format.
            tracing::info!(
                "{} - {} \"{} IN {} {} {} {}\" {} {size} {:.9}s",
                request.peer,
                question.id,
                RecordType::from(question.kind),
                question.name,
                if request.transport == Transport::Udp { "udp" } else { "tcp" },
                question.dnssec(),
                question.edns.map_or(LEAST_BY_UDP, |edns| edns.size),
                code::name(head.code),
                took.as_secs_f64(),
            );
        }
    }
}

/// One question while it is worked on.
struct Work<'a> {
    request: &'a Request,
    config: &'a Config,
    zone: Option<&'a Zone>,
    kind: u16,
    class: u16,
    told: &'a Told,
}

impl Work<'_> {
    /// Looks a name up, and what it is an alias of.
    fn follow(&self, server: &Arc<Server>, name: &Qname, out: &mut Response) -> Result<Settled, Box<Need>> {
        let (mut verdict, mut by) = self.local(server, name, out);
        let (mut name, mut aliased) = (name.clone(), false);
        while let Verdict::Alias(target) = verdict {
            aliased = true;
            let next = self.config.server(&target).filter(|_| out.follow(&target));
            match next {
                Some(next) => (verdict, by) = self.local(next, &target, out),
                None => verdict = Verdict::Found,
            }
            name = *target;
        }
        let told = |code, authoritative| Head { code, authoritative, authentic: false };
        let head = match verdict {
            Verdict::NotOurs => return self.outside(&name, aliased, out),
            // The alias itself is known whatever becomes of its target.
            _ if aliased => told(code::NOERROR, true),
            Verdict::Found | Verdict::NoData | Verdict::Alias(_) => told(code::NOERROR, true),
            Verdict::NoName => told(code::NXDOMAIN, true),
            Verdict::Told(code) => told(code, code != code::SERVFAIL),
            Verdict::Refused => told(code::REFUSED, false),
            Verdict::NotSynced | Verdict::Unknown => told(code::SERVFAIL, false),
        };
        if let (Verdict::NoData | Verdict::NoName, Plugin::Kubernetes, Some(zone)) = (&verdict, by, self.zone)
        {
            authority(zone, Section::Authority, Owner::Named(zone.origin().wire()), out);
        }
        Ok(Settled { head, by })
    }

    /// What is known here.
    fn local(&self, server: &Server, name: &Qname, out: &mut Response) -> (Verdict, Plugin) {
        for template in &server.templates {
            let found = template.answer(name, (self.class, self.kind), self.request.peer, out);
            if let Some(found) = found {
                return (found, Plugin::Template);
            }
        }
        if let Some((hosts, through)) = server.hosts.as_ref().filter(|_| self.class == IN) {
            match hosts.answer(name, self.kind, out) {
                Some(found) => return (found, Plugin::Hosts),
                None if !through.lets(name) => return (Verdict::Unknown, Plugin::Hosts),
                None => {}
            }
        }
        let (Some(kubernetes), Some(zone)) = (&server.kubernetes, self.zone) else {
            return (Verdict::NotOurs, Plugin::Forward);
        };
        let is_own = zone.origin().holds(name);
        if !is_own && !kubernetes.reverses(name) {
            return (Verdict::NotOurs, Plugin::Forward);
        }
        let verdict = match answer(zone, name, self.class, self.kind, out) {
            Verdict::NoName if kubernetes.through.lets(name) => Verdict::NotOurs,
            Verdict::NotOurs if !kubernetes.through.lets(name) => Verdict::NoName,
            verdict => verdict,
        };
        (verdict, Plugin::Kubernetes)
    }

    /// What upstreams say, or that they must be asked.
    fn outside(&self, name: &Qname, aliased: bool, out: &mut Response) -> Result<Settled, Box<Need>> {
        let head = |code| Head { code, authoritative: aliased, authentic: false };
        let failed = |code| Ok(Settled { head: head(code), by: Plugin::Forward });
        let by = self.config.server(name).and_then(|server| server.forward(name));
        let Some(by) = by.filter(|by| !by.loops.load(Ordering::Relaxed)) else {
            return failed(code::SERVFAIL);
        };
        let question = &self.request.question;
        let (answered, plugin) = match self.told.iter().find(|(ask, _)| ask.name == *name) {
            Some((_, Ok(answered))) => (answered.clone(), Plugin::Forward),
            Some((_, Err(Error::Busy))) => return failed(code::REFUSED),
            Some((_, Err(_))) => return failed(code::SERVFAIL),
            None => {
                let (dnssec, checking_disabled) = (question.dnssec(), question.checking_disabled());
                let (kind, class) = (self.kind, self.class);
                let options = self.request.rewritten.as_ref().map(|r| r.options.clone()).unwrap_or_default();
                let ask = Ask { name: name.clone(), kind, class, dnssec, checking_disabled, options };
                match by.forwarder.remembered(&ask) {
                    Some(answered) => (answered, Plugin::Cache),
                    None if self.told.len() >= MOST_NEEDS => return failed(code::SERVFAIL),
                    None => return Err(Box::new(Need { by: by.clone(), ask })),
                }
            }
        };
        for section in [Section::Answer, Section::Authority, Section::Additional] {
            out.extend(&answered.reply.records, section, |own| answered.life_of(own));
        }
        let by = if answered.cached { Plugin::Cache } else { plugin };
        let head = Head { authentic: answered.reply.authentic && !aliased, ..head(answered.reply.code) };
        Ok(Settled { head, by })
    }

    /// Tries one name of a search list: the answer is told as an alias, as CoreDNS's autopath does.
    fn complete(
        &self,
        config: &Config,
        candidate: &Qname,
        out: &mut Response,
    ) -> Result<Option<Settled>, Box<Need>> {
        let Some(server) = config.server(candidate) else { return Ok(None) };
        let ttl = self.zone.map_or(0, Zone::ttl).min(30);
        out.add(Section::Answer, Owner::Asked, kind::CNAME, ttl, |data| {
            data.extend_from_slice(candidate.wire())
        });
        out.follow(candidate);
        let settled = self.follow(server, candidate, out)?;
        match settled.head.code {
            code::NOERROR if out.answers() > 1 => Ok(Some(settled)),
            // There is such a name, but without such records.
            code::NOERROR => {
                out.clear();
                Ok(Some(settled))
            }
            _ => Ok(None),
        }
    }
}

/// Changes names in the answer as the rules say that changed the question.
fn change_back(question: &Question, rewritten: &Rewritten, server: &Server, head: Head, out: &mut Response) {
    let Ok(message) = Message::from_vec(out.finish(question, head, usize::from(u16::MAX))) else { return };
    out.begin(question);
    let mut records = Records::default();
    let sections = [
        (Section::Answer, message.answers),
        (Section::Authority, message.authorities),
        (Section::Additional, message.additionals),
    ];
    for (section, all) in sections {
        for mut record in all {
            rewritten.back(&server.rewrites, &mut record);
            records.add(section, &record);
        }
        out.extend(&records, section, |ttl| ttl);
    }
}
