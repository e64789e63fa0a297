//! Small files read and replaced as wholes.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{Error, Owner, Result};

/// Wraps an IO error with what was done to which file.
pub fn at<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::File { operation, path: path.to_owned(), source }
}

/// The file's bytes, `None` when it is not there.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at("read", path)(e)),
    }
}

/// Replaces the file by a synced one of that mode; the old one stays whole if anything fails. Makes parents (0700).
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    make_dir(parent)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = parent.join(name);
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&fresh);
        at("write", path)(e)
    })
}

/// Replaces the file as [`write_atomically`] does and gives it to `owner`, with the directories that had to be made for
/// it. A symbolic link stays one: its target is replaced.
pub fn write_owned(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let missing: Vec<&Path> = target.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
    write_atomically(&target, bytes, mode)?;
    if let Some((uid, gid)) = owner {
        for made in missing.into_iter().chain([target.as_path()]) {
            std::os::unix::fs::chown(made, Some(uid), Some(gid)).map_err(at("chown", made))?;
        }
    }
    Ok(())
}

/// Makes a directory and its parents, readable by their owner alone; existing ones stay as they are.
pub fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create directory", path))
}

/// Makes a directory and its parents that everybody may look into: `skiff ip` needs no root. What is secret lies in
/// directories and files of its own mode below.
pub fn make_public_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(at("create directory", path))
}

/// Makes a directory that only its owner may enter, or closes the one that is there.
pub fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    make_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(at("chmod", path))
}
