//! Containers from birth to death, in a real shim.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Node;
use runtime::*;

runtime::shim_in_tests!();

#[tokio::test]
async fn a_container_runs_logs_and_leaves_nothing() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    let script = "echo out; echo err >&2; hostname; echo $$; exit 3";
    let exit = node.run("p", "c", &["sh", "-c", script]).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    let log = std::fs::read_to_string(node.log_path("c")).unwrap();
    let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    for expected in ["stdout F out", "stderr F err", "stdout F host-p", "stdout F 1"] {
        assert!(lines.contains(&expected), "{expected} in {log}");
    }
    let listed = node.runtime.list().await.unwrap();
    assert_eq!(listed.containers.len(), 1);
    assert_eq!(listed.containers[0].state, State::Exited);
    assert_eq!(listed.containers[0].exit.as_ref().unwrap().code, 3);
    node.runtime.remove("c").await.unwrap();
    node.runtime.remove("c").await.unwrap();
    assert!(node.runtime.list().await.unwrap().containers.is_empty());
    node.runtime.remove_sandbox("p").await.unwrap();
    assert!(node.runtime.list().await.unwrap().sandboxes.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn signals_end_containers() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "term", &["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"]).await;
    node.up("p", "kill", &["sleep", "1000"]).await;
    while !std::fs::read_to_string(node.log_path("term")).unwrap().contains("ready") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    node.runtime.kill("term", libc::SIGTERM).await.unwrap();
    assert_eq!(node.exit("term").await.code, 7);
    node.runtime.kill("kill", libc::SIGKILL).await.unwrap();
    let exit = node.exit("kill").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    node.runtime.kill("kill", libc::SIGKILL).await.unwrap();
    assert!(matches!(node.runtime.kill("nope", 15).await, Err(Error::NotFound { .. })));
    node.finish().await;
}

#[tokio::test]
async fn commands_that_cannot_run_say_so_in_upstream_words() {
    let node = Node::start().await;
    node.sandbox("p").await;
    for (command, code, text) in [
        ("nope", 127, r#"exec: "nope": executable file not found in $PATH"#),
        ("/nope", 127, r#"exec: "/nope": stat /nope: no such file or directory"#),
        ("/etc/passwd", 126, r#"exec: "/etc/passwd": permission denied"#),
        ("/tmp", 126, r#"exec: "/tmp": is a directory"#),
    ] {
        let error = node.runtime.create(node.spec("p", "bad", &[command])).await.unwrap_err();
        assert_eq!(error, Error::Exec { code, message: text.into() });
        // What was made of it goes by itself.
        while !node.runtime.list().await.unwrap().containers.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    node.up("p", "good", &["sleep", "1000"]).await;
    let error = node.runtime.exec("good", common::exec_spec(&["nope"])).await.unwrap_err();
    let text = r#"exec: "nope": executable file not found in $PATH"#;
    assert_eq!(error, Error::Exec { code: 127, message: text.into() });
    node.finish().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_and_harm_nothing() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    let again = node.runtime.create_sandbox(node.sandbox_spec("p")).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    let orphan = node.runtime.create(node.spec("nope", "c", &["true"])).await;
    assert!(matches!(orphan, Err(Error::NotFound { .. })), "{orphan:?}");
    let mut outside = node.sandbox_spec("q");
    outside.cgroup = "/elsewhere/q".into();
    assert!(matches!(node.runtime.create_sandbox(outside).await, Err(Error::Invalid(_))));
    for id in ["", "../x", "a/b", ".hidden"] {
        let bad = node.runtime.create(node.spec("p", id, &["true"])).await;
        assert!(matches!(bad, Err(Error::Invalid(_))), "{id}: {bad:?}");
    }
    let mut missing = node.spec("p", "missing", &["true"]);
    missing.rootfs =
        Rootfs::Overlay { lower: vec!["/nonexistent".into()], scratch: node.dir.path().join("s") };
    assert!(matches!(node.runtime.create(missing).await, Err(Error::Failed { .. })));
    node.runtime.create(node.spec("p", "c", &["true"])).await.unwrap();
    let twice = node.runtime.create(node.spec("p", "c", &["true"])).await;
    assert!(matches!(twice, Err(Error::AlreadyExists { .. })));
    assert!(matches!(
        node.runtime.exec("c", common::exec_spec(&["true"])).await,
        Err(Error::WrongState { .. })
    ));
    node.runtime.start("c").await.unwrap();
    assert_eq!(node.exit("c").await.code, 0);
    assert!(matches!(node.runtime.start("c").await, Err(Error::WrongState { .. })));
    node.finish().await;
}

#[tokio::test]
async fn two_hundred_containers_four_at_a_time() {
    let node = Node::start().await;
    let descriptors =
        |node: &Node| std::fs::read_dir(format!("/proc/{}/fd", node.runtime.pid())).unwrap().count();
    let before = descriptors(&node);
    node.sandbox("p").await;
    let (runtime, specs) = (node.runtime.clone(), 0..200);
    let specs: Vec<ContainerSpec> = specs
        .map(|at| node.spec("p", &format!("c{at}"), &["sh", "-c", &format!("echo {at}; exit {}", at % 7)]))
        .collect();
    let mut node = node;
    let begun = std::time::Instant::now();
    let queue = std::sync::Arc::new(tokio::sync::Mutex::new(specs));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (queue, runtime) = (queue.clone(), runtime.clone());
            tokio::spawn(async move {
                while let Some(spec) = { queue.lock().await.pop() } {
                    let id = spec.id.clone();
                    runtime.create(spec).await.unwrap();
                    runtime.start(&id).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    for at in 0..200 {
        let id = format!("c{at}");
        assert_eq!(node.exit(&id).await.code, at % 7, "{id}");
        assert_eq!(node.log(&id), format!("{at}\n"));
    }
    println!("200 containers in {:?}", begun.elapsed());
    node.runtime.remove_sandbox("p").await.unwrap();
    assert!(node.runtime.list().await.unwrap().containers.is_empty());
    assert_eq!(descriptors(&node), before, "the shim leaks no descriptor");
    for folder in ["state", "bundles", "exec", "tty", "shm"] {
        let left = std::fs::read_dir(node.options.run_dir.join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{folder} is empty");
    }
    node.finish().await;
}

#[tokio::test]
async fn how_long_it_takes() {
    use std::time::{Duration, Instant};
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "up", &["sleep", "1000"]).await;
    let names = ["sandbox", "pod running", "created", "started", "ended", "removed", "exec to its end"];
    let mut times: [Vec<Duration>; 7] = Default::default();
    for at in 0..30 {
        let (pod, id) = (format!("p{at}"), format!("c{at}"));
        // A rest, after which the kernel's first move between cgroups is slow.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = Instant::now();
        node.sandbox(&pod).await;
        times[0].push(begun.elapsed());
        // As long as a network takes to set up.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let spec = node.spec(&pod, &id, &["true"]);
        let create = Instant::now();
        node.runtime.create(spec).await.unwrap();
        times[2].push(create.elapsed());
        node.runtime.start(&id).await.unwrap();
        times[3].push(create.elapsed());
        times[1].push(begun.elapsed());
        node.exit(&id).await;
        times[4].push(create.elapsed());
        let begun = Instant::now();
        node.runtime.remove_sandbox(&pod).await.unwrap();
        times[5].push(begun.elapsed());
        let begun = Instant::now();
        assert_eq!(node.exec("up", &["true"]).await.0, 0);
        times[6].push(begun.elapsed());
    }
    for (what, times) in names.iter().zip(&mut times) {
        times.sort();
        println!("{what}: p50 {:?}, p90 {:?}", times[15], times[27]);
    }
    let memory = std::fs::read_to_string(format!("/proc/{}/status", node.runtime.pid())).unwrap();
    memory
        .lines()
        .filter(|line| line.starts_with("Rss") || line.starts_with("VmRSS"))
        .for_each(|line| println!("shim {line}"));
    assert!(times[1][15] < Duration::from_millis(500));
    node.finish().await;
}
