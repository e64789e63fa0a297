//! OpenAPI documents, made from the table of types and the served resources when first asked for.
//!
//! What is kept are bytes, per set of served kinds.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use schema::openapi::{self, Resource as Listed};
use serde_json::Value;

use crate::negotiate;
use crate::paths::GIT_VERSION;
use crate::registry::{GroupVersion, Registry};
use crate::rest::answer::{Answer, JSON};
use crate::server::ApiServer;
use crate::status::Status;

/// Documents made so far for one set of kinds.
#[derive(Default)]
pub struct Documents(Mutex<Made>);

#[derive(Default)]
struct Made {
    registry: Option<Arc<Registry>>,
    bytes: HashMap<String, Bytes>,
}

impl Documents {
    /// The document under a name, made if it is not there for these kinds. Two clients may make it at once; one wins.
    fn get(&self, registry: &Arc<Registry>, name: &str, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        {
            let mut made = self.0.lock();
            if !made.registry.as_ref().is_some_and(|known| Arc::ptr_eq(known, registry)) {
                *made = Made { registry: Some(registry.clone()), bytes: HashMap::new() };
            }
            if let Some(bytes) = made.bytes.get(name) {
                return bytes.clone();
            }
        }
        let bytes = Bytes::from(make());
        self.0.lock().bytes.insert(name.to_owned(), bytes.clone());
        bytes
    }
}

/// Content type of the protobuf form of OpenAPI v2. Clients ask for it with an `@` where this has a dot; echoing
/// the `@` breaks their parser.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers a path below `/openapi/`.
///
/// # Errors
/// 404.
pub fn answer(api: &ApiServer, path: &str, headers: &HeaderMap) -> Result<Answer, Status> {
    let registry = api.core.registry.load_full();
    match path {
        "/openapi/v2" if wants_protobuf(headers) => {
            let make = || openapi::v2_protobuf(&whole(&registry));
            Ok(Answer::bytes(200, V2_PROTOBUF, api.documents.get(&registry, V2_PROTOBUF, make)))
        }
        "/openapi/v2" => {
            Ok(Answer::bytes(200, JSON, api.documents.get(&registry, path, || text(&whole(&registry)))))
        }
        "/openapi/v3" => Ok(Answer::json(200, &index(&registry))),
        _ => {
            let name = path.strip_prefix("/openapi/v3/").ok_or_else(Status::path_not_found)?;
            let version = registry.versions.iter().find(|v| document_name(v) == name);
            let version = version.ok_or_else(Status::path_not_found)?;
            Ok(Answer::bytes(200, JSON, api.documents.get(&registry, name, || text(&group(version)))))
        }
    }
}

fn text(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

fn wants_protobuf(headers: &HeaderMap) -> bool {
    let first = negotiate::clauses(headers).into_iter().next();
    first.is_some_and(|clause| clause.media.ends_with("+protobuf"))
}

fn document_name(version: &GroupVersion) -> String {
    if version.group.is_empty() {
        format!("api/{}", version.version)
    } else {
        format!("apis/{}/{}", version.group, version.version)
    }
}

/// Clients keep documents by this; it changes with the program and with what is served.
fn hash(version: &GroupVersion) -> String {
    let mut hasher = DefaultHasher::new();
    (GIT_VERSION, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    format!("{:?}", version.resources).hash(&mut hasher);
    format!("{:016X}", hasher.finish())
}

fn index(registry: &Registry) -> Value {
    let entries: Vec<(String, String)> =
        registry.versions.iter().map(|v| (document_name(v), hash(v))).collect();
    openapi::v3_index(entries.iter().map(|(name, hash)| (name.as_str(), hash.as_str())))
}

/// Names of subresources, which borrow their parents'.
fn names(version: &GroupVersion) -> Vec<(String, usize, Option<usize>)> {
    let mut out = Vec::new();
    for (i, row) in version.resources.iter().enumerate() {
        out.push((row.plural.clone(), i, None));
        out.extend(
            (0..row.subresources.len())
                .map(|s| (format!("{}/{}", row.plural, row.subresources[s].name), i, Some(s))),
        );
    }
    out
}

fn listed<'a>(version: &'a GroupVersion, names: &'a [(String, usize, Option<usize>)]) -> Vec<Listed<'a>> {
    let one = |(name, i, sub): &'a (String, usize, Option<usize>)| {
        let row = &version.resources[*i];
        let (group, api_version, kind, verbs) = match sub.map(|s| &row.subresources[s]) {
            Some(sub) => (&sub.group, &sub.version, &sub.kind, &sub.verbs),
            None => (&row.group, &row.version, &row.kind, &row.verbs),
        };
        Listed { name, group, version: api_version, kind, namespaced: row.namespaced, verbs }
    };
    names.iter().map(one).collect()
}

fn group(version: &GroupVersion) -> Value {
    let names = names(version);
    let resources = listed(version, &names);
    if !version.resources.iter().any(|row| row.custom) {
        return openapi::v3_group(&version.group, &version.version, &resources, GIT_VERSION);
    }
    let kinds: Vec<(&str, Value)> = version
        .resources
        .iter()
        .map(|row| (row.kind.as_str(), row.schema.as_deref().cloned().unwrap_or_default()))
        .collect();
    openapi::v3_custom(&version.group, &version.version, &resources, &kinds, GIT_VERSION)
}

fn whole(registry: &Registry) -> Value {
    let builtin: Vec<&GroupVersion> =
        registry.versions.iter().filter(|v| !v.resources.iter().any(|row| row.custom)).collect();
    let all: Vec<_> = builtin.iter().map(|v| names(v)).collect();
    let served: Vec<_> = builtin
        .iter()
        .zip(&all)
        .map(|(v, names)| (v.group.as_str(), v.version.as_str(), listed(v, names)))
        .collect();
    openapi::v2_json(&served, GIT_VERSION)
}
