//! Requests that lead through the API server to a node, a Pod or a Service: logs, exec, attach, port-forward, proxy.
//!
//! Here only the target is found; bytes are passed on untouched, upgraded connections (WebSocket, SPDY/3.1) included,
//! so that the streaming protocols live in one place, the kubelet.

pub(crate) mod dial;
mod forward;
pub(crate) mod target;

use http::header::{HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode};
use serde_json::Value;

use crate::admission::{self, Operation, Write};
use crate::body;
use crate::core::Call;
use crate::rest::answer::{Answer, Payload};
use crate::server::{Body, full};
use crate::status::Status;

/// Whether a request is passed on rather than answered here.
pub fn is_connection(call: &Call) -> bool {
    matches!(call.cx.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
        && call.row.has_subresource(&call.cx.subresource)
}

/// Passes a request on.
///
/// # Errors
/// 400, 404, 405 for requests without a target; 503 for targets that cannot be reached.
pub async fn connect(call: &Call, request: Request<Body>) -> Result<Answer, Status> {
    check_method(call, request.method())?;
    let options = target::options(call);
    let write = Write { operation: Operation::Connect, new: Some(&options), old: None };
    admission::check(call, write).await?;
    if call.cx.subresource == "proxy"
        && !call.has_rest
        && matches!(*request.method(), Method::GET | Method::HEAD)
    {
        return Ok(raw(redirect(&request)));
    }
    let Some(target) = target::find(call).await? else {
        // A Pod that no node has yet: its log is empty.
        return Ok(Answer::bytes(200, "text/plain", ""));
    };
    let response = forward::forward(call, target, request).await?;
    Ok(raw(if call.cx.subresource == "log" { explained(response).await? } else { response }))
}

/// The JSON document that a node's kubelet has at a path.
///
/// # Errors
/// 404 for no such node, 503 when it cannot be reached, 500 when it answers something else.
pub async fn kubelet_json(call: &Call, node: &str, path: &str) -> Result<Value, Status> {
    let target = target::kubelet(call, node, path.to_owned()).await?;
    let request = Request::get(path).body(full("")).map_err(Status::internal)?;
    let response = forward::forward(call, target, request).await?;
    let bytes = body::read(response.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|e| Status::internal(format!("read {path} of node {node:?}: {e}")))
}

/// What a kubelet refuses in plain text, as the Status that clients can show.
async fn explained(response: Response<Body>) -> Result<Response<Body>, Status> {
    let code = response.status();
    if !code.is_client_error() && !code.is_server_error() {
        return Ok(response);
    }
    let bytes = body::read(response.into_body()).await?;
    let said = String::from_utf8_lossy(&bytes).trim().to_owned();
    Err(if code == StatusCode::BAD_REQUEST {
        Status::bad_request(said)
    } else {
        Status::new(code.as_u16(), "InternalError", said)
    })
}

fn raw(response: Response<Body>) -> Answer {
    Answer { code: response.status().as_u16(), content_type: "", payload: Payload::Raw(Box::new(response)) }
}

fn check_method(call: &Call, method: &Method) -> Result<(), Status> {
    let verb = match method.as_str() {
        "GET" | "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" if call.cx.subresource == "proxy" => return Ok(()),
        _ => "",
    };
    let sub = call.row.subresources.iter().find(|s| s.name == call.cx.subresource);
    if sub.is_some_and(|s| s.verbs.contains(&verb)) { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// Relative links of a proxied page need the slash behind `proxy`.
fn redirect(request: &Request<Body>) -> Response<Body> {
    let uri = request.uri();
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
