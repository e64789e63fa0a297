//! Reads the API's Go structs out of a kubectl executable.
//!
//! A Go binary carries reflection data, even when stripped: for every type that reflection may reach an `abi.Type`
//! header, for structs followed by their fields with names and tags. The tags hold the JSON name, the protobuf number
//! and the patch strategy, the type says whether a field is a pointer: exactly what this kubectl sends. Layout
//! (Go 1.20 to 1.24, amd64, position-dependent):
//!
//! ```text
//! Type       size u64 | ptrbytes u64 | hash u32 | tflag u8 | align u8 | fieldalign u8 | kind u8 | equal ptr | gcdata ptr
//!            | name i32 (offset from the start of the type data) | ptrToThis i32                       = 48 bytes
//! StructType Type | pkgpath ptr | fields ptr, len, cap                                                 = 80 bytes
//! Field      name ptr | type ptr | offset u64
//! Name       flags u8 | varint length, bytes | if flags & 2: varint length, tag bytes
//! Uncommon   follows the type when tflag & 1: package path as i32 name offset
//! ```

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const STRUCT: u8 = 25;
const TFLAG_UNCOMMON: u8 = 1;
const TFLAG_EXTRA_STAR: u8 = 2;
const TFLAG_NAMED: u8 = 4;

struct TypeData<'a> {
    bytes: &'a [u8],
    base: u64,
}

impl TypeData<'_> {
    fn offset(&self, address: u64) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.base)?).ok()?;
        (offset < self.bytes.len()).then_some(offset)
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn u64(&self, offset: usize) -> Option<u64> {
        self.read(offset).map(u64::from_le_bytes)
    }

    fn i32(&self, offset: usize) -> Option<i32> {
        self.read(offset).map(i32::from_le_bytes)
    }

    /// A varint-prefixed string and the offset behind it.
    fn string(&self, mut offset: usize) -> Option<(&str, usize)> {
        let (mut len, mut shift) = (0usize, 0);
        loop {
            let byte = *self.bytes.get(offset)?;
            offset += 1;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
            if shift > 21 {
                return None;
            }
        }
        let end = offset.checked_add(len)?;
        Some((std::str::from_utf8(self.bytes.get(offset..end)?).ok()?, end))
    }

    /// A Go `abi.Name`: the name and its tag.
    fn name(&self, offset: usize) -> Option<(&str, &str)> {
        let flags = *self.bytes.get(offset)?;
        let (name, next) = self.string(offset + 1)?;
        let tag = if flags & 2 != 0 { self.string(next)?.0 } else { "" };
        Some((name, tag))
    }

    fn kind(&self, ty: usize) -> Option<u8> {
        self.bytes.get(ty + 23).map(|kind| kind & 31)
    }

    fn tflag(&self, ty: usize) -> Option<u8> {
        self.bytes.get(ty + 20).copied()
    }

    /// `v1.Pod`: the type as Go prints it, with only the last element of the package path.
    fn type_string(&self, ty: usize) -> Option<&str> {
        let at = usize::try_from(self.i32(ty + 40)?).ok()?;
        let (name, _) = self.name(at)?;
        if self.tflag(ty)? & TFLAG_EXTRA_STAR != 0 { name.strip_prefix('*') } else { Some(name) }
    }

    /// The package path of a named type; the uncommon part sits behind the kind's own header.
    fn package(&self, ty: usize) -> Option<&str> {
        if self.tflag(ty)? & TFLAG_UNCOMMON == 0 {
            return None;
        }
        let header = match self.kind(ty)? {
            STRUCT => 80,
            23 | 22 => 56,     // slice, pointer: one type
            17 => 72,          // array
            21 => return None, // maps: their header differs between Go versions; nothing needs it
            20 => 80,          // interface
            _ => 48,
        };
        let at = usize::try_from(self.i32(ty + header)?).ok()?;
        Some(self.name(at)?.0)
    }

    /// A type expression: `*T`, `[]T`, `map[K]V`, `string`, `pkg/path.Name` for structs,
    /// `pkg/path.Name=underlying` for other named types.
    fn expression(&self, ty: usize) -> Option<String> {
        let kind = self.kind(ty)?;
        let underlying = match kind {
            1 => "bool".to_owned(),
            2 => "int".to_owned(),
            3 => "int8".to_owned(),
            5 => "int32".to_owned(),
            6 => "int64".to_owned(),
            8 => "uint8".to_owned(),
            13 => "float32".to_owned(),
            14 => "float64".to_owned(),
            20 => "interface".to_owned(),
            24 => "string".to_owned(),
            22 => format!("*{}", self.expression(self.offset(self.u64(ty + 48)?)?)?),
            23 => format!("[]{}", self.expression(self.offset(self.u64(ty + 48)?)?)?),
            21 => {
                let key = self.expression(self.offset(self.u64(ty + 48)?)?)?;
                let key = key.rsplit('=').next()?.to_owned();
                format!("map[{key}]{}", self.expression(self.offset(self.u64(ty + 56)?)?)?)
            }
            STRUCT => {
                return Some(format!("{}.{}", self.package(ty)?, self.type_string(ty)?.rsplit('.').next()?));
            }
            other => format!("kind{other}"),
        };
        if self.tflag(ty)? & TFLAG_NAMED == 0 || !self.type_string(ty)?.contains('.') {
            return Some(underlying);
        }
        Some(format!("{}={underlying}", self.type_string(ty)?))
    }

    /// The struct at `ty`, when there is one with JSON tags: its package, its name and a line per field.
    fn structure(&self, ty: usize) -> Option<(String, String, Vec<String>)> {
        if self.kind(ty)? != STRUCT || self.tflag(ty)? & (TFLAG_NAMED | TFLAG_UNCOMMON) != 5 {
            return None;
        }
        let (fields, len, cap) = (self.u64(ty + 56)?, self.u64(ty + 64)?, self.u64(ty + 72)?);
        if len != cap || len == 0 || len > 200 {
            return None;
        }
        let package = self.package(ty)?;
        if !package.starts_with("k8s.io/") {
            return None;
        }
        let start = self.offset(fields)?;
        let mut lines = Vec::new();
        for index in 0..usize::try_from(len).ok()? {
            let at = start + index * 24;
            let (name, tag) = self.name(self.offset(self.u64(at)?)?)?;
            let expression = self.expression(self.offset(self.u64(at + 8)?)?)?;
            lines.push(format!("  {name}\t{expression}\t{tag}"));
        }
        lines.iter().any(|line| line.contains("json:")).then(|| {
            let name = self.type_string(ty)?.rsplit('.').next()?;
            Some((package.to_owned(), name.to_owned(), lines))
        })?
    }
}

/// The read-only data of a little-endian ELF64 file: its bytes and the address they are loaded at.
fn rodata(elf: &[u8]) -> Option<TypeData<'_>> {
    let file = TypeData { bytes: elf, base: 0 };
    let table = usize::try_from(file.u64(0x28)?).ok()?;
    let count = u16::from_le_bytes(file.read(0x3c)?);
    let names = usize::from(u16::from_le_bytes(file.read(0x3e)?));
    let names = usize::try_from(file.u64(table + names * 64 + 24)?).ok()?;
    for index in 0..usize::from(count) {
        let header = table + index * 64;
        let name = names + usize::try_from(u32::from_le_bytes(file.read(header)?)).ok()?;
        if elf.get(name..)?.starts_with(b".rodata\0") {
            let at = usize::try_from(file.u64(header + 24)?).ok()?;
            let size = usize::try_from(file.u64(header + 32)?).ok()?;
            return Some(TypeData { bytes: elf.get(at..at + size)?, base: file.u64(header + 16)? });
        }
    }
    None
}

/// Is this package part of what the table covers?
fn wanted(package: &str) -> bool {
    (package.starts_with("k8s.io/api/") || package.starts_with("k8s.io/apimachinery/pkg/"))
        && !package.contains("alpha")
        && !package.contains("beta")
}

/// The text of `data/go-types.txt` for a kubectl executable.
pub fn extract(elf: &[u8]) -> Result<String> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a little-endian 64-bit ELF file");
    let data = rodata(elf).context("no .rodata section in the executable")?;
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut differing = BTreeSet::new();
    for ty in (0..data.bytes.len().saturating_sub(80)).step_by(8) {
        if let Some((package, name, lines)) = data.structure(ty).filter(|(package, ..)| wanted(package)) {
            let key = (package, name);
            match found.get(&key) {
                Some(before) if *before != lines => drop(differing.insert(key)),
                _ => drop(found.insert(key, lines)),
            }
        }
    }
    ensure!(differing.is_empty(), "types with two layouts: {differing:?}");
    ensure!(found.len() > 500, "only {} types found: the layout of this Go version differs", found.len());
    let mut out = String::new();
    for ((package, name), lines) in found {
        let _ = writeln!(out, "{package}.{name}\n{}", lines.join("\n"));
    }
    Ok(out)
}
