//! `/exec` and `/attach`: from a request to a session; which transport carries it is decided by its headers.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{Body, Server, text};
use crate::stream::{self, Target, Wanted, websocket};

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
    mut request: Request<Incoming>,
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
    if !websocket::is_upgrade(request.headers()) {
        return text(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request");
    }
    let Some(protocol) = websocket::choose(request.headers()) else {
        return text(StatusCode::BAD_REQUEST, "unable to upgrade: no supported subprotocol in request");
    };
    let response = match websocket::accept::<Body>(request.headers(), protocol) {
        Ok(response) => response,
        Err(error) => return text(StatusCode::BAD_REQUEST, error),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (containers, stop) = (server.agent.containers.clone(), server.stop.clone());
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "upgrading a connection"),
        };
        let (session, carry) = websocket::session(upgraded, protocol);
        let work = async {
            // The transport ends last: it still has to send what the process said.
            tokio::join!(stream::run(containers, &id, target, wanted, session), carry);
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
    response
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
