//! Names to addresses as a Pod's libc does it: `/etc/hosts`, then the search list of `/etc/resolv.conf` with `ndots`.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

use crate::{Error, Result};

/// What `/etc/resolv.conf` says (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers, in order.
    pub servers: Vec<SocketAddr>,
    /// Search domains, in order.
    pub search: Vec<String>,
    /// Names with at least so many dots are tried as they are first.
    pub ndots: usize,
}

impl Resolver {
    /// Reads the text of a resolv.conf; what is not understood is passed over, as libc does.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                    resolver.servers.extend(address.map(|a| SocketAddr::new(a, 53)));
                }
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let dots = words.filter_map(|w| w.strip_prefix("ndots:")?.parse().ok()).next_back();
                    resolver.ndots = dots.unwrap_or(resolver.ndots).min(15);
                }
                _ => {}
            }
        }
        resolver
    }

    /// The Pod's own.
    pub fn of_pod() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// The full names to try for a name, in order.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let as_is = if name.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(as_is, name.to_owned());
        names
    }

    /// Asks the servers in order for one full name; the first that answers counts.
    ///
    /// # Errors
    /// When none answers within five seconds each.
    pub async fn query(&self, name: &str, kind: RecordType) -> Result<(SocketAddr, Message)> {
        let mut last = Error::Dns("no name server in /etc/resolv.conf".into());
        for server in &self.servers {
            match tokio::time::timeout(Duration::from_secs(5), ask(*server, name, kind)).await {
                Ok(Ok(answer)) => return Ok((*server, answer)),
                Ok(Err(error)) => last = error,
                Err(_) => last = Error::Dns(";; connection timed out; no servers could be reached".into()),
            }
        }
        Err(last)
    }

    /// All addresses of a name: literal, from `/etc/hosts`, or the first candidate that has any.
    ///
    /// # Errors
    /// [`Error::Name`] when there is none.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        if let Ok(literal) = name.parse() {
            return Ok(vec![literal]);
        }
        let hosts = in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), name);
        if !hosts.is_empty() {
            return Ok(hosts);
        }
        for candidate in self.candidates(name) {
            for kind in [RecordType::A, RecordType::AAAA] {
                let (_, answer) =
                    self.query(&candidate, kind).await.map_err(|_| Error::Name(name.to_owned()))?;
                let found = addresses_in(&answer);
                if !found.is_empty() {
                    return Ok(found);
                }
                if answer.response_code == ResponseCode::NXDomain {
                    break;
                }
            }
        }
        Err(Error::Name(name.to_owned()))
    }
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Result<Message> {
    let fqdn = Name::from_str(&format!("{name}.")).map_err(|e| Error::Dns(format!("{name}: {e}")))?;
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(fqdn, kind));
    let bytes = question.to_vec().map_err(|e| Error::Dns(e.to_string()))?;
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let io = |e| Error::io(format!("ask {server}"), e);
    let socket = UdpSocket::bind(local).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    let mut buffer = vec![0; 4096];
    loop {
        socket.send(&bytes).await.map_err(io)?;
        let Ok(received) = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await
        else {
            continue;
        };
        let answer = Message::from_vec(&buffer[..received.map_err(io)?]);
        if let Ok(answer) = answer
            && answer.metadata.id == question.metadata.id
            && answer.queries == question.queries
        {
            return Ok(answer);
        }
    }
}

/// The addresses among the answers.
pub fn addresses_in(answer: &Message) -> Vec<IpAddr> {
    let address = |record: &hickory_proto::rr::Record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|l| l.split('#').next().unwrap_or_default());
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|w| w.eq_ignore_ascii_case(name)).then_some(address)
    };
    lines.filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";

    #[test]
    fn a_short_name_walks_the_search_list_first() {
        let resolver = Resolver::parse(POD);
        assert_eq!(resolver.servers, [SocketAddr::from(([10, 96, 0, 10], 53))]);
        let names = resolver.candidates("nginx-app");
        assert_eq!(names[0], "nginx-app.default.svc.cluster.local");
        assert_eq!(names[3], "nginx-app");
        assert_eq!(resolver.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(resolver.candidates("example.org."), ["example.org"]);
    }

    #[test]
    fn hosts_are_matched_by_any_name_of_the_line() {
        let text = "127.0.0.1 localhost\n10.1.2.3 pod-a a # b\n";
        assert_eq!(in_hosts(text, "A"), [IpAddr::from([10, 1, 2, 3])]);
        assert!(in_hosts(text, "b").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses(text in "(?s).{0,200}") {
            let resolver = Resolver::parse(&text);
            proptest::prop_assert!(resolver.candidates("x").contains(&"x".to_owned()));
        }
    }
}
