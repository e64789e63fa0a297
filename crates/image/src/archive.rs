//! A tar file as a map from names to byte ranges: image archives are read in any order, and their large members never
//! leave the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, IoContext as _, Result};

/// No honest `manifest.json`, index or configuration is larger.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Links to links end here.
const MAX_LINKS: usize = 8;

enum Member {
    Bytes { offset: u64, size: u64 },
    Link(String),
}

/// An archive whose members can be opened by name.
pub(crate) struct Archive {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

impl Archive {
    /// Reads the table of an uncompressed tar file. Blocking.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at("open", path)?;
        let bad = |e: io::Error| Error::invalid(format!("archive {}", path.display()), e);
        let mut members = HashMap::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(bad)? {
            let entry = entry.map_err(bad)?;
            let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
            let name = normal(&name);
            let kind = entry.header().entry_type();
            let target = entry.link_name_bytes().and_then(|link| String::from_utf8(link.into_owned()).ok());
            let member = match (kind, target) {
                (kind, _) if kind.is_file() || kind.is_contiguous() => {
                    Member::Bytes { offset: entry.raw_file_position(), size: entry.size() }
                }
                // Docker's old archives link a layer that is there twice.
                (tar::EntryType::Symlink, Some(target)) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    Member::Link(normal(&format!("{dir}/{target}")))
                }
                (tar::EntryType::Link, Some(target)) => Member::Link(normal(&target)),
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self { file: Arc::new(file), members })
    }

    /// True when there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.section(name).is_some()
    }

    /// A reader over a member.
    pub fn section(&self, name: &str) -> Option<Section> {
        let mut name = normal(name);
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::Link(target) => name = target.clone(),
                Member::Bytes { offset, size } => {
                    let file = self.file.clone();
                    return Some(Section { file, at: *offset, end: offset.saturating_add(*size) });
                }
            }
        }
        None
    }

    /// A member that must be there.
    pub fn need(&self, name: &str) -> Result<Section> {
        self.section(name).ok_or_else(|| Error::invalid("archive", format!("{name} is missing")))
    }

    /// A small member, whole.
    pub fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut section = self.need(name)?;
        if section.len() > MAX_DOCUMENT {
            return Err(Error::invalid("archive", format!("{name} is too large")));
        }
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes).map_err(|e| Error::invalid("archive", format!("{name}: {e}")))?;
        Ok(bytes)
    }
}

/// A name without `.`, `..` and leading slashes: it only ever is a key of the map.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A range of a file, read without moving its position.
pub(crate) struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    pub fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..left).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let n = self.file.read_at(buffer, self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}
