//! What a URL asks for: the resource (or plain path), the verb, the options in the query.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::identity::Attributes;
use crate::selector::FieldSelector;
use crate::status::Status;

/// The parts of a resource URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty is core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    /// Object name, or empty for the collection.
    pub name: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// What follows the subresource (proxy), without the slash before it.
    pub rest: String,
    /// Whether a slash ended the path after the subresource.
    pub has_rest: bool,
}

fn decode(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// Splits `/api/v1/...` and `/apis/GROUP/VERSION/...` below the version; `None` for every other path.
pub fn resource_path(path: &str) -> Option<ResourcePath> {
    let (mut out, rest) = if let Some(rest) = path.strip_prefix("/api/") {
        let (version, rest) = rest.split_once('/')?;
        (ResourcePath { version: version.into(), ..Default::default() }, rest)
    } else {
        let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version, rest) = (parts.next()?, parts.next()?, parts.next()?);
        (ResourcePath { group: group.into(), version: version.into(), ..Default::default() }, rest)
    };
    let mut segments = rest;
    let mut next = || -> Option<String> {
        if segments.is_empty() {
            return None;
        }
        let (head, tail) = segments.split_once('/').unwrap_or((segments, ""));
        segments = tail;
        Some(decode(head))
    };
    let first = next()?;
    let mut words = vec![first];
    // namespaces/NS/RESOURCE... is in a namespace; namespaces/NS and its own subresources are the object itself.
    if words[0] == "namespaces"
        && let Some(namespace) = next()
    {
        out.namespace.clone_from(&namespace);
        match next() {
            Some(third) if !(out.group.is_empty() && matches!(third.as_str(), "status" | "finalize")) => {
                words = vec![third];
            }
            Some(sub) => words = vec!["namespaces".into(), namespace, sub],
            None => words = vec!["namespaces".into(), namespace],
        }
    }
    while words.len() < 3 {
        match next() {
            Some(word) => words.push(word),
            None => break,
        }
    }
    let mut words = words.into_iter();
    out.resource = words.next()?;
    out.name = words.next().unwrap_or_default();
    out.subresource = words.next().unwrap_or_default();
    out.has_rest = !out.subresource.is_empty() && (path.ends_with('/') || !segments.is_empty());
    out.rest = segments.to_owned();
    (!out.resource.is_empty()).then_some(out)
}

/// The query of a URL: every option any verb knows, unparsed where only one verb cares.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// From the part behind the question mark.
    pub fn parse(query: Option<&str>) -> Self {
        Query(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value of an option, empty if absent.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// Whether an option is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// All values of an option.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// As in a URL.
    pub fn to_text(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }

    /// The same query without some options.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Self {
        Query(self.0.iter().filter(|(k, _)| !keys.contains(&k.as_str())).cloned().collect())
    }

    /// A boolean as Go's query conversion reads it: absent, `0` and `false` are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key), "0" | "false" | "False" | "FALSE")
    }

    /// A number, if the option is set.
    ///
    /// # Errors
    /// 400 for what is no number.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            }),
        }
    }

    /// Whether nothing may be kept.
    ///
    /// # Errors
    /// 422 for a value other than `All`.
    pub fn dry_run(&self) -> Result<bool, Status> {
        parse_dry_run(self.all("dryRun").filter(|v| !v.is_empty()))
    }
}

/// `dryRun` of a query or of DeleteOptions.
///
/// # Errors
/// 422 for a value other than `All`.
pub fn parse_dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values {
        if value != "All" {
            let mut errors = crate::field::FieldErrors::new();
            errors.push(crate::field::FieldError::not_supported("dryRun", value, &["All"]));
            return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &errors));
        }
        dry = true;
    }
    Ok(dry)
}

/// Verb and object of a resource request, as authorizers see it.
pub fn attributes(method: &Method, path: &str, resource: Option<&ResourcePath>, query: &Query) -> Attributes {
    let Some(r) = resource else {
        return Attributes { verb: method.as_str().to_lowercase(), path: path.into(), ..Default::default() };
    };
    let collection = r.name.is_empty();
    let verb = match *method {
        Method::GET | Method::HEAD if collection && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    };
    let name = if collection && verb != "create" { selected_name(query) } else { r.name.clone() };
    Attributes {
        verb: verb.into(),
        is_resource: true,
        group: r.group.clone(),
        version: r.version.clone(),
        resource: r.resource.clone(),
        subresource: r.subresource.clone(),
        namespace: r.namespace.clone(),
        name,
        path: path.into(),
    }
}

/// A collection request for one name counts as one about that object.
fn selected_name(query: &Query) -> String {
    FieldSelector::name_of(query.get("fieldSelector")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/pods", "|v1||pods|||"),
            ("/api/v1/namespaces", "|v1||namespaces|||"),
            ("/api/v1/namespaces/a", "|v1|a|namespaces|a||"),
            ("/api/v1/namespaces/a/finalize", "|v1|a|namespaces|a|finalize|"),
            ("/api/v1/namespaces/a/pods/p/log", "|v1|a|pods|p|log|"),
            ("/api/v1/namespaces/a/pods/http:p:80/proxy/x/y", "|v1|a|pods|http:p:80|proxy|x/y"),
            ("/apis/apps/v1/namespaces/a/deployments/d", "apps|v1|a|deployments|d||"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:a%2Fb",
                "rbac.authorization.k8s.io|v1||clusterroles|system:a/b||",
            ),
        ] {
            let r = resource_path(path).unwrap();
            let got = [&r.group, &r.version, &r.namespace, &r.resource, &r.name, &r.subresource, &r.rest]
                .map(String::as_str)
                .join("|");
            assert_eq!(got, expected, "{path}");
        }
        for path in ["/api", "/apis/apps/v1", "/version", "/api/v1", "/api/v1/"] {
            assert_eq!(resource_path(path), None, "{path}");
        }
    }

    #[test]
    fn verbs() {
        let query = Query::parse(Some("watch=1&fieldSelector=metadata.name%3Dx"));
        let r = resource_path("/api/v1/namespaces/a/pods").unwrap();
        let a = attributes(&Method::GET, "", Some(&r), &query);
        assert_eq!((a.verb.as_str(), a.name.as_str()), ("watch", "x"));
        assert_eq!(attributes(&Method::DELETE, "", Some(&r), &Query::default()).verb, "deletecollection");
    }
}
