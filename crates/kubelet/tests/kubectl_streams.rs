//! The real kubectl, of each generation of its stream protocols, against the agent's streams: SPDY only (1.27), SPDY
//! with v5 in its list (1.29), WebSocket for exec and SPDY for port-forward (1.30), WebSocket for all (1.33).
//!
//! A tiny API server answers what kubectl asks on the way and hands the upgrade over; processes are the host's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod stand;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use client::kubectls;
use stand::Stand;

#[test]
fn exec_brings_output_and_exit_code() {
    let stand = Stand::start();
    for kubectl in kubectls() {
        let out = stand
            .client
            .kubectl(&kubectl, &["exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(stdout, "out\n", "{kubectl}: {stderr}");
        assert_eq!(stderr, "err\ncommand terminated with exit code 7\n", "{kubectl}");
        assert_eq!(out.status.code(), Some(7), "{kubectl}");
        let out = stand.client.kubectl(&kubectl, &["exec", "p", "--", "true"]);
        assert!(out.status.success() && out.stderr.is_empty(), "{kubectl}: {out:?}");
    }
}

#[test]
fn exec_passes_megabytes_of_stdin_and_its_end() {
    let stand = Stand::start();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for kubectl in kubectls() {
        let mut child = stand.client.command(&kubectl, &["exec", "-i", "p", "--", "cat"]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(out.status.success(), "{kubectl}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout == sent, "{kubectl}: {} of {} bytes came back", out.stdout.len(), sent.len());
    }
}

#[test]
fn exec_is_refused_with_a_reason() {
    let stand = Stand::start();
    for kubectl in kubectls() {
        let out = stand.client.kubectl(&kubectl, &["exec", "p", "--", "/no/such/program"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{kubectl}");
        assert!(stderr.contains("error executing command in container"), "{kubectl}: {stderr}");
    }
}

#[test]
fn a_client_that_is_killed_ends_the_command() {
    let stand = Stand::start();
    for kubectl in kubectls() {
        let mut child =
            stand.client.command(&kubectl, &["exec", "p", "--", "sleep", "1000"]).spawn().unwrap();
        stand.wait("the command to start", || stand.running() == 1);
        child.kill().unwrap();
        child.wait().unwrap();
        stand.wait("the command to end", || stand.running() == 0);
    }
}

#[test]
fn ports_are_forwarded_again_and_again() {
    let stand = Stand::start();
    let echo = stand.echo_server();
    for kubectl in kubectls() {
        let forward = stand.client.forward(&kubectl, "p", echo);
        for round in 0..5 {
            let sent = vec![round; 300_000];
            let mut connection = forward.connect();
            let mut writer = connection.try_clone().unwrap();
            let bytes = sent.clone();
            let writing = std::thread::spawn(move || {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            connection.read_to_end(&mut got).unwrap();
            writing.join().unwrap();
            assert!(got == sent, "{kubectl}: {} of {} bytes came back", got.len(), sent.len());
        }
    }
}

#[test]
fn many_connections_at_once_and_one_that_the_pod_resets() {
    let stand = Stand::start();
    let echo = stand.echo_server();
    for kubectl in kubectls() {
        let forward = stand.client.forward(&kubectl, "p", echo);
        let idle = forward.connect();
        let talking: Vec<_> = (0..20)
            .map(|n| {
                let mut connection = forward.connect();
                std::thread::spawn(move || {
                    connection.write_all(&[n; 1000]).unwrap();
                    let mut got = [0; 1000];
                    connection.read_exact(&mut got).unwrap();
                    assert_eq!(got, [n; 1000]);
                })
            })
            .collect();
        talking.into_iter().for_each(|thread| thread.join().unwrap());
        // The echo server resets whoever says this.
        let mut reset = forward.connect();
        reset.write_all(b"RESET").unwrap();
        let _ = reset.read(&mut [0; 10]);
        let mut after = forward.connect();
        after.write_all(b"still there").unwrap();
        let mut got = [0; 11];
        after.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still there", "{kubectl}");
        drop(idle);
    }
}

#[test]
fn a_closed_port_is_told_in_upstreams_words() {
    let stand = Stand::start();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for kubectl in kubectls() {
        let forward = stand.client.forward(&kubectl, "p", closed);
        let mut connection = forward.connect();
        assert_eq!(connection.read(&mut [0; 10]).unwrap_or(0), 0);
        let stderr = forward.stderr(Duration::from_secs(10));
        let text = format!(
            "error forwarding port {closed} to pod p_default, uid u-1: failed to execute portforward in network \
             namespace \"u-1\": failed to connect to localhost:{closed} inside namespace \"u-1\", IPv4: dial tcp4 \
             127.0.0.1:{closed}: connect: connection refused"
        );
        let unescaped = stderr.replace('\\', "");
        assert!(
            unescaped.contains("an error occurred forwarding") || stderr.contains("An error occurred"),
            "{stderr}"
        );
        assert!(unescaped.contains(&text), "{kubectl}: {stderr}");
    }
}

#[test]
fn a_terminal_has_the_clients_size_and_attach_joins() {
    let stand = Stand::start();
    for kubectl in kubectls() {
        // script(1) gives kubectl a terminal of its own, of the size that stty sets.
        let line = format!(
            "stty rows 33 cols 111; {} exec -it p -- sh -c 'sleep 0.3; stty size'",
            stand.client.line(&kubectl)
        );
        let out = std::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("33 111"), "{kubectl}: {text}");

        let out = stand.client.kubectl(&kubectl, &["attach", "p"]);
        assert_eq!(String::from_utf8_lossy(&out.stdout), "attached\n", "{kubectl}: {out:?}");
    }
}
