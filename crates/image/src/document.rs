//! The JSON documents of an image: index, manifest, descriptor (OCI image spec 1.1; Docker image manifest v2 schema 2).
//!
//! Read leniently: registries carry both families of media types, and documents without any. What matters is which fields
//! are there. The image configuration itself is `oci-spec`'s type.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a registry may answer when asked for an image.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Annotation with an image's full name in archives written by containerd and Docker.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with a tag (or a full name) in an OCI layout's index.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A pointer to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new(), platform: None }
    }
}

/// What an index entry runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: OCI_MANIFEST.into(), config, layers }
    }
}

/// Either of the two documents a reference may lead to.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// Reads an index or a manifest by the fields it has.
pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Document> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Any {
        #[serde(default)]
        schema_version: u32,
        #[serde(default)]
        media_type: String,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
        manifests: Option<Vec<Descriptor>>,
    }
    let any: Any = serde_json::from_slice(bytes).map_err(|e| Error::invalid(what, e))?;
    if any.schema_version != 2 {
        let detail = format!("unsupported manifest schema version {}", any.schema_version);
        return Err(Error::invalid(what, detail));
    }
    match (any.manifests, any.config, any.layers) {
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(config), Some(layers)) => {
            let media_type = if any.media_type.is_empty() { OCI_MANIFEST.into() } else { any.media_type };
            Ok(Document::Manifest(Manifest { schema_version: 2, media_type, config, layers }))
        }
        _ => Err(Error::invalid(what, "neither an image manifest nor an image index")),
    }
}

/// The entries of an index that this machine can run, best first: linux/amd64, then entries that name no platform.
pub(crate) fn runnable(entries: &[Descriptor]) -> Vec<&Descriptor> {
    let fits = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
            && entry.annotations.get("vnd.docker.reference.type").is_none_or(|t| t != "attestation-manifest")
    };
    // A variant (v2, v3) may need instructions that this processor lacks: the plain one comes first.
    let mut found: Vec<_> = entries.iter().filter(fits).collect();
    found.sort_by_key(|entry| {
        entry.platform.as_ref().and_then(|p| p.variant.clone()).filter(|v| !v.is_empty() && v != "v1")
    });
    found.extend(entries.iter().filter(|entry| entry.platform.is_none()));
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(n: u8, os: &str, arch: &str, variant: Option<&str>) -> Descriptor {
        let mut d = Descriptor::new(OCI_MANIFEST, Digest::of(&[n]), 1);
        d.platform =
            Some(Platform { os: os.into(), architecture: arch.into(), variant: variant.map(str::to_owned) });
        d
    }

    #[test]
    fn the_plain_amd64_entry_wins() {
        let mut attestation = entry(5, "unknown", "unknown", None);
        attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let bare = Descriptor::new(OCI_MANIFEST, Digest::of(&[6]), 1);
        let entries = [
            entry(0, "windows", "amd64", None),
            entry(1, "linux", "arm64", Some("v8")),
            bare,
            entry(2, "linux", "amd64", Some("v3")),
            entry(3, "linux", "amd64", None),
            attestation,
        ];
        let digests: Vec<_> = runnable(&entries).iter().map(|d| d.digest.clone()).collect();
        assert_eq!(digests, [Digest::of(&[3]), Digest::of(&[2]), Digest::of(&[6])]);
        assert!(runnable(&entries[..2]).is_empty());
    }

    #[test]
    fn documents_are_told_apart_by_their_fields() {
        let digest = Digest::of(b"x");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}"}},"layers":[]}}"#);
        assert!(matches!(parse("m", manifest.as_bytes()).unwrap(), Document::Manifest(_)));
        assert!(matches!(parse("i", br#"{"schemaVersion":2,"manifests":[]}"#).unwrap(), Document::Index(_)));
        for bad in [
            &br#"{"schemaVersion":1,"fsLayers":[]}"#[..],
            br#"{"schemaVersion":2}"#,
            br#"{"schemaVersion":2,"config":{"digest":"sha256:../x"},"layers":[]}"#,
            b"[]",
            b"<html>",
        ] {
            assert!(parse("bad", bad).is_err());
        }
    }
}
