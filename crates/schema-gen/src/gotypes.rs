//! The parsed `data/go-types.txt`: the Go structs of the API as a released kubectl knows them.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// One field of a Go struct.
#[derive(Clone, Debug)]
pub struct GoField {
    /// Its Go name, for messages.
    pub go_name: String,
    /// Its type expression, see [`crate::elf`].
    pub ty: String,
    /// Its JSON name, empty when the field is inlined.
    pub json: String,
    /// Left out of JSON when empty.
    pub omitempty: bool,
    /// Its fields are fields of the outer object.
    pub inline: bool,
    /// Its protobuf number, 0 when it is not on the wire.
    pub number: u32,
    /// `merge`, `retainKeys`, `replace`, separated by commas.
    pub patch_strategy: String,
    /// The key by which elements are matched in a strategic merge patch.
    pub merge_key: String,
}

/// All structs by `package/path.Name`.
pub type GoTypes = BTreeMap<String, Vec<GoField>>;

fn tag<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let start = tags.find(&format!("{key}:\""))? + key.len() + 2;
    tags[start..].split('"').next()
}

fn field(line: &str) -> Result<GoField> {
    let mut parts = line.trim_start().splitn(3, '\t');
    let (Some(go_name), Some(ty), Some(tags)) = (parts.next(), parts.next(), parts.next()) else {
        bail!("field line with less than three columns: {line}");
    };
    let mut json = tag(tags, "json").unwrap_or("").split(',');
    let name = json.next().unwrap_or("").to_owned();
    let options: Vec<&str> = json.collect();
    let number = match tag(tags, "protobuf").and_then(|text| text.split(',').nth(1)) {
        Some(number) => number.parse().with_context(|| format!("protobuf number in {line}"))?,
        None => 0,
    };
    Ok(GoField {
        go_name: go_name.to_owned(),
        ty: ty.to_owned(),
        inline: options.contains(&"inline") || (name.is_empty() && tags.contains("json:")),
        omitempty: options.contains(&"omitempty"),
        json: name,
        number,
        patch_strategy: tag(tags, "patchStrategy").unwrap_or("").to_owned(),
        merge_key: tag(tags, "patchMergeKey").unwrap_or("").to_owned(),
    })
}

/// Parses the file's text.
pub fn parse(text: &str) -> Result<GoTypes> {
    let mut types = GoTypes::new();
    let mut current: Option<&mut Vec<GoField>> = None;
    for line in text.lines() {
        if line.starts_with(' ') {
            let fields = current.as_mut().context("a field before the first type")?;
            let field = field(line)?;
            if field.json != "-" && (field.inline || !field.json.is_empty()) {
                fields.push(field);
            }
        } else {
            current = Some(types.entry(line.to_owned()).or_default());
        }
    }
    Ok(types)
}
