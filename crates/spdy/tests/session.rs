//! The server's session against a client written here: streams, half-close, resets, backpressure, ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use spdy::frame::{goaway, reset};
use spdy::{Decoder, Encoder, Frame, Headers, Incoming, Session, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

/// The client's side, frame by frame.
struct Client {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

impl Client {
    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    async fn open(&mut self, id: u32, kind: &str) {
        let headers = [("streamtype", kind)].into_iter().collect();
        self.send(Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers,
        })
        .await;
    }

    async fn data(&mut self, id: u32, data: &'static [u8], fin: bool) {
        self.send(Frame::Data { id, fin, data: Bytes::from_static(data) }).await;
    }

    /// The next frame; none when the server hung up.
    async fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            let read = timeout(Duration::from_secs(5), self.io.read_buf(&mut self.input));
            if read.await.expect("the server says something").unwrap() == 0 {
                return None;
            }
        }
    }

    /// All bytes of a stream up to its end, and the windows that were reopened on the way.
    async fn collect(&mut self, wanted: u32) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            match self.receive().await.expect("the stream ends before the session") {
                Frame::Data { id, fin, data } if id == wanted => {
                    out.extend_from_slice(&data);
                    if fin {
                        return out;
                    }
                }
                Frame::WindowUpdate { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

fn session() -> (Client, Session, Incoming) {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let (session, incoming) = Session::server(theirs);
    let client =
        Client { io: ours, encoder: Encoder::default(), decoder: Decoder::default(), input: BytesMut::new() };
    (client, session, incoming)
}

async fn opened(client: &mut Client, incoming: &mut Incoming, id: u32) -> Stream {
    client.open(id, "data").await;
    let stream = incoming.next().await.unwrap().accept();
    assert_eq!(client.receive().await, Some(Frame::SynReply { id, fin: false, headers: Headers::default() }));
    stream
}

#[tokio::test]
async fn streams_are_replied_to_and_both_halves_close_alone() {
    let (mut client, _session, mut incoming) = session();
    client.open(1, "stdin").await;
    let pending = incoming.next().await.unwrap();
    assert_eq!((pending.id(), pending.headers().get("streamType")), (1, Some("stdin")));
    // Bytes may come before the reply.
    client.data(1, b"early ", false).await;
    let mut stream = pending.accept();
    assert_eq!(
        client.receive().await,
        Some(Frame::SynReply { id: 1, fin: false, headers: Headers::default() })
    );
    client.data(1, b"late", true).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "early late");
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(client.collect(1).await, b"answer");
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    drop(stream);
    // A complete stream ends without a reset: the next thing said is the answer to a PING.
    client.send(Frame::Ping(9)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(9)));
}

#[tokio::test]
async fn streams_run_side_by_side() {
    let (mut client, _session, mut incoming) = session();
    let first = opened(&mut client, &mut incoming, 1).await;
    let second = opened(&mut client, &mut incoming, 3).await;
    // Neither is read, yet the third is served.
    client.data(1, b"unread", false).await;
    let mut third = opened(&mut client, &mut incoming, 5).await;
    third.write_all(b"x").await.unwrap();
    third.shutdown().await.unwrap();
    assert_eq!(client.collect(5).await, b"x");
    drop((first, second));
}

#[tokio::test]
async fn megabytes_pass_in_both_directions() {
    let (mut client, _session, mut incoming) = session();
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    let echo = tokio::spawn(async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
        all.len()
    });
    // Like spdystream: no window is obeyed or reopened.
    let piece: &'static [u8] = Box::leak((0..=255u8).cycle().take(100_000).collect::<Box<[u8]>>());
    let (mut reader, mut writer) = (client.decoder, client.encoder);
    let (mut from, mut to) = tokio::io::split(client.io);
    let sender = tokio::spawn(async move {
        for number in 0..30 {
            let mut out = BytesMut::new();
            let frame = Frame::Data { id: 1, fin: number == 29, data: Bytes::from_static(piece) };
            writer.encode(&frame, &mut out).unwrap();
            to.write_all(&out).await.unwrap();
        }
        to
    });
    let (mut got, mut returned, mut input) = (Vec::new(), 0, BytesMut::new());
    'all: loop {
        while let Some(frame) = reader.decode(&mut input).unwrap() {
            match frame {
                Frame::Data { fin, data, .. } => {
                    got.extend_from_slice(&data);
                    if fin {
                        break 'all;
                    }
                }
                Frame::WindowUpdate { id: 1, delta } => returned += delta,
                Frame::WindowUpdate { id: 0, .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(timeout(Duration::from_secs(10), from.read_buf(&mut input)).await.unwrap().unwrap() > 0);
    }
    assert_eq!(echo.await.unwrap(), 3_000_000);
    assert!(got.chunks(100_000).all(|chunk| chunk == piece) && got.len() == 3_000_000);
    assert!(returned > 1_000_000, "the client's window was reopened by {returned}");
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_client_that_counts_windows_is_not_overrun() {
    let (mut client, _session, mut incoming) = session();
    client.send(Frame::Settings(vec![(7, 1000)])).await;
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    let writer = tokio::spawn(async move {
        stream.write_all(&[7; 1500]).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    });
    let mut got = 0;
    while got < 1000 {
        let Some(Frame::Data { data, fin: false, .. }) = client.receive().await else {
            panic!("data was due")
        };
        got += data.len();
    }
    assert_eq!(got, 1000);
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(1)), "no data beyond the window");
    client.send(Frame::WindowUpdate { id: 1, delta: 500 }).await;
    assert_eq!(client.collect(1).await.len(), 500);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn resets_reach_the_other_side() {
    let (mut client, _session, mut incoming) = session();
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    client.data(1, b"last", false).await;
    client.send(Frame::RstStream { id: 1, status: reset::CANCEL }).await;
    let mut got = Vec::new();
    assert_eq!(stream.read_to_end(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(got, b"last");
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(stream);

    let stream = opened(&mut client, &mut incoming, 3).await;
    drop(stream);
    assert_eq!(client.receive().await, Some(Frame::RstStream { id: 3, status: reset::CANCEL }));

    client.open(5, "data").await;
    incoming.next().await.unwrap().reject(reset::CANCEL);
    assert_eq!(client.receive().await, Some(Frame::RstStream { id: 5, status: reset::CANCEL }));
    client.open(7, "data").await;
    drop(incoming.next().await.unwrap());
    assert_eq!(client.receive().await, Some(Frame::RstStream { id: 7, status: reset::REFUSED_STREAM }));

    // Bytes of a stream that is gone are dropped, those of one that never was are answered.
    client.data(3, b"late", false).await;
    client.data(9, b"odd", false).await;
    assert_eq!(client.receive().await, Some(Frame::RstStream { id: 9, status: reset::INVALID_STREAM }));
    // A number may not come twice, nor be even.
    for id in [7, 8] {
        client.open(id, "data").await;
        assert_eq!(client.receive().await, Some(Frame::RstStream { id, status: reset::PROTOCOL_ERROR }));
    }
}

#[tokio::test]
async fn bytes_after_the_end_reset_the_stream() {
    let (mut client, _session, mut incoming) = session();
    let _stream = opened(&mut client, &mut incoming, 1).await;
    client.data(1, b"a", true).await;
    client.data(1, b"b", false).await;
    assert_eq!(
        client.receive().await,
        Some(Frame::RstStream { id: 1, status: reset::STREAM_ALREADY_CLOSED })
    );
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing_waiting() {
    let (mut client, session, mut incoming) = session();
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    let reading = tokio::spawn(async move { (stream.read_u8().await.unwrap_err().kind(), stream) });
    drop(client);
    let (kind, mut stream) = timeout(Duration::from_secs(5), reading).await.unwrap().unwrap();
    assert_eq!(kind, ErrorKind::ConnectionAborted);
    assert!(stream.write(b"x").await.is_err());
    timeout(Duration::from_secs(5), session.closed()).await.unwrap();
    assert!(incoming.next().await.is_none());
}

#[tokio::test]
async fn garbage_ends_the_session_with_a_word() {
    let (mut client, session, _incoming) = session();
    client.io.write_all(b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01").await.unwrap();
    assert_eq!(client.receive().await, Some(Frame::GoAway { last_good: 0, status: goaway::PROTOCOL_ERROR }));
    assert_eq!(client.receive().await, None);
    timeout(Duration::from_secs(5), session.closed()).await.unwrap();
}

#[tokio::test]
async fn close_lets_the_client_hang_up_first() {
    let (mut client, session, mut incoming) = session();
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    stream.write_all(&[1; 100]).await.unwrap();
    stream.shutdown().await.unwrap();
    let closing = tokio::spawn(session.close());
    assert_eq!(client.collect(1).await.len(), 100);
    assert_eq!(client.receive().await, Some(Frame::GoAway { last_good: 1, status: goaway::OK }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!closing.is_finished(), "the client still has the line");
    drop(client);
    timeout(Duration::from_secs(5), closing).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_ever() {
    let (client, session, _incoming) = session();
    let before = tokio::time::Instant::now();
    session.close().await;
    assert!(before.elapsed() >= spdy::session::LINGER);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn unread_bytes_stop_the_connection_and_a_probe_goes_out() {
    let (mut client, _session, mut incoming) = session();
    let mut stream = opened(&mut client, &mut incoming, 1).await;
    let piece: &'static [u8] = &[0; 64 * 1024];
    let mut sent = 0;
    while timeout(Duration::from_secs(1), client.data(1, piece, false)).await.is_ok() {
        sent += piece.len();
        assert!(sent < 4 << 20, "the server takes all without end");
    }
    assert!(sent >= 1 << 20);
    assert_eq!(client.receive().await, Some(Frame::Ping(2)));
    // A reader sets it going again.
    let mut taken = vec![0; sent];
    stream.read_exact(&mut taken).await.unwrap();
}

#[tokio::test]
async fn there_is_a_limit_to_open_streams() {
    let (mut client, _session, mut incoming) = session();
    for number in 0..1024 {
        client.open(number * 2 + 1, "data").await;
    }
    client.open(2049, "data").await;
    assert_eq!(client.receive().await, Some(Frame::RstStream { id: 2049, status: reset::REFUSED_STREAM }));
    let first = incoming.next().await.unwrap();
    assert_eq!(first.id(), 1);
}
