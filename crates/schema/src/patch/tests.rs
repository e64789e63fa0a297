#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::Table;
use serde_json::json;

fn apply(name: &str, original: Value, patch: Value) -> Result<Value, PatchError> {
    strategic(Table::builtin().by_name(name).unwrap(), original, &patch)
}

#[track_caller]
fn pod(original: Value, patch: Value, expected: Value) {
    assert_eq!(apply("core/v1.PodSpec", original, patch).unwrap(), expected);
}

#[test]
fn lists_merge_by_their_key_and_new_elements_come_first() {
    pod(
        json!({"containers":[{"name":"a","image":"1","env":[{"name":"X","value":"1"}]},{"name":"b"}]}),
        json!({"containers":[{"name":"a","image":"2","env":[{"name":"Y","value":"2"}]},{"name":"c"}]}),
        json!({"containers":[
            {"name":"a","image":"2","env":[{"name":"Y","value":"2"},{"name":"X","value":"1"}]},{"name":"c"},{"name":"b"}]}),
    );
    // Without a merge strategy a list is replaced.
    pod(
        json!({"tolerations":[{"key":"a"}]}),
        json!({"tolerations":[{"key":"b"}]}),
        json!({"tolerations":[{"key":"b"}]}),
    );
    pod(
        json!({"containers":[{"name":"a","args":["1","2"]}]}),
        json!({"containers":[{"name":"a","args":["3"]}]}),
        json!({"containers":[{"name":"a","args":["3"]}]}),
    );
}

#[test]
fn the_patch_that_kubectl_set_image_sends() {
    pod(
        json!({"containers":[{"name":"s","image":"x"},{"name":"web","image":"nginx:1"}]}),
        json!({"$setElementOrder/containers":[{"name":"web"}],"containers":[{"image":"nginx:2","name":"web"}]}),
        json!({"containers":[{"name":"s","image":"x"},{"name":"web","image":"nginx:2"}]}),
    );
}

#[test]
fn directives_in_objects() {
    pod(
        json!({"nodeSelector":{"a":"1","b":"2"}}),
        json!({"nodeSelector":{"$patch":"replace","c":"3"}}),
        json!({"nodeSelector":{"c":"3"}}),
    );
    pod(
        json!({"nodeSelector":{"a":"1"}}),
        json!({"nodeSelector":{"$patch":"delete"}}),
        json!({"nodeSelector":{}}),
    );
    pod(
        json!({"nodeSelector":{"a":"1","b":"2"}}),
        json!({"nodeSelector":{"a":null}}),
        json!({"nodeSelector":{"b":"2"}}),
    );
    let error = apply("core/v1.PodSpec", json!({}), json!({"$patch":"explode"})).unwrap_err();
    assert!(matches!(error, PatchError::Malformed(_)));
}

#[test]
fn directives_in_lists() {
    pod(
        json!({"containers":[{"name":"a"},{"name":"b"}]}),
        json!({"containers":[{"$patch":"delete","name":"a"}]}),
        json!({"containers":[{"name":"b"}]}),
    );
    pod(
        json!({"containers":[{"name":"a"},{"name":"b"}]}),
        json!({"containers":[{"name":"c"},{"$patch":"replace"}]}),
        json!({"containers":[{"name":"c"}]}),
    );
    // A list whose elements share a key, as a node with two IP families has one.
    let addresses =
        json!([{"type":"InternalIP","address":"10.0.0.1"},{"type":"InternalIP","address":"fd00::1"}]);
    let mut patch = addresses.clone();
    patch.as_array_mut().unwrap().push(json!({"$patch":"replace"}));
    let node = |patch: Value| {
        apply("core/v1.NodeStatus", json!({"addresses":addresses}), json!({"addresses":patch})).unwrap()
    };
    assert_eq!(node(patch), json!({"addresses":addresses}));
    // Nothing to delete from: nothing of the directive may stay.
    pod(
        json!({}),
        json!({"containers":[{"$patch":"delete","name":"a"},{"name":"b","$retainKeys":["name"]}]}),
        json!({"containers":[{"name":"b"}]}),
    );
    for bad in [json!([{"$patch":"delete"}]), json!([{"image":"no key"}]), json!(["scalar"])] {
        let error = apply("core/v1.PodSpec", json!({"containers":[{"name":"a"}]}), json!({"containers":bad}));
        assert!(matches!(error, Err(PatchError::Malformed(_))), "{error:?}");
    }
}

#[test]
fn retain_keys_of_unions() {
    let recreate = json!({"strategy":{"$retainKeys":["type"],"type":"Recreate"}});
    let rolling = json!({"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}}});
    assert_eq!(
        apply("apps/v1.DeploymentSpec", rolling, recreate).unwrap(),
        json!({"strategy":{"type":"Recreate"}})
    );
    pod(
        json!({"volumes":[{"name":"v","emptyDir":{}}]}),
        json!({"volumes":[{"name":"v","hostPath":{"path":"/x"},"$retainKeys":["name","hostPath"]}]}),
        json!({"volumes":[{"name":"v","hostPath":{"path":"/x"}}]}),
    );
    let unlisted = json!({"strategy":{"$retainKeys":["type"],"rollingUpdate":{}}});
    assert!(apply("apps/v1.DeploymentSpec", json!({"strategy":{}}), unlisted).is_err());
}

#[test]
fn lists_of_scalars() {
    let meta = |original, patch| apply("meta/v1.ObjectMeta", original, patch).unwrap();
    assert_eq!(
        meta(json!({"finalizers":["a","b"]}), json!({"finalizers":["c","a"]})),
        json!({"finalizers":["c","a","b"]})
    );
    assert_eq!(
        meta(json!({"finalizers":["a","b","c"]}), json!({"$deleteFromPrimitiveList/finalizers":["b"]})),
        json!({"finalizers":["a","c"]})
    );
    assert_eq!(
        meta(
            json!({"finalizers":["a","b","c"]}),
            json!({"$deleteFromPrimitiveList/finalizers":["b"],"$setElementOrder/finalizers":["d","a"],"finalizers":["d"]})
        ),
        json!({"finalizers":["d","a","c"]})
    );
}

#[test]
fn an_order_alone_reorders() {
    pod(
        json!({"containers":[{"name":"a"},{"name":"s"},{"name":"b"}]}),
        json!({"$setElementOrder/containers":[{"name":"b"},{"name":"a"}]}),
        // The server's own element stood before `b`, so it stays there.
        json!({"containers":[{"name":"s"},{"name":"b"},{"name":"a"}]}),
    );
    let wrong = json!({"$setElementOrder/containers":[{"name":"b"}],"containers":[{"name":"a"}]});
    assert!(apply("core/v1.PodSpec", json!({"containers":[]}), wrong).is_err());
}

#[test]
fn maps_of_the_type_are_merged_at_every_depth() {
    let original = json!({"metadata":{"labels":{"a":"1"},"annotations":{"x":"1"}},"spec":{"ports":[{"port":80,"name":"h"}]}});
    let patch = json!({"metadata":{"labels":{"b":"2"}},"spec":{"ports":[{"port":80,"targetPort":8080},{"port":443}]}});
    assert_eq!(
        apply("core/v1.Service", original, patch).unwrap(),
        json!({"metadata":{"labels":{"a":"1","b":"2"},"annotations":{"x":"1"}},
            "spec":{"ports":[{"port":80,"name":"h","targetPort":8080},{"port":443}]}})
    );
}

#[test]
fn json_patch_applies_all_or_nothing() {
    let mut document = json!({"a":{"b":[1,2]}});
    json(
        &mut document,
        &json!([{"op":"add","path":"/a/b/-","value":3},{"op":"test","path":"/a/b/0","value":1},
        {"op":"copy","from":"/a/b","path":"/c"},{"op":"remove","path":"/a"}]),
    )
    .unwrap();
    assert_eq!(document, json!({"c":[1,2,3]}));
    let failed =
        json(&mut document, &json!([{"op":"remove","path":"/c"},{"op":"test","path":"/x","value":1}]));
    assert!(matches!(failed, Err(PatchError::Unprocessable(_))));
    assert_eq!(document, json!({"c":[1,2,3]}), "as before");
    assert!(matches!(json(&mut document, &json!({"op":"add"})), Err(PatchError::Malformed(_))));
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op":"test","path":"","value":1})).collect();
    assert_eq!(json(&mut document, &Value::from(many)), Err(PatchError::TooLarge(10_001)));
}

#[test]
fn copies_cannot_explode() {
    let mut document = json!({"a":["x".repeat(100)]});
    let doubling: Vec<Value> = (0..60).map(|_| json!({"op":"copy","from":"/a","path":"/a/-"})).collect();
    assert!(matches!(json(&mut document, &Value::from(doubling)), Err(PatchError::Unprocessable(_))));
}

#[test]
fn merge_patch_is_that_of_the_rfc() {
    // The table of RFC 7386, appendix A.
    for (original, patch, expected) in [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
        (json!({"a":"b"}), json!({"a":null}), json!({})),
        (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
        (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a":"b"}), json!(["c"]), json!(["c"])),
        (json!({"a":"foo"}), json!(null), json!(null)),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
    ] {
        let mut document = original.clone();
        merge(&mut document, &patch);
        assert_eq!(document, expected, "{original} + {patch}");
    }
}

mod properties {
    use super::*;
    use crate::{Kind, Type};
    use proptest::prelude::*;

    /// What kubectl would send to make `new` out of `old`.
    fn diff(ty: Option<Type<'_>>, old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
        let mut patch = Map::new();
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in new {
            let field = ty.and_then(|ty| ty.field(key));
            let inner = ty.zip(field).and_then(|(ty, field)| match &field.kind {
                Kind::List(element) => ty.refer(element),
                kind => ty.refer(kind),
            });
            let merged = field.filter(|field| field.strategy.merge);
            match (old.get(key), value) {
                (Some(before), value) if before == value => {}
                (Some(Value::Object(before)), Value::Object(after)) => {
                    patch.insert(key.clone(), diff(inner, before, after).into());
                }
                (Some(Value::Array(before)), Value::Array(after)) if merged.is_some() => {
                    list(
                        &mut patch,
                        key,
                        merged.and_then(|field| field.merge_key.as_deref()),
                        inner,
                        before,
                        after,
                    );
                }
                _ => drop(patch.insert(key.clone(), value.clone())),
            }
        }
        patch
    }

    fn list(
        patch: &mut Map<String, Value>,
        name: &str,
        key: Option<&str>,
        ty: Option<Type<'_>>,
        old: &[Value],
        new: &[Value],
    ) {
        let id = |item: &Value| key.map_or_else(|| item.clone(), |key| item[key].clone());
        let gone: Vec<&Value> =
            old.iter().filter(|item| !new.iter().any(|kept| id(kept) == id(item))).collect();
        let mut changes = Vec::new();
        for item in new {
            match (old.iter().find(|before| id(before) == id(item)), key) {
                (None, _) => changes.push(item.clone()),
                (Some(before), Some(key)) if before != item => {
                    let mut change = diff(ty, before.as_object().unwrap(), item.as_object().unwrap());
                    change.insert(key.to_owned(), id(item));
                    changes.push(change.into());
                }
                _ => {}
            }
        }
        let order =
            new.iter().map(|item| key.map_or_else(|| item.clone(), |key| json!({key: id(item)}))).collect();
        patch.insert(format!("$setElementOrder/{name}"), Value::Array(order));
        match key {
            Some(key) => changes.extend(gone.iter().map(|item| json!({"$patch":"delete",key:id(item)}))),
            None => drop(
                patch.insert(format!("$deleteFromPrimitiveList/{name}"), gone.into_iter().cloned().collect()),
            ),
        }
        patch.insert(name.to_owned(), Value::Array(changes));
    }

    fn unique(names: Vec<String>) -> Vec<String> {
        let mut seen = std::collections::BTreeSet::new();
        names.into_iter().filter(|name| seen.insert(name.clone())).collect()
    }

    prop_compose! {
        fn container()(image in "[x-z]", args in prop::option::of(prop::collection::vec("[a-c]", 0..3)),
            env in prop::collection::vec("[a-d]", 0..4), value in "[1-3]") -> Map<String, Value> {
            let env: Vec<Value> = unique(env).into_iter().map(|name| json!({"name":name,"value":value})).collect();
            let mut object = Map::from_iter([("image".to_owned(), image.into()), ("env".to_owned(), env.into())]);
            object.extend(args.map(|args| ("args".to_owned(), args.into())));
            object
        }
    }

    prop_compose! {
        fn pod_object()(names in prop::collection::vec("[a-e]", 0..5), containers in prop::collection::vec(container(), 5),
            labels in prop::collection::btree_map("[a-c]", "[1-2]", 0..3),
            finalizers in prop::collection::vec("[a-e]", 0..5), host in prop::option::of("[a-b]")) -> Value {
            let containers: Vec<Value> = unique(names).into_iter().zip(containers).map(|(name, mut rest)| {
                rest.insert("name".to_owned(), name.into());
                Value::Object(rest)
            }).collect();
            let mut spec = json!({"containers":containers});
            if let Some(host) = host { spec["hostname"] = host.into(); }
            json!({"metadata":{"labels":labels,"finalizers":unique(finalizers)},"spec":spec})
        }
    }

    proptest! {
        #[test]
        fn the_patch_of_a_difference_makes_the_difference(old in pod_object(), new in pod_object()) {
            let ty = Table::builtin().by_name("core/v1.Pod").unwrap();
            let patch = diff(Some(ty), old.as_object().unwrap(), new.as_object().unwrap());
            let patched = strategic(ty, old.clone(), &patch.clone().into()).unwrap();
            prop_assert_eq!(patched, new, "patch {}", Value::from(patch));
        }

        #[test]
        fn any_patch_is_taken_or_refused(old in pod_object(), mut patch in pod_object(), directive in "(\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/containers|containers)", value in prop_oneof![Just(json!("delete")), Just(json!("replace")), Just(json!(["a"])), Just(json!([{"name":"a"}])), Just(json!(3)), Just(Value::Null)]) {
            let ty = Table::builtin().by_name("core/v1.Pod").unwrap();
            patch["spec"][directive] = value;
            if let Ok(result) = strategic(ty, old, &patch) {
                prop_assert!(!result.to_string().contains("\"$"), "a directive is left in {}", result);
            }
        }
    }
}
