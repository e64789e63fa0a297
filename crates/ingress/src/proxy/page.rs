//! Answers of our own: pages for statuses, redirects.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Body;

/// An answer that ends a request's way.
#[derive(Debug)]
pub(super) struct Stop(pub Box<Response<Body>>);

impl From<StatusCode> for Stop {
    fn from(status: StatusCode) -> Self {
        Self(page(status))
    }
}

impl From<Box<Response<Body>>> for Stop {
    fn from(response: Box<Response<Body>>) -> Self {
        Self(response)
    }
}

/// A status that may not be known by name.
pub(super) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A page of ours for a status, titled as nginx titles it.
pub(super) fn page(status: StatusCode) -> Box<Response<Body>> {
    let title = match status.as_u16() {
        302 => "302 Found".to_owned(),
        308 => "308 Permanent Redirect".to_owned(),
        413 => "413 Request Entity Too Large".to_owned(),
        503 => "503 Service Temporarily Unavailable".to_owned(),
        504 => "504 Gateway Time-out".to_owned(),
        _ => status.to_string(),
    };
    let text = format!(
        "<html>\n<head><title>{title}</title></head>\n<body>\n<center><h1>{title}</h1></center>\n</body>\n</html>\n"
    );
    let mut response = Box::new(Response::new(Body::full(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

/// A redirect.
pub(super) fn redirect(code: u16, to: &str) -> Stop {
    let Ok(to) = HeaderValue::from_str(to) else { return StatusCode::BAD_REQUEST.into() };
    let mut response = page(status(code));
    response.headers_mut().insert(header::LOCATION, to);
    response.into()
}
