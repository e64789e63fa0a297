//! Values and sets of fields along a type: which fields a value has, what differs, merging, removing, extracting.

use super::set::{Node, Set, keyed};
use crate::table::{Field, Kind, ListType, Text, Type};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// How apply sees the values at some place.
#[derive(Clone, Copy)]
pub(crate) enum Shape<'t> {
    /// Owned as a whole.
    Leaf,
    /// An object with declared fields.
    Struct(Type<'t>),
    /// A map; every entry is owned by itself.
    Map(Type<'t>, &'t Kind),
    /// A list of objects told apart by keys.
    Keyed(Type<'t>, &'t [Text]),
    /// A list of scalars, each owned by itself.
    Scalars,
    /// No type is known: objects are maps, everything else is a leaf.
    Unknown,
}

impl<'t> Shape<'t> {
    fn of(ty: Type<'t>, field: &'t Field) -> Shape<'t> {
        if field.atomic {
            return Shape::Leaf;
        }
        match (&field.kind, field.list) {
            (Kind::List(element), Some(ListType::Map)) => match ty.refer(element) {
                Some(inner) if !field.keys.is_empty() => Shape::Keyed(inner, &field.keys),
                _ => Shape::Leaf,
            },
            (Kind::List(_) | Kind::Wrapped(_), Some(ListType::Set)) => Shape::Scalars,
            (kind, _) => Shape::of_kind(ty, kind),
        }
    }

    fn of_kind(ty: Type<'t>, kind: &'t Kind) -> Shape<'t> {
        match kind {
            Kind::Message(_) => match ty.refer(kind) {
                Some(inner) if !inner.atomic() => Shape::Struct(inner),
                _ => Shape::Leaf,
            },
            Kind::Map(element) => Shape::Map(ty, element),
            _ => Shape::Leaf,
        }
    }

    /// The shape of an object's entry, and whether the name is a declared field.
    fn entry(self, name: &str) -> (Shape<'t>, bool) {
        match self {
            Shape::Struct(ty) => match ty.field(name) {
                Some(field) => (Shape::of(ty, field), true),
                None => (Shape::Unknown, false),
            },
            Shape::Map(ty, element) => (Shape::of_kind(ty, element), false),
            _ => (Shape::Unknown, false),
        }
    }

    /// The shape of a list's items.
    fn item(self) -> Shape<'t> {
        match self {
            Shape::Keyed(inner, _) => Shape::Struct(inner),
            _ => Shape::Leaf,
        }
    }

    /// The object, when this place is one that is not owned as a whole.
    fn object(self, value: &Value) -> Option<&Map<String, Value>> {
        match self {
            Shape::Struct(_) | Shape::Map(..) | Shape::Unknown => value.as_object(),
            _ => None,
        }
    }

    fn list(self, value: &Value) -> Option<&Vec<Value>> {
        match self {
            Shape::Keyed(..) | Shape::Scalars => value.as_array(),
            _ => None,
        }
    }

    /// The path element of a list item.
    fn element(self, item: &Value) -> Result<String, String> {
        let Shape::Keyed(inner, names) = self else { return Ok(format!("v:{item}")) };
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            let default = || inner.field(name).and_then(|field| field.default.as_ref());
            let Some(value) = item.get(name.as_ref()).filter(|value| !value.is_null()).or_else(default)
            else {
                return Err(format!(
                    "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                ));
            };
            keys.push((name.as_ref(), value));
        }
        Ok(keyed(keys))
    }

    /// The items of a list by their elements, in order; of equal ones the first. Items without keys are left out.
    fn elements(self, items: &[Value]) -> Vec<(String, &Value)> {
        let mut seen = HashSet::new();
        let elements = items.iter().filter_map(|item| Some((self.element(item).ok()?, item)));
        elements.filter(|(element, _)| seen.insert(element.clone())).collect()
    }
}

/// The fields that a value has. Fails when it has what no owner could name: unknown fields, list items without their
/// keys or twice.
pub(crate) fn fields(shape: Shape<'_>, value: &Value, path: &str) -> Result<Set, String> {
    let mut out = Set::default();
    if let Some(object) = shape.object(value) {
        for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let (inner, declared) = shape.entry(name);
            let path = format!("{path}.{name}");
            if let (Shape::Struct(ty), false) = (shape, declared)
                && !ty.preserves_unknown()
            {
                return Err(format!("{path}: field not declared in schema"));
            }
            let children = fields(inner, value, &path)?;
            let empty = value.as_object().is_some_and(Map::is_empty);
            let leaf = inner.object(value).is_none() && inner.list(value).is_none();
            out.put(format!("f:{name}"), Node { member: leaf || empty || !declared, children });
        }
    } else if let Some(items) = shape.list(value) {
        for item in items {
            let element = shape.element(item).map_err(|error| format!("{path}: {error}"))?;
            if out.get(&element).is_some() {
                return Err(format!(
                    "{path}: duplicate entries for key {}",
                    element.get(2..).unwrap_or_default()
                ));
            }
            let children =
                fields(shape.item(), item, &format!("{path}[{}]", element.get(2..).unwrap_or_default()))?;
            out.put(element, Node { member: true, children });
        }
    }
    Ok(out)
}

/// What makes a new value differ from an old one.
#[derive(Default)]
pub(crate) struct Difference {
    pub added: Node,
    pub removed: Node,
    pub modified: Node,
}

impl Difference {
    fn put(&mut self, element: &str, inner: Difference) {
        let Difference { added, removed, modified } = inner;
        for (outer, node) in
            [(&mut self.added, added), (&mut self.removed, removed), (&mut self.modified, modified)]
        {
            outer.children.put(element.to_owned(), node);
        }
    }

    /// Added and modified fields.
    pub(crate) fn set(&self) -> Set {
        self.added.children.union(&self.modified.children)
    }
}

/// Compares along a type. A whole value that comes or goes is named with everything in it.
pub(crate) fn compare(shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let (old, new) = (old.filter(|value| !value.is_null()), new.filter(|value| !value.is_null()));
    let mut out = Difference::default();
    if old == new {
        return out;
    }
    let objects = (old.and_then(|value| shape.object(value)), new.and_then(|value| shape.object(value)));
    let lists = (old.and_then(|value| shape.list(value)), new.and_then(|value| shape.list(value)));
    let filled = objects.0.is_some_and(|object| !object.is_empty())
        || objects.1.is_some_and(|object| !object.is_empty())
        || lists.0.is_some_and(|list| !list.is_empty())
        || lists.1.is_some_and(|list| !list.is_empty());
    let fits = |value: Option<&Value>, of_shape: bool| value.is_none() || of_shape;
    if filled && fits(old, objects.0.is_some()) && fits(new, objects.1.is_some()) {
        compare_objects(shape, objects.0, objects.1, &mut out);
    } else if filled && fits(old, lists.0.is_some()) && fits(new, lists.1.is_some()) {
        compare_lists(shape, lists.0, lists.1, &mut out);
    } else {
        match (old, new) {
            (None, _) => out.added = Node::leaf(),
            (_, None) => out.removed = Node::leaf(),
            _ => out.modified = Node::leaf(),
        }
        return out;
    }
    out.added.member = old.is_none();
    out.removed.member = new.is_none();
    out
}

type Object = Map<String, Value>;

fn compare_objects(shape: Shape<'_>, old: Option<&Object>, new: Option<&Object>, out: &mut Difference) {
    for (name, before) in old.into_iter().flatten() {
        let after = new.and_then(|new| new.get(name));
        if after != Some(before) {
            out.put(&format!("f:{name}"), compare(shape.entry(name).0, Some(before), after));
        }
    }
    for (name, after) in new.into_iter().flatten() {
        if old.is_none_or(|old| !old.contains_key(name)) {
            out.put(&format!("f:{name}"), compare(shape.entry(name).0, None, Some(after)));
        }
    }
}

fn compare_lists(shape: Shape<'_>, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>, out: &mut Difference) {
    let before = shape.elements(old.map(Vec::as_slice).unwrap_or_default());
    let after = shape.elements(new.map(Vec::as_slice).unwrap_or_default());
    let known: HashMap<&str, &Value> =
        before.iter().map(|(element, item)| (element.as_str(), *item)).collect();
    let kept: HashSet<&str> = after.iter().map(|(element, _)| element.as_str()).collect();
    for (element, item) in &after {
        out.put(element, compare(shape.item(), known.get(element.as_str()).copied(), Some(item)));
    }
    for (element, item) in before.iter().filter(|(element, _)| !kept.contains(element.as_str())) {
        out.put(element, compare(shape.item(), Some(item), None));
    }
}

/// The live value with the applied one laid over it.
pub(crate) fn merge(shape: Shape<'_>, live: Value, applied: &Value) -> Value {
    if let (true, true) = (shape.object(&live).is_some(), shape.object(applied).is_some()) {
        let (Value::Object(mut live), Value::Object(applied)) = (live, applied) else { return Value::Null };
        for (name, value) in applied.iter().filter(|(_, value)| !value.is_null()) {
            let merged = match live.get_mut(name).map(Value::take) {
                Some(before) => merge(shape.entry(name).0, before, value),
                None => value.clone(),
            };
            live.insert(name.clone(), merged);
        }
        return Value::Object(live);
    }
    if let (Some(before), Some(items)) = (shape.list(&live), shape.list(applied)) {
        return Value::Array(merge_lists(shape, before, items));
    }
    applied.clone()
}

/// Items of both in the order of the applied list; items that only the live list has keep their place before the next
/// common one.
fn merge_lists(shape: Shape<'_>, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let (live, applied) = (shape.elements(live), shape.elements(applied));
    let before: HashMap<&str, &Value> =
        live.iter().map(|(element, item)| (element.as_str(), *item)).collect();
    let wanted: HashSet<&str> = applied.iter().map(|(element, _)| element.as_str()).collect();
    let mut rest = live.iter().peekable();
    let mut out = Vec::with_capacity(live.len() + applied.len());
    let mut done = HashSet::new();
    for (element, item) in &applied {
        while let Some((known, only)) = rest.peek() {
            if !wanted.contains(known.as_str()) {
                out.push((*only).clone());
            } else if !done.contains(known.as_str()) {
                break;
            }
            rest.next();
        }
        done.insert(element.as_str());
        out.push(match before.get(element.as_str()) {
            Some(known) => merge(shape.item(), (*known).clone(), item),
            None => (*item).clone(),
        });
    }
    out.extend(rest.filter(|(known, _)| !wanted.contains(known.as_str())).map(|(_, item)| (*item).clone()));
    out
}

/// The set with the declared fields above its members made members, too: removing all of an object's fields removes the
/// object.
pub(crate) fn with_parents(shape: Shape<'_>, set: &Set) -> Set {
    let mut out = Set::default();
    for (element, node) in set.nodes() {
        let (inner, declared) = match element.strip_prefix("f:") {
            Some(name) => shape.entry(name),
            None => (shape.item(), false),
        };
        out.put(
            element.clone(),
            Node { member: node.member || declared, children: with_parents(inner, &node.children) },
        );
    }
    out
}

/// The value without the members of the set. An object that is no member itself stays, if empty; `None` for a list of
/// which nothing is left.
pub(crate) fn remove(shape: Shape<'_>, value: &Value, set: &Set) -> Option<Value> {
    if let Some(object) = shape.object(value) {
        let mut out = Map::new();
        for (name, value) in object {
            match set.get(&format!("f:{name}")) {
                Some(node) if node.member => {}
                Some(node) => {
                    let left = remove(shape.entry(name).0, value, &node.children);
                    out.extend(left.map(|left| (name.clone(), left)));
                }
                None => drop(out.insert(name.clone(), value.clone())),
            }
        }
        return Some(Value::Object(out));
    }
    if let Some(items) = shape.list(value) {
        let mut out = Vec::new();
        for item in items {
            match shape.element(item).ok().and_then(|element| set.get(&element)) {
                Some(node) if node.member => {}
                Some(node) => out.extend(remove(shape.item(), item, &node.children)),
                None => out.push(item.clone()),
            }
        }
        return (!out.is_empty() || items.is_empty()).then_some(Value::Array(out));
    }
    Some(value.clone())
}

/// Only the members of the set, with the keys of their list items.
pub(crate) fn extract(shape: Shape<'_>, value: &Value, set: &Set) -> Option<Value> {
    if let Some(object) = shape.object(value) {
        let mut out = Map::new();
        for (name, value) in object {
            let Some(node) = set.get(&format!("f:{name}")) else { continue };
            let inner = shape.entry(name).0;
            let found = if node.children.is_empty() {
                Some(value.clone())
            } else {
                extract(inner, value, &node.children)
            };
            out.extend(found.map(|found| (name.clone(), found)));
        }
        return (!out.is_empty()).then_some(Value::Object(out));
    }
    if let Some(items) = shape.list(value) {
        let mut out = Vec::new();
        for item in items {
            let Some(node) = shape.element(item).ok().and_then(|element| set.get(&element)) else { continue };
            let mut found = extract(shape.item(), item, &node.children).unwrap_or_else(|| item.clone());
            if let (Shape::Keyed(_, names), Value::Object(object)) = (shape, &mut found) {
                let keys = names
                    .iter()
                    .filter_map(|name| Some((name.to_string(), item.get(name.as_ref())?.clone())));
                object.extend(keys);
            }
            out.push(found);
        }
        return (!out.is_empty()).then_some(Value::Array(out));
    }
    Some(value.clone())
}
