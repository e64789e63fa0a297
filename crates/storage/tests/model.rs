//! The embedded store against a simple model: random writes, and what lists, old lists, watches and a reopening show.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use storage::{Embedded, Error, ListOptions, Options, Store};

#[derive(Debug, Clone)]
enum Op {
    Create(u8, u8),
    Update(u8, u8, bool),
    Delete(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..12u8, any::<u8>()).prop_map(|(k, v)| Op::Create(k, v)),
        (0..12u8, any::<u8>(), any::<bool>()).prop_map(|(k, v, right)| Op::Update(k, v, right)),
        (0..12u8, any::<bool>()).prop_map(|(k, right)| Op::Delete(k, right)),
    ]
}

fn key(k: u8) -> String {
    format!("/registry/{}/k{k}", if k.is_multiple_of(2) { "pods" } else { "nodes" })
}

type Model = BTreeMap<String, (Bytes, u64)>;

/// Applies one operation to both and checks that they agree on its outcome.
async fn step(store: &Embedded, model: &mut Model, op: &Op) {
    match *op {
        Op::Create(k, v) => match store.create(&key(k), Bytes::from(vec![v])).await {
            Ok(kv) => {
                assert!(!model.contains_key(&key(k)));
                assert_eq!(kv.create_revision, kv.mod_revision);
                model.insert(key(k), (kv.value, kv.mod_revision));
            }
            Err(error) => assert!(matches!(error, Error::Exists(_)) && model.contains_key(&key(k))),
        },
        Op::Update(k, v, right) => {
            let known = model.get(&key(k)).map(|(_, revision)| *revision);
            let expected = if right { known.unwrap_or(7) } else { known.unwrap_or(7) + 1 };
            match store.update(&key(k), Bytes::from(vec![v]), expected).await {
                Ok(kv) => {
                    assert!(right && known.is_some());
                    model.insert(key(k), (kv.value, kv.mod_revision));
                }
                Err(Error::Conflict { current, .. }) => {
                    assert!(!right && Some(current.mod_revision) == known)
                }
                Err(error) => assert!(matches!(error, Error::NotFound(_)) && known.is_none()),
            }
        }
        Op::Delete(k, right) => {
            let known = model.get(&key(k)).map(|(_, revision)| *revision);
            match store.delete(&key(k), (!right).then_some(u64::MAX)).await {
                Ok(deleted) => {
                    assert!(right && Some(deleted.last.mod_revision) == known);
                    model.remove(&key(k));
                }
                Err(error) => assert!(known.is_none() || (error.is_conflict() && !right)),
            }
        }
    }
}

async fn listed(store: &Embedded, prefix: &str, revision: Option<u64>, limit: usize) -> Model {
    let mut all = Model::new();
    let mut after = None;
    loop {
        let options = ListOptions { limit, after: after.clone(), revision };
        let page = store.list(prefix, options).await.unwrap();
        assert!(limit == 0 || page.items.len() <= limit);
        all.extend(page.items.iter().map(|kv| (kv.key.to_string(), (kv.value.clone(), kv.mod_revision))));
        if page.remaining == 0 {
            return all;
        }
        after = page.items.last().map(|kv| kv.key.to_string());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn lists_watches_and_a_reopening_agree_with_the_model(ops in prop::collection::vec(op(), 1..40), at in 0..40usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("store.redb");
            let store = Embedded::open(&path, Options::default()).unwrap();
            let mut model = Model::new();
            let mut then = (Model::new(), store.revision().await.unwrap());
            let mut live = store.watch("/registry/", 0).await.unwrap();
            for (i, op) in ops.iter().enumerate() {
                if i == at {
                    then = (model.clone(), store.revision().await.unwrap());
                }
                step(&store, &mut model, op).await;
            }
            prop_assert_eq!(&listed(&store, "/registry/", None, 0).await, &model);
            prop_assert_eq!(&listed(&store, "/registry/", Some(then.1), 3).await, &then.0);

            // Both a watch from then and one opened before all writes end in today's state.
            let newest = store.revision().await.unwrap();
            let mut late = store.watch("/registry/", then.1).await.unwrap();
            for (watch, mut state, mut seen) in [(&mut live, Model::new(), 1), (&mut late, then.0.clone(), then.1)] {
                while watch.progress() != Some(newest) {
                    let event = watch.next().await.unwrap().unwrap();
                    assert_eq!(event.revision, seen + 1, "events are consecutive");
                    seen = event.revision;
                    match &event.current {
                        Some(kv) => state.insert(kv.key.to_string(), (kv.value.clone(), kv.mod_revision)),
                        None => state.remove(&**event.key()),
                    };
                }
                prop_assert_eq!(&state, &model);
            }
            drop((live, late));
            drop(store);
            let again = Embedded::open(&path, Options::default()).unwrap();
            prop_assert_eq!(again.revision().await.unwrap(), newest);
            prop_assert_eq!(&listed(&again, "/registry/", None, 0).await, &model);
            if newest > 1 {
                let old = again.watch("/registry/", newest - 1).await.err();
                prop_assert!(matches!(old, Some(Error::Compacted { .. })), "{:?}", old);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_cut_off_and_writers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { watch_buffer: 4, ..Options::default() };
    let store = Embedded::open(&dir.path().join("store.redb"), options).unwrap();
    let mut slow = store.watch("/a/", 0).await.unwrap();
    for i in 0..10 {
        store.create(&format!("/a/{i}"), Bytes::from_static(b"x")).await.unwrap();
    }
    let mut seen = 0;
    let end = loop {
        match slow.next().await.unwrap() {
            Ok(_) => seen += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(seen, 4);
    assert!(matches!(end, Error::Compacted { requested: 5, .. }), "{end}");
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn what_readers_derive_from_an_event_goes_with_the_last_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb"), Options::default()).unwrap();
    let mut readers = [store.watch("/a/", 0).await.unwrap(), store.watch("/a/", 0).await.unwrap()];
    store.create("/a/1", Bytes::from_static(b"x")).await.unwrap();
    let first = readers[0].next().await.unwrap().unwrap();
    let derived = std::sync::Arc::new(());
    assert!(first.memo.set(Box::new(derived.clone())).is_ok());
    drop(first);
    let second = readers[1].next().await.unwrap().unwrap();
    assert!(second.memo.get().is_some(), "one event for all who read it");
    drop(second);
    // The logging thread may be about to let go of its batch.
    for _ in 0..500 {
        if std::sync::Arc::strong_count(&derived) == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(std::sync::Arc::strong_count(&derived), 1, "the history keeps what was derived");
    let again = store.watch("/a/", 1).await.unwrap().next().await.unwrap().unwrap();
    assert!(again.memo.get().is_none() && again.current.as_ref().unwrap().value == "x");
}

#[tokio::test]
async fn history_beyond_the_window_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_events: 5, ..Options::default() };
    let store = Embedded::open(&dir.path().join("store.redb"), options).unwrap();
    for i in 0..10 {
        store.create(&format!("/a/{i}"), Bytes::new()).await.unwrap();
    }
    assert!(matches!(store.watch("/a/", 5).await.err(), Some(Error::Compacted { oldest: 6, .. })));
    assert!(store.watch("/a/", 6).await.is_ok());
    let old = ListOptions { revision: Some(5), ..ListOptions::default() };
    assert!(matches!(store.list("/a/", old).await, Err(Error::Compacted { .. })));
    let future = ListOptions { revision: Some(99), ..ListOptions::default() };
    assert!(matches!(store.list("/a/", future).await, Err(Error::Future { newest: 11, .. })));
    store.compact(11).await.unwrap();
    assert!(matches!(store.watch("/a/", 8).await.err(), Some(Error::Compacted { oldest: 11, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_a_race_can_read_what_won() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb"), Options::default()).unwrap();
    store.create("/a/1", Bytes::from_static(b"0")).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let seen = store.get("/a/1").await.unwrap().unwrap();
                match store.update("/a/1", seen.value.clone(), seen.mod_revision).await {
                    Ok(_) => {}
                    Err(Error::Conflict { current, .. }) => {
                        let now = store.get("/a/1").await.unwrap().unwrap();
                        assert!(
                            now.mod_revision >= current.mod_revision,
                            "told of a state that nobody can read"
                        );
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
}
