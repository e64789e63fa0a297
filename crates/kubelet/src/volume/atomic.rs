//! Replaces the content of a volume directory in one step, so that a reader sees all old or all new files.
//!
//! The layout is upstream's (`atomic_writer.go`), because programs watch it:
//!
//! ```text
//! ca.crt      -> ..data/ca.crt          one symlink per first path component
//! ..data      -> ..2024_05_01_12_00_00.123456789
//! ..2024_05_01_12_00_00.123456789/ca.crt
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, if not root.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Writes `payload` into `target` unless it is there already; tells whether anything changed.
///
/// # Errors
/// For paths that leave the volume, and for failures of the file system.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    payload.keys().try_for_each(|path| check(path))?;
    fs::create_dir_all(target)?;
    let current = fs::read_link(target.join(DATA)).ok().map(|link| target.join(link));
    if current.as_deref().is_some_and(|dir| same(dir, payload)) {
        return Ok(false);
    }
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = target.join(&stamp);
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&fresh.join(path), file)?;
    }
    if let Some(group) = group {
        super::ownership::set_group(&fresh, group, true)?;
    }
    let tmp = target.join(DATA_TMP);
    let _ = fs::remove_file(&tmp);
    symlink(&stamp, &tmp)?;
    fs::rename(&tmp, target.join(DATA))?;
    link_names(target, payload)?;
    if let Some(old) = current.filter(|old| *old != fresh) {
        let _ = fs::remove_dir_all(old);
    }
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let inside = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    let error = || io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path in volume: {path:?}"));
    if inside { Ok(()) } else { Err(error()) }
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, &file.data)?;
    fs::set_permissions(path, fs::Permissions::from_mode(file.mode & 0o7777))?;
    if file.uid.is_some() {
        std::os::unix::fs::lchown(path, file.uid, None)?;
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut seen = BTreeSet::new();
    if files(dir, Path::new(""), &mut seen).is_err() || seen.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        seen.contains(Path::new(path)) && fs::read(dir.join(path)).is_ok_and(|data| data == file.data)
    })
}

fn files(root: &Path, below: &Path, seen: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files(root, &path, seen)?;
        } else {
            seen.insert(path);
        }
    }
    Ok(())
}

/// One symlink per first component, and none for what is gone.
fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<OsString> = payload
        .keys()
        .filter_map(|p| Path::new(p).components().next())
        .map(|c| c.as_os_str().into())
        .collect();
    for name in &wanted {
        let link = target.join(name);
        if fs::read_link(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let name = entry?.file_name();
        if !wanted.contains(&name) && !name.to_string_lossy().starts_with("..") {
            fs::remove_file(target.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, data)| (path.to_string(), file(data))).collect()
    }

    fn visible(target: &Path) -> Vec<String> {
        let names =
            fs::read_dir(target).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|n| !n.starts_with("..")).collect();
        names.sort();
        names
    }

    #[test]
    fn an_update_swaps_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n| Timestamp::from_second(n).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None, at(1)).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.path().join("..data")).unwrap();
        assert_eq!(first, Path::new("..1970_01_01_00_00_01.000000000"));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None, at(2)).unwrap());
        assert!(write(dir.path(), &payload(&[("a", "9"), ("c", "3")]), None, at(3)).unwrap());
        assert_eq!(visible(dir.path()), ["a", "c"]);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "9");
        assert!(!dir.path().join(first).exists());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", "", "a/./b/..", "."] {
            assert!(
                write(dir.path(), &payload(&[(path, "x")]), None, Timestamp::UNIX_EPOCH).is_err(),
                "{path}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_was_written_is_what_is_read(
            steps in proptest::collection::vec(proptest::collection::btree_map("[a-c](/[a-c])?x", ".{0,8}", 0..5), 1..5)
        ) {
            let dir = tempfile::tempdir().unwrap();
            for (i, step) in steps.iter().enumerate() {
                let files: Vec<(&str, &str)> = step.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                write(dir.path(), &payload(&files), None, Timestamp::from_second(i as i64).unwrap()).unwrap();
                for (path, data) in &files {
                    prop_assert_eq!(&fs::read_to_string(dir.path().join(path)).unwrap(), data);
                }
                let firsts: BTreeSet<&str> = files.iter().filter_map(|(p, _)| p.split('/').next()).collect();
                prop_assert_eq!(visible(dir.path()), firsts.into_iter().map(String::from).collect::<Vec<_>>());
            }
        }
    }
}
