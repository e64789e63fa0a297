//! Images made in code, and a registry on the loopback that serves them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod registry;

use image::digest::Digest;
use serde_json::json;

/// A plain tar with these files.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image configuration over these uncompressed layers.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// A manifest over a configuration and blobs.
pub fn manifest(config: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let layers: Vec<_> = blobs
        .iter()
        .map(|blob| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(blob), "size": blob.len(),
        }))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config), "size": config.len(),
        },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// Docker's archive format, as `docker save` wrote it for years.
pub fn docker_archive(tag: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let mut files: Vec<(&str, &[u8])> =
        vec![("config.json", &config), ("manifest.json", manifest.as_bytes())];
    files.extend(names.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice)));
    layer(&files)
}
