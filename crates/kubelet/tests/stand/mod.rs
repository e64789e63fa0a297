//! Just enough of an API server for `kubectl exec`, `attach` and `port-forward`, around the agent's real streams.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kubelet::edge::{Containers, EdgeError};
use kubelet::stream::port_forward::Owner;
use kubelet::stream::upgrade::Upgrades;
use kubelet::stream::{Target, Wanted};
use runtime::{Attach, ContainerSpec, ContainerStatus, Exec, ExecSpec, Exit, SandboxSpec, Snapshot, Stats};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::client::Client;

/// Processes of the host in the place of containers.
#[derive(Default)]
struct Processes {
    running: Mutex<HashMap<u64, i32>>,
}

impl Processes {
    fn spawn(self: &Arc<Self>, spec: &ExecSpec) -> std::io::Result<Exec> {
        let mut command = Command::new(&spec.args[0]);
        command.args(&spec.args[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut exec =
            Exec { id: 0, stdin: None, stdout: None, stderr: None, pty: None, exit: oneshot::channel().1 };
        if spec.tty {
            let pty = nix::pty::openpty(None, None)?;
            let dup = || pty.slave.try_clone().map(Stdio::from);
            command.stdin(dup()?).stdout(dup()?).stderr(dup()?);
            // SAFETY: both calls are async-signal-safe.
            unsafe {
                command.pre_exec(|| {
                    libc::setsid();
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                    Ok(())
                });
            }
            exec.stdin = spec.stdin.then(|| pty.master.try_clone()).transpose()?;
            exec.stdout = Some(pty.master.try_clone()?);
            exec.pty = Some(pty.master);
        } else {
            for (wanted, set) in [
                (spec.stdin, Command::stdin as fn(&mut Command, Stdio) -> &mut Command),
                (spec.stdout, Command::stdout),
                (spec.stderr, Command::stderr),
            ] {
                if wanted {
                    set(&mut command, Stdio::piped());
                }
            }
        }
        let mut child = command.spawn()?;
        // The child's ends of the terminal must not stay open here.
        drop(command);
        if !spec.tty {
            exec.stdin = child.stdin.take().map(OwnedFd::from);
            exec.stdout = child.stdout.take().map(OwnedFd::from);
            exec.stderr = child.stderr.take().map(OwnedFd::from);
        }
        exec.id = u64::from(child.id());
        self.running.lock().unwrap().insert(exec.id, child.id() as i32);
        let (tx, exit) = oneshot::channel();
        exec.exit = exit;
        let (this, id) = (self.clone(), exec.id);
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            this.running.lock().unwrap().remove(&id);
            let code = status.code().unwrap_or(137);
            let _ = tx.send(Exit { code, signal: None, oom_killed: false, finished_at: 0 });
        });
        Ok(exec)
    }
}

/// What is shared with the runtime's threads.
struct Fake(Arc<Processes>);

fn unused<T>() -> Result<T, EdgeError> {
    Err(EdgeError("not part of this test".into()))
}

#[async_trait]
impl Containers for Fake {
    async fn create_sandbox(&self, _: SandboxSpec) -> Result<(), EdgeError> {
        unused()
    }
    async fn sandbox_netns(&self, id: &str) -> Result<OwnedFd, EdgeError> {
        assert_eq!(id, "u-1");
        Ok(std::fs::File::open("/proc/self/ns/net").unwrap().into())
    }
    async fn remove_sandbox(&self, _: &str) -> Result<(), EdgeError> {
        unused()
    }
    async fn create(&self, _: ContainerSpec) -> Result<(), EdgeError> {
        unused()
    }
    async fn start(&self, _: &str) -> Result<ContainerStatus, EdgeError> {
        unused()
    }
    async fn kill(&self, _: &str, _: i32) -> Result<(), EdgeError> {
        unused()
    }
    async fn remove(&self, _: &str) -> Result<(), EdgeError> {
        unused()
    }
    async fn list(&self) -> Result<Snapshot, EdgeError> {
        unused()
    }
    async fn exec(&self, _: &str, spec: ExecSpec) -> Result<Exec, EdgeError> {
        self.0.spawn(&spec).map_err(|e| EdgeError(format!("exec {:?}: {e}", spec.args[0])))
    }
    async fn kill_exec(&self, exec: u64, signal: i32) -> Result<(), EdgeError> {
        if let Some(pid) = self.0.running.lock().unwrap().get(&exec) {
            // SAFETY: a signal to a child that has not been waited for.
            unsafe { libc::kill(*pid, signal) };
        }
        Ok(())
    }
    async fn attach(&self, _: &str) -> Result<Attach, EdgeError> {
        let args = ["sh", "-c", "sleep 0.2; echo attached"].map(String::from).to_vec();
        let spec = ExecSpec { args, tty: false, stdin: false, stdout: true, stderr: false };
        let Exec { stdin, stdout, stderr, pty, .. } = self.0.spawn(&spec).unwrap();
        Ok(Attach { stdin, stdout, stderr, pty })
    }
    async fn stats(&self, _: &str) -> Result<Stats, EdgeError> {
        unused()
    }
    async fn mount_tmpfs(&self, _: &Path, _: Option<u64>, _: u32) -> Result<(), EdgeError> {
        unused()
    }
    async fn unmount(&self, _: &Path) -> Result<(), EdgeError> {
        unused()
    }
    fn node_root(&self) -> PathBuf {
        "/".into()
    }
}

/// The server and its client.
pub struct Stand {
    pub client: Client,
    processes: Arc<Processes>,
    _runtime: tokio::runtime::Runtime,
}

impl Stand {
    pub fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let processes = Arc::new(Processes::default());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let upgrades =
            Upgrades { containers: Arc::new(Fake(processes.clone())), stop: CancellationToken::new() };
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let upgrades = upgrades.clone();
                let service = hyper::service::service_fn(move |request| {
                    let answer = answer(&upgrades, request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service)
                    .with_upgrades();
                tokio::spawn(async move {
                    let _ = served.await;
                });
            }
        });
        Stand { client: Client::new(address), processes, _runtime: runtime }
    }

    /// Processes that have not ended.
    pub fn running(&self) -> usize {
        self.processes.running.lock().unwrap().len()
    }

    pub fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !done() {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Answers what it is told, up to the client's end; `RESET` makes it reset the connection. Its port.
    pub fn echo_server(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                std::thread::spawn(move || echo(connection));
            }
        });
        port
    }
}

fn echo(mut connection: TcpStream) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(n @ 1..) = connection.read(&mut buffer) {
        if buffer.starts_with(b"RESET") {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the socket is open and the option reads one linger, which lives across the call.
            unsafe {
                libc::setsockopt(
                    connection.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    std::ptr::from_ref(&linger).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                );
            }
            return;
        }
        if connection.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
    let _ = connection.shutdown(Shutdown::Write);
}

fn answer(upgrades: &Upgrades, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_string();
    let pod = "/api/v1/namespaces/default/pods/p";
    let switched = match path.strip_prefix(pod) {
        Some("/exec" | "/attach") => {
            let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
            let query: Vec<(String, String)> = query.into_owned().collect();
            let flag = |name: &str| query.iter().any(|(n, v)| n == name && v == "true");
            let wanted = Wanted {
                stdin: flag("stdin"),
                stdout: flag("stdout"),
                stderr: flag("stderr"),
                tty: flag("tty"),
            };
            let command: Vec<String> =
                query.into_iter().filter(|(n, _)| n == "command").map(|(_, v)| v).collect();
            let target = if path.ends_with("exec") { Target::Exec(command) } else { Target::Attach };
            upgrades.run(request, "c-1".into(), target, wanted)
        }
        Some("/portforward") => {
            upgrades.forward(request, Owner { pod: "p_default".into(), uid: "u-1".into() })
        }
        _ => return document(&path, pod),
    };
    match switched {
        Ok(response) => response.map(|()| Full::default()),
        Err(refused) => refused.response(Full::from(refused.message.clone())),
    }
}

fn document(path: &str, pod: &str) -> Response<Full<Bytes>> {
    let found = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "pods",
            "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}]}),
        path if path == pod => json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "namespace": "default", "uid": "u-1"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}}),
        _ => Value::Null,
    };
    let status = if found.is_null() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    let mut response = Response::new(Full::from(found.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
