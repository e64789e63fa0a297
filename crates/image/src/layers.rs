//! From a stored layer blob to a directory in its place.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::error::{Error, IoContext as _, Result};
use crate::files::{Files, Scratch};
use crate::index::{LayerRecord, chain_ids};
use crate::store::parse_config;
use crate::unpack::{inherit, unpack};

/// A layer unpacked beside its place.
pub(crate) struct Prepared {
    dir: Scratch,
    implied: BTreeSet<PathBuf>,
}

/// The records of an image's layers, from its configuration and the blobs its manifest lists.
pub(crate) fn plan(what: &str, config: &[u8], blobs: &[Digest]) -> Result<Vec<LayerRecord>> {
    let config = parse_config(what, config)?;
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| Digest::parse(text).map_err(|e| Error::invalid(what, e)))
        .collect::<Result<_>>()?;
    if diff_ids.len() != blobs.len() {
        let detail = format!("{} layers, but its configuration speaks of {}", blobs.len(), diff_ids.len());
        return Err(Error::invalid(what, detail));
    }
    let chains = chain_ids(&diff_ids);
    let records = blobs.iter().zip(diff_ids).zip(chains);
    Ok(records.map(|((blob, diff_id), chain)| LayerRecord { blob: blob.clone(), diff_id, chain }).collect())
}

/// Unpacks a layer, unless it is there already. Independent of the layers below: several may run at once. Blocking.
pub(crate) fn prepare(files: &Files, layer: &LayerRecord) -> Result<Option<Prepared>> {
    if files.layer(&layer.chain).is_dir() {
        return Ok(None);
    }
    let dir = files.scratch();
    std::fs::create_dir(dir.path()).at("create", dir.path())?;
    let path = files.blob(&layer.blob);
    let blob = File::open(&path).at("open", &path)?;
    let unpacked =
        unpack(blob, dir.path()).map_err(|source| Error::Unpack { layer: layer.blob.to_string(), source })?;
    if unpacked.diff_id != layer.diff_id {
        return Err(Error::DigestMismatch {
            what: format!("uncompressed layer {}", layer.blob),
            expected: layer.diff_id.to_string(),
            actual: unpacked.diff_id.to_string(),
        });
    }
    Ok(Some(Prepared { dir, implied: unpacked.implied }))
}

/// Moves prepared layers into place, bottom first, giving directories that a layer does not describe what the layers
/// below say. Blocking.
pub(crate) fn install(files: &Files, layers: &[LayerRecord], prepared: Vec<Option<Prepared>>) -> Result<()> {
    let mut below: Vec<PathBuf> = Vec::new();
    for (layer, prepared) in layers.iter().zip(prepared) {
        let place = files.layer(&layer.chain);
        if let Some(prepared) = prepared {
            inherit(prepared.dir.path(), &prepared.implied, &below)
                .map_err(|source| Error::Unpack { layer: layer.blob.to_string(), source })?;
            prepared.dir.keep_as(&place)?;
        }
        below.push(place);
    }
    Ok(())
}
