//! Thresholds and timers on a paused clock; requests on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::http::Answer;
use super::*;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn probe(value: serde_json::Value) -> Probe {
    serde_json::from_value(value).unwrap()
}

/// Runs a probe whose tries pass or fail by `script(seconds since start)` for a while; what it told, with times.
async fn run(
    kind: Kind,
    value: serde_json::Value,
    seconds: u64,
    script: fn(f64) -> bool,
) -> Vec<(u64, String)> {
    let begin = Instant::now();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (_keep, started) = watch::channel(true);
    let probe = probe(value);
    let attempt = || {
        let passed = script(begin.elapsed().as_secs_f64());
        async move { if passed { Ok(()) } else { Err("no".to_string()) } }
    };
    let report = |r: Report| {
        let text = match r {
            Report::Failure(..) => "fail".to_string(),
            Report::Result(_, passed) => passed.to_string(),
        };
        told.lock().push((begin.elapsed().as_secs(), text));
    };
    let work = watch_over(kind, &probe, started, attempt, report);
    let _ = tokio::time::timeout(Duration::from_secs(seconds), work).await;
    told.lock().clone()
}

fn told(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter().map(|(at, text)| (*at, text.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn liveness_fails_after_its_threshold_and_ends() {
    let got = run(
        Kind::Liveness,
        json!({"periodSeconds": 5, "initialDelaySeconds": 3, "failureThreshold": 2}),
        60,
        |t| t < 10.0,
    )
    .await;
    assert_eq!(got, told(&[(3, "true"), (13, "fail"), (18, "fail"), (18, "false")]));
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_and_goes() {
    let got = run(Kind::Readiness, json!({"periodSeconds": 10, "failureThreshold": 1}), 45, |t| {
        !(5.0..25.0).contains(&t)
    })
    .await;
    assert_eq!(
        got,
        told(&[(0, "true"), (10, "fail"), (10, "false"), (20, "fail"), (30, "true")])
            .into_iter()
            .collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn readiness_does_not_wait_for_its_period_the_first_time() {
    let begin = |t: f64| t > 0.4;
    let got = run(Kind::Readiness, json!({"periodSeconds": 30}), 20, begin).await;
    assert_eq!(got, told(&[(0, "fail"), (0, "true")]));
    // With a success threshold of more than one only the period counts.
    let got = run(Kind::Readiness, json!({"periodSeconds": 10, "successThreshold": 2}), 35, begin).await;
    assert_eq!(got, told(&[(0, "fail"), (20, "true")]));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_for_long_passes_when_it_can() {
    let got = run(Kind::Readiness, json!({"periodSeconds": 1}), 1000, |t| t >= 900.5).await;
    assert_eq!(got.iter().filter(|(_, text)| text != "fail").count(), 2, "{got:?}");
    assert_eq!(got.last(), Some(&(901, "true".to_string())));
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_ends_with_its_first_verdict() {
    let got = run(Kind::Startup, json!({"periodSeconds": 1, "failureThreshold": 3}), 60, |_| false).await;
    assert_eq!(got, told(&[(0, "fail"), (1, "fail"), (2, "fail"), (2, "false")]));
    let got = run(Kind::Startup, json!({"periodSeconds": 10}), 60, |_| true).await;
    assert_eq!(got, told(&[(0, "true")]));
}

#[tokio::test(start_paused = true)]
async fn other_probes_wait_for_the_start() {
    let (tx, started) = watch::channel(false);
    let count = Arc::new(Mutex::new(0));
    let seen = count.clone();
    let task = tokio::spawn(async move {
        let attempt = || {
            *seen.lock() += 1;
            async { Ok(()) }
        };
        watch_over(Kind::Liveness, &probe(json!({"periodSeconds": 1})), started, attempt, |_| {}).await;
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(*count.lock(), 0);
    tx.send_replace(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(*count.lock() >= 5);
    task.abort();
}

/// Answers every connection with the texts in turn.
async fn server(answers: Vec<String>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..n]).to_lowercase();
            assert!(request.contains("user-agent: kube-probe/"), "{request}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    port
}

async fn get(port: u16, action: serde_json::Value) -> Result<Answer, String> {
    let mut action = action;
    action["port"] = json!(port);
    let action = serde_json::from_value(action).unwrap();
    let url = http::url(&action, &Container::default(), "127.0.0.1".parse().unwrap())?;
    http::get(&action, url, Duration::from_secs(5)).await
}

#[tokio::test]
async fn http_answers_redirects_and_refusals() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_string();
    let port = server(vec![ok.clone()]).await;
    let answer = get(port, json!({"path": "/healthz"})).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "hi"));
    let redirect = "HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n".to_string();
    assert_eq!(get(server(vec![redirect, ok]).await, json!({})).await.unwrap().status, 200);
    let away = "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n".to_string();
    assert_eq!(get(server(vec![away]).await, json!({})).await.unwrap().status, 302);
    let closed = { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port() };
    let error = get(closed, json!({"path": "x"})).await.unwrap_err();
    assert_eq!(
        error,
        format!(
            "Get \"http://127.0.0.1:{closed}/x\": dial tcp 127.0.0.1:{closed}: connect: connection refused"
        )
    );
}

#[test]
fn ports_by_name() {
    let container: Container =
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
            .unwrap();
    assert_eq!(http::port(&IntOrString::String("web".into()), &container), Ok(8080));
    assert_eq!(http::port(&IntOrString::Int(81), &container), Ok(81));
    assert_eq!(
        http::port(&IntOrString::String("gone".into()), &container),
        Err("couldn't find port: gone".into())
    );
    assert!(http::port(&IntOrString::Int(0), &container).is_err());
}
