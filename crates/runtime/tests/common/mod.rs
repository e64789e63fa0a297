//! A node of its own for each test: a shim, a busybox root file system, and a check that nothing is left afterwards.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::Spec;
use runtime::*;
use testkit::node::ShimGuard;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub options: ShimOptions,
    pub runtime: Runtime,
    pub events: Events,
    pub layer: PathBuf,
    exits: BTreeMap<String, runtime::Exit>,
    mounts: String,
    pub guard: ShimGuard,
}

impl Node {
    pub async fn start() -> Self {
        Self::enter(place()).await
    }

    /// A node at a place, which may have a shim already.
    pub async fn enter((dir, options): (tempfile::TempDir, ShimOptions)) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "containers need root: run the tests as root");
        let layer = dir.path().join("busybox");
        if !layer.exists() {
            busybox(&layer);
        }
        let mounts = mounts();
        let (runtime, events) = Runtime::start_or_connect(options.clone()).await.unwrap();
        let guard = ShimGuard(runtime.pid());
        Self { guard, dir, options, runtime, events, layer, exits: BTreeMap::new(), mounts }
    }

    pub fn sandbox_spec(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.into(),
            hostname: format!("host-{id}"),
            host_network: false,
            host_ipc: false,
            sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())].into(),
            cgroup: format!("{}/pod{id}", self.options.cgroup),
            shm_size: None,
        }
    }

    pub async fn sandbox(&self, id: &str) {
        self.runtime.create_sandbox(self.sandbox_spec(id)).await.unwrap();
    }

    pub fn spec(&self, sandbox: &str, id: &str, args: &[&str]) -> ContainerSpec {
        let mut spec = defaults::spec().unwrap();
        let process = spec.process_mut().as_mut().unwrap();
        process.set_args(Some(args.iter().map(|&arg| arg.to_owned()).collect()));
        ContainerSpec {
            id: id.into(),
            sandbox: sandbox.into(),
            spec,
            rootfs: Rootfs::Overlay {
                lower: vec![self.layer.clone()],
                scratch: self.dir.path().join("scratch").join(id),
            },
            log_path: self.log_path(id),
            stdin: false,
            stdin_once: false,
        }
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(id).join("0.log")
    }

    /// The content of a container's log, streams mixed, without the CRI columns.
    pub fn log(&self, id: &str) -> String {
        let text = fs::read_to_string(self.log_path(id)).unwrap();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    pub async fn run_spec(&mut self, spec: ContainerSpec) -> runtime::Exit {
        let id = spec.id.clone();
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        self.exit(&id).await
    }

    pub async fn run(&mut self, sandbox: &str, id: &str, args: &[&str]) -> runtime::Exit {
        let spec = self.spec(sandbox, id, args);
        self.run_spec(spec).await
    }

    /// Runs a shell script; returns exit code and log.
    pub async fn shell(&mut self, id: &str, script: &str, change: impl FnOnce(&mut Spec)) -> (i32, String) {
        if !self.runtime.list().await.unwrap().sandboxes.contains(&"p".to_owned()) {
            self.sandbox("p").await;
        }
        let mut spec = self.spec("p", id, &["sh", "-c", script]);
        change(&mut spec.spec);
        let exit = self.run_spec(spec).await;
        (exit.code, self.log(id))
    }

    pub async fn up(&self, sandbox: &str, id: &str, args: &[&str]) {
        self.runtime.create(self.spec(sandbox, id, args)).await.unwrap();
        self.runtime.start(id).await.unwrap();
    }

    pub async fn exit(&mut self, id: &str) -> runtime::Exit {
        let wait = async {
            while !self.exits.contains_key(id) {
                let Event::Exited { id, exit } = self.events.recv().await.expect("shim alive");
                self.exits.insert(id, exit);
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("container ends");
        self.exits.remove(id).unwrap()
    }

    pub async fn exec(&self, id: &str, args: &[&str]) -> (i32, String, String) {
        let exec = self.runtime.exec(id, exec_spec(args)).await.unwrap();
        let (stdout, stderr) = (exec.stdout.unwrap(), exec.stderr.unwrap());
        let (out, err) = tokio::join!(read_all(stdout), read_all(stderr));
        let exit = tokio::time::timeout(Duration::from_secs(30), exec.exit).await.unwrap().unwrap();
        (exit.code, out, err)
    }

    /// Ends the node and asserts that the machine is as before.
    pub async fn finish(self) {
        let pid = self.runtime.pid();
        self.runtime.clone().shutdown().await.unwrap();
        // Until its parent has waited for it, a dead process still has an entry.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_dead = stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'));
        assert!(is_dead, "the shim is gone");
        self.nothing_is_left();
    }

    /// Asserts that the machine is as before.
    pub fn nothing_is_left(&self) {
        assert!(!self.options.run_dir.exists(), "the run folder is gone");
        let cgroups = cgroup::Cgroups::detect().unwrap();
        assert_eq!(cgroups.processes(&self.options.cgroup), Vec::<i32>::new());
        for root in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let folder = root.unwrap().path().join(self.options.cgroup.trim_start_matches('/'));
            assert!(!folder.exists(), "{} is left", folder.display());
        }
        assert_eq!(mounts(), self.mounts, "no mount is left on the host");
    }
}

/// A folder and a cgroup of its own.
pub fn place() -> (tempfile::TempDir, ShimOptions) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = tempfile::Builder::new().prefix("skiff-runtime").tempdir().unwrap();
    let options = ShimOptions {
        socket: dir.path().join("run/shim.sock"),
        run_dir: dir.path().join("run"),
        cgroup: format!("/skiff-test-{}-{number}", std::process::id()),
    };
    (dir, options)
}

pub fn exec_spec(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    }
}

fn mounts() -> String {
    // Other tests mount in their shims' namespaces only: this must never change.
    fs::read_to_string("/proc/self/mounts").unwrap()
}

/// A root file system of busybox that knows the user 1000.
pub fn busybox(root: &Path) {
    testkit::node::busybox(root);
    let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

/// Reads a non-blocking descriptor of the runtime to its end.
pub async fn read_all(fd: std::os::fd::OwnedFd) -> String {
    let mut text = Vec::new();
    let read = async {
        if nix::unistd::isatty(&fd).unwrap_or(false) {
            // A terminal's end is EIO.
            // SAFETY: the descriptor is owned by what watches it.
            let mut master =
                unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }.unwrap();
            loop {
                let mut ready = master.readable_mut().await.unwrap();
                let mut chunk = [0u8; 4096];
                match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut chunk)?)) {
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(count)) => text.extend_from_slice(&chunk[..count]),
                    Err(_) => {}
                }
            }
        } else {
            let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(fd).unwrap();
            pipe.read_to_end(&mut text).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("stream ends");
    String::from_utf8(text).unwrap()
}
