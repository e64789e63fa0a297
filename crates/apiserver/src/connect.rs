//! Requests that lead through the API server to a node, a Pod or a Service.

use http::Request;

use crate::core::Call;
use crate::rest::answer::Answer;
use crate::server::Body;
use crate::status::Status;

/// Whether a request is passed on rather than answered here.
pub fn is_connection(call: &Call) -> bool {
    matches!(call.cx.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// Passes a request on.
///
/// # Errors
/// 400, 404, 502.
pub async fn connect(_call: &Call, _request: Request<Body>) -> Result<Answer, Status> {
    Err(Status::path_not_found())
}
