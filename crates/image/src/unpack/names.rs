//! Entry names: bytes from outside until they are cleaned here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::UnpackError;

/// What a file name of the layer format asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh..wh..opq`: the directory hides everything below it in lower layers.
    Opaque,
    /// `.wh.NAME`: NAME of lower layers is gone.
    Whiteout(&'a OsStr),
    /// Other bookkeeping of aufs (`.wh..wh.plnk`, ...): nothing for us.
    Ignored,
}

/// Reads the layer format's reserved names.
pub(super) fn meaning(name: &OsStr) -> Meaning<'_> {
    let bytes = name.as_bytes();
    match bytes.strip_prefix(b".wh.") {
        None => Meaning::Plain,
        Some(b".wh..opq") => Meaning::Opaque,
        Some(rest) if rest.starts_with(b".wh.") || rest.is_empty() || rest == b"." || rest == b".." => {
            Meaning::Ignored
        }
        Some(rest) => Meaning::Whiteout(OsStr::from_bytes(rest)),
    }
}

/// A relative path of plain components; empty for the root. A leading slash means the layer's root, as for every
/// other tool; `..` is refused rather than resolved.
pub(super) fn clean(name: &[u8]) -> Result<PathBuf, UnpackError> {
    let refuse = |reason| UnpackError::Entry { name: show(name), reason };
    let mut path = PathBuf::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse("leaves the layer")),
            part if part.contains(&0) => return Err(refuse("contains a NUL byte")),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

/// A symbolic link's target, from the root of the layer: `link` is the link's own path. `..` stops at the root.
pub(super) fn resolve(link: &Path, target: &Path) -> PathBuf {
    let mut path = if target.is_absolute() { PathBuf::new() } else { parent(link).to_owned() };
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => {
                path.pop();
            }
            std::path::Component::Normal(part) => path.push(part),
            _ => {}
        }
    }
    path
}

/// The directory that holds `path`; the root's is the root.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// A name for messages, of bounded length.
pub(super) fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..200).unwrap_or(name)).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        for (name, path) in [("./a/b/", "a/b"), ("/etc//passwd", "etc/passwd"), ("./", ""), ("a/./b", "a/b")]
        {
            assert_eq!(clean(name.as_bytes()).unwrap(), Path::new(path));
        }
        for bad in ["../a", "a/../../b", "..", "/../x", "a\0b"] {
            assert!(clean(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn links_stop_at_the_root() {
        for (link, target, path) in
            [("a/l", "b", "a/b"), ("a/l", "/b/c", "b/c"), ("a/l", "../../../etc", "etc"), ("l", "..", "")]
        {
            assert_eq!(resolve(Path::new(link), Path::new(target)), Path::new(path));
        }
    }

    #[test]
    fn reserved_names() {
        let of = |name| meaning(OsStr::new(name));
        assert_eq!(of("a.wh.b"), Meaning::Plain);
        assert_eq!(of(".wh.a"), Meaning::Whiteout(OsStr::new("a")));
        assert_eq!(of(".wh..wh..opq"), Meaning::Opaque);
        for ignored in [".wh.", ".wh..", ".wh...", ".wh..wh.plnk", ".wh..wh.aufs"] {
            assert_eq!(of(ignored), Meaning::Ignored, "{ignored}");
        }
    }
}
