//! What `k8s-openapi` knows of a type: JSON names, descriptions and which fields are required. Read from the
//! `json_schema!` bodies of its (machine-written, regular) sources, so that nothing of it must be compiled.

use crate::sources::rust_files;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One definition.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// What the type is.
    pub description: String,
    /// Description per property.
    pub properties: BTreeMap<String, String>,
    /// Properties that must be there.
    pub required: BTreeSet<String>,
}

/// All definitions by their name, `io.k8s.api.core.v1.Pod`.
pub fn read(folder: &Path) -> Result<BTreeMap<String, Definition>> {
    let mut definitions = BTreeMap::new();
    for file in rust_files(&folder.join("src/v1_33"))? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let Some(name) =
            text.lines().next().and_then(|line| line.strip_prefix("// Generated from definition "))
        else {
            continue;
        };
        if let Some(start) = text.find("json_schema!({") {
            definitions.insert(name.trim().to_owned(), parse(&text[start..]));
        }
    }
    Ok(definitions)
}

fn parse(body: &str) -> Definition {
    let mut definition = Definition::default();
    let mut section = "";
    let mut property = String::new();
    for line in body.lines().skip(1) {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim();
        match indent {
            8 => break,
            12 => {
                section = text.split('"').nth(1).unwrap_or("");
                if section == "description" {
                    definition.description = string_after(text, "\"description\": ");
                }
            }
            16 if section == "properties" && text.starts_with('"') => {
                property = text.split('"').nth(1).unwrap_or("").to_owned();
                definition.properties.entry(property.clone()).or_default();
            }
            16 if section == "required" => {
                definition.required.insert(text.trim_matches(['"', ',']).to_owned());
            }
            20 if section == "properties" => {
                let found = [
                    string_after(text, "\"description\": "),
                    string_after(text, "insert(\"description\".into(), "),
                ];
                if let Some(found) = found.into_iter().find(|found| !found.is_empty()) {
                    definition.properties.insert(property.clone(), found);
                }
            }
            _ => {}
        }
    }
    definition
}

/// The Rust string literal that follows `marker`, unescaped; empty when there is none.
fn string_after(text: &str, marker: &str) -> String {
    let Some(literal) = text.find(marker).and_then(|at| text[at + marker.len()..].strip_prefix('"')) else {
        return String::new();
    };
    let mut out = String::new();
    let mut chars = literal.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some('u') => {
                    let hex: String = chars.by_ref().skip(1).take_while(|char| *char != '}').collect();
                    out.extend(u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32));
                }
                Some(other) => out.push(other),
                None => break,
            },
            other => out.push(other),
        }
    }
    out
}
