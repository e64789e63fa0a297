//! The table: types, their fields, and how to find them.

use crate::{descriptions, text};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// A string of the table: borrowed for the built-in types, owned for those made at run time.
pub type Text = Cow<'static, str>;

/// The API groups of the built-in types and the folder of each, which begins its types' names.
pub const GROUPS: [(&str, &str); 18] = [
    ("", "core"),
    ("admissionregistration.k8s.io", "admissionregistration"),
    ("apiextensions.k8s.io", "apiextensions"),
    ("apps", "apps"),
    ("authentication.k8s.io", "authentication"),
    ("authorization.k8s.io", "authorization"),
    ("autoscaling", "autoscaling"),
    ("batch", "batch"),
    ("certificates.k8s.io", "certificates"),
    ("coordination.k8s.io", "coordination"),
    ("discovery.k8s.io", "discovery"),
    ("events.k8s.io", "events"),
    ("networking.k8s.io", "networking"),
    ("node.k8s.io", "node"),
    ("policy", "policy"),
    ("rbac.authorization.k8s.io", "rbac"),
    ("scheduling.k8s.io", "scheduling"),
    ("storage.k8s.io", "storage"),
];

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating point number.
    Double,
    /// Bytes, base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a string, or a number, in JSON.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`, RFC 3339 with seconds.
    Time,
    /// `metav1.MicroTime`, RFC 3339 with microseconds.
    MicroTime,
    /// `runtime.RawExtension`: any object.
    RawExtension,
    /// Any JSON value.
    Json,
    /// `metav1.FieldsV1`: a set of fields, an object.
    FieldsV1,
    /// `JSONSchemaPropsOrBool`; the index is that of `JSONSchemaProps`.
    SchemaOrBool(u32),
    /// `JSONSchemaPropsOrArray`.
    SchemaOrArray(u32),
    /// `JSONSchemaPropsOrStringArray`.
    SchemaOrStrings(u32),
    /// Another type of the table.
    Message(u32),
    /// A list.
    List(Box<Kind>),
    /// A map from strings.
    Map(Box<Kind>),
    /// A list in JSON, on the protobuf wire a message with one repeated field.
    Wrapped(Box<Kind>),
}

/// How apply sees a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    /// Owned and replaced as a whole.
    #[default]
    Atomic,
    /// Scalars, each owned by itself.
    Set,
    /// Objects told apart by keys.
    Map,
}

/// What a strategic merge patch does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Strategy {
    /// Lists are merged by the merge key (or as sets of scalars).
    pub merge: bool,
    /// Only the keys named by the patch survive.
    pub retain_keys: bool,
    /// Objects are replaced.
    pub replace: bool,
}

/// One field of a type.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its JSON name.
    pub name: Text,
    /// Its protobuf number, 0 when it is not on the wire of this type.
    pub number: u32,
    /// What it holds.
    pub kind: Kind,
    /// Its zero value differs from its absence.
    pub pointer: bool,
    /// Left out of JSON when empty.
    pub omitempty: bool,
    /// `null` is a value of its own and stays; only fields of custom resources say so.
    pub nullable: bool,
    /// OpenAPI lists it as required.
    pub required: bool,
    /// Apply owns the map or object as a whole.
    pub atomic: bool,
    /// How apply sees the list; `None` when no list type is declared, which means atomic.
    pub list: Option<ListType>,
    /// The keys of a map list.
    pub keys: Vec<Text>,
    /// The key of a strategic merge.
    pub merge_key: Option<Text>,
    /// The strategic merge.
    pub strategy: Strategy,
    /// Default value.
    pub default: Option<Value>,
    /// The Go type's name in decode errors, when the kind does not tell.
    pub go_type: Option<Text>,
    /// Position of its description.
    pub(crate) doc: u32,
}

impl Field {
    /// An optional field with no marker, default or description.
    pub(crate) fn new(name: Text, number: u32, kind: Kind) -> Self {
        Self {
            name,
            number,
            kind,
            pointer: false,
            omitempty: false,
            nullable: false,
            required: false,
            atomic: false,
            list: None,
            keys: Vec::new(),
            merge_key: None,
            strategy: Strategy::default(),
            default: None,
            go_type: None,
            doc: u32::MAX,
        }
    }

    /// What it means, in prose.
    pub fn description(&self) -> Option<String> {
        descriptions::get(self.doc)
    }

    /// Does Go write it whatever its value? `omitempty` has no say over a struct.
    pub fn always_written(&self) -> bool {
        let is_struct = matches!(
            self.kind,
            Kind::Message(_)
                | Kind::Quantity
                | Kind::IntOrString
                | Kind::Time
                | Kind::MicroTime
                | Kind::RawExtension
        );
        !self.omitempty || (is_struct && !self.pointer)
    }
}

/// The facts about one type.
#[derive(Clone, Debug, Default)]
pub(crate) struct TypeData {
    pub name: Text,
    pub is_kind: bool,
    pub atomic: bool,
    /// Unknown fields are kept, not dropped (`x-kubernetes-preserve-unknown-fields`).
    pub open: bool,
    /// All fields in JSON order, those of inlined types too.
    pub fields: Vec<Field>,
    /// Inlined types that are messages of their own on the wire: number, type.
    pub inline: Vec<(u32, u32)>,
    /// Positions of the fields that are always written.
    pub always: Vec<usize>,
    pub doc: u32,
}

/// A set of types that refer to each other.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub(crate) types: Vec<TypeData>,
    names: HashMap<Text, u32>,
    /// Made from a CustomResourceDefinition: values of wrong types are told in the words of JSON schema, not of Go.
    pub(crate) custom: bool,
}

static BUILTIN: LazyLock<Table> = LazyLock::new(|| text::parse(include_str!("../data/table.txt")));

impl Table {
    /// The built-in types.
    pub fn builtin() -> &'static Table {
        &BUILTIN
    }

    pub(crate) fn new(mut types: Vec<TypeData>) -> Table {
        for data in &mut types {
            let always = data.fields.iter().enumerate().filter(|(_, field)| field.always_written());
            data.always = always.map(|(at, _)| at).collect();
        }
        let numbered = (0u32..).zip(&types);
        let names = numbered.map(|(id, data)| (data.name.clone(), id)).collect();
        Table { types, names, custom: false }
    }

    /// The table of a custom resource, from the `openAPIV3Schema` of one version; [`Table::root`] is its type.
    pub fn from_schema(version: &str, kind: &str, schema: &Value) -> Table {
        let mut table = Table::new(crate::custom::types(version, kind, schema));
        table.custom = true;
        table
    }

    /// The first type; that of the resource for a table made from a schema.
    pub fn root(&self) -> Option<Type<'_>> {
        self.at(0)
    }

    /// The kind of an API group and version: `("apps", "v1", "Deployment")`. The option and answer kinds of meta/v1
    /// (`DeleteOptions`, `Status`, ...) belong to every group; clients send options even in a custom resource's group.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<Type<'_>> {
        let folder = GROUPS.iter().find(|(name, _)| *name == group).map(|(_, folder)| folder);
        let own = folder.and_then(|folder| self.by_name(&format!("{folder}/{version}.{kind}")));
        let meta = || {
            let everywhere = folder.is_some() || group == "meta.k8s.io" || kind.ends_with("Options");
            everywhere.then(|| self.by_name(&format!("meta/v1.{kind}"))).flatten()
        };
        own.or_else(meta).filter(Type::is_kind)
    }

    /// A type by its name in the table: `core/v1.Pod`, `meta/v1.ObjectMeta`.
    pub fn by_name(&self, name: &str) -> Option<Type<'_>> {
        self.names.get(name).map(|id| Type { table: self, id: *id })
    }

    /// All types.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        (0u32..).zip(&self.types).map(|(id, _)| Type { table: self, id })
    }

    pub(crate) fn at(&self, id: u32) -> Option<Type<'_>> {
        ((id as usize) < self.types.len()).then_some(Type { table: self, id })
    }
}

/// A type of a [`Table`].
#[derive(Clone, Copy)]
pub struct Type<'t> {
    table: &'t Table,
    id: u32,
}

impl<'t> Type<'t> {
    pub(crate) fn data(&self) -> &'t TypeData {
        &self.table.types[self.id as usize]
    }

    /// `core/v1.Pod`.
    pub fn name(&self) -> &'t str {
        &self.data().name
    }

    /// `v1.Pod`, as Go prints it.
    pub fn go_name(&self) -> &'t str {
        self.name().rsplit('/').next().unwrap_or_default()
    }

    /// `Pod`.
    pub fn short_name(&self) -> &'t str {
        self.name().rsplit('.').next().unwrap_or_default()
    }

    /// `io.k8s.api.core.v1.Pod`, its name in OpenAPI documents.
    pub fn definition(&self) -> String {
        let dotted = self.name().replace('/', ".");
        match self.name().split('/').next() {
            Some("meta") => format!("io.k8s.apimachinery.pkg.apis.{dotted}"),
            Some("apiextensions") => format!("io.k8s.apiextensions-apiserver.pkg.apis.{dotted}"),
            _ => format!("io.k8s.api.{dotted}"),
        }
    }

    /// Does it carry `apiVersion` and `kind`?
    pub fn is_kind(&self) -> bool {
        self.data().is_kind
    }

    /// Does apply own it as a whole?
    pub fn atomic(&self) -> bool {
        self.data().atomic
    }

    /// Are fields that it does not know kept? Only types made from custom resources do so.
    pub fn preserves_unknown(&self) -> bool {
        self.data().open
    }

    /// What it is, in prose.
    pub fn description(&self) -> Option<String> {
        descriptions::get(self.data().doc)
    }

    /// Its fields in JSON order.
    pub fn fields(&self) -> &'t [Field] {
        &self.data().fields
    }

    /// A field by its JSON name.
    pub fn field(&self, name: &str) -> Option<&'t Field> {
        self.data().fields.iter().find(|field| field.name == name)
    }

    /// The fields that Go always writes.
    pub fn always_written(&self) -> impl Iterator<Item = &'t Field> {
        let data = self.data();
        data.always.iter().filter_map(|at| data.fields.get(*at))
    }

    /// The type that a kind of one of its fields refers to.
    pub fn refer(&self, kind: &Kind) -> Option<Type<'t>> {
        match kind {
            Kind::Message(id) => self.table.at(*id),
            _ => None,
        }
    }

    /// Is it a custom resource's?
    pub(crate) fn is_custom(&self) -> bool {
        self.table.custom
    }

    /// The type behind an index that a [`Kind`] holds.
    pub(crate) fn at(&self, id: u32) -> Option<Type<'t>> {
        self.table.at(id)
    }
}

impl std::fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Type({})", self.name())
    }
}
