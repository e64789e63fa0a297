//! One question, one server, one answer.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Upstreams;
use super::servers::Server;
use crate::cache::{Ask, Reply};
use crate::wire::{HEADER, Section, UDP_SIZE, code, kind};

/// How long one server may take for one try.
const PATIENCE: Duration = Duration::from_secs(2);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection to a server.
pub(super) struct Connection(Box<dyn Stream>);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// Asks a server; `left` is what is left of the client's patience.
pub(super) async fn exchange(
    server: &Server,
    upstreams: &Upstreams,
    ask: &Ask,
    left: Duration,
) -> io::Result<Reply> {
    let reply = send(server, upstreams, &Request::new(ask, true, true), left).await?;
    if !matches!(reply.code, code::FORMERR | code::NOTIMP) || ask.dnssec {
        return Ok(reply);
    }
    // There are servers that do not know EDNS.
    send(server, upstreams, &Request::new(ask, false, true), left).await
}

/// Finds out whether a server is there; any answer will do.
pub(super) async fn probe(server: &Server, upstreams: &Upstreams) -> bool {
    let request = Request::new(&upstreams.health.ask(), false, upstreams.health.recurse);
    send(server, upstreams, &request, PATIENCE).await.is_ok()
}

async fn send(
    server: &Server,
    upstreams: &Upstreams,
    request: &Request,
    left: Duration,
) -> io::Result<Reply> {
    let patience = PATIENCE.min(left);
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    if !server.by_tls && !upstreams.force_tcp {
        match timeout(patience, by_udp(server.addr, request)).await.map_err(late)?? {
            Datagram::Whole(reply) => return Ok(reply),
            // What was cut, or spelled in another way than we did, is asked for by a way that cannot be forged.
            Datagram::AskByTcp => {}
        }
    }
    // Boxed, so that who asks by UDP does not carry a TLS handshake.
    timeout(patience, Box::pin(by_stream(server, upstreams, request))).await.map_err(late)?
}

/// A question as it is sent, in a spelling of its own.
struct Request {
    bytes: Vec<u8>,
    question: std::ops::Range<usize>,
}

impl Request {
    fn new(ask: &Ask, edns: bool, recurse: bool) -> Self {
        let id: u16 = rand::random();
        let mut bytes = Vec::with_capacity(HEADER + ask.name.wire().len() + 4 + 11);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&[u8::from(recurse), u8::from(ask.checking_disabled) << 4]);
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        for label in ask.name.iter() {
            bytes.push(label.len() as u8);
            let noise: u64 = rand::random();
            bytes.extend(
                label
                    .iter()
                    .enumerate()
                    .map(|(i, byte)| if noise >> i & 1 == 1 { byte.to_ascii_uppercase() } else { *byte }),
            );
        }
        bytes.push(0);
        bytes.extend_from_slice(&ask.kind.to_be_bytes());
        bytes.extend_from_slice(&ask.class.to_be_bytes());
        let question = HEADER..bytes.len();
        if edns {
            bytes.extend_from_slice(&[0, 0, kind::OPT as u8]);
            bytes.extend_from_slice(&UDP_SIZE.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, u8::from(ask.dnssec) << 7, 0]);
            bytes.extend_from_slice(&(ask.options.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&ask.options);
        }
        Self { bytes, question }
    }

    fn belongs(&self, reply: &[u8]) -> Belongs {
        let asked = &self.bytes[self.question.clone()];
        let told = reply.get(self.question.clone()).unwrap_or_default();
        let head = reply.len() >= HEADER && reply[..2] == self.bytes[..2] && reply[2] & 0x80 != 0;
        if !head {
            return Belongs::No;
        }
        let (name, fixed) = asked.split_at(asked.len() - 4);
        match told.split_at_checked(name.len()) {
            Some((other, rest)) if reply[4..6] == [0, 1] && rest == fixed => match other {
                same if same == name => Belongs::Yes,
                other if other.eq_ignore_ascii_case(name) => Belongs::Misspelled,
                _ => Belongs::No,
            },
            // Servers that do not understand a message answer with its header alone.
            _ if reply.len() == HEADER && reply[4..6] == [0, 0] => Belongs::Yes,
            _ => Belongs::No,
        }
    }
}

/// Whether a message answers what was asked; anything else is a stray or a forgery.
#[derive(Debug, PartialEq, Eq)]
enum Belongs {
    Yes,
    No,
    Misspelled,
}

enum Datagram {
    Whole(Reply),
    AskByTcp,
}

fn read(bytes: &[u8]) -> io::Result<Reply> {
    let message = Message::from_vec(bytes).map_err(io::Error::other)?;
    // Records of an update (RFC 2136) may have no data: nobody who asked could read them.
    if message.metadata.op_code != OpCode::Query {
        return Err(io::Error::other("answers no query"));
    }
    let mut reply = Reply {
        code: u16::from(message.metadata.response_code),
        authentic: message.metadata.authentic_data,
        ..Reply::default()
    };
    let sections = [
        (Section::Answer, &message.answers),
        (Section::Authority, &message.authorities),
        (Section::Additional, &message.additionals),
    ];
    for (section, records) in sections {
        records.iter().for_each(|record| reply.records.add(section, record));
    }
    reply.records.shrink();
    Ok(reply)
}

async fn by_udp(server: SocketAddr, request: &Request) -> io::Result<Datagram> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&request.bytes).await?;
    loop {
        // Thousands may wait here, so nothing is kept for the answer before it has come.
        socket.readable().await?;
        match datagram(&socket, request) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has come, if it answers the request.
fn datagram(socket: &UdpSocket, request: &Request) -> io::Result<Option<Datagram>> {
    let mut buffer = [0; 4096];
    let len = socket.try_recv(&mut buffer)?;
    let bytes = &buffer[..len];
    Ok(match request.belongs(bytes) {
        Belongs::No => None,
        Belongs::Misspelled => Some(Datagram::AskByTcp),
        Belongs::Yes if bytes[2] & 2 != 0 => Some(Datagram::AskByTcp),
        Belongs::Yes => read(bytes).ok().map(Datagram::Whole),
    })
}

async fn by_stream(server: &Server, upstreams: &Upstreams, request: &Request) -> io::Result<Reply> {
    // A connection that waited may have been closed meanwhile.
    while let Some(mut kept) = server.take(upstreams.expire) {
        if let Ok(reply) = talk(&mut kept, request).await {
            server.reused.fetch_add(1, Ordering::Relaxed);
            server.keep(kept);
            return Ok(reply);
        }
    }
    server.opened.fetch_add(1, Ordering::Relaxed);
    let stream = TcpStream::connect(server.addr).await?;
    stream.set_nodelay(true)?;
    let mut connection = if server.by_tls {
        let name = upstreams.tls.name.clone().unwrap_or(ServerName::IpAddress(server.addr.ip().into()));
        let connector = tokio_rustls::TlsConnector::from(upstreams.tls.config.clone());
        Connection(Box::new(connector.connect(name, stream).await?))
    } else {
        Connection(Box::new(stream))
    };
    let reply = talk(&mut connection, request).await?;
    server.keep(connection);
    Ok(reply)
}

async fn talk(connection: &mut Connection, request: &Request) -> io::Result<Reply> {
    let stream = &mut connection.0;
    let len = u16::try_from(request.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), &request.bytes[..]].concat()).await?;
    stream.flush().await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    match request.belongs(&buffer) {
        // Nobody else can answer here, so the spelling proves nothing.
        Belongs::Yes | Belongs::Misspelled => read(&buffer),
        Belongs::No => Err(io::Error::other("answers another question")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::name::Qname;
    use crate::wire::IN;

    #[test]
    fn an_update_is_no_answer() {
        // An A record without data, found by the fuzz target `dns_answer`.
        let mut bytes = vec![0x85, 0x8c, 0xa8, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1];
        bytes.extend([0; 6]);
        assert!(Message::from_vec(&bytes).is_ok_and(|message| message.answers.len() == 1));
        assert!(read(&bytes).is_err());
    }

    fn request() -> Request {
        Request::new(&Ask::plain(&Qname::parse("www.example.org").unwrap(), kind::A, IN), true, true)
    }

    #[test]
    fn ids_and_spellings_differ_from_question_to_question() {
        let all: Vec<Request> = (0..50).map(|_| request()).collect();
        let distinct = |part: fn(&Request) -> Vec<u8>| {
            all.iter().map(part).collect::<std::collections::HashSet<_>>().len()
        };
        assert!(distinct(|r| r.bytes[..2].to_vec()) > 40);
        assert!(distinct(|r| r.bytes[r.question.clone()].to_vec()) > 40);
        assert!(
            all.iter().all(|r| hickory_proto::op::Message::from_vec(&r.bytes).unwrap().queries.len() == 1)
        );
    }

    #[test]
    fn only_the_answer_to_this_very_question_belongs_to_it() {
        let request = request();
        let mut reply = request.bytes.clone();
        assert_eq!(request.belongs(&reply), Belongs::No, "a question");
        reply[2] |= 0x80;
        assert_eq!(request.belongs(&reply), Belongs::Yes);
        for at in [0, 1, HEADER + 1, HEADER + 18, HEADER + 20] {
            let mut forged = reply.clone();
            forged[at] ^= 0x01;
            assert_eq!(request.belongs(&forged), Belongs::No, "{at}");
        }
        reply[HEADER + 1] ^= 0x20;
        assert_eq!(request.belongs(&reply), Belongs::Misspelled);
        assert_eq!(request.belongs(&reply[..HEADER]), Belongs::No);
        assert_eq!(request.belongs(&[]), Belongs::No);
    }
}
