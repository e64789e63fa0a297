//! What `k8s-pb` knows: per message its fields' numbers and types, and the comment markers (`+listType=...`) that
//! neither the Go reflection data nor OpenAPI as `k8s-openapi` keeps it carry. The crate's sources are machine-written
//! and regular, so they are read line by line.

use crate::sources::rust_files;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// One field of a protobuf message.
#[derive(Clone, Debug, Default)]
pub struct PbField {
    /// The number on the wire.
    pub number: u32,
    /// Its name in snake case.
    pub name: String,
    /// What stands in prost's attribute: `string, optional` and the like.
    pub attribute: String,
    /// The message type's Rust path, empty for scalars.
    pub rust_type: String,
    /// The comment above it.
    pub doc: Vec<String>,
}

/// One message.
#[derive(Clone, Debug, Default)]
pub struct PbMessage {
    /// `package/path.Name`, with the initialisms of the apiextensions group as Go writes them.
    pub path: String,
    /// The comment above it.
    pub doc: Vec<String>,
    /// Its fields in the order of the Go struct.
    pub fields: Vec<PbField>,
}

/// The value of `+marker=value` in a comment; a bare `+marker` gives an empty value.
pub fn markers<'a>(doc: &'a [String], marker: &str) -> Vec<&'a str> {
    let prefix = format!("+{marker}");
    let values = doc.iter().filter_map(|line| line.strip_prefix(prefix.as_str()));
    values
        .filter_map(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('=') })
        .map(str::trim)
        .collect()
}

/// A comment as upstream's OpenAPI generator would print it: markers and everything below `---` are left out.
pub fn prose(doc: &[String]) -> String {
    let mut out = String::new();
    let mut paragraph_end = true;
    for line in doc {
        if line == "---" {
            break;
        }
        if line.starts_with('+') || line.starts_with("TODO") {
            continue;
        }
        if line.is_empty() {
            if !paragraph_end {
                out.push_str("\n\n");
            }
            paragraph_end = true;
            continue;
        }
        if !paragraph_end {
            out.push(' ');
        }
        out.push_str(&line.replace("\\[", "[").replace("\\]", "]").replace("<http", "http").replace('>', ""));
        paragraph_end = false;
    }
    out.trim_end().to_owned()
}

/// All messages by their lowercased path, since k8s-pb respells initialisms (`HTTPGetAction` is its `HttpGetAction`).
pub fn read(folder: &Path) -> Result<BTreeMap<String, PbMessage>> {
    let source = folder.join("src");
    let mut messages = BTreeMap::new();
    for file in rust_files(&source)? {
        let module = file.parent().and_then(|parent| parent.strip_prefix(&source).ok());
        let module = module.context("a file outside its crate")?.display().to_string();
        let package =
            format!("k8s.io/{}", module.replace("apiextensions_apiserver", "apiextensions-apiserver"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        for (name, message) in parse(&text)? {
            let path = format!("{package}.{}", name.replace("Json", "JSON"));
            messages.insert(path.to_lowercase(), PbMessage { path, ..message });
        }
    }
    Ok(messages)
}

fn parse(text: &str) -> Result<Vec<(String, PbMessage)>> {
    let mut found = Vec::new();
    let mut doc: Vec<String> = Vec::new();
    let mut current: Option<(String, PbMessage)> = None;
    let mut attribute = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix("///") {
            doc.push(comment.trim().to_owned());
        } else if trimmed.starts_with("#[prost(") {
            attribute = joined(trimmed, &mut lines, |text| text.ends_with(")]"));
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', ';']).next().unwrap_or("").to_owned();
            let message = PbMessage { doc: std::mem::take(&mut doc), ..PbMessage::default() };
            if rest.ends_with('}') {
                found.push((name, message));
            } else {
                current = Some((name, message));
            }
        } else if line == "}" {
            found.extend(current.take());
            doc.clear();
        } else if let (Some((_, message)), Some(_)) = (&mut current, trimmed.strip_prefix("pub ")) {
            let declaration = joined(trimmed, &mut lines, |text| text.ends_with(','));
            message.fields.push(field(&declaration, &attribute, std::mem::take(&mut doc))?);
        }
    }
    Ok(found)
}

/// A declaration that the formatter may have broken over several lines.
fn joined<'a>(first: &str, rest: &mut impl Iterator<Item = &'a str>, done: impl Fn(&str) -> bool) -> String {
    let mut text = first.to_owned();
    while !done(&text) || text.matches('<').count() != text.matches('>').count() {
        match rest.next() {
            Some(line) => text.push_str(line.trim()),
            None => break,
        }
    }
    text
}

fn field(declaration: &str, attribute: &str, doc: Vec<String>) -> Result<PbField> {
    let body = attribute.trim_start_matches("#[prost(").trim_end_matches(")]");
    let (kind, tag) = body.split_once(", tag = \"").with_context(|| format!("no tag in {attribute}"))?;
    let number = tag.trim_end_matches('"').parse().with_context(|| format!("tag in {attribute}"))?;
    let (name, ty) =
        declaration.trim_start_matches("pub ").split_once(':').context("a field without a type")?;
    let rust_type = ty.rsplit('<').next().unwrap_or("").trim_end_matches(['>', ',']).replace(' ', "");
    Ok(PbField {
        number,
        name: name.trim_start_matches("r#").to_owned(),
        attribute: kind.to_owned(),
        rust_type: rust_type.rsplit(',').next().unwrap_or("").to_owned(),
        doc,
    })
}
