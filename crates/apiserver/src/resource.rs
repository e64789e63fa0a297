//! The row of the kinds table: everything the generic handlers need to know about a kind besides its rules.

use std::fmt;

/// Group and plural: the name of a resource independent of versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    /// API group; empty is core.
    pub group: String,
    /// Plural name.
    pub resource: String,
}

impl GroupResource {
    /// By group and plural.
    pub fn new(group: &str, resource: &str) -> Self {
        GroupResource { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::status::qualified(&self.group, &self.resource))
    }
}

/// One kind in one version.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group; empty is core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Plural, as in URLs.
    pub plural: String,
    /// Singular.
    pub singular: String,
    /// Short names of kubectl.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself; empty for parents of subresources only.
    pub verbs: Vec<&'static str>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
}

/// One subresource.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Name in the URL.
    pub name: String,
    /// Group of the kind exchanged, when it is another one.
    pub group: String,
    /// Version of the kind exchanged.
    pub version: String,
    /// Kind exchanged, such as `Scale`.
    pub kind: String,
    /// Verbs.
    pub verbs: Vec<&'static str>,
}

impl Resource {
    /// Version-independent name.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.plural)
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether there is such a subresource.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| s.name == name)
    }
}
