//! Streams over WebSocket: `v5.channel.k8s.io` and its predecessors.
//!
//! ```text
//! binary frame:  channel (1 byte) | data
//! channels:      0 stdin  1 stdout  2 stderr  3 error (v1.Status)  4 resize ({"Width":80,"Height":24})
//! v5:            255 | channel    the sender closes that channel (kubectl: end of stdin)
//! base64:        text frames, the channel as a digit and the data in base64 (`base64.channel.k8s.io`)
//! ```
//! From v4 on the error channel carries a Status always; before, a text and only on failure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, frame::coding::CloseCode};

use super::{Output, Session, Size};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// How long a client may take to answer our closing.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(2);

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Its name on the wire; empty when the client named none.
    pub name: &'static str,
    /// 1 to 5.
    version: u8,
    base64: bool,
}

/// In the server's order of preference.
const PROTOCOLS: [Protocol; 8] = [
    Protocol { name: "v5.channel.k8s.io", version: 5, base64: false },
    Protocol { name: "v4.channel.k8s.io", version: 4, base64: false },
    Protocol { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    Protocol { name: "v3.channel.k8s.io", version: 3, base64: false },
    Protocol { name: "v2.channel.k8s.io", version: 2, base64: false },
    Protocol { name: "channel.k8s.io", version: 1, base64: false },
    Protocol { name: "base64.channel.k8s.io", version: 1, base64: true },
    Protocol { name: "", version: 1, base64: false },
];

/// What port-forward speaks over WebSocket channels.
pub const PORT_FORWARD: [Protocol; 3] = [PROTOCOLS[1], PROTOCOLS[2], PROTOCOLS[7]];

/// Whether the headers ask for a WebSocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name: header::HeaderName, word: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|w| w.trim().eq_ignore_ascii_case(word))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// The protocol that exec and attach speak, of those that the client offers; `None` when there is none in common.
pub fn choose(headers: &HeaderMap) -> Option<Protocol> {
    choose_of(&PROTOCOLS, headers)
}

/// The first of `protocols` that the client offers.
pub fn choose_of(protocols: &[Protocol], headers: &HeaderMap) -> Option<Protocol> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    let mut offered: Vec<&str> = values.flat_map(|v| v.split(',')).map(str::trim).collect();
    if offered.is_empty() {
        offered.push("");
    }
    protocols.iter().find(|p| offered.contains(&p.name)).copied()
}

/// Whether the client offers a protocol.
pub fn offers(headers: &HeaderMap, name: &str) -> bool {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|offered| offered.trim() == name)
}

/// The answer that switches protocols; `protocol` is empty when the client offered none.
///
/// # Errors
/// When the request is no proper handshake.
pub fn accept<B: Default>(headers: &HeaderMap, protocol: &'static str) -> Result<Response<B>, &'static str> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| "malformed Sec-WebSocket-Key")?;
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// The session of an upgraded connection, and the future that carries its bytes until it is over.
pub fn session(
    upgraded: hyper::upgrade::Upgraded,
    protocol: Protocol,
) -> (Session, impl Future<Output = ()> + Send + 'static) {
    over(TokioIo::new(upgraded), protocol)
}

/// The same over any connection on which the upgrade is done.
pub fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: S,
    protocol: Protocol,
) -> (Session, impl Future<Output = ()> + Send + 'static) {
    let (stdin_tx, stdin) = mpsc::channel(16);
    let (resize_tx, resize) = mpsc::channel(4);
    let (output, output_rx) = mpsc::channel(16);
    let carry = async move {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        carry(socket, protocol, stdin_tx, resize_tx, output_rx).await;
    };
    (Session { stdin, resize, output }, carry)
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    protocol: Protocol,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<Size>,
    mut output: mpsc::Receiver<Output>,
) {
    let (mut sink, mut stream) = socket.split();
    let read = async {
        let mut stdin = Some(stdin);
        while let Some(Ok(message)) = stream.next().await {
            let Some((channel, data)) = decode(protocol, message) else { continue };
            match channel {
                STDIN => {
                    if let Some(to) = &stdin
                        && to.send(data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RESIZE => {
                    if let Ok(size) = serde_json::from_slice(&data) {
                        // Without a terminal nobody takes sizes.
                        let _ = resize.try_send(size);
                    }
                }
                CLOSE if protocol.version >= 5 && data.first() == Some(&STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let write = async {
        // Clients wait for a frame on each channel to know that the streams are there.
        for channel in [STDIN, STDOUT, STDERR, ERROR] {
            if protocol.version < 4 && sink.send(encode(protocol, channel, b"")).await.is_err() {
                return;
            }
        }
        while let Some(output) = output.recv().await {
            let message = match output {
                Output::Stdout(data) => encode(protocol, STDOUT, &data),
                Output::Stderr(data) => encode(protocol, STDERR, &data),
                Output::Status(status) => match super::last_word(protocol.version, &status) {
                    Some(text) => encode(protocol, ERROR, text.as_bytes()),
                    None => continue,
                },
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.close().await;
    };
    {
        let (mut write, mut read) = (std::pin::pin!(write), std::pin::pin!(read));
        tokio::select! {
            // The client closes as well. A connection dropped with unread bytes is reset, and the reset would overtake
            // our last words.
            () = &mut write => drop(tokio::time::timeout(FAREWELL, &mut read).await),
            // The client has gone; dropping `output` tells the process' side.
            () = &mut read => {}
        }
    }
    if let Ok(mut socket) = sink.reunite(stream) {
        // The other end may be gone already.
        let _ = socket.get_mut().shutdown().await;
    }
}

pub(super) fn encode(protocol: Protocol, channel: u8, data: &[u8]) -> Message {
    if protocol.base64 {
        return Message::text(format!("{channel}{}", STANDARD.encode(data)));
    }
    let mut frame = Vec::with_capacity(1 + data.len());
    frame.push(channel);
    frame.extend_from_slice(data);
    Message::binary(frame)
}

/// Channel and data of a frame. Text and binary frames count alike: the Python client sends text as text.
pub(super) fn decode(protocol: Protocol, message: Message) -> Option<(u8, Bytes)> {
    let frame: Bytes = match message {
        Message::Binary(frame) => frame,
        Message::Text(text) => text.into(),
        _ => return None,
    };
    if !protocol.base64 {
        return frame.first().copied().map(|channel| (channel, frame.slice(1..)));
    }
    let (channel, data) = frame.split_first()?;
    let channel = channel.checked_sub(b'0').filter(|c| *c <= 9)?;
    Some((channel, STANDARD.decode(data).ok()?.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (k.parse().unwrap(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn negotiation() {
        let offer = |text| choose(&headers(&[("sec-websocket-protocol", text)])).map(|p| p.name);
        assert_eq!(offer("v5.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(offer("channel.k8s.io, v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(offer("chat"), None);
        assert_eq!(choose(&HeaderMap::new()).map(|p| p.name), Some(""));
        assert!(is_upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])));
        assert!(!is_upgrade(&headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])));
        // RFC 6455 section 1.3.
        let request = headers(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
        let answer = accept::<()>(&request, PROTOCOLS[0].name).unwrap();
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    async fn conversation(protocol: Protocol, sent: Vec<Message>) -> (Vec<Bytes>, Vec<Message>) {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut session, carry) = over(ours, protocol);
        let carry = tokio::spawn(carry);
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        for message in sent {
            client.send(message).await.unwrap();
        }
        let mut stdin = Vec::new();
        while let Some(bytes) = session.stdin.recv().await {
            stdin.push(bytes);
        }
        assert_eq!(session.resize.recv().await, Some(Size { width: 80, height: 24 }));
        session.output.send(Output::Stdout(Bytes::from_static(b"out"))).await.unwrap();
        session.output.send(Output::Status(json!({"status": "Success"}))).await.unwrap();
        drop(session);
        let mut got = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            got.push(message);
        }
        carry.await.unwrap();
        (stdin, got)
    }

    #[tokio::test]
    async fn version_five_closes_stdin_and_goes_on() {
        let size = b"\x04{\"Width\":80,\"Height\":24}".to_vec();
        let sent = vec![
            Message::binary(size),
            Message::binary(b"\x00hello".to_vec()),
            Message::binary(b"\xff\x00".to_vec()),
        ];
        let (stdin, got) = conversation(PROTOCOLS[0], sent).await;
        assert_eq!(stdin, [Bytes::from_static(b"hello")]);
        assert_eq!(got[0], Message::binary(b"\x01out".to_vec()));
        assert_eq!(got[1], Message::binary(b"\x03{\"status\":\"Success\"}".to_vec()));
        assert!(matches!(got[2], Message::Close(_)));
    }

    #[test]
    fn base64_frames() {
        let protocol = PROTOCOLS[6];
        let message = encode(protocol, STDOUT, b"hi");
        assert_eq!(message, Message::text("1aGk="));
        assert_eq!(decode(protocol, message), Some((STDOUT, Bytes::from_static(b"hi"))));
        assert_eq!(decode(protocol, Message::text("")), None);
        assert_eq!(decode(PROTOCOLS[0], Message::binary(Vec::new())), None);
    }
}
