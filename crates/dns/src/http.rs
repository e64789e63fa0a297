//! Health on :8080, readiness on :8181 and metrics on :9153, at CoreDNS's paths.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::respond::Responder;

/// What a port serves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Page {
    Health,
    Ready,
    Metrics,
}

impl Page {
    fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
        }
    }

    fn render(self, responder: &Responder) -> (StatusCode, String) {
        match self {
            Self::Health => (StatusCode::OK, "OK".to_owned()),
            Self::Ready if responder.zone.as_ref().is_none_or(|zone| zone.read().synced()) => {
                (StatusCode::OK, "OK".to_owned())
            }
            Self::Ready => (StatusCode::SERVICE_UNAVAILABLE, "kubernetes".to_owned()),
            Self::Metrics => (StatusCode::OK, responder.metrics.page()),
        }
    }
}

/// Serves one page until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    page: Page,
    responder: Arc<Responder>,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let responder = responder.clone();
        open.spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let answer = response(&request, page, &responder);
                async move { Ok::<_, Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn response<B>(request: &http::Request<B>, page: Page, responder: &Responder) -> Response<Full<Bytes>> {
    let (status, text) = if request.uri().path() != page.path() {
        (StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (StatusCode::METHOD_NOT_ALLOWED, String::new())
    } else {
        page.render(responder)
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
