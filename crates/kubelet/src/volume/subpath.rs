//! `subPath`: a path inside a volume that must not lead out of it, not even by a symbolic link in the volume.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// How many symbolic links a path may go through.
const MAX_LINKS: u32 = 40;

/// Where `sub` really is below `root` (relative to it); missing directories are made.
///
/// Links are resolved here, one component after the other, because the root may be in another mount namespace (seen
/// through `/proc/<pid>/root`), where the kernel's own resolution would leave it.
///
/// # Errors
/// When the path is absolute, has `..`, or leads out of the volume.
pub fn resolve(root: &Path, sub: &str) -> io::Result<PathBuf> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("subPath {sub:?} {why}"));
    if Path::new(sub).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(refuse("must be a relative path without '..'"));
    }
    let mode = fs::metadata(root)?.permissions();
    let mut here = PathBuf::new();
    let mut left: Vec<PathBuf> = vec![PathBuf::from(sub)];
    let mut links = 0;
    while let Some(path) = left.pop() {
        let mut parts = path.components();
        let Some(part) = parts.next() else { continue };
        left.push(parts.as_path().to_path_buf());
        match part {
            Component::CurDir => {}
            Component::Normal(name) => {
                let next = here.join(name);
                let full = root.join(&next);
                match fs::symlink_metadata(&full) {
                    Ok(meta) if meta.is_symlink() => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(refuse("has too many symbolic links"));
                        }
                        left.push(fs::read_link(&full)?);
                    }
                    Ok(_) => here = next,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        DirBuilder::new().mode(0o750).create(&full)?;
                        fs::set_permissions(&full, mode.clone())?;
                        here = next;
                    }
                    Err(error) => return Err(error),
                }
            }
            Component::ParentDir if here.pop() => {}
            _ => return Err(refuse("leads out of the volume")),
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
        symlink("loop", root.join("loop")).unwrap();
        symlink("a/../f", root.join("round")).unwrap();
        assert_eq!(resolve(&root, "a/b").unwrap(), Path::new("a/b"));
        assert!(root.join("a/b").is_dir());
        assert_eq!(resolve(&root, "good").unwrap(), Path::new("f"));
        assert_eq!(resolve(&root, "round").unwrap(), Path::new("f"));
        for bad in ["/etc", "../x", "a/../../x", "out", "out/passwd", "up", "up/up", "loop"] {
            assert!(resolve(&root, bad).is_err(), "{bad}");
        }
        assert_eq!(resolve(&root, "").unwrap(), Path::new(""));
    }
}
