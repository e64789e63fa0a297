//! `kill -9` in the middle of writes: every acknowledged write is there, nothing is torn.
//!
//! The test binary starts itself as the writer, which prints each acknowledged key; the parent kills it and looks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use storage::{Embedded, ListOptions, Options, Store};

const WRITER: &str = "STORAGE_CRASH_WRITER";

fn value(name: &str) -> Bytes {
    Bytes::from(name.repeat(20))
}

/// The child: eight writers that print what was acknowledged. Does nothing in an ordinary test run.
#[test]
fn writer() {
    let Ok(path) = std::env::var(WRITER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&path), Options::default()).unwrap();
        let out = Arc::new(std::sync::Mutex::new(std::io::stdout()));
        let start = store.revision().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let (store, out) = (store.clone(), out.clone());
            tasks.spawn(async move {
                for i in 0..20_000 {
                    let name = format!("/w/{start}-{task}-{i}");
                    store.create(&name, value(&name)).await.unwrap();
                    let mut out = out.lock().unwrap();
                    writeln!(out, "ACK {name}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
}

#[tokio::test]
async fn no_acknowledged_write_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut acknowledged = Vec::new();
    for round in 1..=6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok).take(round * 53) {
            acknowledged.extend(line.split_once("ACK ").map(|(_, name)| name.to_owned()));
        }
        child.kill().unwrap();
        acknowledged
            .extend(lines.map_while(Result::ok).filter_map(|l| Some(l.split_once("ACK ")?.1.to_owned())));
        child.wait().unwrap();

        let store = Embedded::open(&path, Options::default()).unwrap();
        let list = store.list("/w/", ListOptions::default()).await.unwrap();
        assert!(list.items.iter().all(|kv| kv.value == value(&kv.key)), "torn value");
        assert_eq!(list.revision, 1 + list.items.len() as u64, "each create made one revision");
        for name in &acknowledged {
            assert!(list.items.iter().any(|kv| &*kv.key == name), "{name} was acknowledged and is lost");
        }
    }
    assert!(acknowledged.len() > 500, "the writers did run: {}", acknowledged.len());
}

const FULL: &str = "STORAGE_FULL_DISK";

/// The child: a store on a disk that fills up (a file size limit stands in for it: same path, same kind of error).
#[test]
fn writer_on_a_full_disk() {
    let Ok(path) = std::env::var(FULL) else { return };
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal runs no code of ours; without it the limit would kill instead of failing the write.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&path), Options::default()).unwrap();
        let big = Bytes::from(vec![7u8; 256 << 10]);
        store.create("/w/kept", big.clone()).await.unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        setrlimit(Resource::RLIMIT_FSIZE, size, nix::libc::RLIM_INFINITY).unwrap();
        let mut made = Vec::new();
        let error = loop {
            match store.create(&format!("/w/{}", made.len()), big.clone()).await {
                Ok(kv) => made.push(kv.key.to_string()),
                Err(error) => break error,
            }
            assert!(made.len() < 1000, "the limit was never met");
        };
        assert!(error.to_string().contains("check space"), "{error}");
        let list = store.list("/w/", ListOptions::default()).await.unwrap();
        assert_eq!(list.items.len(), made.len() + 1, "what failed is not shown");
        // Space comes back: the same store goes on.
        setrlimit(Resource::RLIMIT_FSIZE, nix::libc::RLIM_INFINITY, nix::libc::RLIM_INFINITY).unwrap();
        let after = store.create("/w/after", big.clone()).await;
        let after = match after {
            Err(_) => store.create("/w/after", big).await.unwrap(),
            Ok(kv) => kv,
        };
        assert_eq!(store.get("/w/after").await.unwrap(), Some(after));
    });
}

#[tokio::test]
async fn a_full_disk_fails_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["writer_on_a_full_disk", "--exact"]).env(FULL, &path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let store = Embedded::open(&path, Options::default()).unwrap();
    for key in ["/w/kept", "/w/after"] {
        assert_eq!(store.get(key).await.unwrap().map(|kv| kv.value.len()), Some(256 << 10), "{key}");
    }
}
