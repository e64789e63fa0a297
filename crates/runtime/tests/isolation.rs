//! What a container may and may not: capabilities, seccomp, users, file systems, limits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Node;
use oci_spec::runtime::*;
use runtime::defaults;

runtime::shim_in_tests!();

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().as_mut().unwrap()
}

fn linux(spec: &mut Spec) -> &mut Linux {
    spec.linux_mut().as_mut().unwrap()
}

fn runtime_default(spec: &mut Spec) {
    linux(spec).set_seccomp(Some(defaults::seccomp(&defaults::capabilities())));
}

fn capabilities(spec: &mut Spec, set: Capabilities) {
    process(spec).set_capabilities(Some(defaults::capability_sets(&set).unwrap()));
}

fn status(log: &str, key: &str) -> String {
    let line = log.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {log}"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn seccomp_really_filters() {
    let mut node = Node::start().await;
    // With CAP_SYS_ADMIN these work; the profile of a container without it forbids them whatever the process may.
    let script = "unshare -u true; echo unshare $?; mount -t tmpfs x /tmp; echo mount $?; grep Seccomp: /proc/1/status";
    let admin = |spec: &mut Spec| capabilities(spec, defaults::all_capabilities());
    let (_, free) = node.shell("free", script, admin).await;
    assert!(free.contains("unshare 0") && free.contains("mount 0"), "{free}");
    assert_eq!(status(&free, "Seccomp:"), "0");
    let (_, shut) = node
        .shell("shut", script, |spec| {
            admin(spec);
            runtime_default(spec);
        })
        .await;
    assert!(shut.contains("Operation not permitted"), "{shut}");
    assert!(!shut.contains("unshare 0") && !shut.contains("mount 0"), "{shut}");
    assert_eq!(status(&shut, "Seccomp:"), "2");
    // A further process is under the same filter.
    let mut spec = node.spec("p", "up", &["sleep", "1000"]);
    admin(&mut spec.spec);
    runtime_default(&mut spec.spec);
    node.runtime.create(spec).await.unwrap();
    node.runtime.start("up").await.unwrap();
    let (code, _, errors) = node.exec("up", &["unshare", "-u", "true"]).await;
    assert!(code != 0 && errors.contains("Operation not permitted"), "{errors}");
    // As an ordinary user with no_new_privs, and with a filter of one's own.
    let (code, log) = node
        .shell("user", "mkdir /tmp/x; id -u; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status", |spec| {
            process(spec).set_no_new_privileges(Some(true));
            process(spec).user_mut().set_uid(1000);
            let mut rule = LinuxSyscall::default();
            rule.set_names(vec!["mkdir".into(), "mkdirat".into()])
                .set_action(LinuxSeccompAction::ScmpActErrno);
            rule.set_errno_ret(Some(libc::ENOTDIR as u32));
            let mut profile = LinuxSeccomp::default();
            profile.set_default_action(LinuxSeccompAction::ScmpActAllow).set_syscalls(Some(vec![rule]));
            linux(spec).set_seccomp(Some(profile));
        })
        .await;
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("Not a directory") && log.contains("1000"), "{log}");
    assert_eq!((status(&log, "Seccomp:"), status(&log, "NoNewPrivs")), ("2".into(), "1".into()));
    node.finish().await;
}

#[tokio::test]
async fn capabilities_are_those_of_the_spec() {
    let mut node = Node::start().await;
    let script = "grep Cap /proc/self/status; touch /tmp/f; chown 5:5 /tmp/f; echo chown $?; grep NoNewPrivs /proc/self/status";
    let (_, log) = node.shell("default", script, |_| ()).await;
    assert_eq!(status(&log, "CapEff:"), "00000000a80425fb", "Docker's fourteen");
    assert_eq!(status(&log, "CapBnd:"), "00000000a80425fb");
    assert_eq!((status(&log, "CapInh:"), status(&log, "CapAmb:")), ("0".repeat(16), "0".repeat(16)));
    assert!(log.contains("chown 0"));
    assert_eq!(status(&log, "NoNewPrivs:"), "0", "set-user-ID programs work unless told otherwise");
    let (_, log) = node.shell("none", script, |spec| capabilities(spec, Capabilities::new())).await;
    assert_eq!(status(&log, "CapBnd:"), "0".repeat(16));
    assert!(log.contains("chown 1"), "{log}");
    let user = |spec: &mut Spec| {
        process(spec).user_mut().set_uid(1000).set_gid(1000);
    };
    let (_, log) = node.shell("user", script, user).await;
    assert_eq!(
        (status(&log, "CapEff:"), status(&log, "CapBnd:")),
        ("0".repeat(16), "00000000a80425fb".into())
    );
    node.finish().await;
}

#[tokio::test]
async fn user_directory_and_environment_are_honoured() {
    let mut node = Node::start().await;
    let script = "id -u; id -g; id -G; pwd; echo home $HOME; echo a $A; echo tool $TOOL; umask; ls -ld . | cut -c1-10; \
                  echo written > /dev/stdout; kill -l >/dev/null; trap";
    let (code, log) = node
        .shell("c", script, |spec| {
            process(spec).user_mut().set_uid(1000).set_gid(1001).set_additional_gids(Some(vec![7, 8]));
            process(spec).set_cwd("/made/for/me".into());
            process(spec).set_env(Some(vec![defaults::PATH.into(), "A=1=2 3".into(), "TOOL=".into()]));
        })
        .await;
    assert_eq!(code, 0, "{log}");
    let expected =
        "1000\n1001\n1001 7 8\n/made/for/me\nhome /home/user\na 1=2 3\ntool\n0022\ndrwxr-xr-x\nwritten\n";
    assert_eq!(log, expected);
    // Without groups of his own a user has none of the creator's.
    let (_, log) = node
        .shell("plain", "id -G; grep SigIgn /proc/self/status; grep SigBlk /proc/self/status", |spec| {
            process(spec).user_mut().set_uid(1000).set_gid(1000);
        })
        .await;
    assert!(log.starts_with("1000\n"), "{log}");
    assert_eq!((status(&log, "SigIgn:"), status(&log, "SigBlk:")), ("0".repeat(16), "0".repeat(16)));
    node.finish().await;
}

#[tokio::test]
async fn file_systems_are_shut_as_they_should_be() {
    let mut node = Node::start().await;
    let script = "echo x > /f && echo root writable; echo 1 > /proc/sys/vm/drop_caches && echo sysctl writable; \
                  echo x > /sys/kernel/x 2>/dev/null && echo sys writable; cat /proc/kcore | head -c1 | wc -c; \
                  ls /sys/firmware | wc -l; echo y > /dev/shm/y && echo shm; ls /dev; cat /proc/self/mounts | wc -l";
    let (_, log) = node
        .shell("ro", script, |spec| {
            spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
        })
        .await;
    for forbidden in ["root writable", "sysctl writable", "sys writable"] {
        assert!(!log.contains(forbidden), "{log}");
    }
    assert!(log.contains("shm\n") && log.contains("ptmx") && log.contains("\n0\n"), "{log}");
    assert!(!log.contains("\nsda") && !log.contains("\nvda"), "{log}");
    // The Pod's containers share /dev/shm; the writable layer is a container's own.
    let (code, log) = node.shell("rw", "cat /dev/shm/y; echo x > /f; cat /f; ls /f", |_| ()).await;
    assert_eq!((code, log.as_str()), (0, "y\nx\n/f\n"));
    assert!(!node.layer.join("f").exists(), "the image is untouched");
    let (_, log) = node.shell("other", "ls /f", |_| ()).await;
    assert!(log.contains("No such file"), "{log}");
    node.finish().await;
}

#[tokio::test]
async fn volumes_are_bound() {
    let mut node = Node::start().await;
    let volume = node.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("in"), "from outside").unwrap();
    let memory = node.dir.path().join("memory");
    node.runtime.mount_tmpfs(&memory, Some(1 << 20), 0o1777).await.unwrap();
    let inside = node.runtime.node_root().join(memory.strip_prefix("/").unwrap());
    std::fs::write(inside.join("secret"), "s3cret").unwrap();
    assert!(!memory.join("secret").exists(), "memory is mounted in the node only");
    let mounts = [
        defaults::bind(&volume, "/ro".as_ref(), true).unwrap(),
        defaults::bind(&volume, "/deep/rw".as_ref(), false).unwrap(),
        defaults::bind(&volume.join("in"), "/file".as_ref(), true).unwrap(),
        defaults::bind(&memory, "/memory".as_ref(), false).unwrap(),
        defaults::bind(&node.runtime.binary(), "/bin/skiff".as_ref(), true).unwrap(),
    ];
    let script = "cat /ro/in /file /memory/secret; echo x > /ro/x; echo ro $?; echo x > /deep/rw/x; echo rw $?; \
                  dd if=/dev/zero of=/memory/big bs=1M count=2 2>/dev/null || echo full; test -x /bin/skiff && echo built in";
    let (_, log) = node.shell("c", script, |spec| spec.mounts_mut().as_mut().unwrap().extend(mounts)).await;
    assert!(log.contains("from outsidefrom outsides3cret"), "{log}");
    for expected in ["ro 1", "rw 0", "full", "built in"] {
        assert!(log.contains(expected), "{expected} in {log}");
    }
    assert_eq!(std::fs::read_to_string(volume.join("x")).unwrap(), "x\n");
    node.runtime.unmount(&memory).await.unwrap();
    node.runtime.unmount(&memory).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn devices_are_denied() {
    let mut node = Node::start().await;
    let script = "mknod /tmp/disk b 7 0 && echo made; dd if=/tmp/disk count=1 2>&1; mknod /tmp/mem c 1 1; \
                  dd if=/tmp/mem count=1 2>&1; dd if=/dev/zero of=/dev/null count=1 2>&1 | tail -1";
    let (_, log) = node.shell("c", script, |_| ()).await;
    assert!(log.contains("made"), "{log}");
    assert_eq!(log.matches("Operation not permitted").count(), 2, "{log}");
    assert!(log.contains("1+0 records out") || log.contains("512 bytes"), "{log}");
    node.finish().await;
}

#[tokio::test]
async fn a_container_over_its_memory_is_killed_and_says_so() {
    let mut node = Node::start().await;
    let limit = |spec: &mut Spec| {
        let memory = LinuxMemoryBuilder::default().limit(32i64 << 20).build().unwrap();
        linux(spec).resources_mut().as_mut().unwrap().set_memory(Some(memory));
    };
    node.sandbox("p").await;
    let mut spec =
        node.spec("p", "oom", &["sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo alive"]);
    limit(&mut spec.spec);
    let exit = node.run_spec(spec).await;
    assert!(exit.oom_killed, "{exit:?}");
    assert!(!node.log("oom").contains("alive"));
    let mut fine = node.spec("p", "fine", &["sh", "-c", "echo alive"]);
    limit(&mut fine.spec);
    let exit = node.run_spec(fine).await;
    assert!(!exit.oom_killed && exit.code == 0);
    node.finish().await;
}

#[tokio::test]
async fn limits_that_are_not_permitted_are_lowered() {
    let mut node = Node::start().await;
    let (code, log) = node
        .shell("c", "ulimit -n; cat /proc/self/oom_score_adj", |spec| {
            process(spec).set_oom_score_adj(Some(-998));
            let limit = PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .soft(1u64 << 40)
                .hard(1u64 << 40)
                .build()
                .unwrap();
            process(spec).set_rlimits(Some(vec![limit]));
        })
        .await;
    assert_eq!(code, 0, "{log}");
    let (_, log) = node
        .shell("best-effort", "cat /proc/self/oom_score_adj", |spec| {
            process(spec).set_oom_score_adj(Some(1000));
        })
        .await;
    assert_eq!(log, "1000\n");
    let shim = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", node.runtime.pid())).unwrap();
    assert!(shim.trim().parse::<i32>().unwrap() <= 0, "the shim's own score stays: {shim}");
    node.finish().await;
}

#[tokio::test]
async fn pods_have_their_own_network_and_names() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    node.sandbox("q").await;
    let mut host = node.sandbox_spec("h");
    host.host_network = true;
    host.sysctls.clear();
    node.runtime.create_sandbox(host).await.unwrap();
    let script = "readlink /proc/self/ns/net; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let mut seen = Vec::new();
    for sandbox in ["p", "q", "h"] {
        let exit = node.run(sandbox, sandbox, &["sh", "-c", script]).await;
        assert_eq!(exit.code, 0);
        seen.push(node.log(sandbox));
    }
    assert!(seen[0].contains("host-p\n0\n") && seen[1].contains("host-q\n0\n"), "{seen:?}");
    let netns = |text: &str| text.lines().next().unwrap().to_owned();
    assert!(netns(&seen[0]) != netns(&seen[1]) && netns(&seen[0]) != netns(&seen[2]));
    let of_fd = |fd: &std::os::fd::OwnedFd| {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().display().to_string()
    };
    assert_eq!(of_fd(&node.runtime.sandbox_netns("p").await.unwrap()), netns(&seen[0]));
    let of_node = of_fd(&node.runtime.node_netns().await.unwrap());
    assert_eq!(of_node, netns(&seen[2]));
    assert_ne!(of_node, std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string());
    node.finish().await;
}

#[tokio::test]
async fn figures_are_those_of_the_cgroup() {
    let node = Node::start().await;
    node.sandbox("p").await;
    node.up("p", "busy", &["sh", "-c", "while :; do :; done"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let stats = node.runtime.stats("busy").await.unwrap();
    assert!(stats.cpu_nanos > 20_000_000, "{stats:?}");
    assert!(stats.memory_bytes > 0 && stats.memory_bytes <= stats.memory_usage_bytes, "{stats:?}");
    node.finish().await;
}

#[tokio::test]
async fn images_of_no_layer_and_of_many_work() {
    let mut node = Node::start().await;
    node.sandbox("p").await;
    // As the built-in image: nothing but a binary that is bound in.
    let mut spec = node.spec("p", "empty", &["/bin/skiff", "echo", "hi"]);
    spec.rootfs = runtime::Rootfs::Overlay { lower: vec![], scratch: node.dir.path().join("scratch/empty") };
    let mount = defaults::bind(&node.layer.join("bin/busybox"), "/bin/busybox".as_ref(), true).unwrap();
    spec.spec.mounts_mut().as_mut().unwrap().push(mount);
    process(&mut spec.spec).set_args(Some(["/bin/busybox", "echo", "hi"].map(str::to_owned).to_vec()));
    assert_eq!(node.run_spec(spec).await.code, 0);
    assert_eq!(node.log("empty"), "hi\n");
    let mut layers = vec![node.layer.clone()];
    for at in 0..120 {
        let layer = node.dir.path().join(format!("layer-with-a-long-name-as-digests-have-{at}"));
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(layer.join("top"), format!("{at}")).unwrap();
        std::fs::write(layer.join(format!("f{at}")), "").unwrap();
        layers.push(layer);
    }
    let mut spec = node.spec("p", "many", &["sh", "-c", "cat /top; ls / | grep -c ^f"]);
    spec.rootfs = runtime::Rootfs::Overlay { lower: layers, scratch: node.dir.path().join("scratch/many") };
    assert_eq!(node.run_spec(spec).await.code, 0);
    assert_eq!(node.log("many"), "119120\n");
    node.finish().await;
}

#[tokio::test]
async fn what_a_container_leaves_in_the_nodes_pid_namespace_is_killed() {
    let mut node = Node::start().await;
    let script = "sleep 1000 & echo $!; ls /proc | grep -c '^[0-9]'";
    let (code, log) = node
        .shell("host-pid", script, |spec| {
            let namespaces = linux(spec).namespaces_mut().as_mut().unwrap();
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
        })
        .await;
    assert_eq!(code, 0, "{log}");
    let mut lines = log.lines();
    let pid = lines.next().unwrap();
    assert!(lines.next().unwrap().parse::<u32>().unwrap() > 3, "it sees the node's processes: {log}");
    for _ in 0..500 {
        if !std::path::Path::new("/proc").join(pid).exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!std::path::Path::new("/proc").join(pid).exists(), "the daemon of the container has ended");
    node.finish().await;
}

/// Run in a mount namespace of its own by the next test, where the unified hierarchy is all there is.
#[tokio::test]
async fn unified_to_be_entered() {
    if std::env::var("SKIFF_TEST_UNIFIED").is_err() {
        return;
    }
    assert!(runtime::cgroup::Cgroups::detect().unwrap().is_unified() && defaults::is_unified());
    let mut node = Node::start().await;
    let script = "mknod /tmp/mem c 1 1; dd if=/tmp/mem count=1 2>&1; cat /proc/self/cgroup; \
                  cat /sys/fs/cgroup/cgroup.procs; echo 1 > /sys/fs/cgroup/cgroup.procs; echo write $?";
    let (_, log) = node.shell("c", script, |_| ()).await;
    assert!(log.contains("Operation not permitted"), "the program denies the device: {log}");
    assert!(log.contains("0::/\n"), "a cgroup namespace hides the rest: {log}");
    assert!(log.contains("\n1\n") && log.contains("write 1"), "its own cgroup, read-only: {log}");
    node.up("p", "up", &["sleep", "1000"]).await;
    assert_eq!(node.exec("up", &["echo", "hi"]).await.1, "hi\n");
    let stats = node.runtime.stats("up").await.unwrap();
    assert!(stats.cpu_nanos > 0, "{stats:?}");
    node.runtime.kill("up", libc::SIGKILL).await.unwrap();
    assert_eq!(node.exit("up").await.code, 137);
    node.finish().await;
    println!("unified was entered");
}

#[tokio::test]
async fn a_unified_host_works_too() {
    let script = "umount -R -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
                  exec \"$0\" --exact unified_to_be_entered --nocapture";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("SKIFF_TEST_UNIFIED", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("unified was entered"), "{text}{output:?}");
}
