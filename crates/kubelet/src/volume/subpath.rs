//! `subPath`: a path inside a volume that must not lead out of it, not even by a symbolic link in the volume.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// The real path of `sub` inside `root`; missing directories are made.
///
/// # Errors
/// When the path is absolute, has `..`, or leads out of the volume.
pub fn resolve(root: &Path, sub: &str) -> io::Result<PathBuf> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("subPath {sub:?} {why}"));
    let sub_path = Path::new(sub);
    if sub_path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refuse("must be a relative path without '..'"));
    }
    let root = root.canonicalize()?;
    let mut here = root.clone();
    for part in sub_path.components().filter(|c| matches!(c, Component::Normal(_))) {
        let next = here.join(part);
        if fs::symlink_metadata(&next).is_err() {
            DirBuilder::new().mode(0o750).create(&next)?;
            let mode = fs::metadata(&root)?.permissions();
            fs::set_permissions(&next, mode)?;
        }
        here = next.canonicalize()?;
        if !here.starts_with(&root) {
            return Err(refuse("leads out of the volume"));
        }
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("vol");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("f"), "x").unwrap();
        symlink("f", root.join("good")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let real = root.canonicalize().unwrap();
        assert_eq!(resolve(&root, "a/b").unwrap(), real.join("a/b"));
        assert!(root.join("a/b").is_dir());
        assert_eq!(resolve(&root, "good").unwrap(), real.join("f"));
        for bad in ["/etc", "../x", "a/../../x", "out", "out/passwd", "up", "up/up"] {
            assert!(resolve(&root, bad).is_err(), "{bad}");
        }
        assert_eq!(resolve(&root, "").unwrap(), real);
    }
}
