//! Saving images: one tar that is an OCI image layout and a docker-archive at once, so that every tool reads it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};

use serde_json::json;

use crate::digest::Digest;
use crate::document::{Document, IMAGE_NAME, OCI_INDEX, REF_NAME, parse};
use crate::error::{Error, IoContext as _, Result};
use crate::store::Store;

impl Store {
    /// Writes images (by name or id) as one archive. An image asked for by name carries that name, by id all it has.
    /// Blocking.
    pub fn save(&self, names: &[&str], to: impl Write) -> Result<()> {
        let index = self.index()?;
        let (mut manifests, mut docker, mut blobs) = (Vec::new(), Vec::new(), BTreeSet::new());
        for name in names {
            let id = index.find(name).ok_or_else(|| Error::Unknown((*name).to_owned()))?;
            let record = index.images.get(id).ok_or_else(|| Error::Unknown((*name).to_owned()))?;
            let asked = crate::normalize(name);
            let by_name = record.references.contains(&asked);
            let tags: Vec<&String> =
                record.references.iter().filter(|tag| !by_name || **tag == asked).collect();
            let bytes = self.files.read_blob(&record.manifest.digest)?;
            let Document::Manifest(manifest) = parse(name, &bytes)? else {
                return Err(Error::invalid(*name, "its stored manifest is an index"));
            };
            blobs.extend([id.clone(), record.manifest.digest.clone()]);
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
            let mut entry = json!({
                "mediaType": manifest.media_type, "digest": record.manifest.digest, "size": record.manifest.size,
                "platform": {"os": "linux", "architecture": "amd64"},
            });
            if tags.is_empty() {
                manifests.push(entry.clone());
            }
            for tag in &tags {
                let short = tag.rsplit_once(':').map_or("latest", |(_, short)| short);
                entry["annotations"] = json!({IMAGE_NAME: tag, REF_NAME: short});
                manifests.push(entry.clone());
            }
            let layers: Vec<_> = manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
            docker.push(json!({"Config": blob_name(id), "RepoTags": tags, "Layers": layers}));
        }
        let mut tar = tar::Builder::new(to);
        let failed = |e: io::Error| Error::invalid("write archive", e);
        add(&mut tar, "oci-layout", json!({"imageLayoutVersion": "1.0.0"})).map_err(failed)?;
        let layout = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        add(&mut tar, "index.json", layout).map_err(failed)?;
        add(&mut tar, "manifest.json", json!(docker)).map_err(failed)?;
        for digest in &blobs {
            let path = self.files.blob(digest);
            let file = File::open(&path).at("open", &path)?;
            let mut header = header(file.metadata().at("stat", &path)?.len());
            tar.append_data(&mut header, blob_name(digest), file).map_err(failed)?;
        }
        tar.into_inner().and_then(|mut to| to.flush()).map_err(failed)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

fn add(tar: &mut tar::Builder<impl Write>, name: &str, document: serde_json::Value) -> io::Result<()> {
    let bytes = document.to_string();
    tar.append_data(&mut header(bytes.len() as u64), name, bytes.as_bytes())
}
