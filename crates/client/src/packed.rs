//! Objects kept as text.
//!
//! The struct of an API type has room for every field that the type may ever have: a Service of 250 characters takes more
//! than a kilobyte. A component that holds all objects of a cluster, and looks into few of them at a time, keeps them
//! [`Packed`] and unpacks what it looks into, at a few microseconds each.

use std::fmt;
use std::marker::PhantomData;

use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::informer::{Cached, ObjectKey, version_of};

/// An object as compact JSON.
pub struct Packed<K> {
    version: u64,
    /// The length of the namespace, and of the name behind it; then comes the text.
    lengths: [u16; 2],
    bytes: Box<[u8]>,
    kind: PhantomData<fn() -> K>,
}

impl<K> fmt::Debug for Packed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

impl<K: Resource + Serialize + DeserializeOwned> Packed<K> {
    /// The object without loss, as far as its type knows its fields.
    pub fn new(object: &K) -> Self {
        let ObjectKey { namespace, name } = ObjectKey::of(object);
        // Names are of 253 characters at most.
        let lengths = [&namespace, &name].map(|word| u16::try_from(word.len()).unwrap_or(u16::MAX));
        let mut bytes = [namespace.as_bytes(), name.as_bytes()].concat();
        // API types are structs, maps of strings and numbers: there is nothing that JSON cannot hold.
        if let Err(error) = serde_json::to_writer(&mut bytes, object) {
            tracing::error!(kind = std::any::type_name::<K>(), namespace, name, %error, "an object cannot be kept");
        }
        Self { version: version_of(object), lengths, bytes: bytes.into(), kind: PhantomData }
    }

    /// The object.
    pub fn unpack(&self) -> K
    where
        K: Default,
    {
        let from = self.lengths.map(usize::from).iter().sum();
        let text = self.bytes.get(from..).unwrap_or_default();
        serde_json::from_slice(text).unwrap_or_else(|error| {
            tracing::error!(object = ?self, %error, "a kept object cannot be read and counts as empty");
            K::default()
        })
    }
}

impl<K: 'static> Cached for Packed<K> {
    fn key(&self) -> ObjectKey {
        let [namespace, name] = self.lengths.map(usize::from);
        let word = |range| String::from_utf8_lossy(self.bytes.get(range).unwrap_or_default()).into_owned();
        ObjectKey { namespace: word(0..namespace), name: word(namespace..namespace + name) }
    }

    fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use k8s_openapi::api::core::v1::{Node, Service};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_unpacked_is_what_was_packed() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
            "spec": {"clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30080, "name": "ü"}]}}))
        .unwrap();
        let packed = Packed::new(&service);
        assert_eq!(packed.unpack(), service);
        assert_eq!((packed.key(), packed.version()), (ObjectKey::new("shop", "web"), 7));
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let packed = Packed::new(&node);
        assert_eq!((packed.key(), packed.version(), packed.unpack()), (ObjectKey::new("", "n"), 0, node));
    }
}
