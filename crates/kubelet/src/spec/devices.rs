//! The node's device files, which a privileged container gets all of.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

/// Directories under /dev that every container has of its own.
const OWN: [&str; 5] = ["pts", "shm", "fd", "mqueue", ".udev"];

/// All block and character devices below `root` (usually `/dev`); what cannot be read is left out.
pub fn of_node(root: &Path) -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    walk(root, 0, &mut found);
    found
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<LinuxDevice>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        let name = entry.file_name();
        let kind = meta.file_type();
        if kind.is_dir() && depth < 4 && !OWN.iter().any(|own| name == *own) {
            walk(&path, depth + 1, found);
        } else if (kind.is_block_device() || kind.is_char_device()) && name != "console" {
            let typ = if kind.is_block_device() { LinuxDeviceType::B } else { LinuxDeviceType::C };
            let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
            let device =
                LinuxDeviceBuilder::default().path(path).typ(typ).major(major as i64).minor(minor as i64);
            found.extend(device.file_mode(meta.mode() & 0o7777).uid(meta.uid()).gid(meta.gid()).build());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_null_device_is_among_them() {
        let devices = of_node(Path::new("/dev"));
        let null = devices.iter().find(|d| d.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.typ(), null.major(), null.minor()), (LinuxDeviceType::C, 1, 3));
        assert!(!devices.iter().any(|d| d.path().starts_with("/dev/pts")));
    }
}
