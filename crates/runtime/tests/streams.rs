//! Exec, attach, terminals, logs, and an agent that dies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Node, exec_spec, read_all};
use runtime::*;

runtime::shim_in_tests!();

fn write(fd: &OwnedFd, text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match nix::unistd::write(fd, rest) {
            Ok(count) => rest = &rest[count..],
            Err(nix::errno::Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("write: {error}"),
        }
    }
}

#[tokio::test]
async fn exec_has_streams_and_an_exit_code_of_its_own() {
    let node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "c", &["sleep", "1000"]).await;
    let (code, out, err) = node.exec("c", &["sh", "-c", "echo out; echo err >&2; hostname; exit 5"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (5, "out\nhost-p\n", "err\n"));
    let mut spec = exec_spec(&["cat"]);
    spec.stdin = true;
    let exec = node.runtime.exec("c", spec).await.unwrap();
    let text = "line\n".repeat(50_000);
    let (stdin, to_write) = (exec.stdin.unwrap(), text.clone());
    let writer = tokio::task::spawn_blocking(move || write(&stdin, &to_write));
    assert_eq!(read_all(exec.stdout.unwrap()).await, text);
    writer.await.unwrap();
    assert_eq!(exec.exit.await.unwrap().code, 0);
    // It sees the container's first process, and is in its cgroup.
    let (_, out, _) =
        node.exec("c", &["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; cat /proc/self/cgroup"]).await;
    assert!(out.starts_with("sleep 1000"), "{out}");
    assert!(out.lines().skip(1).all(|line| line.ends_with("/podp/c")), "{out}");
    // A killed one says so.
    let exec = node.runtime.exec("c", exec_spec(&["sleep", "1000"])).await.unwrap();
    node.runtime.kill_exec(exec.id, libc::SIGKILL).await.unwrap();
    let exit = exec.exit.await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    node.finish().await;
}

#[tokio::test]
async fn twenty_execs_side_by_side() {
    let node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "c", &["sleep", "1000"]).await;
    let begun = Instant::now();
    let scripts: Vec<String> = (0..20).map(|at| format!("sleep 0.2; echo {at}; exit {at}")).collect();
    let runs = scripts.iter().map(|script| async { node.exec("c", &["sh", "-c", script]).await });
    let results = join(runs.map(Box::pin).collect()).await;
    for (at, (code, out, _)) in results.into_iter().enumerate() {
        assert_eq!((code, out), (at as i32, format!("{at}\n")));
    }
    println!("20 execs in {:?}", begun.elapsed());
    node.finish().await;
}

/// Polls all futures together.
async fn join<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut results: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let std::task::Poll::Ready(value) = std::pin::Pin::new(future).poll(context)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[tokio::test]
async fn terminals_work_for_exec_and_for_containers() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "c", &["sleep", "1000"]).await;
    let script = "tty; stty size; test -t 1 && echo is a terminal; id -u; read line; echo got $line; exit 4";
    let spec = ExecSpec {
        args: exec_spec(&["sh", "-c", script]).args,
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let exec = node.runtime.exec("c", spec).await.unwrap();
    assert!(exec.stderr.is_none());
    let size = libc::winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is a terminal and `size` outlives the call.
    unsafe { libc::ioctl(exec.pty.as_ref().unwrap().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    write(exec.stdin.as_ref().unwrap(), "hello\n");
    let (stdin, pty) = (exec.stdin, exec.pty);
    let out = read_all(exec.stdout.unwrap()).await;
    drop((stdin, pty));
    for expected in ["/dev/pts/", "is a terminal", "got hello"] {
        assert!(out.contains(expected), "{out}");
    }
    assert_eq!(exec.exit.await.unwrap().code, 4);

    let mut spec = node.spec("p", "t", &["sh", "-c", "tty; read line; stty size; echo got $line"]);
    spec.spec.process_mut().as_mut().unwrap().set_terminal(Some(true)).user_mut().set_uid(1000);
    spec.stdin = true;
    node.runtime.create(spec).await.unwrap();
    node.runtime.start("t").await.unwrap();
    let attach = node.runtime.attach("t").await.unwrap();
    // SAFETY: as above.
    unsafe { libc::ioctl(attach.pty.as_ref().unwrap().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    write(attach.stdin.as_ref().unwrap(), "typed\n");
    assert!(attach.stderr.is_none());
    let seen = read_all(attach.stdout.unwrap()).await;
    assert!(seen.contains("33 77") && seen.contains("got typed"), "{seen}");
    assert_eq!(node.exit("t").await.code, 0);
    let log = node.log("t");
    assert!(log.contains("/dev/pts/0") || log.contains("/dev/console"), "{log}");
    assert!(log.contains("got typed"), "{log}");
    node.finish().await;
}

#[tokio::test]
async fn attached_clients_all_see_the_output_and_feed_the_input() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    let mut spec = node.spec("p", "c", &["sh", "-c", "cat; echo err >&2"]);
    (spec.stdin, spec.stdin_once) = (true, true);
    node.runtime.create(spec).await.unwrap();
    node.runtime.start("c").await.unwrap();
    let watcher = node.runtime.attach("c").await.unwrap();
    let second = node.runtime.attach("c").await.unwrap();
    assert!(second.stdin.is_none(), "stdinOnce: the first client has it");
    drop(second);
    let text = "0123456789abcde\n".repeat(100_000);
    let (stdin, to_write) = (watcher.stdin.unwrap(), text.clone());
    let writer = tokio::task::spawn_blocking(move || write(&stdin, &to_write));
    let (out, err) = tokio::join!(read_all(watcher.stdout.unwrap()), read_all(watcher.stderr.unwrap()));
    writer.await.unwrap();
    assert!(out == text, "{} of {} bytes", out.len(), text.len());
    assert_eq!(err, "err\n");
    assert_eq!(node.exit("c").await.code, 0);
    assert!(node.log("c") == text.clone() + "err\n" || node.log("c").len() == text.len() + 4);
    assert!(matches!(node.runtime.attach("c").await, Err(Error::WrongState { .. })));
    node.finish().await;
}

#[tokio::test]
async fn a_flood_of_output_keeps_nobody_waiting_and_is_rotated() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "flood", &["sh", "-c", "yes 0123456789012345678901234567890123456789 | head -c 60000000"])
        .await;
    let mut worst = Duration::ZERO;
    for at in 0..10 {
        let begun = Instant::now();
        node.runtime.list().await.unwrap();
        worst = worst.max(begun.elapsed());
        let id = format!("c{at}");
        assert_eq!(node.run("p", &id, &["true"]).await.code, 0);
    }
    println!("slowest answer during a flood: {worst:?}");
    assert!(worst < Duration::from_millis(500), "{worst:?}");
    assert_eq!(node.exit("flood").await.code, 0);
    let path = node.log_path("flood");
    let files = shim::rotated(&path).unwrap();
    assert_eq!(files.len(), 4, "five files are kept with the current one");
    for file in &files {
        let size = std::fs::metadata(file).unwrap().len();
        assert!((10 << 20..11 << 20).contains(&size), "{size}");
    }
    node.finish().await;
}

/// Run in a process of its own by the next test: an agent that starts a node and containers and is then killed.
#[tokio::test]
async fn agent_to_be_killed() {
    let Ok(options) = std::env::var("SKIFF_TEST_AGENT") else { return };
    let options: ShimOptions = serde_json::from_str(&options).unwrap();
    let dir = tempfile::tempdir_in(options.run_dir.parent().unwrap()).unwrap();
    let layer = options.run_dir.parent().unwrap().join("busybox");
    let mut node = Node::enter((dir, options)).await;
    node.layer = layer;
    node.sandbox("p").await;
    let stays = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.02; done";
    for (id, script) in [("stays", stays), ("ends", "sleep 0.5; echo done; exit 9")] {
        let mut spec = node.spec("p", id, &["sh", "-c", script]);
        let root = node.options.run_dir.parent().unwrap();
        spec.rootfs =
            Rootfs::Overlay { lower: vec![node.layer.clone()], scratch: root.join("scratch").join(id) };
        spec.log_path = root.join("logs").join(id).join("0.log");
        node.runtime.create(spec).await.unwrap();
        node.runtime.start(id).await.unwrap();
    }
    std::fs::write(node.options.run_dir.with_file_name("agent-ready"), node.runtime.pid().to_string())
        .unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_is_replaced_and_nothing_is_lost() {
    let (dir, options) = common::place();
    common::busybox(&dir.path().join("busybox"));
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_to_be_killed"])
        .env("SKIFF_TEST_AGENT", serde_json::to_string(&options).unwrap())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = options.run_dir.with_file_name("agent-ready");
    let begun = Instant::now();
    while std::fs::read_to_string(&ready).is_ok_and(|text| text.is_empty()) || !ready.exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the agent comes up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shim: i32 = std::fs::read_to_string(&ready).unwrap().parse().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;

    let mut node = Node::enter((dir, options)).await;
    assert_eq!(node.runtime.pid(), shim, "the same shim");
    let listed = node.runtime.list().await.unwrap();
    assert_eq!(listed.sandboxes, ["p"]);
    let by_id = |id: &str| listed.containers.iter().find(|container| container.id == id).unwrap().clone();
    assert_eq!((by_id("stays").state, by_id("ends").state), (State::Running, State::Exited));
    assert_eq!(by_id("ends").exit.unwrap().code, 9);
    assert_eq!(node.log("ends"), "done\n");
    let ticks = node.log("stays").lines().count();
    assert!(ticks > 15, "{ticks}");
    assert_eq!(node.exec("stays", &["echo", "alive"]).await.1, "alive\n");
    node.runtime.kill("stays", libc::SIGKILL).await.unwrap();
    assert_eq!(node.exit("stays").await.code, 137);

    // A second agent takes over; the first one hears of it.
    let (second, events) = Runtime::start_or_connect(node.options.clone()).await.unwrap();
    assert!(matches!(node.runtime.list().await, Err(Error::Disconnected(_))), "one agent at a time");
    (node.runtime, node.events) = (second, events);
    node.finish().await;
}

#[tokio::test]
async fn a_shim_that_dies_leaves_nothing_to_the_next() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "c", &["sleep", "1000"]).await;
    let status = node.runtime.list().await.unwrap().containers[0].clone();
    let shim = nix::unistd::Pid::from_raw(node.runtime.pid());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), node.events.recv()).await.unwrap();
    assert!(ended.is_none(), "the agent hears of it");
    assert!(matches!(node.runtime.list().await, Err(Error::Disconnected(_))));
    (node.runtime, node.events) = Runtime::start_or_connect(node.options.clone()).await.unwrap();
    assert_ne!(node.runtime.pid(), shim.as_raw());
    node.guard = testkit::node::ShimGuard(node.runtime.pid());
    let orphan = std::fs::read_to_string(format!("/proc/{}/stat", status.pid)).unwrap_or_default();
    assert!(
        !orphan.contains("(sleep) S"),
        "the orphan has ended, if perhaps nobody has reaped it yet: {orphan}"
    );
    assert!(node.runtime.list().await.unwrap().containers.is_empty());
    node.sandbox("p").await;
    assert_eq!(node.run("p", "c", &["true"]).await.code, 0);

    // Killed again, and this time the cluster is deleted with no shim there.
    node.up("p", "d", &["sleep", "1000"]).await;
    let refused = Runtime::remove_leftovers(node.options.clone()).await;
    assert!(matches!(refused, Err(Error::Failed { .. })), "never under a living shim");
    let shim = nix::unistd::Pid::from_raw(node.runtime.pid());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), node.events.recv()).await.unwrap().is_none());
    Runtime::remove_leftovers(node.options.clone()).await.unwrap();
    node.nothing_is_left();
}
