//! Pulls from a registry on the loopback: what arrives, what is asked for, what goes wrong and how it is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};

use common::registry::Registry;
use common::{layer, manifest};
use image::digest::Digest;
use image::{Auth, Error, Phase, Progress, RegistryConfig, Store};
use serde_json::json;

fn store(config: RegistryConfig) -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), config).unwrap();
    (dir, store)
}

fn quiet(_: Progress) {}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_fetches_unpacks_and_is_found_again() {
    let registry = Registry::start().await;
    let layers = [layer(&[("etc/a", b"1")]), layer(&[("etc/b", b"2")])];
    let digest = registry.push("team/app", "1", &layers);
    let (dir, store) = store(RegistryConfig::default());
    let seen = Mutex::new(Vec::new());
    let name = registry.name("team/app:1");
    let image = store.pull(&name, &[], &|progress| seen.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(image.references, std::slice::from_ref(&name));
    assert_eq!(image.image_id(), format!("{}@{digest}", registry.name("team/app")));
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/true"]);
    assert_eq!(std::fs::read(image.layers[0].join("etc/a")).unwrap(), b"1");
    assert_eq!(std::fs::read(image.layers[1].join("etc/b")).unwrap(), b"2");
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!((last.phase, last.layers, last.total_layers), (Phase::Done, 2, 2));
    assert!(last.bytes == last.total_bytes && last.bytes > 0);

    // A second pull asks what the tag is now, and fetches nothing.
    let before = registry.requests().len();
    store.pull(&name, &[], &quiet).await.unwrap();
    assert_eq!(registry.requests()[before..], ["/v2/team/app/manifests/1"]);

    // By digest, in the same store opened anew: the image gains no tag.
    drop(store);
    let store = Store::open(dir.path(), RegistryConfig::default()).unwrap();
    let by_digest = format!("{}@{digest}", registry.name("team/app"));
    assert_eq!(store.get(&by_digest).unwrap().id, image.id);
    assert_eq!(store.pull(&by_digest, &[], &quiet).await.unwrap().references, [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_platform() {
    let registry = Registry::start().await;
    let right = registry.push("app", "right", &[layer(&[("arch", b"amd64")])]);
    let wrong = registry.push("app", "wrong", &[layer(&[("arch", b"arm64")])]);
    let entry = |digest: &Digest, arch: &str| json!({"digest": digest, "size": 1, "platform": {"os": "linux", "architecture": arch}});
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry(&wrong, "arm64"), entry(&right, "amd64")]});
    let top = registry.tag("app", "latest", kind, index.to_string().as_bytes());
    let only_arm = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry(&wrong, "arm64")]});
    registry.tag("app", "arm", kind, only_arm.to_string().as_bytes());
    let (_dir, store) = store(RegistryConfig::default());
    let image = store.pull(&registry.name("app"), &[], &quiet).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("arch")).unwrap(), b"amd64");
    // The digest that people pin is the index's.
    assert_eq!(image.image_id(), format!("{}@{top}", registry.name("app")));
    let error = store.pull(&registry.name("app:arm"), &[], &quiet).await.unwrap_err();
    assert!(
        error.to_string().ends_with("no match for platform linux/amd64 in manifest: not found"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_credentials() {
    let registry = Registry::start().await;
    registry.push("private/app", "1", &[layer(&[("f", b"1")])]);
    {
        let mut contents = registry.contents.lock().unwrap();
        contents.tokens = true;
        contents.login = Some("me:secret".into());
    }
    let name = registry.name("private/app:1");
    let auth = |password: &str| Auth {
        registry: registry.address.to_string(),
        username: "me".into(),
        password: password.into(),
        token: None,
    };
    let (_dir, anonymous) = store(RegistryConfig::default());
    for auths in [vec![], vec![auth("wrong")]] {
        let error = anonymous.pull(&name, &auths, &quiet).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        let text = error.rpc();
        assert!(
            text.contains("pull access denied, repository does not exist or may require authorization"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }
    // A wrong one among imagePullSecrets does not spoil a right one.
    anonymous.pull(&name, &[auth("wrong"), auth("secret")], &quiet).await.unwrap();

    // The host's Docker configuration serves as well.
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("config.json");
    // "bWU6c2VjcmV0" is base64 of me:secret.
    let entry = json!({"auths": {registry.address.to_string(): {"auth": "bWU6c2VjcmV0"}}});
    std::fs::write(&file, entry.to_string()).unwrap();
    let (_dir, with_host) = store(RegistryConfig { docker_config: Some(file), ..RegistryConfig::default() });
    with_host.pull(&name, &[], &quiet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart() {
    let registry = Registry::start().await;
    let (_dir, store) = store(RegistryConfig::default());
    let name = registry.name("nope:1");
    let error = store.pull(&name, &[], &quiet).await.unwrap_err();
    let expected = format!(
        "rpc error: code = NotFound desc = failed to pull and unpack image \"{name}\": failed to resolve reference \
         \"{name}\": {name}: not found"
    );
    assert_eq!(error.rpc(), expected);

    let error = store.pull("No/Such Name", &[], &quiet).await.unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error}");

    // A port on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = store.pull(&format!("{free}/app:1"), &[], &quiet).await.unwrap_err();
    assert!(
        matches!(error, Error::Pull { .. }) && error.to_string().contains("connect: connection refused"),
        "{error}"
    );

    // A manifest that is no manifest.
    registry.put("junk/manifests/1", "application/json", b"<html>hello</html>");
    let error = store.pull(&registry.name("junk:1"), &[], &quiet).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");

    // An image whose configuration lists other layers than its manifest.
    let (config, blob) = (common::config(&[]), common::gzip(&layer(&[("f", b"1")])));
    registry.put(&format!("odd/blobs/{}", Digest::of(&config)), "x/y", &config);
    registry.tag("odd", "1", "application/vnd.oci.image.manifest.v1+json", &manifest(&config, &[blob]));
    let error = store.pull(&registry.name("odd:1"), &[], &quiet).await.unwrap_err();
    assert!(error.to_string().contains("1 layers, but its configuration speaks of 0"), "{error}");
    assert!(store.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stumbling_registry_is_asked_again_and_damage_is_refused() {
    let registry = Registry::start().await;
    let layers = [layer(&[("f", b"1")])];
    registry.push("app", "1", &layers);
    registry.contents.lock().unwrap().stumble = 2;
    let (dir, store) = store(RegistryConfig::default());
    store.pull(&registry.name("app:1"), &[], &quiet).await.unwrap();

    // The right blob under its digest is replaced by other bytes of the same length.
    let other = [layer(&[("f", b"2")])];
    registry.push("app", "2", &other);
    let mut blob = common::gzip(&other[0]);
    let path = format!("app/blobs/{}", Digest::of(&blob));
    *blob.last_mut().unwrap() ^= 1;
    registry.put(&path, "application/octet-stream", &blob);
    let error = store.pull(&registry.name("app:2"), &[], &quiet).await.unwrap_err();
    assert!(matches!(error, Error::Pull { .. }), "{error}");
    assert_eq!(store.list().unwrap().len(), 1);
    drop(store);
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_first_and_their_failures_are_not_final() {
    let (empty, full) = (Registry::start().await, Registry::start().await);
    let digest = full.push("library/nginx", "latest", &[layer(&[("f", b"1")])]);
    let mirrors = format!(
        "registries: {{docker.io: {{mirrors: ['http://127.0.0.1:1', 'http://{}', 'http://{}']}}}}",
        empty.address, full.address
    );
    let (_dir, store) = store(RegistryConfig::from_yaml(&mirrors).unwrap());
    let image = store.pull("nginx", &[], &quiet).await.unwrap();
    assert_eq!(image.references, ["docker.io/library/nginx:latest"]);
    assert_eq!(image.image_id(), format!("docker.io/library/nginx@{digest}"));
    assert_eq!(empty.requests(), ["/v2/library/nginx/manifests/latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_fetch_each_blob_once() {
    let registry = Registry::start().await;
    let base = layer(&[("base", b"1")]);
    for n in 0..4u8 {
        registry.push("app", &n.to_string(), &[base.clone(), layer(&[("own", &[n])])]);
    }
    let (_dir, store) = store(RegistryConfig::default());
    let names: Vec<String> = (0..8).map(|n| registry.name(&format!("app:{}", n % 4))).collect();
    let pulls = names.iter().map(|name| store.pull(name, &[], &quiet));
    let images: Vec<_> = futures::future::join_all(pulls).await.into_iter().map(Result::unwrap).collect();
    for (n, image) in images.iter().enumerate() {
        assert_eq!(std::fs::read(image.layers[1].join("own")).unwrap(), [(n % 4) as u8]);
    }
    let mut blobs: Vec<_> = registry.requests().into_iter().filter(|path| path.contains("/blobs/")).collect();
    let requests = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!((requests, blobs.len()), (9, 9));
    // The shared layer is one directory.
    let inode = |n: usize| images[n].layers[0].metadata().unwrap().ino();
    assert!((1..8).all(|n| inode(n) == inode(0)));
}
