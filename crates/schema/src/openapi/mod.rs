//! OpenAPI documents over the table: version 3 per group and version, version 2 whole, as JSON or protobuf.
//!
//! Clients read them for three things: `kubectl explain` wants descriptions, and finds a kind through the *paths*;
//! `kubectl create/apply` looks whether the PATCH operation of a kind takes `fieldValidation` and leaves checking to the
//! server if so; `kubectl apply` may read list types and merge keys. kubectl up to 1.28 reads version 2 as protobuf
//! first; 1.20 takes all it knows from there.
//!
//! Documents are large (core/v1: about 1 MB as text). Build one when it is asked for and keep its bytes, not the value.

mod paths;
mod proto;
mod schemas;

use crate::table::{GROUPS, Table, Type};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub use paths::Resource;
pub use proto::document as v2_protobuf;
pub(crate) use schemas::Version;

/// The title that upstream's documents have.
const TITLE: &str = "Kubernetes";

/// The OpenAPI v2 document with all definitions of the groups served. `served` lists group, version, resources.
pub fn v2_json(served: &[(&str, &str, Vec<Resource<'_>>)], version: &str) -> Value {
    let (mut all, mut operations) = (BTreeSet::new(), Map::new());
    for (group, api_version, resources) in served {
        all.extend(schemas::reachable(roots(group, api_version, resources)));
        operations.extend(paths::paths(group, api_version, resources, Version::Two));
    }
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": version},
        "paths": operations,
        "definitions": schemas::schemas(&all, Version::Two),
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"}},
        "security": [{"BearerToken": []}],
    })
}

/// The OpenAPI v3 document of a built-in group and version.
pub fn v3_group(group: &str, version: &str, resources: &[Resource<'_>], server_version: &str) -> Value {
    let all = schemas::reachable(roots(group, version, resources));
    let paths = paths::paths(group, version, resources, Version::Three);
    v3_document(paths, schemas::schemas(&all, Version::Three), server_version)
}

/// The OpenAPI v3 document of a group and version whose kinds are not built in. `kinds` holds, per kind, the schema of
/// its objects, its fields only; type and object metadata are added.
pub fn v3_custom(
    group: &str,
    version: &str,
    resources: &[Resource<'_>],
    kinds: &[(&str, Value)],
    server_version: &str,
) -> Value {
    let table = Table::builtin();
    let meta = ["meta/v1.ObjectMeta", "meta/v1.ListMeta", "meta/v1.Status", "meta/v1.DeleteOptions"];
    let all = schemas::reachable(meta.iter().filter_map(|name| table.by_name(name)));
    let mut schemas = schemas::schemas(&all, Version::Three);
    for (kind, schema) in kinds {
        schemas.extend(schemas::custom(group, version, kind, schema.clone()));
    }
    v3_document(paths::paths(group, version, resources, Version::Three), schemas, server_version)
}

fn v3_document(paths: Map<String, Value>, schemas: Map<String, Value>, server_version: &str) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": server_version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        },
    })
}

/// The index at `/openapi/v3`: the documents' paths (`api/v1`, `apis/apps/v1`) and a hash of each.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let entry = |(path, hash): (&str, &str)| {
        (path.to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}))
    };
    json!({"paths": documents.into_iter().map(entry).collect::<Map<_, _>>()})
}

/// The types a document starts from: the kinds of the group and version, those of its resources (a scale subresource
/// answers in another group's kind), and what every group answers with.
fn roots<'a>(
    group: &'a str,
    version: &'a str,
    resources: &'a [Resource<'_>],
) -> impl Iterator<Item = Type<'static>> {
    let table = Table::builtin();
    let folder =
        GROUPS.iter().find(|(name, _)| *name == group).map(|(_, folder)| format!("{folder}/{version}."));
    let own = table
        .types()
        .filter(move |ty| ty.is_kind() && folder.as_ref().is_some_and(|f| ty.name().starts_with(f)));
    let used =
        resources.iter().filter_map(|resource| table.kind(resource.group, resource.version, resource.kind));
    let meta = ["meta/v1.DeleteOptions", "meta/v1.Status", "meta/v1.WatchEvent", "meta/v1.APIResourceList"];
    let found: Vec<_> =
        own.chain(used).chain(meta.into_iter().filter_map(|name| table.by_name(name))).collect();
    found.into_iter()
}

#[cfg(test)]
mod tests;
