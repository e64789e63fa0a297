//! The yardstick for durable writes: Debian's `etcd-server` alone, spoken to by plain gRPC over HTTP/2.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

const PORT: u16 = 22379;

/// A running etcd; killed when dropped.
pub struct Etcd {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Etcd {
    /// Starts one on loopback; `None` when there is no etcd on the machine.
    pub async fn start() -> anyhow::Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let child = Command::new("etcd")
            .args(["--data-dir", &dir.path().display().to_string(), "--log-level", "error"])
            .args(["--listen-client-urls", &url(PORT), "--advertise-client-urls", &url(PORT)])
            .args(["--listen-peer-urls", &url(PORT + 1)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else { return Ok(None) };
        let etcd = Self { child, _dir: dir };
        let began = Instant::now();
        while connect().await.is_err() {
            ensure!(began.elapsed() < Duration::from_secs(20), "etcd did not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(etcd))
    }
}

/// A connection of its own.
pub async fn connect() -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", PORT)).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// `etcdserverpb.KV/Put` of one key.
pub async fn put(sender: &mut SendRequest<Full<Bytes>>, key: &str, value: &[u8]) -> anyhow::Result<()> {
    let mut message = BytesMut::new();
    field(&mut message, 1, key.as_bytes());
    field(&mut message, 2, value);
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.extend_from_slice(&message);
    let request = hyper::Request::post(format!("http://127.0.0.1:{PORT}/etcdserverpb.KV/Put"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed.freeze()))?;
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let body = response.into_body().collect().await.context("read etcd's answer")?;
    let status = body.trailers().and_then(|t| t.get("grpc-status"));
    ensure!(status.is_some_and(|s| s == "0"), "etcd refused the put: {status:?}");
    Ok(())
}

fn field(to: &mut BytesMut, number: u8, bytes: &[u8]) {
    to.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        to.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    to.put_u8(length as u8);
    to.extend_from_slice(bytes);
}
