//! The real kubectl against a server of the test, and what it forwards.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The kubectls of the machine: those that carry a version in their name, one of each generation, else the one there is.
pub fn kubectls() -> Vec<String> {
    let found = Command::new("sh").args(["-c", "readlink -f \"$(command -v kubectl)\""]).output().unwrap();
    let kubectl = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    assert!(kubectl.is_file(), "these tests need kubectl on the PATH");
    let versions = ["1.27", "1.29", "1.30", "1.33"];
    let named = versions.map(|v| kubectl.with_file_name(format!("kubectl.{v}")));
    let mut all: Vec<String> =
        named.iter().filter(|p| p.is_file()).map(|p| p.display().to_string()).collect();
    if all.is_empty() {
        all.push(kubectl.display().to_string());
    }
    all
}

/// A server's address, and a home for kubectl.
pub struct Client {
    pub address: SocketAddr,
    pub home: tempfile::TempDir,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client { address, home: tempfile::tempdir().unwrap() }
    }

    fn flags(&self) -> [String; 4] {
        let home = self.home.path().display();
        [
            format!("--server=http://{}", self.address),
            format!("--cache-dir={home}"),
            "--request-timeout=0".into(),
            "--kubeconfig=/dev/null".into(),
        ]
    }

    /// The start of a shell line. In the foreground: a shell that does not exec its last command (dash) would leave
    /// kubectl in a background process group, and the terminal would stop it.
    pub fn line(&self, kubectl: &str) -> String {
        format!(
            "HOME={} timeout --foreground 30 {kubectl} {}",
            self.home.path().display(),
            self.flags().join(" ")
        )
    }

    pub fn command(&self, kubectl: &str, args: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command.args(self.flags()).args(args).env("HOME", self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn kubectl(&self, kubectl: &str, args: &[&str]) -> Output {
        self.command(kubectl, args).stdin(Stdio::null()).output().unwrap()
    }

    pub fn forward(&self, kubectl: &str, pod: &str, port: u16) -> Forward {
        let mut child = Command::new(kubectl)
            .args(self.flags())
            .args(["port-forward", "--address=127.0.0.1", &format!("pod/{pod}"), &format!(":{port}")])
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let local = line.split(" -> ").next().and_then(|l| l.rsplit(':').next()).unwrap().parse();
        let Ok(local) = local else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            let _ = child.wait();
            panic!("{kubectl}: {line:?} {stderr}");
        };
        // Its further output must go somewhere.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Forward { child: Mutex::new(child), local }
    }
}

/// A running `kubectl port-forward`.
pub struct Forward {
    child: Mutex<Child>,
    local: u16,
}

impl Forward {
    pub fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(("127.0.0.1", self.local)).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        connection
    }

    /// What it says until it gives up.
    pub fn stderr(&self, most: Duration) -> String {
        let mut child = self.child.lock().unwrap();
        let deadline = Instant::now() + most;
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}
