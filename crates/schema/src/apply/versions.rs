//! Owners write in versions of their own: what they own is looked up in the object as their version sees it.

use super::Conflict;
use super::entries::Entry;
use super::set::Set;
use super::walk::{self, Difference, Shape};
use crate::table::Type;
use serde_json::Value;

/// A conversion that has to be made before an answer can be given; ask again when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending;

/// An object and its type in some version.
pub type View<'t> = Option<(Type<'t>, Value)>;

/// The versions of a kind.
pub trait Versions {
    /// An object, of whatever version, in a version; `None` when there is no such one any more.
    ///
    /// # Errors
    /// Somebody must be asked first.
    fn view(&self, api_version: &str, object: &Value) -> Result<View<'_>, Pending>;
}

/// A kind of one version.
impl Versions for () {
    fn view(&self, _: &str, _: &Value) -> Result<View<'_>, Pending> {
        Ok(None)
    }
}

/// What differs between two states of an object, in each version that owners wrote in.
pub(super) struct Differences<'a> {
    versions: &'a dyn Versions,
    before: &'a Value,
    after: &'a Value,
    known: Vec<(String, Option<Difference>)>,
}

impl<'a> Differences<'a> {
    /// Of two states in the request's own version.
    pub(super) fn new(
        shape: Shape<'_>,
        api_version: &str,
        states: (&'a Value, &'a Value),
        versions: &'a dyn Versions,
    ) -> Self {
        let own = walk::compare(shape, Some(states.0), Some(states.1));
        let known = vec![(api_version.to_owned(), Some(own))];
        Differences { versions, before: states.0, after: states.1, known }
    }

    /// What was set and what was removed, in the request's own version.
    pub(super) fn own(&self) -> (Set, Set) {
        let own = self.known.first().and_then(|(_, difference)| difference.as_ref());
        own.map(|own| (own.set(), own.removed.children.clone())).unwrap_or_default()
    }

    fn of(&mut self, api_version: &str) -> Result<Option<&Difference>, Pending> {
        if !self.known.iter().any(|(version, _)| version == api_version) {
            let before = self.versions.view(api_version, self.before)?;
            let after = self.versions.view(api_version, self.after)?;
            let difference = before.zip(after).map(|((ty, before), (_, after))| {
                walk::compare(Shape::Struct(ty), Some(&before), Some(&after))
            });
            self.known.push((api_version.to_owned(), difference));
        }
        let found = self.known.iter().find(|(version, _)| version == api_version);
        Ok(found.and_then(|(_, difference)| difference.as_ref()))
    }

    /// The fields of others that were changed. Whoever wrote in a version that is gone owns nothing any more.
    pub(super) fn conflicts(&mut self, owners: &mut Vec<Entry>) -> Result<Vec<Conflict>, Pending> {
        let mut conflicts = Vec::new();
        for mut owner in std::mem::take(owners) {
            let Some(difference) = self.of(&owner.api_version)? else { continue };
            let changed = difference.set();
            let paths = owner.set.intersection(&changed).paths();
            conflicts.extend(paths.into_iter().map(|path| Conflict { manager: owner.shown(), path }));
            owner.set = owner.set.difference(&changed).difference(&difference.removed.children);
            owners.push(owner);
        }
        Ok(conflicts)
    }
}

/// Takes away what a manager wanted at its last apply, no longer states, and nobody else owns.
pub(super) fn prune(
    (ty, own): (Type<'_>, &str),
    merged: Value,
    last: &Entry,
    managed: &[&Entry],
    versions: &dyn Versions,
) -> Result<Value, Pending> {
    let home = merged["apiVersion"].clone();
    let see = |api_version: &str, object: &Value| {
        if api_version == own && object["apiVersion"] == home {
            return Ok(Some((Shape::Struct(ty), object.clone())));
        }
        let seen = versions.view(api_version, object)?;
        Ok(seen.map(|(ty, object)| (Shape::Struct(ty), object)))
    };
    let Some((shape, whole)) = see(&last.api_version, &merged)? else { return Ok(merged) };
    let wanted = walk::with_parents(shape, &last.set);
    let Some(mut pruned) = walk::remove(shape, &whole, &wanted) else { return Ok(merged) };
    let mut done: Vec<&str> = Vec::new();
    for api_version in managed.iter().map(|entry| entry.api_version.as_str()) {
        if done.contains(&api_version) {
            continue;
        }
        done.push(api_version);
        let of_version = managed.iter().filter(|entry| entry.api_version == api_version);
        let all = of_version.fold(Set::default(), |all, entry| all.union(&entry.set));
        let (Some((shape, merged)), Some((_, left))) =
            (see(api_version, &merged)?, see(api_version, &pruned)?)
        else {
            continue;
        };
        let gone = all_fields(shape, &merged)
            .difference(&all_fields(shape, &left))
            .difference(&walk::with_parents(shape, &all));
        pruned = walk::remove(shape, &merged, &gone).unwrap_or(merged);
    }
    // Of what went with it, only what it owned itself may go.
    let Some((_, left)) = see(&last.api_version, &pruned)? else { return Ok(merged) };
    let gone = all_fields(shape, &whole).difference(&all_fields(shape, &left)).intersection(&wanted);
    let result = walk::remove(shape, &whole, &gone).unwrap_or(whole);
    Ok(see(own, &result)?.map_or(merged, |(_, object)| object))
}

fn all_fields(shape: Shape<'_>, value: &Value) -> Set {
    walk::with_parents(shape, &walk::compare(shape, None, Some(value)).set())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Table;
    use crate::apply::{ApplyError, Manager, apply, update_managed_fields};
    use serde_json::json;

    /// v1 has `spec.size`, v2 calls it `spec.length`; `spec.color` is the same in both.
    struct Renamed([(&'static str, &'static str, Table); 2]);

    impl Renamed {
        fn new() -> Self {
            let table = |version: &str, name: &str| {
                let spec = json!({"type": "object", "properties": {name: {"type": "integer"}, "color": {"type": "string"}}});
                Table::from_schema(version, "Rod", &json!({"type": "object", "properties": {"spec": spec}}))
            };
            Renamed([("x/v1", "size", table("v1", "size")), ("x/v2", "length", table("v2", "length"))])
        }

        fn ty(&self, version: &str) -> Type<'_> {
            self.0.iter().find(|(name, ..)| *name == version).unwrap().2.root().unwrap()
        }
    }

    impl Versions for Renamed {
        fn view(&self, api_version: &str, object: &Value) -> Result<View<'_>, Pending> {
            let of = |version: &Value| self.0.iter().find(|(name, ..)| version == *name);
            let Some((name, field, table)) = of(&api_version.into()) else { return Ok(None) };
            let mut out = object.clone();
            let old = of(&object["apiVersion"]).unwrap().1;
            if let Some(value) =
                out.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove(old))
            {
                out["spec"][*field] = value;
            }
            out["apiVersion"] = (*name).into();
            Ok(Some((table.root().unwrap(), out)))
        }
    }

    fn rod(version: &str, spec: Value) -> Value {
        json!({"apiVersion": version, "kind": "Rod", "metadata": {"name": "r"}, "spec": spec})
    }

    fn by<'a>(name: &'a str, api_version: &'a str) -> Manager<'a> {
        Manager { name, api_version, subresource: "", time: "2026-01-01T00:00:00Z", resets: &[] }
    }

    /// What somebody applied in v1, as v2 sees it.
    fn red_in_v2(v: &Renamed) -> Value {
        let spec = json!({"size": 1, "color": "red"});
        let one = apply(v.ty("x/v1"), None, &rod("x/v1", spec), &by("me", "x/v1"), false, v).unwrap();
        in_version(v, "x/v2", &one)
    }

    fn in_version(versions: &Renamed, version: &str, object: &Value) -> Value {
        versions.view(version, object).unwrap().unwrap().1
    }

    #[test]
    fn ownership_outlives_a_change_of_version() {
        let v = Renamed::new();
        let live = red_in_v2(&v);
        let wanted = rod("x/v2", json!({"length": 2}));
        // Another one changes the same field under its new name.
        let lost = apply(v.ty("x/v2"), Some(&live), &wanted, &by("you", "x/v2"), false, &v).unwrap_err();
        let ApplyError::Conflicts(conflicts) = lost else { panic!("{lost}") };
        assert_eq!((conflicts.len(), conflicts[0].path.as_str()), (1, ".spec.size"));
        let won = apply(v.ty("x/v2"), Some(&live), &wanted, &by("you", "x/v2"), true, &v).unwrap();
        assert_eq!(won["spec"], json!({"length": 2, "color": "red"}));
        let entries = won["metadata"]["managedFields"].as_array().unwrap();
        let owned = |name: &str| {
            let entry = entries.iter().find(|entry| entry["manager"] == name).unwrap();
            (entry["apiVersion"].clone(), entry["fieldsV1"]["f:spec"].clone())
        };
        assert_eq!(owned("me"), (json!("x/v1"), json!({"f:color": {}})));
        assert_eq!(owned("you"), (json!("x/v2"), json!({"f:length": {}})));
    }

    #[test]
    fn what_was_applied_in_another_version_goes_when_it_is_no_longer_wanted() {
        let v = Renamed::new();
        let live = red_in_v2(&v);
        let two = apply(
            v.ty("x/v2"),
            Some(&live),
            &rod("x/v2", json!({"color": "red"})),
            &by("me", "x/v2"),
            false,
            &v,
        )
        .unwrap();
        assert_eq!(two["spec"], json!({"color": "red"}));
        let entries = two["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!((entries.len(), &entries[0]["apiVersion"]), (1, &json!("x/v2")));
        // Unless somebody owns it, in whatever version.
        let mut set = live.clone();
        set["spec"]["length"] = 5.into();
        update_managed_fields(v.ty("x/v2"), Some(&live), &mut set, &by("it", "x/v2"), &v).unwrap();
        let live = in_version(&v, "x/v1", &set);
        let kept = apply(
            v.ty("x/v1"),
            Some(&live),
            &rod("x/v1", json!({"color": "red"})),
            &by("me", "x/v1"),
            false,
            &v,
        )
        .unwrap();
        assert_eq!(kept["spec"], json!({"size": 5, "color": "red"}));
    }

    #[test]
    fn an_update_takes_from_owners_of_other_versions() {
        let v = Renamed::new();
        let one = apply(v.ty("x/v1"), None, &rod("x/v1", json!({"size": 1})), &by("me", "x/v1"), false, &v)
            .unwrap();
        let live = in_version(&v, "x/v2", &one);
        let mut new = live.clone();
        new["spec"]["length"] = 7.into();
        update_managed_fields(v.ty("x/v2"), Some(&live), &mut new, &by("it", "x/v2"), &v).unwrap();
        let entries = new["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!((entries.len(), &entries[0]["manager"]), (1, &json!("it")), "{entries:?}");
    }

    #[test]
    fn owners_of_versions_that_are_gone_own_nothing() {
        let v = Renamed::new();
        let one = apply(v.ty("x/v1"), None, &rod("x/v1", json!({"size": 1})), &by("me", "x/v1"), false, &v)
            .unwrap();
        let mut live = one.clone();
        live["metadata"]["managedFields"][0]["apiVersion"] = "x/v0".into();
        let two =
            apply(v.ty("x/v1"), Some(&live), &rod("x/v1", json!({"size": 2})), &by("you", "x/v1"), false, &v)
                .unwrap();
        assert_eq!(two["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn an_object_waits_unchanged_for_its_conversion() {
        struct Waits;
        impl Versions for Waits {
            fn view(&self, _: &str, _: &Value) -> Result<View<'_>, Pending> {
                Err(Pending)
            }
        }
        let v = Renamed::new();
        let live = apply(v.ty("x/v1"), None, &rod("x/v1", json!({"size": 1})), &by("me", "x/v1"), false, &v)
            .unwrap();
        let mut new = in_version(&v, "x/v2", &live);
        let sent = new.clone();
        let waits = update_managed_fields(v.ty("x/v2"), Some(&sent), &mut new, &by("it", "x/v2"), &Waits);
        assert_eq!((waits, new), (Err(Pending), sent.clone()));
        let again = apply(
            v.ty("x/v2"),
            Some(&sent),
            &rod("x/v2", json!({"length": 2})),
            &by("you", "x/v2"),
            false,
            &Waits,
        );
        assert_eq!(again, Err(ApplyError::Pending));
    }
}
