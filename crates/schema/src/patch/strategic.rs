//! Strategic merge patch: a merge patch that knows the lists of its type.
//!
//! Lists of objects with a merge key are merged element by element, lists of scalars with patch strategy `merge` are
//! merged as sets; everything else is replaced. Directives inside the patch say more:
//!
//! | directive | meaning |
//! |---|---|
//! | `$patch: replace` | this object, or the list it is an element of, is replaced by what the patch says |
//! | `$patch: delete` | this object is emptied; as a list element with its merge key: that element goes |
//! | `$patch: merge` | the default |
//! | `$retainKeys: [..]` | fields of this object that are not named go |
//! | `$deleteFromPrimitiveList/F: [..]` | these scalars leave list `F` |
//! | `$setElementOrder/F: [..]` | the order of list `F` when all is merged |
//!
//! Where an element that only the server has ends up relative to those of the patch follows upstream: it stays before
//! a patched element only if it stood before it on the server.

use super::PatchError;
use crate::table::{Field, Kind, Type};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type Result<T> = std::result::Result<T, PatchError>;

/// What is known about the values at some place.
#[derive(Clone, Copy)]
enum Shape<'t> {
    /// An object with the fields of a type.
    Type(Type<'t>),
    /// A map whose values have a kind; the type only resolves references.
    Map(Type<'t>, &'t Kind),
    /// Anything.
    Unknown,
}

impl<'t> Shape<'t> {
    fn of(ty: Type<'t>, kind: &'t Kind) -> Shape<'t> {
        match kind {
            Kind::Message(_) => ty.refer(kind).map_or(Shape::Unknown, Shape::Type),
            Kind::Map(element) => Shape::Map(ty, element),
            Kind::List(element) => Shape::of(ty, element),
            Kind::SchemaOrBool(id) | Kind::SchemaOrArray(id) | Kind::SchemaOrStrings(id) => {
                ty.at(*id).map_or(Shape::Unknown, Shape::Type)
            }
            _ => Shape::Unknown,
        }
    }

    /// The field of that name, and the shape of its values (for lists: of their elements).
    fn field(self, name: &str) -> (Option<&'t Field>, Shape<'t>) {
        match self {
            Shape::Type(ty) => match ty.field(name) {
                Some(field) => (Some(field), Shape::of(ty, &field.kind)),
                None => (None, Shape::Unknown),
            },
            Shape::Map(ty, element) => (None, Shape::of(ty, element)),
            Shape::Unknown => (None, Shape::Unknown),
        }
    }
}

/// How the elements of a list are merged.
#[derive(Clone, Copy)]
struct ListPlan<'t> {
    merge: bool,
    key: Option<&'t str>,
    shape: Shape<'t>,
}

impl<'t> ListPlan<'t> {
    fn of(shape: Shape<'t>, name: &str) -> ListPlan<'t> {
        let (field, shape) = shape.field(name);
        ListPlan {
            merge: field.is_some_and(|field| field.strategy.merge),
            key: field.and_then(|field| field.merge_key.as_deref()),
            shape,
        }
    }
}

/// The original with the patch applied. Both are objects of type `ty`.
pub fn strategic(ty: Type<'_>, original: Value, patch: &Value) -> Result<Value> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(malformed("a strategic merge patch must be an object"));
    };
    merge_map(Shape::Type(ty), original, patch.clone()).map(Value::Object)
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

fn merge_map(
    shape: Shape<'_>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>> {
    if let Some(directive) = patch.shift_remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => return Ok(without_directives(patch)),
            Some("delete") => return Ok(Map::new()),
            Some("merge") => {}
            _ => return Err(malformed(format!("unknown patch type found: {directive}"))),
        }
    }
    retain_keys(&mut original, &mut patch)?;
    apply_element_orders(shape, &mut original, &mut patch)?;
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PREFIX) {
            delete_scalars(&mut original, name, &value)?;
            continue;
        }
        if value.is_null() {
            original.shift_remove(&key);
            continue;
        }
        let before = original.get_mut(&key).map(Value::take);
        let merged = match (before, value) {
            (Some(Value::Object(before)), Value::Object(value)) => {
                let (field, inner) = shape.field(&key);
                if field.is_some_and(|field| field.strategy.replace) {
                    Some(Value::Object(without_directives(value)))
                } else {
                    Some(Value::Object(merge_map(inner, before, value)?))
                }
            }
            (Some(Value::Array(before)), Value::Array(value)) => {
                let plan = ListPlan::of(shape, &key);
                Some(Value::Array(merge_list(plan, before, value)?))
            }
            (_, value) => fresh(value),
        };
        match merged {
            Some(merged) => drop(original.insert(key, merged)),
            None => drop(original.shift_remove(&key)),
        }
    }
    Ok(original)
}

/// A value that the original does not have: nulls and directives mean nothing there.
fn fresh(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.get(DIRECTIVE).is_some_and(|directive| directive == "delete") => None,
        Value::Object(object) => Some(Value::Object(without_directives(object))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(fresh_element).collect())),
        other => Some(other),
    }
}

fn fresh_element(value: Value) -> Option<Value> {
    match value {
        // An element that says only how the list is to be patched.
        Value::Object(object) if object.len() == 1 && object.contains_key(DIRECTIVE) => None,
        other => fresh(other),
    }
}

fn without_directives(object: Map<String, Value>) -> Map<String, Value> {
    let directive = |key: &str| {
        key == DIRECTIVE
            || key == RETAIN_KEYS
            || key.starts_with(DELETE_PREFIX)
            || key.starts_with(ORDER_PREFIX)
    };
    let kept = object.into_iter().filter(|(key, value)| !directive(key) && !value.is_null());
    kept.filter_map(|(key, value)| Some((key, fresh(value)?))).collect()
}

fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
    let Some(list) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let error = || malformed("invalid patch format of retainKeys");
    let names: Vec<&str> = list
        .as_array()
        .ok_or_else(error)?
        .iter()
        .map(Value::as_str)
        .collect::<Option<_>>()
        .ok_or_else(error)?;
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
        if !value.is_null() && !directive && !names.contains(&key.as_str()) {
            return Err(error());
        }
    }
    original.retain(|key, _| names.contains(&key.as_str()));
    Ok(())
}

fn delete_scalars(original: &mut Map<String, Value>, name: &str, list: &Value) -> Result<()> {
    let gone = list.as_array().ok_or_else(|| malformed("invalid patch format of primitive list"))?;
    if let Some(Value::Array(items)) = original.get_mut(name) {
        items.retain(|item| !gone.iter().any(|gone| same(gone, item)));
    }
    Ok(())
}

/// Merges the lists for which the patch gives an order, and puts them into it.
fn apply_element_orders(
    shape: Shape<'_>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<()> {
    let names: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(ORDER_PREFIX)).map(str::to_owned).collect();
    for name in names {
        let error = || malformed("invalid patch format of setElementOrder list");
        let order = patch.shift_remove(&format!("{ORDER_PREFIX}{name}"));
        let Some(Value::Array(order)) = order else { return Err(error()) };
        if let Some(deleted) = patch.shift_remove(&format!("{DELETE_PREFIX}{name}")) {
            delete_scalars(original, &name, &deleted)?;
        }
        let plan = ListPlan::of(shape, &name);
        let before = match original.get(&name) {
            Some(Value::Array(items)) => Some(items.clone()),
            Some(_) if !matches!(patch.get(&name), None | Some(Value::Array(_))) => continue,
            _ => None,
        };
        let patched = match patch.get(&name) {
            Some(Value::Array(items)) => Some(items.clone()),
            None => None,
            Some(_) => continue,
        };
        if let Some(patched) = &patched {
            order_covers(plan, patched, &order)?;
        }
        let merged = match (&before, patched) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (None, Some(patched)) => patched.into_iter().filter_map(fresh_element).collect(),
            (Some(before), Some(patched)) => merge_list(plan, before.clone(), patched)?,
        };
        patch.shift_remove(&name);
        let ordered = arrange(plan, merged, &order, before.as_deref().unwrap_or_default());
        original.insert(name, Value::Array(ordered));
    }
    Ok(())
}

/// Every element the patch sets must stand in the order, in the same sequence.
fn order_covers(plan: ListPlan<'_>, patched: &[Value], order: &[Value]) -> Result<()> {
    let mut rest = order.iter();
    for item in patched.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if !rest.any(|ordered| plan.same_element(ordered, item)) {
            let text = |items: &[Value]| Value::from(items.to_vec()).to_string();
            return Err(malformed(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER_PREFIX} list:\n{}\n",
                text(patched),
                text(order)
            )));
        }
    }
    Ok(())
}

fn merge_list(plan: ListPlan<'_>, original: Vec<Value>, patch: Vec<Value>) -> Result<Vec<Value>> {
    if !plan.merge {
        // Directives are nothing that may be stored.
        return Ok(patch.into_iter().filter_map(fresh_element).collect());
    }
    let objects = |items: &[Value]| items.iter().filter(|item| item.is_object()).count();
    let (total, found) = (original.len() + patch.len(), objects(&original) + objects(&patch));
    if found == 0 {
        let mut merged = original.clone();
        for item in &patch {
            if !merged.iter().any(|known| same(known, item)) {
                merged.push(item.clone());
            }
        }
        return Ok(arrange(plan, merged, &patch, &original));
    }
    if found != total {
        return Err(malformed("list element types are not identical"));
    }
    let key = plan.key.ok_or_else(|| malformed("no merge key is declared for this list"))?;
    let (original, patch) = special_elements(key, original, patch)?;
    let mut merged: Vec<Value> = original.clone();
    for item in &patch {
        let id = item.get(key).ok_or_else(|| missing_key(item, key))?;
        let known = merged.iter_mut().find(|known| known.get(key).is_some_and(|found| same(found, id)));
        match (known, item) {
            (Some(known), Value::Object(item)) => {
                if let Value::Object(before) = known.take() {
                    *known = Value::Object(merge_map(plan.shape, before, item.clone())?);
                }
            }
            _ => merged.extend(fresh(item.clone())),
        }
    }
    Ok(arrange(plan, merged, &patch, &original))
}

fn missing_key(item: &Value, key: &str) -> PatchError {
    malformed(format!("map: {item} does not contain declared merge key: {key}"))
}

/// Carries out the elements that hold `$patch`: what is left of the original, and the plain elements of the patch.
fn special_elements(
    key: &str,
    mut original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("delete") => {
                let id = item.get(key).ok_or_else(|| missing_key(&item, key))?;
                original.retain(|known| !known.get(key).is_some_and(|found| same(found, id)));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(malformed("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(malformed(format!("unknown patch type found: {other}"))),
        }
    }
    // What replaces is taken as it is: elements with the same key, as a node's two internal addresses, stay apart.
    if replace {
        return Ok((plain, Vec::new()));
    }
    Ok((original, plain))
}

impl ListPlan<'_> {
    /// Do both stand for the same element? In lists of objects the merge key tells.
    fn same_element(&self, a: &Value, b: &Value) -> bool {
        match self.key {
            Some(key) if a.is_object() && b.is_object() => match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => same(a, b),
                _ => false,
            },
            _ => same(a, b),
        }
    }

    fn position(&self, list: &[Value], item: &Value) -> Option<usize> {
        list.iter().position(|known| self.same_element(known, item))
    }
}

/// Puts merged elements in order: those that `order` names in its order; each of the others stays before the next of
/// them only if it stood before it on the server.
fn arrange(plan: ListPlan<'_>, merged: Vec<Value>, order: &[Value], server: &[Value]) -> Vec<Value> {
    let mut ordered = Vec::new();
    let mut others = Vec::new();
    let mut seen = BTreeSet::new();
    for item in merged {
        match plan.position(order, &item) {
            Some(at) if seen.insert(at) => ordered.push((at, item)),
            // The same scalar twice: once is enough. Objects with the same key were merged into one.
            Some(_) => {}
            None => others.push((plan.position(server, &item), item)),
        }
    }
    ordered.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| *at);
    let mut others = others.into_iter().peekable();
    let mut all = Vec::with_capacity(ordered.len() + others.len());
    for (_, item) in ordered {
        let here = plan.position(server, &item);
        while let Some((_, other)) =
            others.next_if(|(at, _)| matches!((at, here), (Some(at), Some(here)) if *at < here))
        {
            all.push(other);
        }
        all.push(item);
    }
    all.extend(others.map(|(_, other)| other));
    all
}

/// Equal, where 80 and 80.0 are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}
