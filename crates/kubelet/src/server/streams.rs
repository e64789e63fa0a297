//! `/exec`, `/attach` and `/portForward`: from a path and a query to a container or a Pod.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{Body, Server, text};
use crate::pod;
use crate::stream::port_forward::Owner;
use crate::stream::upgrade::{Refused, Upgrades};
use crate::stream::{Target, Wanted};

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
    switch(server.upgrades().run(request, id, target, wanted))
}

pub(super) fn forward(
    server: &Server,
    namespace: &str,
    pod: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(view) = server.directory.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let uid = pod::uid(&view.pod).to_string();
    let owner = Owner { pod: format!("{pod}_{namespace}"), uid };
    switch(server.upgrades().forward(request, owner))
}

fn switch(answer: Result<Response<()>, Refused>) -> Response<Body> {
    match answer {
        Ok(response) => response.map(|()| Body::default()),
        Err(refused) => {
            let plain = text(refused.status, &refused.message);
            let mut response = refused.response(Body::default());
            response.headers_mut().extend(plain.headers().clone());
            response.map(|_| plain.into_body())
        }
    }
}

impl Server {
    fn upgrades(&self) -> Upgrades {
        Upgrades { containers: self.agent.containers.clone(), stop: self.stop.clone() }
    }
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
