//! `/exec`, `/attach` and `/portForward`: from a request to a session; which transport carries it is decided by its
//! headers.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{Body, Server, text};
use crate::pod;
use crate::stream::tunnel::Tunnel;
use crate::stream::{self, Target, Wanted, dial, port_forward, spdy, websocket};

/// The streams and the command that a query asks for.
fn parse(query: &str) -> (Wanted, Vec<String>) {
    let (mut wanted, mut command) = (Wanted::default(), Vec::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let flag = matches!(&*value, "true" | "1" | "");
        match &*name {
            "stdin" | "input" => wanted.stdin = flag,
            "stdout" | "output" => wanted.stdout = flag,
            "stderr" | "error" => wanted.stderr = flag,
            "tty" => wanted.tty = flag,
            "command" => command.push(value.into_owned()),
            _ => {}
        }
    }
    (wanted, command)
}

pub(super) fn answer(
    server: &Server,
    verb: &str,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let (wanted, command) = parse(request.uri().query().unwrap_or_default());
    if !(wanted.stdin || wanted.stdout || wanted.stderr || wanted.tty) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    if verb == "exec" && command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least one command");
    }
    let Some(view) = server.directory.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let Some(id) = view.containers.get(container).and_then(|c| c.id.clone()) else {
        let message = format!("container not found (\"{container}\")");
        return text(StatusCode::INTERNAL_SERVER_ERROR, &message);
    };
    let target = if verb == "exec" { Target::Exec(command) } else { Target::Attach };
    let (transport, response) = match agree(request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let containers = server.agent.containers.clone();
    carry(server, request, move |upgraded| async move {
        match transport {
            Transport::WebSocket(protocol) => {
                let (session, carry) = websocket::session(upgraded, protocol);
                // The transport ends last: it still has to send what the process said.
                tokio::join!(stream::run(containers, &id, target, wanted, session), carry);
            }
            Transport::Spdy(protocol) => {
                let io = TokioIo::new(upgraded);
                let Some((session, carry)) = spdy::session(io, protocol, wanted).await else { return };
                tokio::join!(stream::run(containers, &id, target, wanted, session), carry);
            }
        }
    });
    response
}

/// What exec and attach run over, with the protocol agreed on.
enum Transport {
    WebSocket(websocket::Protocol),
    Spdy(&'static str),
}

/// Settles transport and protocol, with the answer that switches to them.
fn agree(headers: &HeaderMap) -> Result<(Transport, Response<Body>), Box<Response<Body>>> {
    let bad = |message: &str| Box::new(text(StatusCode::BAD_REQUEST, message));
    if websocket::is_upgrade(headers) {
        let protocol = websocket::choose(headers)
            .ok_or_else(|| bad("unable to upgrade: no supported subprotocol in request"))?;
        let response = websocket::accept(headers, protocol.name).map_err(bad)?;
        return Ok((Transport::WebSocket(protocol), response));
    }
    let (protocol, response) = agree_spdy(headers, &spdy::PROTOCOLS)?;
    Ok((Transport::Spdy(protocol), response))
}

fn agree_spdy(
    headers: &HeaderMap,
    accepted: &[&'static str],
) -> Result<(&'static str, Response<Body>), Box<Response<Body>>> {
    if !spdy::is_upgrade(headers) {
        let message = "unable to upgrade: missing upgrade headers in request";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    }
    match spdy::negotiate(headers, accepted) {
        Ok(protocol) => Ok((protocol, spdy::accept(protocol))),
        Err(refusal @ spdy::Refusal::Missing) => {
            Err(Box::new(text(StatusCode::BAD_REQUEST, &refusal.to_string())))
        }
        Err(refusal) => {
            let mut response = text(StatusCode::FORBIDDEN, &refusal.to_string());
            for name in accepted {
                response.headers_mut().append(spdy::ACCEPTED_VERSIONS, HeaderValue::from_static(name));
            }
            Err(Box::new(response))
        }
    }
}

/// `/portForward`: SPDY bare, or tunnelled through WebSocket.
pub(super) fn forward(
    server: &Server,
    namespace: &str,
    pod: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(view) = server.directory.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let headers = request.headers();
    let tunneled = websocket::is_upgrade(headers);
    let agreed = if !tunneled {
        agree_spdy(headers, &[port_forward::PROTOCOL]).map(|(_, response)| response)
    } else if websocket::offers(headers, port_forward::TUNNELED) {
        websocket::accept(headers, port_forward::TUNNELED)
            .map_err(|error| Box::new(text(StatusCode::BAD_REQUEST, error)))
    } else {
        let message = "unable to upgrade: no supported subprotocol in request";
        Err(Box::new(text(StatusCode::BAD_REQUEST, message)))
    };
    let response = match agreed {
        Ok(response) => response,
        Err(refusal) => return *refusal,
    };
    let uid = pod::uid(&view.pod).to_string();
    let dial = Arc::new(dial::Sandbox { containers: server.agent.containers.clone(), id: uid.clone() });
    let owner = port_forward::Owner { pod: format!("{pod}_{namespace}"), uid };
    carry(server, request, move |upgraded| async move {
        let io = TokioIo::new(upgraded);
        if tunneled {
            port_forward::serve(Tunnel::new(io).await, dial, owner).await;
        } else {
            port_forward::serve(io, dial, owner).await;
        }
    });
    response
}

/// Does the work once the connection has switched, until the server stops.
fn carry<F>(
    server: &Server,
    mut request: Request<Incoming>,
    work: impl FnOnce(Upgraded) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = server.stop.clone();
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "upgrading a connection"),
        };
        tokio::select! {
            () = work(upgraded) => {}
            () = stop.cancelled() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_in_both_spellings() {
        let (wanted, command) = parse("command=sh&command=-c&command=a%20b&stdin=true&stdout=true&tty=true");
        assert_eq!(wanted, Wanted { stdin: true, stdout: true, stderr: false, tty: true });
        assert_eq!(command, ["sh", "-c", "a b"]);
        assert_eq!(
            parse("input=1&error=1&output=0").0,
            Wanted { stdin: true, stderr: true, ..Wanted::default() }
        );
    }
}
