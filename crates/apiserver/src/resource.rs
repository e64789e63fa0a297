//! The row of the kinds table: everything the generic handlers need to know about a kind besides its rules.

use std::fmt;
use std::sync::Arc;

use crate::strategy::NameRule;

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

/// A field that field selectors may name, besides `metadata.name` and `metadata.namespace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectableField {
    /// Label in the selector.
    pub label: &'static str,
    /// JSON pointer of the value in the stored object.
    pub pointer: &'static str,
    /// What an absent value counts as.
    pub absent: &'static str,
}

/// Verbs of an ordinary resource.
pub const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

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
    /// Whether `metadata.generation` counts changes of the spec.
    pub generation: bool,
    /// Whether a delete that removes the object at once answers with the object (else with a Status).
    pub returns_deleted: bool,
    /// Group, version and plural under which objects are stored, when this version is only a view of them.
    pub stored_as: Option<(&'static str, &'static str, &'static str)>,
    /// How names are checked.
    pub names: NameRule,
    /// What field selectors may name.
    pub fields: &'static [SelectableField],
    /// Printer columns of a CustomResourceDefinition; built-in kinds have theirs in the `table` module.
    pub columns: Vec<CustomColumn>,
    /// Whether a CustomResourceDefinition made it.
    pub custom: bool,
    /// Whether objects are stored in the form of this version, of several custom ones.
    pub stores: bool,
    /// Who converts the objects of a custom kind to this version; without one its versions differ by name alone.
    pub conversion: Option<Arc<crate::crd::convert::Webhook>>,
    /// Where a custom kind keeps its replicas.
    pub scale_paths: Option<ScalePaths>,
    /// OpenAPI schema of a CustomResourceDefinition.
    pub schema: Option<Arc<serde_json::Value>>,
    /// How stored objects of a custom kind are read.
    pub read: Option<Arc<crate::crd::read::Versions>>,
    /// What whoever uses it is warned of, for a deprecated version of a CustomResourceDefinition.
    pub warning: Option<String>,
    /// Whether the schema has rules in CEL.
    pub has_rules: bool,
    /// Fields of a CustomResourceDefinition's objects, from its schema.
    pub types: Option<Arc<schema::Table>>,
    /// Type of the built-in table that has this row's name.
    pub(crate) named: Option<schema::Type<'static>>,
}

/// A printer column of a CustomResourceDefinition.
#[derive(Debug, Clone)]
pub struct CustomColumn {
    /// Head of the column.
    pub name: String,
    /// OpenAPI type.
    pub kind: String,
    /// OpenAPI format.
    pub format: String,
    /// Help.
    pub description: String,
    /// 0 always shown, else only wide.
    pub priority: i64,
    /// Simple JSON path such as `.spec.replicas`.
    pub path: String,
}

/// Where `/scale` finds its values in a custom object; simple JSON paths.
#[derive(Debug, Clone)]
pub struct ScalePaths {
    /// Wanted replicas.
    pub spec: String,
    /// Replicas there are.
    pub status: String,
    /// Selector as text; may be empty.
    pub selector: String,
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
    /// A namespaced resource with all verbs; the methods below say what is different.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        Resource {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: ALL_VERBS.to_vec(),
            subresources: Vec::new(),
            generation: false,
            returns_deleted: false,
            stored_as: None,
            names: NameRule::Subdomain,
            fields: &[],
            columns: Vec::new(),
            custom: false,
            stores: true,
            conversion: None,
            scale_paths: None,
            schema: None,
            read: None,
            warning: None,
            has_rules: false,
            types: None,
            named: schema::Table::builtin().kind(group, version, kind),
        }
    }

    /// Objects belong to the cluster.
    #[must_use]
    pub fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    /// Short names.
    #[must_use]
    pub fn short(mut self, names: &[&str]) -> Self {
        self.short_names = names.iter().map(|n| (*n).into()).collect();
        self
    }

    /// In category `all`.
    #[must_use]
    pub fn all(mut self) -> Self {
        self.categories.push("all".into());
        self
    }

    /// Has a status subresource of its own kind.
    #[must_use]
    pub fn status(self) -> Self {
        self.own("status", &["get", "patch", "update"])
    }

    /// Has a subresource that exchanges its own kind.
    #[must_use]
    pub fn own(mut self, name: &str, verbs: &[&'static str]) -> Self {
        let (group, version, kind) = (self.group.clone(), self.version.clone(), self.kind.clone());
        self.subresources.push(Subresource {
            name: name.into(),
            group,
            version,
            kind,
            verbs: verbs.to_vec(),
        });
        self
    }

    /// Has a subresource that exchanges another kind.
    #[must_use]
    pub fn sub(
        mut self,
        name: &str,
        (group, version, kind): (&str, &str, &str),
        verbs: &[&'static str],
    ) -> Self {
        self.subresources.push(Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs: verbs.to_vec(),
        });
        self
    }

    /// Has a scale subresource.
    #[must_use]
    pub fn scale(self) -> Self {
        self.sub("scale", ("autoscaling", "v1", "Scale"), &["get", "patch", "update"])
    }

    /// Supports only these verbs.
    #[must_use]
    pub fn only(mut self, verbs: &[&'static str]) -> Self {
        self.verbs = verbs.to_vec();
        self
    }

    /// Counts generations.
    #[must_use]
    pub fn generations(mut self) -> Self {
        self.generation = true;
        self
    }

    /// Answers a delete with the object.
    #[must_use]
    pub fn returning_deleted(mut self) -> Self {
        self.returns_deleted = true;
        self
    }

    /// Is a view of objects stored as another resource or version.
    #[must_use]
    pub fn stored_as(mut self, group: &'static str, version: &'static str, plural: &'static str) -> Self {
        self.stored_as = Some((group, version, plural));
        self
    }

    /// Has names of another form than most.
    #[must_use]
    pub fn named(mut self, names: NameRule) -> Self {
        self.names = names;
        self
    }

    /// Has these selectable fields.
    #[must_use]
    pub fn fields(mut self, fields: &'static [SelectableField]) -> Self {
        self.fields = fields;
        self
    }

    /// The type of a built-in kind.
    pub fn builtin(&self) -> Option<schema::Type<'static>> {
        self.named.filter(|_| !self.custom)
    }

    /// Version-independent name.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.plural)
    }

    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Kind of a list.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether there is such a subresource.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| s.name == name)
    }

    /// Whether this is core/namespaces, the one kind that the life of all others hangs on.
    pub fn is_namespaces(&self) -> bool {
        self.group.is_empty() && self.plural == "namespaces"
    }

    /// Whether objects are never stored (reviews, bindings): create computes an answer.
    pub fn is_virtual(&self) -> bool {
        self.verbs == ["create"]
    }

    /// Key prefix of all objects, with a slash at the end.
    pub fn prefix(&self) -> String {
        let (group, plural) = match self.stored_as {
            Some((group, _, plural)) => (group, plural),
            None => (self.group.as_str(), self.plural.as_str()),
        };
        format!("/registry/{}/{plural}/", if group.is_empty() { "core" } else { group })
    }

    /// Key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let prefix = self.prefix();
        if self.namespaced { format!("{prefix}{namespace}/{name}") } else { format!("{prefix}{name}") }
    }
}
