//! Sockets: datagrams and connections in, answers out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, MOST};
use crate::respond::{Responder, Step, Transport};
use crate::wire::Response;

/// Connections at once.
const CONNECTIONS: usize = 1000;
/// How long a connection may be silent (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one socket that wait for upstreams at once.
const WAITING: usize = 10_000;
/// How long those may take that were asked before the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Questions that arrive faster than they are answered wait here, in octets.
const QUEUE: usize = 4 << 20;

/// A socket that shares its port with others like it: the kernel spreads clients over them.
pub(crate) fn shared_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(true)?;
    // As much as the kernel allows.
    let _ = socket.set_recv_buffer_size(QUEUE);
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Serves the sockets until `stop`.
pub(crate) async fn serve(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    responder: Arc<Responder>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for socket in udp {
        tasks.spawn(datagrams(Arc::new(socket), responder.clone(), stop.clone()));
    }
    for listener in tcp {
        tasks.spawn(connections(listener, responder.clone(), stop.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

async fn datagrams(socket: Arc<UdpSocket>, responder: Arc<Responder>, stop: CancellationToken) {
    let mut waiting = JoinSet::new();
    let mut batch = Batch::default();
    let mut answers: Vec<Response> = Vec::new();
    answers.resize_with(MOST, Response::default);
    loop {
        let received = tokio::select! {
            biased;
            received = batch.receive(&socket) => received,
            () = stop.cancelled() => break,
        };
        while waiting.try_join_next().is_some() {}
        let count = match received {
            Ok(count) => count,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let mut ready = [false; MOST];
        for index in 0..count {
            let Some(peer) = batch.peer(index) else { continue };
            let answer = &mut answers[index];
            match responder.begin(batch.question(index), peer.ip().to_canonical(), Transport::Udp, answer) {
                Step::Ignore => {}
                Step::Answer => ready[index] = true,
                Step::Forward(pending) if waiting.len() >= WAITING => {
                    responder.give_up(&pending, answer);
                    ready[index] = true;
                }
                Step::Forward(pending) => {
                    let (socket, responder) = (socket.clone(), responder.clone());
                    waiting.spawn(async move {
                        let bytes = responder.finish(*pending).await;
                        let _ = socket.send_to(&bytes, peer).await;
                    });
                }
            }
        }
        let ready: Vec<(usize, &[u8])> =
            (0..count).filter(|i| ready[*i]).map(|i| (i, answers[i].bytes())).collect();
        batch.send(&socket, &ready).await;
        answers.iter_mut().for_each(Response::shrink);
    }
    let _ = timeout(LAST_ANSWERS, async { while waiting.join_next().await.is_some() {} }).await;
}

async fn connections(listener: TcpListener, responder: Arc<Responder>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match (accepted, room.clone().try_acquire_owned()) {
            (Ok((stream, peer)), Ok(permit)) => {
                let responder = responder.clone();
                open.spawn(async move {
                    let _ = connection(stream, peer.ip().to_canonical(), &responder).await;
                    drop(permit);
                });
            }
            // Too many: the newcomer is closed.
            (Ok(_), Err(_)) => {}
            (Err(error), _) => pause(&error).await,
        }
    }
}

async fn connection(mut stream: TcpStream, peer: IpAddr, responder: &Responder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let len = timeout(IDLE, stream.read_u16()).await.map_err(late)??;
        let mut question = vec![0; usize::from(len)];
        timeout(IDLE, stream.read_exact(&mut question)).await.map_err(late)??;
        let mut out = Response::default();
        let answer = match responder.begin(&question, peer, Transport::Tcp, &mut out) {
            Step::Ignore => return Ok(()),
            Step::Answer => out.into_bytes(),
            Step::Forward(pending) => responder.finish(*pending).await,
        };
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&len.to_be_bytes(), &answer[..]].concat();
        timeout(IDLE, stream.write_all(&framed)).await.map_err(late)??;
    }
}

/// Errors of a listening socket pass (a lack of descriptors, say); spinning on them would not help.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "dns socket");
    tokio::time::sleep(Duration::from_millis(10)).await;
}
