//! Health on :8080, readiness on :8181 and metrics on :9153, at CoreDNS's paths.

use std::sync::Arc;

use client::pages;
use http::StatusCode;
use tokio::net::TcpListener;
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

    fn render(self, responder: &Responder) -> pages::Page {
        match self {
            Self::Health => pages::Page::text(StatusCode::OK, "OK"),
            Self::Ready if responder.zone.as_ref().is_none_or(|zone| zone.read().synced()) => {
                pages::Page::text(StatusCode::OK, "OK")
            }
            Self::Ready => pages::Page::text(StatusCode::SERVICE_UNAVAILABLE, "kubernetes"),
            Self::Metrics => pages::Page::metrics(responder.metrics.page(&responder.config())),
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
    let show = move |path: &str| match path == page.path() {
        true => page.render(&responder),
        false => pages::Page::missing(),
    };
    pages::serve(listener, show, stop).await;
}
