//! The store on disk: archives in and out, names, removal, crashes, several processes' worth of handles.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{docker_archive, layer};
use image::{Builtin, Error, Image, Progress, RegistryConfig, Source, Store};

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, RegistryConfig::default()).unwrap()
}

fn quiet(_: Progress) {}

async fn load(store: &Arc<Store>, bytes: Vec<u8>) -> Result<Vec<Image>, Error> {
    store.load(Source::Reader(Box::new(std::io::Cursor::new(bytes))), &quiet).await
}

fn count(dir: &Path, below: &str) -> usize {
    std::fs::read_dir(dir.join(below)).unwrap().count()
}

#[tokio::test]
async fn a_loaded_image_stands_in_for_its_registry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let archive = docker_archive("nginx:latest", &[layer(&[("f", b"1")])]);
    let path = dir.path().join("nginx.tar");
    std::fs::write(&path, &archive).unwrap();
    let images = store.load(path.as_path(), &quiet).await.unwrap();
    assert_eq!(images.len(), 1);
    assert!(images[0].side_loaded);
    assert_eq!(images[0].references, ["docker.io/library/nginx:latest"]);
    assert_eq!(images[0].image_id(), images[0].id);
    // docker.io is not asked: nothing here could reach it, and the answer is at once.
    let pulled = store.pull("nginx", &[], &quiet).await.unwrap();
    assert_eq!(pulled.id, images[0].id);
    assert_eq!(std::fs::read(pulled.layers[0].join("f")).unwrap(), b"1");
}

#[tokio::test]
async fn what_is_saved_loads_elsewhere_as_the_same_image() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(one.path()), open(two.path()));
    load(&from, docker_archive("a:1", &[layer(&[("f", b"1")]), layer(&[("g", b"2")])])).await.unwrap();
    load(&from, docker_archive("b:1", &[layer(&[("f", b"1")])])).await.unwrap();
    let mut saved = Vec::new();
    from.save(&["a:1", "b:1"], &mut saved).unwrap();
    // Compressed archives load as well.
    for bytes in [common::gzip(&saved), zstd::encode_all(saved.as_slice(), 1).unwrap(), saved] {
        let images = load(&to, bytes).await.unwrap();
        assert_eq!(images.len(), 2);
        for image in images {
            let original = from.get(&image.id).unwrap();
            assert_eq!(original.references, image.references);
            assert_eq!(original.size, image.size);
        }
    }
    assert_eq!(std::fs::read(to.get("a:1").unwrap().layers[1].join("g")).unwrap(), b"2");
    assert!(matches!(from.save(&["nope"], Vec::new()), Err(Error::Unknown(_))));
}

#[tokio::test]
async fn archives_that_are_no_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let good = docker_archive("a:1", &[layer(&[("f", b"1")])]);
    let bad = [
        b"not a tar at all".to_vec(),
        layer(&[("hello", b"x")]),
        layer(&[("manifest.json", b"{")]),
        layer(&[("manifest.json", br#"[{"Config":"missing.json","Layers":[]}]"#)]),
        layer(&[("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)]),
        layer(&[("manifest.json", br#"[{"Config":"manifest.json","Layers":["../../etc/passwd"]}]"#)]),
        good[..good.len() / 2].to_vec(),
        common::gzip(&good)[..200].to_vec(),
        Vec::new(),
    ];
    for (n, bytes) in bad.into_iter().enumerate() {
        let result = load(&store, bytes).await;
        assert!(matches!(result, Err(Error::Invalid { .. })), "{n}: {result:?}");
    }
    assert!(store.list().unwrap().is_empty());
    // A layer whose bytes are not what the configuration says.
    let mut archive = docker_archive("a:1", &[layer(&[("f", b"1")])]);
    let at = archive.windows(1).rposition(|byte| byte == b"1").unwrap();
    archive[at] = b'2';
    let result = load(&store, archive).await;
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");
    let missing = store.load(dir.path().join("nowhere").as_path(), &quiet).await;
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
}

#[tokio::test]
async fn removal_keeps_what_others_share_and_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let base = layer(&[("base", b"1")]);
    load(&store, docker_archive("a:1", &[base.clone(), layer(&[("a", b"1")])])).await.unwrap();
    let b =
        load(&store, docker_archive("b:1", &[base.clone(), layer(&[("b", b"1")])])).await.unwrap().remove(0);
    assert_eq!(count(dir.path(), "layers"), 4); // three layers and the empty one
    let lease = store.lease(&b).unwrap();
    store.remove("a:1").unwrap();
    assert_eq!(count(dir.path(), "layers"), 3);
    assert!(b.layers.iter().all(|layer| layer.is_dir()));
    assert!(matches!(store.remove("b:1"), Err(Error::InUse(_))));
    let other = open(dir.path());
    assert!(matches!(other.remove(&b.id), Err(Error::InUse(_))), "another process's lease counts too");
    assert!(store.get("b:1").is_some());
    drop(lease);
    store.remove(&b.id).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!((count(dir.path(), "layers"), count(dir.path(), "blobs/sha256")), (1, 0));
    assert!(matches!(store.remove("b:1"), Err(Error::Unknown(_))));
}

#[tokio::test]
async fn an_image_without_layers_has_an_empty_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = load(&store, docker_archive("scratch:1", &[])).await.unwrap().remove(0);
    assert_eq!(image.layers.len(), 1);
    assert_eq!(std::fs::read_dir(&image.layers[0]).unwrap().count(), 0);
}

#[tokio::test]
async fn two_handles_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    let loads = (0..10u8).map(|n| {
        let (store, archive) = (
            if n % 2 == 0 { &one } else { &two },
            docker_archive(&format!("i:{n}"), &[layer(&[("f", &[n])])]),
        );
        load(store, archive)
    });
    for result in futures::future::join_all(loads).await {
        result.unwrap();
    }
    assert_eq!((one.list().unwrap().len(), two.list().unwrap().len()), (10, 10));
    two.remove("i:3").unwrap();
    assert!(one.get("i:3").is_none() && one.get("i:4").is_some());
}

#[tokio::test]
async fn a_crash_leaves_only_what_open_sweeps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    load(&store, docker_archive("a:1", &[layer(&[("f", b"1")])])).await.unwrap();
    drop(store);
    // A process that died: unfinished work, and finished pieces of an image that never came to be.
    let dead = dir.path().join("tmp/dead");
    std::fs::create_dir_all(dead.join("half")).unwrap();
    let orphan = "0".repeat(64);
    std::fs::create_dir_all(dir.path().join("layers").join(&orphan)).unwrap();
    std::fs::write(dir.path().join("blobs/sha256").join(&orphan), "x").unwrap();
    let store = open(dir.path());
    assert!(!dead.exists());
    assert_eq!((count(dir.path(), "layers"), count(dir.path(), "blobs/sha256")), (2, 3));
    assert!(store.get("a:1").is_some());

    // While another process lives, its work is not touched.
    std::fs::write(dir.path().join("blobs/sha256").join(&orphan), "x").unwrap();
    let second = open(dir.path());
    assert_eq!(count(dir.path(), "blobs/sha256"), 4);
    drop((store, second));

    // An image whose layer vanished is dropped rather than run without it.
    std::fs::remove_dir_all(open(dir.path()).get("a:1").unwrap().layers.remove(0)).unwrap();
    assert!(open(dir.path()).get("a:1").is_none());
}

#[tokio::test]
async fn images_written_before_a_power_failure_are_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    load(&open(dir.path()), docker_archive("a:1", &[layer(&[("f", b"1")])])).await.unwrap();
    let path = dir.path().join("index.json");
    let set = |boot: Option<&str>| {
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let record = index["images"].as_object_mut().unwrap().values_mut().next().unwrap();
        record["unsynced"] = serde_json::json!(boot);
        std::fs::write(&path, index.to_string()).unwrap();
    };
    set(None);
    assert!(open(dir.path()).get("a:1").is_some());
    set(Some("another boot"));
    assert!(open(dir.path()).get("a:1").is_none());
}

#[tokio::test]
async fn the_builtin_image_is_stable_and_replaced_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = "localhost/skiff:latest";
    let builtin = |applets| Builtin { applets, env: &["HOME=/root"], command: &[] };
    let first = store.set_builtin(name, builtin(&["wget", "nslookup"])).unwrap();
    assert!(first.builtin && first.side_loaded);
    let root = &first.layers[0];
    assert_eq!(std::fs::read_link(root.join("bin/wget")).unwrap(), Path::new("skiff"));
    assert_eq!(root.join(image::BUILTIN_BINARY.trim_start_matches('/')).metadata().unwrap().len(), 0);
    let mode = std::os::unix::fs::PermissionsExt::mode(&root.join("tmp").metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o1777);
    let entrypoint = first.config.config().as_ref().unwrap().entrypoint().clone().unwrap();
    assert_eq!(entrypoint, [image::BUILTIN_BINARY]);
    assert_eq!(store.set_builtin(name, builtin(&["wget", "nslookup"])).unwrap().id, first.id);
    assert_eq!(store.pull("localhost/skiff", &[], &quiet).await.unwrap().id, first.id);
    let second = store.set_builtin(name, builtin(&["wget"])).unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(store.list().unwrap().len(), 1);
}
