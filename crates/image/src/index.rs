//! The store's table of contents, as a pure value: which images there are, under which names, made of what.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::document::Descriptor;
use crate::error::{Error, Result};
use crate::reference::{full, parse, repo_digest, repository};

/// Everything that `index.json` says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// By id: the digest of the image's configuration.
    pub images: BTreeMap<Digest, Record>,
}

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The manifest's blob, from which the image can be saved again.
    pub manifest: Descriptor,
    /// Full names with tag.
    #[serde(default)]
    pub references: BTreeSet<String>,
    /// Full names with the digest under which a registry gave it.
    #[serde(default)]
    pub repo_digests: BTreeSet<String>,
    /// Bottom first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of all blobs.
    pub size: u64,
    /// Came from an archive or from the binary: stands in for its registry.
    #[serde(default)]
    pub side_loaded: bool,
    /// Is the image of the running binary.
    #[serde(default)]
    pub builtin: bool,
    /// The boot during which it was written, until the disk is known to have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsynced: Option<String>,
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        (&self.references, &self.repo_digests, &self.layers)
            == (&other.references, &other.repo_digests, &other.layers)
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The blob as it came, compressed or not.
    pub blob: Digest,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// This layer and all below it: the name of its unpacked directory (OCI image spec, config.md, "Layer ChainID").
    pub chain: Digest,
}

/// The chain ids of a list of diff ids.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

impl Index {
    /// Puts an image in, or adds what is new to one that is there. A tag belongs to one image: others lose it.
    pub fn put(&mut self, id: Digest, record: Record) {
        for (other, existing) in &mut self.images {
            if *other != id {
                existing.references.retain(|name| !record.references.contains(name));
            }
        }
        match self.images.get_mut(&id) {
            None => {
                self.images.insert(id, record);
            }
            Some(existing) => {
                existing.references.extend(record.references);
                existing.repo_digests.extend(record.repo_digests);
                existing.side_loaded |= record.side_loaded;
                existing.builtin |= record.builtin;
            }
        }
    }

    /// Finds an image by name (short or full, with tag, digest or both), or by id (whole, or the start of one).
    pub fn find(&self, name: &str) -> Option<&Digest> {
        self.find_named(name).or_else(|| self.find_id(name))
    }

    fn find_named(&self, name: &str) -> Option<&Digest> {
        let reference = parse(name).ok()?;
        let by = |matches: &dyn Fn(&Record) -> bool| {
            self.images.iter().find(|(_, record)| matches(record)).map(|(id, _)| id)
        };
        match reference.digest().map(Digest::parse) {
            Some(Ok(digest)) => {
                let name = repo_digest(&reference, &digest);
                by(&|record| record.repo_digests.contains(&name))
            }
            Some(Err(_)) => None,
            None => {
                let name = full(&reference);
                by(&|record| record.references.contains(&name))
            }
        }
    }

    fn find_id(&self, id: &str) -> Option<&Digest> {
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        if hex.len() < 6 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut found = self.images.keys().filter(|known| known.hex().starts_with(hex));
        found.next().filter(|_| found.next().is_none())
    }

    /// Takes a name away, or the whole image when an id is given. The image goes with its last name; gives its id then.
    /// The digests of a repository go with its last tag.
    pub fn remove(&mut self, name: &str, in_use: impl Fn(&Digest) -> bool) -> Result<Option<Digest>> {
        let unknown = || Error::Unknown(name.to_owned());
        let named = self.find_named(name).cloned();
        let id = named.clone().or_else(|| self.find_id(name).cloned()).ok_or_else(unknown)?;
        let mut record = self.images.get(&id).ok_or_else(unknown)?.clone();
        match parse(name).ok().filter(|_| named.is_some()) {
            Some(reference) => untag(&mut record, &reference),
            None => {
                record.references.clear();
                record.repo_digests.clear();
            }
        }
        if !record.references.is_empty() || !record.repo_digests.is_empty() {
            self.images.insert(id, record);
            return Ok(None);
        }
        if in_use(&id) {
            return Err(Error::InUse(name.to_owned()));
        }
        self.images.remove(&id);
        Ok(Some(id))
    }

    /// The blobs that some image needs.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let of = |(id, record): (&Digest, &Record)| {
            let layers: Vec<_> = record.layers.iter().map(|layer| layer.blob.clone()).collect();
            [id.clone(), record.manifest.digest.clone()].into_iter().chain(layers)
        };
        self.images.iter().flat_map(of).collect()
    }

    /// The unpacked directories that some image needs.
    pub fn chains(&self) -> BTreeSet<Digest> {
        self.images
            .values()
            .flat_map(|record| record.layers.iter().map(|layer| layer.chain.clone()))
            .collect()
    }
}

fn untag(record: &mut Record, reference: &oci_client::Reference) {
    match reference.digest().and_then(|digest| Digest::parse(digest).ok()) {
        Some(digest) => {
            record.repo_digests.remove(&repo_digest(reference, &digest));
        }
        None => {
            record.references.remove(&full(reference));
            let repository = repository(reference);
            let (tag, digest) = (format!("{repository}:"), format!("{repository}@"));
            if !record.references.iter().any(|name| name.starts_with(&tag)) {
                record.repo_digests.retain(|name| !name.starts_with(&digest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::document::OCI_MANIFEST;
    use proptest::prelude::*;

    fn record(n: u8, tags: &[&str], digests: &[&str]) -> Record {
        let layer = Digest::of(&[n, 1]);
        Record {
            manifest: Descriptor::new(OCI_MANIFEST, Digest::of(&[n, 2]), 1),
            references: tags.iter().map(|t| crate::normalize(t)).collect(),
            repo_digests: digests
                .iter()
                .map(|r| repo_digest(&parse(r).unwrap(), &Digest::of(&[n, 3])))
                .collect(),
            layers: vec![LayerRecord { blob: layer.clone(), diff_id: layer.clone(), chain: layer }],
            size: 1,
            side_loaded: false,
            builtin: false,
            unsynced: None,
        }
    }

    fn id(n: u8) -> Digest {
        Digest::of(&[n])
    }

    #[test]
    fn images_are_found_by_every_name() {
        let mut index = Index::default();
        index.put(id(1), record(1, &["nginx"], &["nginx"]));
        let digest = Digest::of(&[1, 3]);
        for name in [
            "nginx".to_owned(),
            "docker.io/library/nginx:latest".into(),
            format!("nginx@{digest}"),
            format!("nginx:1.2@{digest}"),
            id(1).to_string(),
            id(1).hex().to_owned(),
            id(1).hex()[..12].to_owned(),
        ] {
            assert_eq!(index.find(&name), Some(&id(1)), "{name}");
        }
        for name in ["nginx:1", "abcdef", "sha256:", "", "a b"] {
            assert_eq!(index.find(name), None, "{name}");
        }
    }

    #[test]
    fn a_tag_moves_and_the_old_image_stays_until_removed() {
        let mut index = Index::default();
        index.put(id(1), record(1, &["nginx"], &["nginx"]));
        index.put(id(2), record(2, &["nginx", "mine:1"], &["nginx"]));
        assert_eq!(index.find("nginx"), Some(&id(2)));
        assert_eq!(index.images.len(), 2);
        // The repository's digest goes with its last tag, the image with its last name.
        assert_eq!(index.remove("nginx", |_| false).unwrap(), None);
        assert!(index.images[&id(2)].repo_digests.is_empty());
        assert!(matches!(index.remove("mine:1", |_| true), Err(Error::InUse(_))));
        assert!(index.find("mine:1").is_some());
        assert_eq!(index.remove("mine:1", |_| false).unwrap(), Some(id(2)));
        assert_eq!(index.remove(id(1).as_str(), |_| false).unwrap(), Some(id(1)));
        assert!(matches!(index.remove("nginx", |_| false), Err(Error::Unknown(_))));
        assert!(index.blobs().is_empty() && index.chains().is_empty());
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, [a.clone(), Digest::of(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A tag names at most one image, and what is removed is no longer found.
        #[test]
        fn tags_are_unique(steps in prop::collection::vec((0u8..4, 0usize..3, any::<bool>()), 0..30)) {
            let tags = ["a", "b:1", "c/d:2"];
            let mut index = Index::default();
            for (n, tag, put) in steps {
                if put {
                    index.put(id(n), record(n, &[tags[tag]], &[]));
                    prop_assert_eq!(index.find(tags[tag]), Some(&id(n)));
                } else {
                    let _ = index.remove(tags[tag], |_| false);
                    prop_assert_eq!(index.find(tags[tag]), None);
                }
                for tag in tags.map(crate::normalize) {
                    prop_assert!(index.images.values().filter(|r| r.references.contains(&tag)).count() <= 1);
                }
            }
        }
    }
}
