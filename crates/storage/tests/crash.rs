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
