//! From a layer's blob to the plain tar stream: the compression is told by its magic number, not by the media type, which
//! archives in the wild get wrong.

use std::io::{self, BufRead, BufReader, Read};

const BUFFER: usize = 256 * 1024;

/// The decompressed bytes of a layer. gzip and zstd may be in several members or frames (estargz, zstd:chunked).
pub(crate) fn decompress<'a, R: Read + 'a>(blob: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(BUFFER, blob);
    let magic = blob.fill_buf()?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => {
            Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(blob)))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(blob)?))
        }
        _ => Box::new(blob),
    })
}

/// True when [`decompress`] would have work to do.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}
