//! `/healthz` as long as the process lives, `/readyz` once there is a table and until `stop`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// Answers until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    ready: CancellationToken,
    stop: CancellationToken,
) {
    let open = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (metrics, ready, stop) = (metrics.clone(), ready.clone(), stop.clone());
        open.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let serves = ready.is_cancelled() && !stop.is_cancelled();
                let response = answer(request.uri().path(), serves, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            // A probe that breaks off has its answer.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(path: &str, serves: bool, metrics: &Metrics) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = match path {
        "/healthz" => StatusCode::OK,
        "/readyz" if serves => StatusCode::OK,
        "/readyz" => StatusCode::SERVICE_UNAVAILABLE,
        "/metrics" => {
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            *response.body_mut() = Full::from(metrics.text());
            StatusCode::OK
        }
        _ => StatusCode::NOT_FOUND,
    };
    response
}
