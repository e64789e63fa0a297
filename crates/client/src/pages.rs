//! The small pages that components show of themselves over HTTP/1: health and metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a page shows: status, kind of content, text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: StatusCode,
    /// The `Content-Type`.
    pub kind: &'static str,
    /// The body.
    pub text: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Page {
    /// Plain text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", text: text.into(), headers: Vec::new() }
    }

    /// Metrics in Prometheus's text format.
    pub fn metrics(text: String) -> Self {
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        Self { kind, ..Self::text(StatusCode::OK, text) }
    }

    /// Whatever nobody shows.
    pub fn missing() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.text)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// Answers GET and HEAD with what `page` says of the path, until `stop`; open connections end with it.
pub async fn serve(
    listener: TcpListener,
    page: impl Fn(&str) -> Page + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let page = Arc::new(page);
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let page = page.clone();
        open.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let shown = match *request.method() {
                    Method::GET | Method::HEAD => page(request.uri().path()),
                    _ => Page::text(StatusCode::METHOD_NOT_ALLOWED, ""),
                };
                async move { Ok::<_, Infallible>(shown.response()) }
            });
            // A client that goes away ends its connection, and nothing else.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
