//! Streams over SPDY/3.1: what kubectl up to 1.29 speaks, and newer ones fall back to.
//!
//! The request names its protocols in `X-Stream-Protocol-Version`, the answer the chosen one. Then the client opens a
//! SPDY stream per channel, named by the header `streamType`: `error`, `stdin`, `stdout`, `stderr`, and `resize` with a
//! terminal from v3 on. From v4 on the error stream carries a Status always; before, a text and only on failure.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use spdy::frame::reset;
use spdy::{Incoming, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Output, Session, Size, Wanted};

/// Names the protocols that a client offers, and the one that was chosen.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Names what the server would have accepted.
pub const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What exec and attach speak over SPDY.
pub const PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How long a client may take to open its streams, as upstream.
pub const CREATION: Duration = Duration::from_secs(30);
/// Longer than any terminal's size in JSON.
const MAX_SIZE: usize = 4096;

/// Whether the headers ask for SPDY/3.1.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    words(headers, &header::CONNECTION).any(|w| w.eq_ignore_ascii_case("upgrade"))
        && words(headers, &header::UPGRADE).any(|w| w.eq_ignore_ascii_case("SPDY/3.1"))
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|w| !w.is_empty())
}

/// Why there is no protocol to speak.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client names none.
    #[error("unable to upgrade: X-Stream-Protocol-Version is required")]
    Missing,
    /// None in common.
    #[error(
        "unable to upgrade: unable to negotiate protocol: client supports [{offered}], server accepts [{accepted}]"
    )]
    NoneInCommon {
        /// By the client.
        offered: String,
        /// By the server.
        accepted: String,
    },
}

/// The first of the client's protocols that the server speaks.
///
/// # Errors
/// When there is none.
pub fn negotiate(headers: &HeaderMap, accepted: &[&'static str]) -> Result<&'static str, Refusal> {
    let offered: Vec<&str> = words(headers, &PROTOCOL_VERSION).collect();
    if offered.is_empty() {
        return Err(Refusal::Missing);
    }
    let chosen = offered.iter().find_map(|o| accepted.iter().find(|a| *a == o));
    chosen
        .copied()
        .ok_or_else(|| Refusal::NoneInCommon { offered: offered.join(" "), accepted: accepted.join(" ") })
}

/// The answer that switches protocols.
pub fn accept<B: Default>(protocol: &'static str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    answer.insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    response
}

/// The session of an upgraded connection once the client has opened its streams, and the future that carries its bytes
/// until it is over; none when the client does not open them.
pub async fn session<T>(
    io: T,
    protocol: &'static str,
    wanted: Wanted,
) -> Option<(Session, impl Future<Output = ()> + Send + 'static)>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, incoming) = spdy::Session::server(io);
    let version = version(protocol);
    let Ok(streams) = tokio::time::timeout(CREATION, gather(incoming, wanted, version)).await else {
        tracing::debug!("timed out waiting for client to create streams");
        return None;
    };
    let streams = streams?;
    let (stdin_tx, stdin) = mpsc::channel(16);
    let (resize_tx, resize) = mpsc::channel(4);
    let (output, output_rx) = mpsc::channel(16);
    let carry = carry(connection, streams, version, stdin_tx, resize_tx, output_rx);
    Some((Session { stdin, resize, output }, carry))
}

fn version(protocol: &str) -> u8 {
    match protocol {
        "v4.channel.k8s.io" => 4,
        "v3.channel.k8s.io" => 3,
        "v2.channel.k8s.io" => 2,
        _ => 1,
    }
}

/// The channels of one client.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Accepts streams until all that were asked for are there; none when the client goes before.
async fn gather(mut incoming: Incoming, wanted: Wanted, version: u8) -> Option<Streams> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let mut streams = Streams::default();
    let complete = |s: &Streams| {
        s.error.is_some()
            && (s.stdin.is_some() || !stdin)
            && (s.stdout.is_some() || !stdout)
            && (s.stderr.is_some() || !stderr || tty)
            && (s.resize.is_some() || !tty || version < 3)
    };
    while !complete(&streams) {
        let pending = incoming.next().await?;
        let place = match pending.headers().get("streamType") {
            Some("error") => &mut streams.error,
            Some("stdin") => &mut streams.stdin,
            Some("stdout") => &mut streams.stdout,
            Some("stderr") => &mut streams.stderr,
            Some("resize") => &mut streams.resize,
            other => {
                tracing::debug!(kind = ?other, "unexpected stream type");
                pending.reject(reset::CANCEL);
                continue;
            }
        };
        *place = Some(pending.accept());
    }
    Some(streams)
}

async fn carry(
    connection: spdy::Session,
    streams: Streams,
    version: u8,
    stdin_tx: mpsc::Sender<Bytes>,
    resize_tx: mpsc::Sender<Size>,
    mut output: mpsc::Receiver<Output>,
) {
    let Streams { mut error, stdin, mut stdout, mut stderr, resize } = streams;
    let input = async {
        tokio::join!(feed(stdin, stdin_tx), sizes(resize, resize_tx));
        std::future::pending::<()>().await;
    };
    let write = async {
        while let Some(output) = output.recv().await {
            let (stream, data) = match output {
                Output::Stdout(data) => (&mut stdout, data),
                Output::Stderr(data) => (&mut stderr, data),
                Output::Status(status) => {
                    (&mut error, super::last_word(version, &status).unwrap_or_default().into())
                }
            };
            // A single stream that the client has reset does not end the others.
            if let Some(to) = stream
                && to.write_all(&data).await.is_err()
            {
                *stream = None;
            }
        }
        for stream in [&mut stdout, &mut stderr, &mut error].into_iter().flatten() {
            // Only fails when the client is gone.
            let _ = stream.shutdown().await;
        }
    };
    tokio::select! {
        () = write => {}
        () = input => {}
        // The client has gone; dropping `output` tells the process' side.
        () = connection.closed() => return,
    }
    connection.close().await;
}

async fn feed(stdin: Option<Stream>, to: mpsc::Sender<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(32 * 1024);
        match stdin.read_buf(&mut buffer).await {
            // Both halves are closed then, and nothing is left to reset.
            Ok(0) => return drop(stdin.shutdown().await),
            Ok(_) if to.send(buffer.split().freeze()).await.is_ok() => {}
            _ => return,
        }
    }
}

/// Sizes come as JSON objects one behind the other.
async fn sizes(resize: Option<Stream>, to: mpsc::Sender<Size>) {
    let Some(mut resize) = resize else { return };
    let mut buffer = Vec::new();
    while let Ok(1..) = resize.read_buf(&mut buffer).await {
        let mut parsed = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
        let mut last = None;
        while let Some(Ok(size)) = parsed.next() {
            last = Some(size);
        }
        buffer.drain(..parsed.byte_offset());
        if let Some(size) = last {
            // Without a terminal nobody takes sizes.
            let _ = to.try_send(size);
        }
        if buffer.len() > MAX_SIZE {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use ::spdy::{Decoder, Encoder, Frame};
    use serde_json::json;

    /// A client that opens these streams, says `said`, and hears everything until it is told to go.
    async fn conversation(
        protocol: &'static str,
        wanted: Wanted,
        kinds: &[&str],
        said: Vec<Frame>,
        last: serde_json::Value,
    ) -> (Vec<Bytes>, Option<Size>, Vec<Frame>) {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        let opening = kinds.iter().zip((1..).step_by(2)).map(|(kind, id)| Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: [("streamtype", *kind)].into_iter().collect(),
        });
        for frame in opening.chain(said) {
            encoder.encode(&frame, &mut out).unwrap();
        }
        theirs.write_all(&out).await.unwrap();
        let (mut session, carry) = session(ours, protocol, wanted).await.unwrap();
        let carry = tokio::spawn(carry);
        let mut stdin = Vec::new();
        while let Some(bytes) = session.stdin.recv().await {
            stdin.push(bytes);
        }
        let size = if wanted.tty { session.resize.recv().await } else { None };
        session.output.send(Output::Stdout(Bytes::from_static(b"out"))).await.unwrap();
        session.output.send(Output::Status(last)).await.unwrap();
        drop(session);
        let (mut decoder, mut input, mut got) = (Decoder::default(), BytesMut::new(), Vec::new());
        'hear: loop {
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                match (frame, got.last_mut()) {
                    (Frame::GoAway { .. }, _) => break 'hear,
                    // A frame may come in pieces.
                    (
                        Frame::Data { id, fin: false, data },
                        Some(Frame::Data { id: same, fin: false, data: begun }),
                    ) if *same == id => {
                        *begun = [begun.as_ref(), data.as_ref()].concat().into();
                    }
                    (frame, _) => got.push(frame),
                }
            }
            assert!(theirs.read_buf(&mut input).await.unwrap() > 0, "GOAWAY comes before the end");
        }
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(5), carry).await.unwrap().unwrap();
        (stdin, size, got)
    }

    fn data(id: u32, fin: bool, data: &'static [u8]) -> Frame {
        Frame::Data { id, fin, data: Bytes::from_static(data) }
    }

    #[tokio::test]
    async fn version_four_has_a_status_and_a_terminal() {
        let wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
        let said = vec![
            data(7, false, b"{\"Width\":80,\"Hei"),
            data(7, false, b"ght\":24}\n"),
            data(3, false, b"hello"),
            data(3, true, b""),
        ];
        let kinds = ["error", "stdin", "stdout", "resize"];
        let (stdin, size, got) =
            conversation("v4.channel.k8s.io", wanted, &kinds, said, json!({"status": "Success"})).await;
        assert_eq!(stdin.concat(), b"hello");
        assert_eq!(size, Some(Size { width: 80, height: 24 }));
        for expected in [
            data(5, false, b"out"),
            data(5, true, b""),
            data(1, false, b"{\"status\":\"Success\"}"),
            data(1, true, b""),
            data(3, true, b""),
        ] {
            assert!(got.contains(&expected), "{expected:?} in {got:?}");
        }
    }

    #[tokio::test]
    async fn versions_before_have_a_text_and_only_on_failure() {
        let wanted = Wanted { stdout: true, ..Wanted::default() };
        let kinds = ["error", "nonsense", "stdout"];
        let failed = json!({"status": "Failure", "message": "it broke"});
        let (_, _, got) = conversation("v2.channel.k8s.io", wanted, &kinds, Vec::new(), failed).await;
        assert!(got.contains(&data(1, false, b"it broke")), "{got:?}");
        assert!(got.contains(&Frame::RstStream { id: 3, status: reset::CANCEL }), "{got:?}");
        let succeeded = json!({"status": "Success"});
        let (_, _, got) = conversation("channel.k8s.io", wanted, &kinds, Vec::new(), succeeded).await;
        assert!(got.contains(&data(1, true, b"")), "{got:?}");
        assert!(!got.iter().any(|f| matches!(f, Frame::Data { id: 1, data, .. } if !data.is_empty())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_its_streams_is_not_waited_for_long() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let before = tokio::time::Instant::now();
        let wanted = Wanted { stdout: true, ..Wanted::default() };
        assert!(session(ours, PROTOCOLS[0], wanted).await.is_none());
        assert_eq!(before.elapsed().as_secs(), CREATION.as_secs());
        drop(theirs);
    }
}
