//! Sockets: datagrams and connections in, answers out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::respond::{Responder, Step, Transport};

/// Connections at once.
const CONNECTIONS: usize = 1000;
/// How long a connection may be silent (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

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
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = waiting.join_next(), if !waiting.is_empty() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (len, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        match responder.begin(&buffer[..len], Transport::Udp) {
            Step::Ignore => {}
            Step::Answer(bytes) => {
                let _ = socket.send_to(&bytes, peer).await;
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
            (Ok((stream, _)), Ok(permit)) => {
                let responder = responder.clone();
                open.spawn(async move {
                    let _ = connection(stream, &responder).await;
                    drop(permit);
                });
            }
            // Too many: the newcomer is closed.
            (Ok(_), Err(_)) => {}
            (Err(error), _) => pause(&error).await,
        }
    }
}

async fn connection(mut stream: TcpStream, responder: &Responder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let len = timeout(IDLE, stream.read_u16()).await.map_err(late)??;
        let mut question = vec![0; usize::from(len)];
        timeout(IDLE, stream.read_exact(&mut question)).await.map_err(late)??;
        let answer = match responder.begin(&question, Transport::Tcp) {
            Step::Ignore => return Ok(()),
            Step::Answer(bytes) => bytes,
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
