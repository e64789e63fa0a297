//! The image of the running binary: an almost empty root, generated here, over whose `/bin/skiff` the binary is bound.
//!
//! It makes add-on Pods and the first tour need no registry and no disk space. Its layer is generated the same way each
//! time, so that its id changes only when its contents do.

use std::io;
use std::sync::Arc;

use serde_json::json;
use tar::{Builder as Tar, EntryType, Header};

use crate::digest::Digest;
use crate::document::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER};
use crate::error::{Error, Result};
use crate::index::Record;
use crate::layers::{install, plan, prepare};
use crate::store::{Image, Store};

/// Where the binary must be bound (read-only) in a container of the built-in image.
pub const BUILTIN_BINARY: &str = "/bin/skiff";

/// What the built-in image offers.
#[derive(Debug, Clone, Copy)]
pub struct Builtin<'a> {
    /// Names under which the binary can be called in the image (`sh`-like applets): links in `/bin`.
    pub applets: &'a [&'a str],
    /// Environment of its containers, `NAME=value`; PATH is always there.
    pub env: &'a [&'a str],
    /// What the binary is told by a container that says nothing itself.
    pub command: &'a [&'a str],
}

impl Store {
    /// Makes `reference` the image of the running binary. Blocking; next to nothing when it is there already.
    pub fn set_builtin(self: &Arc<Self>, reference: &str, builtin: Builtin<'_>) -> Result<Image> {
        let name = crate::reference::full(&crate::parse(reference)?);
        let failed = |e: io::Error| Error::invalid("built-in image", e);
        let layer = layer(builtin.applets).map_err(failed)?;
        let diff_id = Digest::of(&layer);
        let config = config(&diff_id, &builtin).to_string().into_bytes();
        let id = Digest::of(&config);
        if let Some(image) = self.get(&name).filter(|image| image.builtin && image.id == id.as_str()) {
            return Ok(image);
        }
        let _pins = self.pin([id.clone(), diff_id.clone()]);
        self.files.put_bytes(&layer)?;
        self.files.put_bytes(&config)?;
        let manifest = Manifest::new(
            Descriptor::new(OCI_CONFIG, id.clone(), config.len() as u64),
            vec![Descriptor::new(OCI_LAYER, diff_id.clone(), layer.len() as u64)],
        );
        let manifest = serde_json::to_vec(&manifest).map_err(|e| Error::invalid("built-in image", e))?;
        let manifest_digest = self.files.put_bytes(&manifest)?;
        let _manifest_pin = self.pin([manifest_digest.clone()]);
        let layers = plan(&name, &config, std::slice::from_ref(&diff_id))?;
        let prepared = layers.iter().map(|layer| prepare(&self.files, layer)).collect::<Result<Vec<_>>>()?;
        install(&self.files, &layers, prepared)?;
        let record = Record {
            manifest: Descriptor::new(crate::document::OCI_MANIFEST, manifest_digest, manifest.len() as u64),
            references: [name.clone()].into(),
            repo_digests: Default::default(),
            layers,
            size: (layer.len() + config.len()) as u64,
            side_loaded: true,
            builtin: true,
            unsynced: None,
        };
        let before = self.get(&name).filter(|image| image.builtin);
        let image = self.commit(id, record)?;
        // The one that it replaces goes, unless a container still runs from it.
        if let Some(old) = before.filter(|old| old.id != image.id && old.references.len() <= 1) {
            match self.remove(&old.id) {
                Ok(()) | Err(Error::InUse(_)) => {}
                Err(error) => tracing::warn!("remove the former built-in image: {error}"),
            }
        }
        Ok(image)
    }
}

fn config(diff_id: &Digest, builtin: &Builtin<'_>) -> serde_json::Value {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env: Vec<&str> = [path].into_iter().chain(builtin.env.iter().copied()).collect();
    let mut config = json!({"Entrypoint": [BUILTIN_BINARY], "Env": env, "WorkingDir": "/"});
    if !builtin.command.is_empty() {
        config["Cmd"] = json!(builtin.command);
    }
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "skiff"}],
    })
}

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\n";
const NSSWITCH: &str = "hosts: files dns\n";

/// The layer's archive: directories, the place for the binary, a link per applet, the files that libraries look for.
fn layer(applets: &[&str]) -> io::Result<Vec<u8>> {
    let mut tar = Tar::new(Vec::new());
    for (name, mode) in [
        ("./", 0o755),
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o555),
        ("root/", 0o700),
        ("run/", 0o755),
        ("sys/", 0o555),
        ("tmp/", 0o1777),
        ("var/", 0o755),
        ("var/run/", 0o755),
    ] {
        entry(&mut tar, EntryType::Directory, name, mode, b"")?;
    }
    for (name, mode, content) in [
        (BUILTIN_BINARY.trim_start_matches('/'), 0o755, ""),
        ("etc/passwd", 0o644, PASSWD),
        ("etc/group", 0o644, GROUP),
        ("etc/nsswitch.conf", 0o644, NSSWITCH),
    ] {
        entry(&mut tar, EntryType::Regular, name, mode, content.as_bytes())?;
    }
    for applet in applets {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "skiff")?;
    }
    tar.into_inner()
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn entry(tar: &mut Tar<Vec<u8>>, kind: EntryType, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, content.len()), name, content)
}
