//! Layers built in code, unpacked for real (as root), looked at through the file system.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// One entry: type, name, link target or content, mode.
fn append(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, data: &str, mode: u32) {
    let mut header = header(kind, name, data, mode);
    let content = if kind == EntryType::Regular { data } else { "" };
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content.as_bytes()).unwrap();
}

/// Names are written raw: the builder would refuse the bad ones.
fn header(kind: EntryType, name: &str, data: &str, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000_000);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    if matches!(kind, EntryType::Symlink | EntryType::Link) {
        gnu.linkname[..data.len()].copy_from_slice(data.as_bytes());
    }
    header
}

fn layer(entries: &[(EntryType, &str, &str, u32)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, data, mode) in entries {
        append(&mut tar, *kind, name, data, *mode);
    }
    tar.into_inner().unwrap()
}

use EntryType::{Char, Directory as Dir, Fifo, Link, Regular as File, Symlink};

fn unpacked(blob: &[u8]) -> (tempfile::TempDir, Unpacked) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(blob, dir.path()).unwrap();
    (dir, result)
}

fn is_gone(path: &Path) -> bool {
    let meta = path.symlink_metadata().unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn opaque(path: &Path) -> bool {
    xattr::get(path, "trusted.overlay.opaque").unwrap().as_deref() == Some(b"y")
}

#[test]
fn every_kind_of_entry_keeps_owner_mode_and_time() {
    let blob = layer(&[
        (Dir, "./", "", 0o750),
        (Dir, "d/", "", 0o1777),
        (File, "d/f", "hello", 0o4755),
        (Symlink, "d/s", "/nowhere/at/all", 0o777),
        (Link, "h", "d/f", 0),
        (Fifo, "d/p", "", 0o600),
        (Char, "null", "", 0o666),
    ]);
    let (dir, result) = unpacked(&blob);
    let root = dir.path();
    assert_eq!(result.diff_id, Digest::of(&blob));
    assert_eq!(result.bytes, blob.len() as u64);
    assert!(result.implied.is_empty());
    assert_eq!(std::fs::read_to_string(root.join("h")).unwrap(), "hello");
    assert_eq!(std::fs::read_link(root.join("d/s")).unwrap(), Path::new("/nowhere/at/all"));
    for (name, mode) in [("", 0o750), ("d", 0o1777), ("d/f", 0o4755), ("d/p", 0o600), ("null", 0o666)] {
        let meta = root.join(name).symlink_metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 7, 8), "{name}");
        assert_eq!(meta.mtime(), 1_000_000, "{name}");
    }
    assert_eq!(root.join("d/s").symlink_metadata().unwrap().uid(), 7);
    assert_eq!(root.join("h").metadata().unwrap().nlink(), 2);
}

#[test]
fn whiteouts_speak_overlayfs() {
    let blob = layer(&[
        (Dir, "d/", "", 0o755),
        (File, "d/.wh..wh..opq", "", 0),
        (File, "d/own", "x", 0o644),
        (File, ".wh.file", "", 0),
        // Replaced in one layer, in either order: a fresh directory that must not merge with the old one.
        (File, ".wh.after", "", 0),
        (Dir, "after/", "", 0o755),
        (Dir, "before/", "", 0o755),
        (File, ".wh.before", "", 0),
        (File, ".wh.deep", "", 0),
        (File, "deep/f", "x", 0o644),
        // A file of this layer is not hidden by this layer.
        (File, "kept", "x", 0o644),
        (File, ".wh.kept", "", 0),
        (Dir, ".wh..wh.plnk/", "", 0o755),
        (File, ".wh..wh.plnk/1.2", "x", 0o644),
    ]);
    let (dir, result) = unpacked(&blob);
    let root = dir.path();
    assert!(is_gone(&root.join("file")));
    assert!(opaque(&root.join("d")) && root.join("d/own").is_file());
    for name in ["after", "before", "deep"] {
        assert!(root.join(name).is_dir() && opaque(&root.join(name)), "{name}");
    }
    assert_eq!(std::fs::read_to_string(root.join("kept")).unwrap(), "x");
    assert!(!root.join(".wh..wh.plnk").exists());
    assert!(result.implied.contains(Path::new("deep")) && result.implied.contains(Path::new("")));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let blob = layer(&[
        (File, "a", "1", 0o644),
        (File, "a", "2", 0o600),
        (Dir, "b/", "", 0o755),
        (File, "b/x", "1", 0o644),
        (File, "b", "now a file", 0o644),
        (Symlink, "c", "a", 0o777),
        (Dir, "c/", "", 0o755),
    ]);
    let (dir, _) = unpacked(&blob);
    assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "2");
    assert_eq!(std::fs::read_to_string(dir.path().join("b")).unwrap(), "now a file");
    assert!(dir.path().join("c").symlink_metadata().unwrap().is_dir());
}

#[test]
fn nothing_leaves_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let secret = format!("{target}/secret");
    // Links that point out are legal; what is written or linked through them stays inside.
    let blob = layer(&[
        (Symlink, "out", target, 0o777),
        (File, "out/evil", "x", 0o644),
        (Symlink, "up", "../../../../../..", 0o777),
        (File, "up/evil2", "x", 0o644),
        (File, "/abs", "x", 0o644),
    ]);
    let (dir, _) = unpacked(&blob);
    let root = dir.path();
    assert!(root.join(target.trim_start_matches('/')).join("evil").is_file());
    assert!(root.join("evil2").is_file() && root.join("abs").is_file());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);

    for bad in [
        vec![(File, "../evil", "x", 0o644)],
        vec![(File, "a/../../evil", "x", 0o644)],
        vec![(Link, "h", "../../secret", 0)],
        vec![(Link, "h", secret.as_str(), 0)],
        vec![(Symlink, "l", target, 0o777), (Link, "h", "l/secret", 0)],
        vec![(Link, "self", "self", 0)],
        vec![(File, "f", "x", 0o644), (File, "f/g", "x", 0o644)],
        vec![(Symlink, "loop", "loop", 0o777), (File, "loop/x", "", 0o644)],
        vec![(File, "./", "x", 0o644), (Link, ".", "x", 0)],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(layer(&bad).as_slice(), dir.path());
        assert!(
            matches!(error, Err(UnpackError::Entry { .. } | UnpackError::Write { .. })),
            "{bad:?}: {error:?}"
        );
        assert!(!dir.path().parent().unwrap().join("evil").exists());
    }
    assert_eq!(outside.path().join("secret").metadata().unwrap().nlink(), 1);
}

#[test]
fn extended_attributes_large_ids_long_names_and_fractions() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions([
        ("SCHILY.xattr.user.key", &b"value"[..]),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("mtime", b"12.5"),
    ])
    .unwrap();
    append(&mut tar, File, "x", "data", 0o644);
    let mut big = header(File, "big", "", 0o644);
    big.set_uid(3_000_000_000);
    big.set_size(0);
    big.set_cksum();
    tar.append(&big, &[][..]).unwrap();
    let mut named = Header::new_gnu();
    named.set_size(1);
    named.set_mode(0o644);
    tar.append_data(&mut named, &long, &b"z"[..]).unwrap();
    let (dir, _) = unpacked(&tar.into_inner().unwrap());
    let file = dir.path().join("x");
    assert_eq!(xattr::get(&file, "user.key").unwrap().unwrap(), b"value");
    assert_eq!(xattr::get(&file, "trusted.overlay.redirect").unwrap(), None);
    assert_eq!(xattr::get(&file, "user.overlay.opaque").unwrap(), None);
    let meta = file.metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (12, 500_000_000));
    assert_eq!(dir.path().join("big").metadata().unwrap().uid(), 3_000_000_000);
    assert_eq!(std::fs::read(dir.path().join(long)).unwrap(), b"z");
}

#[test]
fn gzip_in_members_and_zstd_are_recognised_by_their_bytes() {
    let blob = layer(&[(File, "f", "content", 0o644)]);
    let gzip = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    };
    let (first, second) = blob.split_at(700);
    let members = [gzip(first), gzip(second)].concat();
    for packed in [gzip(&blob), members, zstd::encode_all(blob.as_slice(), 1).unwrap()] {
        let (dir, result) = unpacked(&packed);
        assert_eq!(result.diff_id, Digest::of(&blob));
        assert_eq!(std::fs::read_to_string(dir.path().join("f")).unwrap(), "content");
    }
    let torn = gzip(&blob);
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(unpack(&torn[..torn.len() / 2], dir.path()), Err(UnpackError::Archive(_))));
}

#[test]
fn undescribed_directories_keep_what_lower_layers_say() {
    let (bottom, _) = unpacked(&layer(&[
        (Dir, "./", "", 0o711),
        (Dir, "a/", "", 0o700),
        (Dir, "a/b/", "", 0o1777),
        (Dir, "gone/", "", 0o700),
        (Dir, "hidden/", "", 0o700),
        (Dir, "hidden/x/", "", 0o700),
    ]));
    let (middle, result) = unpacked(&layer(&[
        (File, ".wh.gone", "", 0),
        (Dir, "hidden/", "", 0o755),
        (File, "hidden/.wh..wh..opq", "", 0),
    ]));
    inherit(middle.path(), &result.implied, &[bottom.path().to_owned()]).unwrap();
    let blob = layer(&[
        (File, "a/b/f", "x", 0o644),
        (File, "gone/f", "x", 0o644),
        (File, "hidden/x/f", "x", 0o644),
        (File, "new/f", "x", 0o644),
    ]);
    let (top, result) = unpacked(&blob);
    inherit(top.path(), &result.implied, &[bottom.path().to_owned(), middle.path().to_owned()]).unwrap();
    for (name, mode, uid) in [
        ("", 0o711, 7),
        ("a", 0o700, 7),
        ("a/b", 0o1777, 7),
        ("gone", 0o755, 0),
        ("hidden/x", 0o755, 0),
        ("new", 0o755, 0),
    ] {
        let meta = top.path().join(name).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, uid), "{name}");
    }
    assert_eq!(top.path().join("a").metadata().unwrap().mtime(), 1_000_000);
}

fn any_name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(String::new()),
        Just(".wh.a".to_owned()),
        Just(".wh..wh..opq".to_owned()),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn any_kind() -> impl Strategy<Value = EntryType> {
    prop::sample::select(vec![File, Dir, Symlink, Link, Fifo, Char])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the entries are, nothing appears beside the layer, and the outcome is a result, not a panic.
    #[test]
    fn any_layer_stays_inside(entries in prop::collection::vec((any_kind(), any_name(), any_name()), 0..12)) {
        let outer = tempfile::tempdir().unwrap();
        let dest = outer.path().join("layer");
        std::fs::create_dir(&dest).unwrap();
        let entries: Vec<_> = entries.iter().map(|(k, n, d)| (*k, n.as_str(), d.as_str(), 0o644)).collect();
        let _ = unpack(layer(&entries).as_slice(), &dest);
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
        prop_assert!(!Path::new("/a").exists() && !Path::new("/b").exists());
    }

    /// Damaged and arbitrary streams end in an error or a directory, never in a panic.
    #[test]
    fn any_bytes_are_survived(flips in prop::collection::vec((any::<u16>(), any::<u8>()), 0..8), cut in any::<u16>()) {
        let mut blob = layer(&[(Dir, "d/", "", 0o755), (File, "d/f", "hello", 0o644), (Link, "h", "d/f", 0)]);
        for (at, value) in flips {
            let at = usize::from(at) % blob.len();
            blob[at] = value;
        }
        blob.truncate(usize::from(cut) % (blob.len() + 1));
        let outer = tempfile::tempdir().unwrap();
        let dest = outer.path().join("layer");
        std::fs::create_dir(&dest).unwrap();
        let _ = unpack(blob.as_slice(), &dest);
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
