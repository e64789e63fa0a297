//! Loading images from archives: an OCI image layout, Docker's format, or both at once (as Docker 25 writes), plain or
//! compressed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::archive::Archive;
use crate::digest::Digest;
use crate::document::{self, Descriptor, Document, IMAGE_NAME, Manifest, OCI_CONFIG, OCI_LAYER, REF_NAME};
use crate::error::{Error, IoContext as _, Result};
use crate::files::Scratch;
use crate::index::Record;
use crate::layers::{plan, prepare};
use crate::pull::{Phase, Progress, Tracker, blocking};
use crate::store::{Image, Store};
use crate::unpack::{decompress, is_compressed};

/// Where an archive comes from.
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A stream; it is spooled into the store first.
    Reader(Box<dyn Read + Send>),
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

/// One image of an archive: its documents in memory, its layers still in the file.
struct Found {
    references: BTreeSet<String>,
    config: Vec<u8>,
    layers: Vec<Member>,
    /// As it came, with its media type; Docker's own format has none.
    manifest: Option<(String, Vec<u8>)>,
}

struct Member {
    name: String,
    /// Known in an OCI layout.
    digest: Option<Digest>,
    media_type: String,
}

impl Store {
    /// Loads every image of an archive. They stand in for their registries from then on.
    pub async fn load(
        self: &Arc<Self>,
        source: impl Into<Source>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Vec<Image>> {
        let tracker = Tracker::new(progress);
        tracker.phase(Phase::Resolving);
        let (store, source) = (self.clone(), source.into());
        let (archive, found, spool) = blocking(move || {
            let (path, spool) = store.spool(source)?;
            let archive = Archive::open(&path)?;
            let found = images(&archive)?;
            Ok((Arc::new(archive), found, spool))
        })
        .await?;
        let sizes =
            found.iter().flat_map(|image| &image.layers).filter_map(|layer| archive.section(&layer.name));
        tracker.expect(
            sizes.map(|section| section.len()).sum(),
            found.iter().map(|image| image.layers.len()).sum(),
        );
        let mut images = Vec::new();
        for image in found {
            images.push(self.load_image(&archive, image, &tracker).await?);
        }
        drop(spool);
        tracker.phase(Phase::Done);
        Ok(images)
    }

    /// Makes the archive a plain tar file: a stream or a compressed file is written out first.
    fn spool(&self, source: Source) -> Result<(PathBuf, Option<Scratch>)> {
        let reader: Box<dyn Read> = match source {
            Source::Reader(reader) => reader,
            Source::File(path) => {
                let mut file = File::open(&path).at("open", &path)?;
                let mut start = Vec::new();
                (&mut file).take(4).read_to_end(&mut start).at("read", &path)?;
                if !is_compressed(&start) {
                    return Ok((path, None));
                }
                Box::new(io::Cursor::new(start).chain(file))
            }
        };
        let bad = |e: io::Error| Error::invalid("archive", e);
        let scratch = self.files.scratch();
        let mut file = File::create_new(scratch.path()).at("create", scratch.path())?;
        io::copy(&mut decompress(reader).map_err(bad)?, &mut file).map_err(bad)?;
        Ok((scratch.path().to_owned(), Some(scratch)))
    }

    async fn load_image(
        self: &Arc<Self>,
        archive: &Arc<Archive>,
        image: Found,
        tracker: &Tracker<'_>,
    ) -> Result<Image> {
        let id = Digest::of(&image.config);
        let mut pins = self.pin([id.clone()]);
        let mut descriptors = Vec::new();
        for layer in image.layers {
            let (store, archive) = (self.clone(), archive.clone());
            let (descriptor, pin) = blocking(move || store.take_layer(&archive, &layer)).await?;
            pins.extend(pin);
            tracker.received(descriptor.size);
            descriptors.push(descriptor);
        }
        let blobs: Vec<Digest> = descriptors.iter().map(|layer| layer.digest.clone()).collect();
        let layers = plan(id.as_str(), &image.config, &blobs)?;
        pins.extend(self.pin(layers.iter().map(|layer| layer.chain.clone())));
        let mut prepared = Vec::new();
        for layer in layers.clone() {
            let store = self.clone();
            prepared.push(blocking(move || prepare(&store.files, &layer)).await?);
            tracker.layer_done();
        }
        let size = descriptors.iter().map(|layer| layer.size).sum::<u64>() + image.config.len() as u64;
        let config = Descriptor::new(OCI_CONFIG, id.clone(), image.config.len() as u64);
        let (media_type, manifest) = match image.manifest {
            Some(manifest) => manifest,
            None => {
                let manifest = Manifest::new(config, descriptors);
                let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::invalid("manifest", e))?;
                (manifest.media_type, bytes)
            }
        };
        pins.extend(self.pin([Digest::of(&manifest)]));
        let record = Record {
            manifest: Descriptor::new(&media_type, Digest::of(&manifest), manifest.len() as u64),
            references: image.references,
            repo_digests: BTreeSet::new(),
            layers,
            size,
            side_loaded: true,
            builtin: false,
            unsynced: None,
        };
        let store = self.clone();
        blocking(move || store.files.put_bytes(&image.config)).await?;
        self.finish(id, manifest, record, prepared).await
    }

    /// Copies a layer's blob into the store. Blocking.
    fn take_layer(
        &self,
        archive: &Archive,
        layer: &Member,
    ) -> Result<(Descriptor, Vec<crate::store::Counted>)> {
        let section = archive.need(&layer.name)?;
        let size = section.len();
        let known = layer.digest.clone().filter(|digest| self.files.blob(digest).exists());
        let digest = match known {
            Some(digest) => digest,
            None => self.files.put_stream(section, layer.digest.as_ref(), &layer.name)?.0,
        };
        let pin = self.pin([digest.clone()]);
        Ok((Descriptor::new(&layer.media_type, digest, size), pin))
    }
}

/// What images an archive holds.
fn images(archive: &Archive) -> Result<Vec<Found>> {
    let mut found = if archive.has("index.json") { of_layout(archive)? } else { Vec::new() };
    if archive.has("manifest.json") {
        for image in of_docker(archive)? {
            let same = found.iter_mut().find(|known| known.config == image.config);
            match same {
                Some(known) => known.references.extend(image.references),
                None => found.push(image),
            }
        }
    }
    if found.is_empty() {
        return Err(Error::invalid(
            "archive",
            "holds no image for linux/amd64 (neither OCI image layout nor docker-archive)",
        ));
    }
    Ok(found)
}

/// The images of `index.json` (OCI image spec, image-layout.md).
fn of_layout(archive: &Archive) -> Result<Vec<Found>> {
    let Document::Index(entries) = document::parse("index.json", &archive.document("index.json")?)? else {
        return Err(Error::invalid("index.json", "is no image index"));
    };
    let mut found: Vec<Found> = Vec::new();
    for entry in &entries {
        let Some((bytes, manifest)) = manifest_of(archive, entry)? else { continue };
        let config = archive.document(&blob_name(&manifest.config.digest))?;
        if Digest::of(&config) != manifest.config.digest {
            let (expected, actual) = (manifest.config.digest.to_string(), Digest::of(&config).to_string());
            return Err(Error::DigestMismatch { what: "image configuration".into(), expected, actual });
        }
        let references = names(entry);
        if let Some(known) = found.iter_mut().find(|known| known.config == config) {
            known.references.extend(references);
            continue;
        }
        let layers = manifest.layers.iter().map(|layer| Member {
            name: blob_name(&layer.digest),
            digest: Some(layer.digest.clone()),
            media_type: layer.media_type.clone(),
        });
        let layers = layers.collect();
        found.push(Found { references, config, layers, manifest: Some((manifest.media_type, bytes)) });
    }
    Ok(found)
}

/// Follows an entry to a manifest for this machine. An entry whose blobs are not in the archive (Docker lists all
/// platforms but saves one) is passed over.
fn manifest_of(archive: &Archive, entry: &Descriptor) -> Result<Option<(Vec<u8>, Manifest)>> {
    let mut candidates = vec![(entry.clone(), 0)];
    while let Some((entry, depth)) = candidates.pop() {
        let name = blob_name(&entry.digest);
        if !archive.has(&name) || depth > 4 {
            continue;
        }
        let bytes = archive.document(&name)?;
        if Digest::of(&bytes) != entry.digest {
            let (expected, actual) = (entry.digest.to_string(), Digest::of(&bytes).to_string());
            return Err(Error::DigestMismatch { what: name, expected, actual });
        }
        match document::parse(&name, &bytes)? {
            Document::Manifest(manifest) if archive.has(&blob_name(&manifest.config.digest)) => {
                return Ok(Some((bytes, manifest)));
            }
            Document::Manifest(_) => {}
            Document::Index(entries) => {
                let best_last = document::runnable(&entries).into_iter().rev();
                candidates.extend(best_last.map(|entry| (entry.clone(), depth + 1)));
            }
        }
    }
    Ok(None)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The full names that an index entry carries. A bare tag (as `org.opencontainers.image.ref.name` may be) names nothing.
fn names(entry: &Descriptor) -> BTreeSet<String> {
    let full = entry.annotations.get(IMAGE_NAME);
    let reference = entry.annotations.get(REF_NAME).filter(|name| name.contains([':', '/']));
    full.into_iter()
        .chain(reference)
        .filter(|name| is_tagged(name))
        .map(|name| crate::normalize(name))
        .collect()
}

fn is_tagged(name: &str) -> bool {
    crate::parse(name).is_ok_and(|reference| reference.digest().is_none())
}

/// The images of `manifest.json` (Docker's archive format, image spec v1.2).
fn of_docker(archive: &Archive) -> Result<Vec<Found>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        #[serde(default)]
        layers: Option<Vec<String>>,
    }
    let bytes = archive.document("manifest.json")?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid("manifest.json", e))?;
    let image = |entry: Entry| {
        let tags = entry.repo_tags.unwrap_or_default();
        let layers = entry.layers.unwrap_or_default().into_iter();
        Ok(Found {
            references: tags.iter().filter(|tag| is_tagged(tag)).map(|tag| crate::normalize(tag)).collect(),
            config: archive.document(&entry.config)?,
            layers: layers.map(|name| Member { name, digest: None, media_type: OCI_LAYER.into() }).collect(),
            manifest: None,
        })
    };
    entries.into_iter().map(image).collect()
}
