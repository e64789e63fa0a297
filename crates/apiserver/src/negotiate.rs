//! Content negotiation: which form of an answer the client wants.
//!
//! `Accept` is read in the client's order (kubectl lists its preferences first). Parameters `as`, `g` and `v` ask for
//! another representation (Table, PartialObjectMetadata, aggregated discovery); a clause whose representation is not
//! on offer is passed over, as upstream does.

use http::HeaderMap;
use http::header::ACCEPT;

use crate::status::Status;

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    Object,
    /// A Table; the version of meta.k8s.io.
    Table(&'static str),
    /// Metadata only; the version of meta.k8s.io.
    Partial(&'static str),
}

/// A negotiated answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// How.
    pub encoding: Encoding,
    /// What.
    pub shape: Shape,
}

/// Plain JSON: what answers without an object of the resource use.
pub const PLAIN: Accept = Accept { encoding: Encoding::Json, shape: Shape::Object };

const OFFERS: [&str; 2] = ["application/json", "application/yaml"];

/// One clause of an `Accept` header.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause<'a> {
    /// Media type without parameters.
    pub media: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    /// A parameter, or empty.
    pub fn param(&self, key: &str) -> &'a str {
        self.params.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v)
    }

    /// Whether the clause covers a media type.
    pub fn covers(&self, media: &str) -> bool {
        self.media == "*/*"
            || self.media == media
            || self.media.strip_suffix("/*").is_some_and(|head| media.split('/').next() == Some(head))
    }
}

/// The clauses of the `Accept` headers, most wanted first.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let mut out: Vec<(f32, Clause<'_>)> = Vec::new();
    let texts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for part in texts.flat_map(|t| t.split(',')).map(str::trim).filter(|p| !p.is_empty()) {
        let mut words = part.split(';').map(str::trim);
        let media = words.next().unwrap_or_default();
        let params: Vec<_> = words.filter_map(|w| w.split_once('=')).collect();
        let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
        out.push((quality, Clause { media, params }));
    }
    out.sort_by(|a, b| b.0.total_cmp(&a.0));
    out.into_iter().map(|(_, clause)| clause).collect()
}

/// Chooses the form of an answer that holds objects. `transforms`: whether a Table or metadata can be had.
///
/// # Errors
/// 406 when nothing on the list can be produced.
pub fn accept(headers: &HeaderMap, transforms: bool) -> Result<Accept, Status> {
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(PLAIN);
    }
    for clause in &clauses {
        let encoding = match OFFERS.iter().position(|o| clause.covers(o)) {
            Some(0) => Encoding::Json,
            Some(_) => Encoding::Yaml,
            None => continue,
        };
        if let Some(shape) = shape(clause, transforms) {
            return Ok(Accept { encoding, shape });
        }
    }
    Err(Status::not_acceptable(&OFFERS))
}

fn shape(clause: &Clause<'_>, transforms: bool) -> Option<Shape> {
    let (kind, group) = (clause.param("as"), clause.param("g"));
    if kind.is_empty() {
        return Some(Shape::Object);
    }
    let version = match clause.param("v") {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    if group != "meta.k8s.io" || !transforms {
        return None;
    }
    match kind {
        "Table" => Some(Shape::Table(version)),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Shape::Partial(version)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(text: &str) -> Result<Accept, Status> {
        let mut headers = HeaderMap::new();
        if !text.is_empty() {
            headers.insert(ACCEPT, text.parse().unwrap());
        }
        accept(&headers, true)
    }

    #[test]
    fn kubectl_and_others() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(ask(table).unwrap().shape, Shape::Table("v1"));
        assert_eq!(ask("application/vnd.kubernetes.protobuf,application/json").unwrap(), PLAIN);
        assert_eq!(ask("").unwrap(), PLAIN);
        assert_eq!(ask("*/*").unwrap(), PLAIN);
        assert_eq!(ask("application/yaml").unwrap().encoding, Encoding::Yaml);
        let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(ask(partial).unwrap().shape, Shape::Partial("v1"));
        assert_eq!(ask("application/vnd.kubernetes.protobuf").unwrap_err().code(), 406);
        assert_eq!(ask("application/json;as=Table;v=v9;g=meta.k8s.io").unwrap_err().code(), 406);
        assert_eq!(ask("application/yaml;q=0.5, application/json").unwrap(), PLAIN);
    }
}
