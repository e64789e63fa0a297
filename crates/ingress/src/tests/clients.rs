//! Programs that people use, driven through the data plane: curl, wrk and h2load.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::harness::*;

/// What a program says; hack/test-deps.sh installs it.
async fn says(program: &str, args: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(std::process::Stdio::null()).env_remove("http_proxy").env_remove("https_proxy");
    let ran = tokio::time::timeout(3 * LIMIT, command.kill_on_drop(true).output()).await;
    let out =
        ran.expect("an end in time").unwrap_or_else(|e| panic!("{program}: {e}; run hack/test-deps.sh"));
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_each_version_of_http() {
    let world = World::start(&[annotated(&[])]).await;
    for (version, scheme, at, said) in [
        ("--http1.0", "http", world.plain, "1 200"),
        ("--http1.1", "http", world.plain, "1.1 200"),
        ("--http1.1", "https", world.secure, "1.1 200"),
        ("--http2", "https", world.secure, "2 200"),
    ] {
        let to = format!("h:{}:{}", at.port(), at.ip());
        let url = format!("{scheme}://h:{}/x", at.port());
        let args = ["-sk", "--noproxy", "*", "--max-time", "20", version, "--resolve", &to];
        let shown = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}", "-d", "hello"];
        let got = says("curl", &[&args[..], &shown[..], &[&url]].concat()).await;
        assert_eq!(got, said, "{version} {url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrk_loses_nothing() {
    let world = World::start(&[annotated(&[])]).await;
    for (scheme, at) in [("http", world.plain), ("https", world.secure)] {
        let url = format!("{scheme}://{at}/");
        let said = says("wrk", &["-t1", "-c8", "-d1s", "--timeout", "20s", "-H", "Host: h", &url]).await;
        let count: u64 = said
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "))
            .and_then(|(count, _)| count.parse().ok())
            .unwrap_or_else(|| panic!("{said}"));
        assert!(count > 0 && !said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_loses_nothing() {
    let world = World::start(&[annotated(&[])]).await;
    let url = format!("https://h:{}/", world.secure.port());
    let to = format!("--connect-to={}", world.secure);
    let said = says("h2load", &["-n", "400", "-c", "4", "-m", "10", &to, &url]).await;
    assert!(said.contains("400 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
}
