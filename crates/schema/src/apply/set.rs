//! Sets of fields and their form in `managedFields` (`FieldsV1`).
//!
//! A set is a tree of path elements; each node says whether its own path is a member. As JSON an element is a key:
//! `f:name` a field, `k:{"name":"web"}` a list item by its keys, `v:"x"` a list item by its value, `i:0` by position.
//! A node without children is a member; one with children is a member when it has the key `.`.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Path element to what is known below it. No node is empty.
    nodes: BTreeMap<String, Node>,
}

/// One path element of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub member: bool,
    pub children: Set,
}

impl Node {
    pub(crate) fn leaf() -> Node {
        Node { member: true, children: Set::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl Set {
    /// Has it no member?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Reads `fieldsV1`. Anything that is no tree of objects counts as empty.
    pub fn parse(fields: &Value) -> Set {
        let mut set = Set::default();
        for (key, below) in fields.as_object().into_iter().flatten().filter(|(key, _)| *key != ".") {
            let object = below.as_object();
            let member = object.is_none_or(|object| object.is_empty() || object.contains_key("."));
            set.put(canonical(key), Node { member, children: Set::parse(below) });
        }
        set
    }

    /// As `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, node) in &self.nodes {
            let mut below = node.children.to_value();
            if let (true, Value::Object(object)) = (node.member && !node.children.is_empty(), &mut below) {
                object.shift_insert(0, ".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(key.clone(), below);
        }
        Value::Object(out)
    }

    /// Adds a node; an empty one leaves no trace.
    pub(crate) fn put(&mut self, element: String, node: Node) {
        if !node.is_empty() {
            self.nodes.insert(element, node);
        }
    }

    pub(crate) fn get(&self, element: &str) -> Option<&Node> {
        self.nodes.get(element)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter()
    }

    /// The set of one dotted path of fields: `metadata.name`.
    pub(crate) fn insert_fields(&mut self, path: &str) {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let node = self.nodes.entry(format!("f:{first}")).or_default();
        match rest {
            Some(rest) => node.children.insert_fields(rest),
            None => node.member = true,
        }
    }

    /// Members of either.
    pub fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        for (key, node) in &other.nodes {
            let known = out.nodes.entry(key.clone()).or_default();
            known.member |= node.member;
            known.children = known.children.union(&node.children);
        }
        out
    }

    fn combine(&self, other: &Set, member: fn(bool, bool) -> bool, below: fn(&Set, &Node) -> Set) -> Set {
        let mut out = Set::default();
        let none = Node::default();
        for (key, node) in &self.nodes {
            let theirs = other.nodes.get(key).unwrap_or(&none);
            let children = below(&node.children, theirs);
            out.put(key.clone(), Node { member: member(node.member, theirs.member), children });
        }
        out
    }

    /// Members of this set that are not members of the other.
    pub fn difference(&self, other: &Set) -> Set {
        self.combine(other, |ours, theirs| ours && !theirs, |ours, theirs| ours.difference(&theirs.children))
    }

    /// Members of both.
    pub fn intersection(&self, other: &Set) -> Set {
        self.combine(other, |ours, theirs| ours && theirs, |ours, theirs| ours.intersection(&theirs.children))
    }

    /// Members that are neither members of the other nor below one.
    pub fn without_subtrees(&self, other: &Set) -> Set {
        self.combine(
            other,
            |ours, theirs| ours && !theirs,
            |ours, theirs| {
                if theirs.member { Set::default() } else { ours.without_subtrees(&theirs.children) }
            },
        )
    }

    /// The members' paths as messages show them: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        for (key, node) in &self.nodes {
            let path = format!("{prefix}{}", shown(key));
            if node.member {
                out.push(path.clone());
            }
            node.children.collect(&path, out);
        }
    }
}

/// The element of a list item that is told by its keys.
pub(crate) fn keyed(mut keys: Vec<(&str, &Value)>) -> String {
    keys.sort_by_key(|(name, _)| *name);
    let object: Map<String, Value> =
        keys.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    format!("k:{}", Value::Object(object))
}

/// An element spelled as [`keyed`] and its kin spell it, whoever wrote it.
fn canonical(key: &str) -> String {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    match key.split_once(':') {
        Some(("k", text)) => match parsed(text) {
            Some(Value::Object(object)) => {
                keyed(object.iter().map(|(name, value)| (name.as_str(), value)).collect())
            }
            _ => key.to_owned(),
        },
        Some(("v", text)) => parsed(text).map_or_else(|| key.to_owned(), |value| format!("v:{value}")),
        _ => key.to_owned(),
    }
}

fn shown(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", text)) => {
            let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            let pairs: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", pairs.join(","))
        }
        Some(("v", text)) => format!("[={text}]"),
        Some((_, text)) => format!("[{text}]"),
        None => key.to_owned(),
    }
}
