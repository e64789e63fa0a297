//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{Body, Server, streaming, text};
use crate::logs::read::{self, Options};

/// The request's parameters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    options: Options,
    previous: bool,
}

/// Reads the query; the error says which value makes no sense.
fn parse(query: &str, now: Timestamp) -> Result<Query, String> {
    let mut parsed = Query::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = || value.parse::<u64>().map_err(|_| format!("invalid value for {name}: {value:?}"));
        let flag = || matches!(&*value, "true" | "1" | "");
        match &*name {
            "follow" => parsed.options.follow = flag(),
            "timestamps" => parsed.options.timestamps = flag(),
            "previous" => parsed.previous = flag(),
            // Upstream's client sends -1 for "all".
            "tailLines" if value == "-1" => {}
            "tailLines" => parsed.options.tail = Some(number()?),
            "limitBytes" => parsed.options.limit = Some(number()?),
            "sinceSeconds" => {
                let seconds = i64::try_from(number()?).map_err(|e| e.to_string())?;
                parsed.options.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
            }
            "sinceTime" => {
                let time = value.parse().map_err(|_| format!("invalid value for {name}: {value:?}"))?;
                parsed.options.since = Some(time);
            }
            _ => {}
        }
    }
    Ok(parsed)
}

pub(super) fn answer(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Response<Body> {
    let bad = |message: String| text(StatusCode::BAD_REQUEST, &message);
    let query = match parse(query, (server.agent.clock)()) {
        Ok(query) => query,
        Err(error) => return bad(error),
    };
    let Some(view) = server.directory.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, &format!("pod \"{pod}\" not found"));
    };
    if crate::pod::container(&view.pod, container).is_none() {
        return text(StatusCode::NOT_FOUND, &format!("container \"{container}\" not found in pod \"{pod}\""));
    }
    let known = view.containers.get(container).cloned().unwrap_or_default();
    let attempt = match (query.previous, known.attempt) {
        (true, 0) => {
            return bad(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"));
        }
        (true, attempt) => attempt - 1,
        (false, attempt) => attempt,
    };
    if !query.previous && !known.started {
        let reason = known.waiting.as_deref().unwrap_or("ContainerCreating");
        let why = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                "trying and failing to pull image".to_string()
            }
            reason => reason.to_string(),
        };
        return bad(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}"));
    }
    let path = server.agent.log_path(&view.pod, container, attempt);
    let (tx, rx) = mpsc::channel(8);
    let (directory, stop) = (server.directory.clone(), server.stop.clone());
    let (namespace, name, container) = (namespace.to_string(), pod.to_string(), container.to_string());
    let alive = {
        let directory = directory.clone();
        move || {
            let view = directory.pod(&namespace, &name);
            let known = view.and_then(|v| v.containers.get(&container).cloned());
            known.is_some_and(|c| c.id.is_some() && c.attempt == attempt)
        }
    };
    tokio::spawn(async move {
        let reading = read::stream(path, query.options, tx, alive, directory.ends());
        tokio::select! {
            () = reading => {}
            () = stop.cancelled() => {}
        }
    });
    let mut response = Response::new(streaming(rx));
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn queries() {
        let now = Timestamp::from_second(100).unwrap();
        let query =
            parse("follow=true&tailLines=5&sinceSeconds=10&timestamps=1&previous=false&limitBytes=9", now)
                .unwrap();
        let since = Timestamp::from_second(90).ok();
        let options = Options { follow: true, tail: Some(5), since, timestamps: true, limit: Some(9) };
        assert_eq!(query, Query { options, previous: false });
        let query = parse("sinceTime=2024-05-01T12:00:00Z&tailLines=-1", now).unwrap();
        assert_eq!((query.options.since.unwrap().as_second(), query.options.tail), (1_714_564_800, None));
        assert_eq!(parse("tailLines=x", now).unwrap_err(), "invalid value for tailLines: \"x\"");
        assert!(parse("sinceTime=yesterday", now).is_err());
    }
}
