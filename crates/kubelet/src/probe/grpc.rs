//! `grpc.health.v1.Health/Check` over plain HTTP/2: one request message, one answer, a trailer.
//!
//! ```text
//! message:  0x00 (not compressed) | u32 length | protobuf
//! request:  1: string service          answer: 1: enum status (1 = SERVING)
//! ```

use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks for the health of `service`.
///
/// # Errors
/// With the text of the probe's failure.
pub async fn check(ip: IpAddr, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = std::net::SocketAddr::new(ip, port);
    match tokio::time::timeout(timeout, call(&address.ip().to_string(), port, service)).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{address}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

async fn call(host: &str, port: u16, service: &str) -> Result<(), String> {
    let stream =
        super::http::connect(host, port).await.map_err(|e| format!("error: health rpc probe failed: {e}"))?;
    let text = |e: hyper::Error| format!("error: health rpc probe failed: {e}");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let _connection = super::AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::USER_AGENT, "kube-probe/1.33")
        .header(header::TE, "trailers")
        .body(Full::new(encode(service)))
        .map_err(|e| format!("error: health rpc probe failed: {e}"))?;
    let response = sender.send_request(request).await.map_err(text)?;
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.map_err(text)?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let header = |name: &str| {
        let value = trailers.get(name).or_else(|| parts.headers.get(name));
        value.and_then(|v| v.to_str().ok()).map(String::from)
    };
    match header("grpc-status").as_deref() {
        Some("0") => {}
        Some("12") => {
            return Err(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .into(),
            );
        }
        code => {
            let (code, message) = (code.unwrap_or("missing"), header("grpc-message").unwrap_or_default());
            return Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"));
        }
    }
    match decode(&collected.to_bytes()) {
        Some(1) => Ok(()),
        Some(other) => {
            let name = STATUSES.get(other as usize).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
        None => Err("error: health rpc probe failed: malformed answer".into()),
    }
}

fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The status number of an answer; an absent field is 0.
fn decode(frame: &[u8]) -> Option<u64> {
    let [0, a, b, c, d, message @ ..] = frame else { return None };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let mut rest = message.get(..length)?;
    let mut status = 0;
    while !rest.is_empty() {
        let (tag, after) = varint(rest)?;
        rest = match tag & 7 {
            0 => {
                let (value, after) = varint(after)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                after
            }
            1 => after.get(8..)?,
            2 => {
                let (length, after) = varint(after)?;
                after.get(usize::try_from(length).ok()?..)?
            }
            5 => after.get(4..)?,
            _ => return None,
        };
    }
    Some(status)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;

    #[test]
    fn messages() {
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(decode(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(decode(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(decode(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 2]), Some(2));
        assert_eq!(decode(&[0, 0, 0, 0, 9, 8]), None);
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let _ = decode(&bytes);
        }
    }

    /// Serves one connection that answers like a gRPC server: `answer` as body, `code` in the trailer.
    async fn server(answer: Option<u8>, code: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), encode("svc"));
                let mut frames = Vec::new();
                if let Some(status) = answer {
                    frames.push(Ok::<_, hyper::Error>(Frame::data(Bytes::from(vec![
                        0, 0, 0, 0, 2, 8, status,
                    ]))));
                }
                let trailers = [(http::HeaderName::from_static("grpc-status"), code.parse().unwrap())];
                frames.push(Ok(Frame::trailers(trailers.into_iter().collect())));
                Ok::<_, hyper::Error>(http::Response::new(StreamBody::new(futures::stream::iter(frames))))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
        port
    }

    #[tokio::test]
    async fn a_real_exchange() {
        let ip = "127.0.0.1".parse().unwrap();
        let ask = |port| check(ip, port, "svc", Duration::from_secs(5));
        assert_eq!(ask(server(Some(1), "0").await).await, Ok(()));
        let error = ask(server(Some(2), "0").await).await.unwrap_err();
        assert_eq!(error, "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(ask(server(None, "12").await).await.unwrap_err().contains("does not implement"));
        assert!(ask(server(None, "5").await).await.unwrap_err().contains("code = 5"));
    }
}
