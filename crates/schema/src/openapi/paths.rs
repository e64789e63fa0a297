//! The paths of a group and version.

use super::schemas::Version;
use crate::table::{Table, Type};
use serde_json::{Map, Value, json};

/// One resource as discovery lists it.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    /// `pods`, or `pods/status` for a subresource.
    pub name: &'a str,
    /// Group of the kind that it reads and writes.
    pub group: &'a str,
    /// Version of that kind.
    pub version: &'a str,
    /// That kind.
    pub kind: &'a str,
    /// Do its paths have a namespace?
    pub namespaced: bool,
    /// Verbs of discovery: get, list, watch, create, update, patch, delete, deletecollection.
    pub verbs: &'a [&'a str],
}

/// HTTP method, verb of discovery, action that upstream's extension names, whether it is on one object.
const OPERATIONS: [(&str, &str, &str, bool); 7] = [
    ("get", "get", "get", true),
    ("put", "update", "put", true),
    ("patch", "patch", "patch", true),
    ("delete", "delete", "delete", true),
    ("get", "list", "list", false),
    ("post", "create", "post", false),
    ("delete", "deletecollection", "deletecollection", false),
];

/// Query parameters: name, type, verbs that take it.
const QUERY: [(&str, &str, &[&str]); 17] = [
    ("dryRun", "string", &["create", "update", "patch", "delete", "deletecollection"]),
    ("fieldManager", "string", &["create", "update", "patch"]),
    ("fieldValidation", "string", &["create", "update", "patch"]),
    ("force", "boolean", &["patch"]),
    ("gracePeriodSeconds", "integer", &["delete", "deletecollection"]),
    ("orphanDependents", "boolean", &["delete", "deletecollection"]),
    ("propagationPolicy", "string", &["delete", "deletecollection"]),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", &["delete", "deletecollection"]),
    ("allowWatchBookmarks", "boolean", &["list"]),
    ("continue", "string", &["list", "deletecollection"]),
    ("fieldSelector", "string", &["list", "deletecollection"]),
    ("labelSelector", "string", &["list", "deletecollection"]),
    ("limit", "integer", &["list", "deletecollection"]),
    ("resourceVersion", "string", &["list", "deletecollection"]),
    ("resourceVersionMatch", "string", &["list", "deletecollection"]),
    ("timeoutSeconds", "integer", &["list", "deletecollection"]),
    ("watch", "boolean", &["list"]),
];

const PATCH_TYPES: [&str; 5] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

/// The path items of a group and version.
pub(super) fn paths(
    group: &str,
    version: &str,
    resources: &[Resource<'_>],
    openapi: Version,
) -> Map<String, Value> {
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let mut out = Map::new();
    for resource in resources {
        let (plural, sub) = match resource.name.split_once('/') {
            Some((plural, sub)) => (plural, Some(sub)),
            None => (resource.name, None),
        };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{plural}");
        let object = match sub {
            Some(sub) => format!("{collection}/{{name}}/{sub}"),
            None => format!("{collection}/{{name}}"),
        };
        let writer = Writer { group, version, resource, openapi, sub };
        if sub.is_none() {
            writer.add(&mut out, &collection, resource.namespaced, false, |verb| !verb.3);
        }
        // A subresource that is created (bindings, evictions, tokens) is posted to the object's path.
        writer.add(&mut out, &object, resource.namespaced, true, |verb| {
            verb.3 || (sub.is_some() && verb.1 == "create")
        });
        if sub.is_none() && resource.namespaced {
            writer.add(&mut out, &format!("{root}/{plural}"), false, false, |verb| verb.1 == "list");
        }
    }
    out
}

struct Writer<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a Resource<'a>,
    openapi: Version,
    sub: Option<&'a str>,
}

impl Writer<'_> {
    fn add(
        &self,
        out: &mut Map<String, Value>,
        path: &str,
        namespaced: bool,
        named: bool,
        belongs: impl Fn(&(&str, &str, &str, bool)) -> bool,
    ) {
        let mut item = Map::new();
        for operation in OPERATIONS.iter().filter(|operation| belongs(operation)) {
            if self.resource.verbs.contains(&operation.1) {
                item.insert(
                    operation.0.to_owned(),
                    self.operation(operation.1, operation.2, namespaced, named),
                );
            }
        }
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        for (name, place) in [("name", named), ("namespace", namespaced)] {
            if place {
                parameters.push(self.parameter(name, "string", "path"));
            }
        }
        parameters.push(self.parameter("pretty", "string", "query"));
        item.insert("parameters".to_owned(), parameters.into());
        out.insert(path.to_owned(), item.into());
    }

    fn parameter(&self, name: &str, kind: &str, place: &str) -> Value {
        let mut out = json!({"name": name, "in": place});
        match self.openapi {
            Version::Two => out["type"] = kind.into(),
            Version::Three => out["schema"] = json!({"type": kind, "uniqueItems": true}),
        }
        match place {
            "path" => out["required"] = true.into(),
            _ => out["uniqueItems"] = true.into(),
        }
        if self.openapi == Version::Three {
            out.as_object_mut().and_then(|out| out.shift_remove("uniqueItems"));
        }
        out
    }

    fn operation(&self, verb: &str, action: &str, namespaced: bool, named: bool) -> Value {
        let resource = self.resource;
        let query = QUERY.iter().filter(|(.., verbs)| verbs.contains(&verb));
        let parameters: Vec<Value> =
            query.map(|(name, kind, _)| self.parameter(name, kind, "query")).collect();
        let answer = match verb {
            "list" => self.definition(&format!("{}List", resource.kind)),
            "delete" | "deletecollection" => self.meta("Status"),
            _ => self.definition(resource.kind),
        };
        let body = match verb {
            "create" | "update" => Some(self.definition(resource.kind)),
            "delete" | "deletecollection" => Some(self.meta("DeleteOptions")),
            "patch" => Some(json!({"type": "object"})),
            _ => None,
        };
        let mut out = json!({
            "tags": [format!("{}_{}", tag(self.group), self.version)],
            "operationId": self.operation_id(verb, namespaced, named),
            "responses": {},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind":
                {"group": resource.group, "kind": resource.kind, "version": resource.version},
        });
        let code = if verb == "create" { "201" } else { "200" };
        self.contents(&mut out, verb, code, parameters, body, answer);
        out
    }

    fn contents(
        &self,
        out: &mut Value,
        verb: &str,
        code: &str,
        mut parameters: Vec<Value>,
        body: Option<Value>,
        answer: Value,
    ) {
        let patched = verb == "patch";
        match self.openapi {
            Version::Two => {
                let required = !verb.starts_with("delete");
                parameters.extend(
                    body.map(
                        |body| json!({"name": "body", "in": "body", "required": required, "schema": body}),
                    ),
                );
                out["responses"][code] = json!({"description": "OK", "schema": answer});
                out["produces"] = json!(["application/json"]);
                out["consumes"] = if patched { json!(self.patch_types()) } else { json!(["*/*"]) };
            }
            Version::Three => {
                out["responses"][code] =
                    json!({"description": "OK", "content": {"application/json": {"schema": answer}}});
                if let Some(body) = body {
                    let types: Vec<&str> = if patched { self.patch_types() } else { vec!["*/*"] };
                    let content =
                        types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": body.clone()})));
                    out["requestBody"] = json!({"content": content.collect::<Map<_, _>>()});
                }
            }
        }
        out["parameters"] = parameters.into();
    }

    /// Kinds that are not built in have no merge keys: clients choose the patch by what stands here.
    fn patch_types(&self) -> Vec<&'static str> {
        let resource = self.resource;
        let built_in = Table::builtin().kind(resource.group, resource.version, resource.kind).is_some();
        let known = |kind: &&str| built_in || !kind.contains("strategic");
        PATCH_TYPES.into_iter().filter(known).collect()
    }

    fn meta(&self, kind: &str) -> Value {
        self.openapi.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
    }

    /// A reference to a kind's definition; kinds that are not built in are named after their group.
    fn definition(&self, kind: &str) -> Value {
        let resource = self.resource;
        let known = Table::builtin().kind(resource.group, resource.version, kind);
        let custom = || {
            let reversed: Vec<&str> = resource.group.rsplit('.').collect();
            format!("{}.{}.{kind}", reversed.join("."), resource.version)
        };
        self.openapi.reference(&known.as_ref().map_or_else(custom, Type::definition))
    }

    /// `readCoreV1NamespacedPodStatus`.
    fn operation_id(&self, verb: &str, namespaced: bool, named: bool) -> String {
        let verb = match verb {
            "get" => "read",
            "update" => "replace",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let scope = if namespaced { "Namespaced" } else { "" };
        let everywhere =
            if self.resource.namespaced && !namespaced && !named { "ForAllNamespaces" } else { "" };
        let (group, version) = (capital(&tag(self.group)), capital(self.version));
        let sub = self.sub.map(capital).unwrap_or_default();
        format!("{verb}{group}{version}{scope}{}{sub}{everywhere}", self.resource.kind)
    }
}

/// `core`, `apps`, `networking`: the first part of the group's name.
fn tag(group: &str) -> String {
    let first = group.split('.').next().unwrap_or_default();
    if first.is_empty() { "core".to_owned() } else { first.to_owned() }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}
