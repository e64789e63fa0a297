//! `fsGroup`: everything in a volume belongs to the group, which may read it (and write it where the volume is not
//! read-only); directories pass the group on.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives `path` and all below it to `group`; symbolic links are not followed.
///
/// # Errors
/// When the file system refuses.
pub fn set_group(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = meta.mode() & 0o7777;
    mode |= if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
    }
    // chown clears set-id bits, so the mode is set after it.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            set_group(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}

/// Whether the root of the volume already looks as [`set_group`] leaves it (`fsGroupChangePolicy: OnRootMismatch`).
pub fn root_matches(path: &Path, group: u32) -> bool {
    fs::metadata(path).is_ok_and(|m| m.gid() == group && m.mode() & 0o2770 == 0o2770)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_tree_belongs_to_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("l")).unwrap();
        let before = fs::metadata("/etc/hostname").unwrap().gid();
        set_group(dir.path(), 4321, false).unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o7777), (4321, 0o660));
        assert!(root_matches(dir.path(), 4321) && !root_matches(dir.path(), 1));
        assert_eq!(fs::metadata("/etc/hostname").unwrap().gid(), before);
    }
}
