//! Port-forward over WebSocket channels, the older way, which Python's client uses: the ports stand in the query, and
//! port number `i` of them has channel `2i` for data and `2i + 1` for errors. Each channel begins with its port as 16
//! bits, little endian. A port is one connection; the WebSocket ends with the last of them.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, frame::coding::CloseCode};

use super::port_forward::{Dial, Owner};
use super::websocket::{Protocol, decode, encode};

/// What has a channel number in a byte.
const MAX_PORTS: usize = 100;

/// The ports that a query names, several in one value or in several.
///
/// # Errors
/// With upstream's text.
pub fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (_, value) in form_urlencoded::parse(query.as_bytes()).filter(|(n, _)| n == "port" || n == "ports") {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".into());
        }
        for part in value.split(',') {
            match part.parse::<u16>() {
                Ok(0) => return Err(format!("port {value:?} must be > 0")),
                Ok(port) => ports.push(port),
                Err(error) => return Err(format!("unable to parse {value:?} as a port: {error}")),
            }
        }
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required".into()),
        1..=MAX_PORTS => Ok(ports),
        many => Err(format!("{many} ports are more than {MAX_PORTS}")),
    }
}

/// Serves a client until it goes or all its connections have ended.
pub async fn serve<S>(io: S, protocol: Protocol, ports: Vec<u16>, dial: Arc<dyn Dial>, owner: Owner)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (mut sink, mut stream) = socket.split();
    let (to_client, mut messages) = mpsc::channel(16);
    let mut inputs = Vec::with_capacity(ports.len());
    let mut running = JoinSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (input, from_client) = mpsc::channel(16);
        inputs.push(Some(input));
        let line = Line { port, data: 2 * index as u8, protocol, to_client: to_client.clone() };
        running.spawn(line.run(from_client, dial.clone(), owner.clone()));
    }
    // The messages end with the last line.
    drop(to_client);
    let read = async {
        while let Some(Ok(message)) = stream.next().await {
            let Some((channel, data)) = decode(protocol, message) else { continue };
            let place = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
            if let Some(place) = place
                && let Some(input) = place
                && input.send(data).await.is_err()
            {
                *place = None;
            }
        }
    };
    let write = async {
        while let Some(message) = messages.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(frame))).await;
    };
    // `running` ends with this function.
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// One port's two channels.
struct Line {
    port: u16,
    data: u8,
    protocol: Protocol,
    to_client: mpsc::Sender<Message>,
}

impl Line {
    async fn say(&self, channel: u8, bytes: &[u8]) -> Result<(), mpsc::error::SendError<Message>> {
        self.to_client.send(encode(self.protocol, channel, bytes)).await
    }

    async fn run(self, from_client: mpsc::Receiver<Bytes>, dial: Arc<dyn Dial>, owner: Owner) {
        let error = self.data + 1;
        for channel in [self.data, error] {
            if self.say(channel, &self.port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        match dial.dial(self.port).await {
            Ok(connection) => self.exchange(from_client, connection).await,
            Err(reason) => {
                // A client that has gone needs no message.
                let _ = self.say(error, owner.failure(self.port, &reason).as_bytes()).await;
            }
        }
    }

    async fn exchange(&self, mut from_client: mpsc::Receiver<Bytes>, connection: tokio::net::TcpStream) {
        let (mut from_pod, mut to_pod) = connection.into_split();
        let up = async {
            while let Some(bytes) = from_client.recv().await {
                if to_pod.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // What the Pod has said before still comes.
            std::future::pending::<()>().await;
        };
        let down = async {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(n @ 1..) = from_pod.read(&mut buffer).await {
                if self.say(self.data, &buffer[..n]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = up => {}, () = down => {} }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::stream::websocket::PORT_FORWARD;
    use async_trait::async_trait;
    use tokio::net::{TcpListener, TcpStream};

    /// Everything but port 9 leads to one listener.
    struct Listener(std::net::SocketAddr);

    #[async_trait]
    impl Dial for Listener {
        async fn dial(&self, port: u16) -> Result<TcpStream, String> {
            if port == 9 {
                return Err("nobody is there".into());
            }
            TcpStream::connect(self.0).await.map_err(|e| e.to_string())
        }
    }

    #[test]
    fn queries() {
        assert_eq!(ports("ports=80&ports=81,82"), Ok(vec![80, 81, 82]));
        assert_eq!(ports("port=80"), Ok(vec![80]));
        assert_eq!(ports("").unwrap_err(), "query parameter \"port\" is required");
        assert_eq!(ports("port=").unwrap_err(), "query parameter \"port\" cannot be empty");
        assert_eq!(ports("port=0").unwrap_err(), "port \"0\" must be > 0");
        assert!(ports("port=x").unwrap_err().starts_with("unable to parse \"x\" as a port"));
        assert!(ports(&"port=1&".repeat(101)).is_err());
    }

    #[tokio::test]
    async fn two_channels_per_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = Arc::new(Listener(listener.local_addr().unwrap()));
        let (ours, theirs) = tokio::io::duplex(4096);
        let owner = Owner { pod: "p_default".into(), uid: "u".into() };
        let served = tokio::spawn(serve(ours, PORT_FORWARD[0], vec![80, 9], dial, owner));
        let pod = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut said = [0; 5];
            connection.read_exact(&mut said).await.unwrap();
            connection.write_all(&said).await.unwrap();
        });
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        client.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
        let mut got = vec![Vec::new(); 4];
        loop {
            match client.next().await.unwrap().unwrap() {
                Message::Binary(frame) => got[usize::from(frame[0])].extend_from_slice(&frame[1..]),
                Message::Close(Some(frame)) => {
                    assert_eq!(frame.code, CloseCode::Normal);
                    break;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(got[0], b"\x50\0hello");
        assert_eq!((&got[1][..], &got[2][..]), (&b"\x50\0"[..], &b"\x09\0"[..]));
        assert_eq!(got[3], b"\x09\0error forwarding port 9 to pod p_default, uid u: nobody is there");
        served.await.unwrap();
        pod.await.unwrap();
    }
}
