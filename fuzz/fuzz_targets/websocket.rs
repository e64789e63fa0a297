//! What a client sends over a WebSocket: bytes of any kind end the session without a panic; frames of the channel protocols
//! and of a tunnel arrive as they were sent.
#![no_main]

use std::sync::LazyLock;

use futures::SinkExt;
use kubelet::stream::tunnel::Tunnel;
use kubelet::stream::websocket::{choose, over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"));
const NAMES: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"];

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<Vec<u8>>)| {
    let (which, chunks) = input;
    let total: usize = chunks.iter().map(Vec::len).sum();
    let room = 64 * chunks.len() + 2 * total + 4096;
    RUNTIME.block_on(async {
        let (ours, theirs) = tokio::io::duplex(room);
        match which % 3 {
            0 => raw(ours, theirs, which / 3, &chunks).await,
            1 => frames(ours, theirs, &chunks).await,
            _ => tunnel(ours, theirs, &chunks).await,
        }
    });
});

/// Bytes as they are.
async fn raw(
    ours: tokio::io::DuplexStream,
    mut theirs: tokio::io::DuplexStream,
    name: u8,
    chunks: &[Vec<u8>],
) {
    let mut headers = http::HeaderMap::new();
    let name = NAMES[usize::from(name) % NAMES.len()];
    headers.insert("sec-websocket-protocol", http::HeaderValue::from_static(name));
    let (mut session, carry) = over(ours, choose(&headers).expect("a protocol"));
    let client = async {
        for chunk in chunks {
            if theirs.write_all(chunk).await.is_err() {
                return;
            }
        }
        drop(theirs);
    };
    let process = async {
        while session.stdin.recv().await.is_some() {}
        drop(session);
    };
    tokio::join!(client, process, carry);
}

/// Standard input, byte by byte what the client sent on channel 0 until it closed that.
async fn frames(ours: tokio::io::DuplexStream, theirs: tokio::io::DuplexStream, chunks: &[Vec<u8>]) {
    let mut headers = http::HeaderMap::new();
    headers.insert("sec-websocket-protocol", http::HeaderValue::from_static(NAMES[0]));
    let (mut session, carry) = over(ours, choose(&headers).expect("a protocol"));
    let closes = |chunk: &&Vec<u8>| chunk.starts_with(&[255, 0]);
    let open = chunks.iter().take_while(|chunk| !closes(chunk));
    let wanted: Vec<u8> = open.filter(|c| c.first() == Some(&0)).flat_map(|c| &c[1..]).copied().collect();
    let client = async {
        let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        for chunk in chunks {
            socket.send(Message::binary(chunk.clone())).await.expect("room");
        }
        // Whoever goes is not heard any more.
        let _ = socket.close(None).await;
    };
    let process = async {
        let mut got = Vec::new();
        while let Some(bytes) = session.stdin.recv().await {
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, wanted);
        drop(session);
    };
    tokio::join!(client, process, carry);
}

/// Messages are a stream of bytes.
async fn tunnel(ours: tokio::io::DuplexStream, theirs: tokio::io::DuplexStream, chunks: &[Vec<u8>]) {
    let mut tunnel = Tunnel::new(ours).await;
    let client = async {
        let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        for chunk in chunks {
            socket.send(Message::binary(chunk.clone())).await.expect("room");
        }
        let _ = socket.close(None).await;
    };
    let server = async {
        let mut got = Vec::new();
        let _ = tunnel.read_to_end(&mut got).await;
        assert_eq!(got, chunks.concat());
    };
    tokio::join!(client, server);
}
