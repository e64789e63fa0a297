#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::Table;
use serde_json::json;

fn ty() -> Type<'static> {
    Table::builtin().by_name("apps/v1.Deployment").unwrap()
}

fn by(name: &'static str) -> Manager<'static> {
    Manager {
        name,
        api_version: "apps/v1",
        subresource: "",
        time: "2024-01-01T00:00:00Z",
        resets: &["status"],
    }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"default"},"spec":spec})
}

fn owner<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let list = object["metadata"]["managedFields"].as_array()?;
    list.iter().find(|entry| entry["manager"] == name).map(|entry| &entry["fieldsV1"])
}

#[test]
fn an_apply_creates_and_owns() {
    let config = deployment(json!({"replicas":2,"template":{"spec":{"containers":[
        {"name":"c","image":"i","ports":[{"containerPort":80}],"args":["a"]}],"nodeSelector":{"a":"b"}}}}));
    let made = apply(ty(), None, &config, &by("me"), false, &()).unwrap();
    assert_eq!(
        owner(&made, "me").unwrap(),
        &json!({"f:spec":{"f:replicas":{},"f:template":{"f:spec":{
            "f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:args":{},"f:image":{},"f:name":{},
                "f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}},
            "f:nodeSelector":{}}}}})
    );
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["operation"], &entry["fieldsType"], &entry["apiVersion"]),
        (&json!("Apply"), &json!("FieldsV1"), &json!("apps/v1"))
    );
    // The same again changes nothing, not even the time.
    let later = Manager { time: "2024-01-02T00:00:00Z", ..by("me") };
    assert_eq!(apply(ty(), Some(&made), &config, &later, false, &()).unwrap(), made);
}

#[test]
fn an_update_owns_what_it_adds_or_changes() {
    let mut object = deployment(json!({"replicas":1,"selector":{"matchLabels":{"a":"b"}}}));
    object["metadata"]["labels"] = json!({"x":"1"});
    update_managed_fields(ty(), None, &mut object, &by("kubectl-create"), &()).unwrap();
    assert_eq!(
        owner(&object, "kubectl-create").unwrap(),
        &json!({"f:metadata":{"f:labels":{".":{},"f:x":{}}},"f:spec":{"f:replicas":{},"f:selector":{}}})
    );
    let mut changed = object.clone();
    changed["spec"]["replicas"] = json!(5);
    update_managed_fields(ty(), Some(&object), &mut changed, &by("hpa"), &()).unwrap();
    assert_eq!(owner(&changed, "hpa").unwrap(), &json!({"f:spec":{"f:replicas":{}}}));
    assert_eq!(owner(&changed, "kubectl-create").unwrap()["f:spec"], json!({"f:selector":{}}));
    // A removed field has no owner.
    let mut removed = changed.clone();
    removed["spec"].as_object_mut().unwrap().remove("replicas");
    update_managed_fields(ty(), Some(&changed), &mut removed, &by("third"), &()).unwrap();
    assert!(owner(&removed, "hpa").is_none() && owner(&removed, "third").is_none());
}

#[test]
fn changing_what_another_owns_is_a_conflict() {
    let mut live = deployment(json!({"replicas":1,"paused":true}));
    update_managed_fields(ty(), None, &mut live, &by("kubectl-create"), &()).unwrap();
    let config = deployment(json!({"replicas":3}));
    let error = apply(ty(), Some(&live), &config, &by("me"), false, &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-create\" using apps/v1: .spec.replicas"
    );
    let two = deployment(json!({"replicas":3,"paused":false}));
    let error = apply(ty(), Some(&live), &two, &by("me"), false, &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    // The same value is shared, not in conflict.
    let shared = apply(ty(), Some(&live), &deployment(json!({"replicas":1})), &by("me"), false, &()).unwrap();
    assert_eq!(owner(&shared, "kubectl-create").unwrap()["f:spec"]["f:replicas"], json!({}));
    let forced = apply(ty(), Some(&live), &config, &by("me"), true, &()).unwrap();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert_eq!(owner(&forced, "me").unwrap(), &json!({"f:spec":{"f:replicas":{}}}));
    assert!(owner(&forced, "kubectl-create").unwrap()["f:spec"].get("f:replicas").is_none());
}

#[test]
fn what_is_no_longer_applied_goes_unless_owned() {
    let containers = |names: &[&str]| -> Value {
        let list = names.iter().map(|name| json!({"name":name,"image":"i"})).collect::<Vec<_>>();
        json!({"template":{"spec":{"containers":list}}})
    };
    let made = apply(ty(), None, &deployment(containers(&["a", "b", "c"])), &by("me"), false, &()).unwrap();
    let shared = apply(ty(), Some(&made), &deployment(containers(&["b"])), &by("you"), false, &()).unwrap();
    let left = apply(ty(), Some(&shared), &deployment(containers(&["a"])), &by("me"), false, &()).unwrap();
    let names: Vec<&Value> = left["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["a", "b"], "c is gone, b belongs to another");
    // A field set by an update inside an item that goes: the item goes with it.
    let mut touched = made.clone();
    touched["spec"]["template"]["spec"]["containers"][2]["imagePullPolicy"] = json!("Always");
    update_managed_fields(ty(), Some(&made), &mut touched, &by("defaulter"), &()).unwrap();
    let left = apply(ty(), Some(&touched), &deployment(containers(&["a"])), &by("me"), false, &()).unwrap();
    assert_eq!(left["spec"]["template"]["spec"]["containers"], json!([{"name":"a","image":"i"}]));
    assert!(owner(&left, "defaulter").is_none());
}

#[test]
fn emptied_objects_go() {
    let made = apply(
        ty(),
        None,
        &deployment(json!({"replicas":1,"strategy":{"rollingUpdate":{"maxSurge":1}}})),
        &by("me"),
        false,
        &(),
    )
    .unwrap();
    let left = apply(ty(), Some(&made), &deployment(json!({"replicas":1})), &by("me"), false, &()).unwrap();
    assert_eq!(left["spec"], json!({"replicas":1}));
    assert_eq!(owner(&left, "me").unwrap(), &json!({"f:spec":{"f:replicas":{}}}));
}

#[test]
fn the_first_apply_finds_an_object_without_account() {
    let live = deployment(json!({"replicas":1,"paused":true}));
    let applied =
        apply(ty(), Some(&live), &deployment(json!({"replicas":1})), &by("me"), false, &()).unwrap();
    assert_eq!(
        owner(&applied, "before-first-apply").unwrap()["f:spec"],
        json!({"f:paused":{},"f:replicas":{}})
    );
    assert!(matches!(
        apply(ty(), Some(&live), &deployment(json!({"replicas":2})), &by("me"), false, &()),
        Err(ApplyError::Conflicts(_))
    ));
}

#[test]
fn list_order_follows_the_applied_and_keeps_the_others_place() {
    let list = |names: &[&str]| {
        deployment(
            json!({"template":{"spec":{"containers":names.iter().map(|name| json!({"name":name})).collect::<Vec<_>>()}}}),
        )
    };
    let mut live = list(&["x", "a", "y", "b", "z"]);
    update_managed_fields(ty(), None, &mut live, &by("other"), &()).unwrap();
    let merged = apply(ty(), Some(&live), &list(&["b", "a", "n"]), &by("me"), false, &()).unwrap();
    let names: Vec<&str> = merged["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names.iter().filter(|name| ["a", "b", "n"].contains(name)).collect::<Vec<_>>(),
        [&"b", &"a", &"n"]
    );
    assert_eq!(names.len(), 6);
}

#[test]
fn sets_are_owned_by_value() {
    let ty = Table::builtin().by_name("core/v1.Pod").unwrap();
    let pod = |finalizers: Value| json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","finalizers":finalizers}});
    let made = apply(ty, None, &pod(json!(["a/a", "b/b"])), &by("me"), false, &()).unwrap();
    assert_eq!(
        owner(&made, "me").unwrap(),
        &json!({"f:metadata":{"f:finalizers":{"v:\"a/a\"":{},"v:\"b/b\"":{}}}})
    );
    let both = apply(ty, Some(&made), &pod(json!(["c/c"])), &by("you"), false, &()).unwrap();
    let left = apply(ty, Some(&both), &pod(json!(["a/a"])), &by("me"), false, &()).unwrap();
    let mut found: Vec<&str> =
        left["metadata"]["finalizers"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, ["a/a", "c/c"]);
}

#[test]
fn what_cannot_be_applied() {
    for (config, text) in [
        (deployment(json!({"foo":1})), ".spec.foo: field not declared in schema"),
        (deployment(json!({"template":{"spec":{"containers":[{"image":"i"}]}}})), "omits key field \"name\""),
        (
            deployment(json!({"template":{"spec":{"containers":[{"name":"a"},{"name":"a"}]}}})),
            "duplicate entries for key",
        ),
    ] {
        let error = apply(ty(), None, &config, &by("me"), false, &()).unwrap_err();
        assert!(matches!(&error, ApplyError::Invalid(found) if found.contains(text)), "{error}");
    }
    let mut config = deployment(json!({}));
    config["metadata"]["managedFields"] = json!([]);
    assert_eq!(apply(ty(), None, &config, &by("me"), false, &()), Err(ApplyError::ManagedFields));
}

#[test]
fn accounts_can_be_cleared_and_do_not_grow_without_end() {
    let mut object = deployment(json!({"replicas":0}));
    update_managed_fields(ty(), None, &mut object, &by("first"), &()).unwrap();
    let mut cleared = object.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    update_managed_fields(ty(), Some(&object), &mut cleared, &by("x"), &()).unwrap();
    assert!(cleared["metadata"].get("managedFields").is_none());
    for index in 0..15 {
        let mut next = object.clone();
        next["metadata"]["labels"][format!("l{index}")] = json!("1");
        let name = format!("m{index:02}");
        let time = format!("2024-01-01T00:00:{index:02}Z");
        update_managed_fields(
            ty(),
            Some(&object),
            &mut next,
            &Manager { name: &name, time: &time, ..by("") },
            &(),
        )
        .unwrap();
        object = next;
    }
    let list = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(list.len(), 10);
    assert!(owner(&object, "ancient-changes").is_some() && owner(&object, "m14").is_some());
}

#[test]
fn resets_are_not_owned() {
    let mut object = deployment(json!({"replicas":1}));
    object["status"] = json!({"replicas":1});
    update_managed_fields(ty(), None, &mut object, &by("me"), &()).unwrap();
    assert!(owner(&object, "me").unwrap().get("f:status").is_none());
    let mut status = object.clone();
    status["status"]["replicas"] = json!(2);
    let manager = Manager { subresource: "status", resets: &["spec", "metadata"], ..by("controller") };
    update_managed_fields(ty(), Some(&object), &mut status, &manager, &()).unwrap();
    assert_eq!(owner(&status, "controller").unwrap(), &json!({"f:status":{"f:replicas":{}}}));
    assert_eq!(status["metadata"]["managedFields"][0]["subresource"], "status");
}

#[test]
fn extraction_gives_the_applied_configuration_back() {
    let config = deployment(
        json!({"replicas":2,"template":{"spec":{"containers":[{"name":"c","ports":[{"containerPort":80,"protocol":"TCP"}]}]}}}),
    );
    let mut live = apply(ty(), None, &config, &by("me"), false, &()).unwrap();
    live["spec"]["paused"] = json!(true);
    live["spec"]["template"]["spec"]["containers"][0]["image"] = json!("later");
    assert_eq!(extract(ty(), &live, "me", "").unwrap(), config);
    assert_eq!(extract(ty(), &live, "nobody", ""), None);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn object()(replicas in prop::option::of(0i64..3), paused in prop::option::of(any::<bool>()),
            containers in prop::collection::btree_map("[a-d]", ("[x-z]", prop::collection::btree_map("[E-G]", "[1-3]", 0..3)), 0..4),
            selector in prop::option::of(prop::collection::btree_map("[a-c]", "[1-2]", 0..3))) -> Value {
            let mut spec = json!({});
            if let Some(replicas) = replicas { spec["replicas"] = replicas.into(); }
            if let Some(paused) = paused { spec["paused"] = paused.into(); }
            if let Some(selector) = selector { spec["selector"] = json!({"matchLabels":selector}); }
            let list: Vec<Value> = containers.into_iter().map(|(name, (image, env))| {
                let env: Vec<Value> = env.into_iter().map(|(name, value)| json!({"name":name,"value":value})).collect();
                let mut item = json!({"name":name,"image":image});
                if !env.is_empty() { item["env"] = env.into(); }
                item
            }).collect();
            if !list.is_empty() { spec["template"] = json!({"spec":{"containers":list}}); }
            deployment(spec)
        }
    }

    proptest! {
        #[test]
        fn after_an_apply_its_fields_are_there_and_owned(live in object(), first in object(), second in object()) {
            let mut live = live;
            update_managed_fields(ty(), None, &mut live, &by("other"), &()).unwrap();
            let one = apply(ty(), Some(&live), &first, &by("me"), true, &()).unwrap();
            let two = apply(ty(), Some(&one), &second, &by("me"), true, &()).unwrap();
            for (config, result) in [(&first, &one), (&second, &two)] {
                // Applying again is idempotent, with no conflict left.
                prop_assert_eq!(&apply(ty(), Some(result), config, &by("me"), false, &()).unwrap(), result);
                let wanted = by("me").owned(walk::fields(Shape::Struct(ty()), config, "").unwrap());
                let owned = owner(result, "me").map(Set::parse).unwrap_or_default();
                prop_assert_eq!(owned, wanted);
            }
        }

        #[test]
        fn a_sole_manager_gets_exactly_what_it_applies(first in object(), second in object()) {
            let one = apply(ty(), None, &first, &by("me"), false, &()).unwrap();
            let two = apply(ty(), Some(&one), &second, &by("me"), false, &()).unwrap();
            let stored = without_managed_fields(two);
            let difference = walk::compare(Shape::Struct(ty()), Some(&second), Some(&stored));
            prop_assert!(difference.set().paths().is_empty() && difference.removed.children.paths().is_empty(), "{} became {}", second, stored);
        }

        #[test]
        fn sets_survive_their_json(object in object()) {
            let set = walk::fields(Shape::Struct(ty()), &object, "").unwrap();
            prop_assert_eq!(Set::parse(&set.to_value()), set.clone());
            prop_assert!(set.difference(&set).is_empty());
            prop_assert_eq!(set.intersection(&set), set.clone());
            prop_assert_eq!(set.union(&set), set);
        }
    }
}
