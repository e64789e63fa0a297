//! A container's root: an overlay of the image's layers and a scratch folder, mounted in the shim's mount namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The kernel reads mount options from one page.
const OPTIONS_MAX: usize = 4095;

/// Where the root of a container with this scratch folder is mounted.
pub fn merged(scratch: &Path) -> PathBuf {
    scratch.join("rootfs")
}

/// Mounts the overlay of `lower` (bottom first) and `scratch`; returns the root.
///
/// An image with a single empty folder is fine; one with no layer at all gets an empty one.
pub fn mount_overlay(lower: &[PathBuf], scratch: &Path) -> io::Result<PathBuf> {
    let (upper, work, root) = (scratch.join("upper"), scratch.join("work"), merged(scratch));
    for folder in [&upper, &work, &root] {
        fs::create_dir_all(folder)?;
    }
    let empty = scratch.join("empty");
    let mut layers: Vec<PathBuf> = lower.iter().rev().cloned().collect();
    if layers.is_empty() {
        fs::create_dir_all(&empty)?;
        layers.push(empty);
    }
    let plain = options(layers.iter().map(|layer| layer.display().to_string()), &upper, &work);
    let awkward =
        layers.iter().any(|layer| layer.to_str().is_none_or(|text| text.contains([':', ',', '\\'])));
    if !awkward && plain.len() <= OPTIONS_MAX {
        mount_with(&root, &plain)?;
        return Ok(root);
    }
    // Descriptors are short names for long (or oddly named) folders; they are needed only while mounting.
    let open = layers.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    let short = options(open.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd())), &upper, &work);
    if short.len() > OPTIONS_MAX {
        return Err(io::Error::other(format!("{} layers are more than one overlay takes", layers.len())));
    }
    mount_with(&root, &short)?;
    Ok(root)
}

fn options(layers: impl Iterator<Item = String>, upper: &Path, work: &Path) -> String {
    let layers: Vec<String> = layers.collect();
    format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display())
}

fn mount_with(root: &Path, options: &str) -> io::Result<()> {
    mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(options))?;
    Ok(())
}

/// Mounts a tmpfs at `path`, which is made if it is not there.
pub fn mount_tmpfs(path: &Path, size: Option<u64>, mode: u32, flags: MsFlags) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Takes the mount at `path` away; what is not mounted is fine.
pub fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
