//! Reads `data/table.txt`; `schema-gen`'s `emit` module describes the format and writes it.
//!
//! The text is our own and a test regenerates it, so a line that cannot be read is skipped rather than reported; the
//! tests below would notice.

use crate::table::{Field, Kind, ListType, Strategy, Table, TypeData};
use std::borrow::Cow;
use std::collections::HashMap;

/// A line of a type.
enum Item {
    Field(Box<Field>),
    /// Protobuf number and type whose fields belong here.
    Inline(u32, u32),
}

/// Parses the generated text.
pub(crate) fn parse(text: &'static str) -> Table {
    let names = text.lines().filter_map(|line| line.strip_prefix("T "));
    let names = names.map(|line| line.split(' ').next().unwrap_or_default());
    let ids: HashMap<&str, u32> = names.zip(0u32..).collect();
    let mut types: Vec<(TypeData, Vec<Item>)> = Vec::with_capacity(ids.len());
    let mut doc = 0;
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("T ") {
            types.push((type_line(line, doc), Vec::new()));
            doc += 1;
        } else if let Some((_, items)) = types.last_mut() {
            if let Some(line) = line.strip_prefix("^ ") {
                items.extend(inline_line(line, &ids));
            } else if let Some(field) = field_line(line, doc, &ids) {
                items.push(Item::Field(Box::new(field)));
                doc += 1;
            }
        }
    }
    let flat: Vec<Vec<Field>> = (0..types.len()).map(|id| flatten(id, &types)).collect();
    let finished = types.into_iter().zip(flat).map(|((mut data, items), fields)| {
        data.fields = fields;
        data.inline = items
            .iter()
            .filter_map(|item| match item {
                Item::Inline(number, inner) if *number != 0 => Some((*number, *inner)),
                _ => None,
            })
            .collect();
        data
    });
    Table::new(finished.collect())
}

/// A type's own fields and, in their places, those of the types it inlines (which have no number in this type).
fn flatten(id: usize, types: &[(TypeData, Vec<Item>)]) -> Vec<Field> {
    let mut fields = Vec::new();
    for item in &types[id].1 {
        match item {
            Item::Field(field) => fields.push((**field).clone()),
            Item::Inline(_, inner) => {
                let inner = flatten(*inner as usize, types);
                fields.extend(inner.into_iter().map(|field| Field { number: 0, ..field }));
            }
        }
    }
    fields
}

fn type_line(line: &'static str, doc: u32) -> TypeData {
    let mut words = line.split(' ');
    let name = Cow::Borrowed(words.next().unwrap_or_default());
    let flags: Vec<&str> = words.collect();
    TypeData { name, is_kind: flags.contains(&"K"), atomic: flags.contains(&"A"), doc, ..TypeData::default() }
}

fn inline_line(line: &str, ids: &HashMap<&str, u32>) -> Option<Item> {
    let (number, name) = line.split_once(' ')?;
    Some(Item::Inline(number.parse().ok()?, *ids.get(name)?))
}

fn field_line(line: &'static str, doc: u32, ids: &HashMap<&str, u32>) -> Option<Field> {
    let mut words = line.split(' ');
    let name = Cow::Borrowed(words.next()?);
    let number = words.next()?.parse().ok()?;
    let kind = kind(words.next()?, ids)?;
    let mut field = Field { doc, ..Field::new(name, number, kind) };
    for flag in words {
        match flag.split_once('=') {
            None => match flag {
                "p" => field.pointer = true,
                "o" => field.omitempty = true,
                "r" => field.required = true,
                "A" => field.atomic = true,
                _ => return None,
            },
            Some(("L", "atomic")) => field.list = Some(ListType::Atomic),
            Some(("L", "set")) => field.list = Some(ListType::Set),
            Some(("L", "map")) => field.list = Some(ListType::Map),
            Some(("K", keys)) => field.keys = keys.split(',').map(Cow::Borrowed).collect(),
            Some(("M", key)) => field.merge_key = Some(Cow::Borrowed(key)),
            Some(("S", strategies)) => field.strategy = strategy(strategies),
            Some(("G", name)) => field.go_type = Some(Cow::Borrowed(name)),
            Some(("D", json)) => field.default = serde_json::from_str(json).ok(),
            Some(_) => return None,
        }
    }
    Some(field)
}

/// `merge,retainKeys` as in Go's struct tag.
pub(crate) fn strategy(text: &str) -> Strategy {
    let has = |name: &str| text.split(',').any(|part| part == name);
    Strategy { merge: has("merge"), retain_keys: has("retainKeys"), replace: has("replace") }
}

fn kind(text: &str, ids: &HashMap<&str, u32>) -> Option<Kind> {
    for (mark, make) in
        [("[]", Kind::List as fn(Box<Kind>) -> Kind), ("{}", Kind::Map as _), ("<>", Kind::Wrapped as _)]
    {
        if let Some(inner) = text.strip_prefix(mark) {
            return Some(make(Box::new(kind(inner, ids)?)));
        }
    }
    let schema = || ids.get("apiextensions/v1.JSONSchemaProps").copied();
    Some(match text {
        "s" => Kind::String,
        "b" => Kind::Bool,
        "i" => Kind::Int32,
        "l" => Kind::Int64,
        "d" => Kind::Double,
        "y" => Kind::Bytes,
        "q" => Kind::Quantity,
        "n" => Kind::IntOrString,
        "t" => Kind::Time,
        "u" => Kind::MicroTime,
        "r" => Kind::RawExtension,
        "j" => Kind::Json,
        "f" => Kind::FieldsV1,
        "x" => Kind::SchemaOrBool(schema()?),
        "X" => Kind::SchemaOrArray(schema()?),
        "Y" => Kind::SchemaOrStrings(schema()?),
        name => Kind::Message(*ids.get(name)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use crate::{GROUPS, Kind, ListType, Table};

    #[test]
    fn every_line_of_the_table_is_understood() {
        let text = include_str!("../data/table.txt");
        let lines = text.lines().filter(|line| !line.starts_with("T ") && !line.starts_with("^ ")).count();
        let own: usize = {
            let inline: usize = text.lines().filter(|line| line.starts_with("^ 0 meta/v1.TypeMeta")).count();
            assert!(inline > 130, "{inline} kinds");
            let table = Table::builtin();
            let mut docs: Vec<u32> =
                table.types.iter().flat_map(|ty| ty.fields.iter().map(|field| field.doc)).collect();
            docs.sort_unstable();
            docs.dedup();
            docs.len()
        };
        // Each field line has its own description, inlined fields share theirs; ListOptions and the like included.
        assert_eq!(own, lines);
        assert_eq!(Table::builtin().types.len(), text.lines().filter(|line| line.starts_with("T ")).count());
    }

    #[test]
    fn kinds_are_found_by_group_and_version() {
        let table = Table::builtin();
        for (group, version, kind, name) in [
            ("", "v1", "Pod", "core/v1.Pod"),
            ("apps", "v1", "Deployment", "apps/v1.Deployment"),
            ("networking.k8s.io", "v1", "NetworkPolicy", "networking/v1.NetworkPolicy"),
            ("autoscaling", "v2", "HorizontalPodAutoscaler", "autoscaling/v2.HorizontalPodAutoscaler"),
            ("authentication.k8s.io", "v1", "TokenRequest", "authentication/v1.TokenRequest"),
            ("policy", "v1", "Eviction", "policy/v1.Eviction"),
            (
                "apiextensions.k8s.io",
                "v1",
                "CustomResourceDefinition",
                "apiextensions/v1.CustomResourceDefinition",
            ),
            ("", "v1", "DeleteOptions", "meta/v1.DeleteOptions"),
            ("apps", "v1", "DeleteOptions", "meta/v1.DeleteOptions"),
            ("example.com", "v1beta1", "DeleteOptions", "meta/v1.DeleteOptions"),
            ("meta.k8s.io", "v1", "PartialObjectMetadata", "meta/v1.PartialObjectMetadata"),
        ] {
            assert_eq!(table.kind(group, version, kind).expect(kind).name(), name);
        }
        assert!(table.kind("apps", "v1", "PodSpec").is_none());
        assert!(table.kind("", "v1", "PodSpec").is_none(), "not a kind");
        assert!(table.kind("example.com", "v1", "Status").is_none(), "may be a custom resource");
        assert!(table.kind("apps.example.com", "v1", "Deployment").is_none());
        for (group, folder) in GROUPS {
            let prefix = format!("{folder}/");
            assert!(table.types().any(|ty| ty.name().starts_with(&prefix)), "no types of {group}");
        }
    }

    #[test]
    fn facts_of_some_fields() {
        let table = Table::builtin();
        let ports = table.by_name("core/v1.ServiceSpec").unwrap().field("ports").unwrap();
        assert_eq!(ports.list, Some(ListType::Map));
        assert_eq!(ports.keys, ["port", "protocol"]);
        assert_eq!(ports.merge_key.as_deref(), Some("port"));
        assert!(ports.strategy.merge);
        let volume = table.by_name("core/v1.Volume").unwrap();
        assert!(
            matches!(volume.field("emptyDir").unwrap().kind, Kind::Message(_)),
            "inlined from VolumeSource"
        );
        assert!(table.by_name("meta/v1.LabelSelector").unwrap().atomic());
        let protocol = table.by_name("core/v1.ServicePort").unwrap().field("protocol").unwrap();
        assert_eq!(protocol.default, Some("TCP".into()));
        assert_eq!(protocol.go_type.as_deref(), Some("v1.Protocol"));
        let strategy = table.by_name("apps/v1.DeploymentSpec").unwrap().field("strategy").unwrap();
        assert!(strategy.strategy.retain_keys);
    }
}
