//! Unpacking a layer: a tar stream becomes a directory that overlayfs can use as a lower layer.
//!
//! By hand over the `tar` crate (which only parses), because a layer is not an archive to extract: whiteouts become what
//! overlayfs reads (OCI image spec, layer.md; kernel Documentation/filesystems/overlayfs.rst), owners and devices are kept,
//! and the stream is not to be trusted. Every path is resolved by the kernel inside the layer's directory
//! (`openat2` with `RESOLVE_IN_ROOT`): a symbolic link of the archive may be followed, but never out of it; `..` is refused.

mod inherit;
mod names;
mod stream;
mod tree;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Verifier};

pub(crate) use inherit::inherit;
pub(crate) use stream::{decompress, is_compressed};

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream ended early, is no tar or is badly compressed.
    #[error("read archive: {0}")]
    Archive(#[source] io::Error),
    /// An entry that must not or cannot be honoured.
    #[error("entry {name:?}: {reason}")]
    Entry {
        /// The entry's name.
        name: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The system refused to make an entry.
    #[error("{operation} {name:?}: {source}")]
    Write {
        /// What was tried.
        operation: &'static str,
        /// The entry's name.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// What a layer turned out to hold.
#[derive(Debug)]
pub struct Unpacked {
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
    /// Length of the uncompressed stream.
    pub bytes: u64,
    /// Directories that the archive uses but does not describe: they must take owner and mode of the layers below.
    pub implied: BTreeSet<PathBuf>,
}

/// Unpacks a layer's blob (plain, gzip or zstd) into the empty directory `dest`. The blob is read to its end, so that
/// the digest covers all of it. Blocking.
pub fn unpack<R: Read>(blob: R, dest: &Path) -> Result<Unpacked, UnpackError> {
    let plain = decompress(blob).map_err(UnpackError::Archive)?;
    let mut stream = Verifier::new(plain);
    let mut tree = tree::Tree::open(dest)?;
    {
        let mut archive = tar::Archive::new(&mut stream);
        for entry in archive.entries().map_err(UnpackError::Archive)? {
            let mut entry = entry.map_err(UnpackError::Archive)?;
            tree.apply(&mut entry)?;
        }
    }
    let implied = tree.finish()?;
    io::copy(&mut stream, &mut io::sink()).map_err(UnpackError::Archive)?;
    let (_, diff_id, bytes) = stream.finish();
    Ok(Unpacked { diff_id, bytes, implied })
}

#[cfg(test)]
mod tests;
