//! The address families of Services: of new ones on every kind of cluster, and as they come and go with the policy.

use super::*;

/// A cluster with these families, the main one first, and what became of a Service there:
/// `policy families clusterIPs-families`.
fn cluster(nets: &[&str]) -> World {
    let service_cidrs = nets.iter().map(|net| net.parse().unwrap()).collect();
    world_of(&Config { service_cidrs, ..config() }, &[])
}

fn shown(made: &Result<Value, String>) -> String {
    let spec = match made {
        Ok(made) => &made["spec"],
        Err(error) => return error.trim_start_matches("Service \"x\" is invalid: ").to_owned(),
    };
    let list = |key: &str, show: fn(&str) -> &str| {
        let all = crate::kinds::value::list(spec, key).iter().filter_map(|v| v.as_str().map(show));
        all.collect::<Vec<_>>().join(",")
    };
    let family = |ip: &str| match ip.parse::<std::net::IpAddr>() {
        Ok(ip) => crate::alloc::addresses::family(ip),
        Err(_) => "None",
    };
    assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
    format!("{} {} {}", text(spec, "ipFamilyPolicy"), list("ipFamilies", |v| v), list("clusterIPs", family))
}

const V4: &str = "10.96.0.0/12";
const V6: &str = "fd00:10:96::/108";

/// `dual_stack.go`: single, IPv4, IPv6, IPv4+IPv6 and IPv6+IPv4 Services, on every kind of cluster.
#[tokio::test]
async fn families_of_new_services() {
    let port = || json!([{"port": 80}]);
    let table = [
        (json!({}), "SingleStack IPv4 IPv4", "SingleStack IPv6 IPv6", "SingleStack IPv4 IPv4"),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "SingleStack IPv6 IPv6",
            "SingleStack IPv6 IPv6",
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 IPv4,IPv6",
            "PreferDualStack IPv6,IPv4 IPv6,IPv4",
            "PreferDualStack IPv4 IPv4",
        ),
        (
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
            "PreferDualStack IPv6,IPv4 IPv6,IPv4",
            "PreferDualStack IPv6,IPv4 IPv6,IPv4",
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
            "RequireDualStack IPv4,IPv6 IPv4,IPv6",
            "RequireDualStack IPv4,IPv6 IPv4,IPv6",
            "[spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services, spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster]",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}),
            "RequireDualStack IPv6,IPv4 IPv6,IPv4",
            "RequireDualStack IPv6,IPv4 IPv6,IPv4",
            "[spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services, spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster]",
        ),
        (
            json!({"clusterIP": "fd00:10:96::77"}),
            "SingleStack IPv6 IPv6",
            "SingleStack IPv6 IPv6",
            "spec.clusterIPs[0]: Invalid value: [\"fd00:10:96::77\"]: IPv6 is not configured on this cluster",
        ),
        (
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 None",
            "PreferDualStack IPv6,IPv4 None",
            "PreferDualStack IPv4 None",
        ),
        (
            json!({"clusterIP": "None"}),
            "RequireDualStack IPv4,IPv6 None",
            "RequireDualStack IPv6,IPv4 None",
            "RequireDualStack IPv4,IPv6 None",
        ),
    ];
    for (mut spec, on_dual, on_dual6, on_single) in table {
        spec["ports"] = port();
        for (nets, expected) in [(&[V4, V6][..], on_dual), (&[V6, V4], on_dual6), (&[V4], on_single)] {
            let made = cluster(nets).create("x", spec.clone()).await;
            assert_eq!(shown(&made), expected, "{spec} on {nets:?}");
        }
    }
    let alone = cluster(&[V6]).create("x", json!({"ports": port()})).await;
    assert_eq!(shown(&alone), "SingleStack IPv6 IPv6");
}

#[tokio::test]
async fn families_that_do_not_fit() {
    let both = json!(["10.96.0.7", "fd00:10:96::7"]);
    let table = [
        (
            json!({"clusterIP": "10.96.0.7", "clusterIPs": both}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            json!({"clusterIPs": ["10.96.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: first value must match `clusterIP`",
        ),
        (
            json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "10.96.0.8"], "ipFamilyPolicy": "RequireDualStack"}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.7\",\"10.96.0.8\"]: may specify no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "10.96.0.7", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.7\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]: Duplicate value: \"IPv4\""),
        (
            json!({"ipFamilies": ["IPX"]}),
            "spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values: \"IPv4\", \"IPv6\"",
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.7\"]: 'None' must be the first and only value",
        ),
        (
            json!({"type": "ExternalName", "externalName": "example.com", "ipFamilies": ["IPv4"]}),
            "spec.ipFamilies: Forbidden: may not be set when `type` is 'ExternalName'",
        ),
    ];
    for (mut spec, expected) in table {
        spec["ports"] = json!([{"port": 80}]);
        assert_eq!(shown(&cluster(&[V4, V6]).create("x", spec).await), expected);
    }
}

/// `dual_stack.go` and upstream's upgrade and downgrade of a live Service: the second address comes and goes with
/// the policy, the first never changes.
#[tokio::test]
async fn the_second_family_of_a_live_service() {
    let world = cluster(&[V4, V6]);
    let single = world.create("x", json!({"ports": [{"port": 80}]})).await.unwrap();
    let dual = world.update(&single, |spec| spec["ipFamilyPolicy"] = json!("RequireDualStack")).await;
    assert_eq!(shown(&dual), "RequireDualStack IPv4,IPv6 IPv4,IPv6");
    let dual = dual.unwrap();
    assert_eq!(dual["spec"]["clusterIP"], single["spec"]["clusterIP"]);
    assert_eq!(world.records().await.len(), 2);

    // An older client knows only one address; what it sends back means no change.
    let older = world
        .update(&dual, |spec| {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.as_object_mut().unwrap().remove(key);
            }
        })
        .await
        .unwrap();
    assert_eq!(older["spec"]["clusterIPs"], dual["spec"]["clusterIPs"]);

    let refused = [
        (
            json!({"clusterIPs": [dual["spec"]["clusterIP"]]}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP",
        ),
        (
            json!({"ipFamilies": ["IPv4"]}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family",
        ),
        (json!({"ipFamilies": ["IPv6", "IPv4"]}), "expected an IPv6 value as indicated by `ipFamilies[0]`"),
        (
            json!({"clusterIPs": [dual["spec"]["clusterIP"], "fd00:10:96::99"]}),
            "spec.clusterIPs[1]: Invalid value: [",
        ),
    ];
    for (change, expected) in refused {
        let set = |spec: &mut Value| {
            for (key, value) in change.as_object().unwrap() {
                spec[key] = value.clone();
            }
        };
        let error = shown(&world.update(&dual, set).await);
        assert!(error.contains(expected), "{change}: {error}");
    }

    let single = world.update(&dual, |spec| spec["ipFamilyPolicy"] = json!("SingleStack")).await;
    assert_eq!(shown(&single), "SingleStack IPv4 IPv4");
    let single = single.unwrap();
    assert_eq!(world.records().await, [single["spec"]["clusterIP"].as_str().unwrap()]);
    // The address that was given up is free for another, and a wanted one is given.
    let second = dual["spec"]["clusterIPs"][1].clone();
    let other = json!({"ports": [{"port": 80}], "clusterIP": second});
    assert_eq!(world.create("y", other).await.unwrap()["spec"]["clusterIPs"], json!([second]));
    let wanted = json!([single["spec"]["clusterIP"], "fd00:10:96::42"]);
    let again = world
        .update(&single, |spec| {
            spec["ipFamilyPolicy"] = json!("PreferDualStack");
            spec["clusterIPs"] = wanted.clone();
        })
        .await
        .unwrap();
    assert_eq!(again["spec"]["clusterIPs"], wanted);

    // Made when the cluster had one family: PreferDualStack stays as it is until its author asks for more.
    let kept = world.update(&single, |spec| spec["ipFamilyPolicy"] = json!("PreferDualStack")).await.unwrap();
    let mut before = kept.clone();
    before["spec"]["ipFamilies"] = json!(["IPv4"]);
    before["spec"]["clusterIPs"] = json!([kept["spec"]["clusterIP"]]);
    let same = world.update(&before, |spec| spec["selector"] = json!({"a": "b"})).await;
    assert_eq!(shown(&same), "PreferDualStack IPv4 IPv4");

    // A headless Service may change its families.
    let headless = json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"});
    let made = world.create("h", headless).await.unwrap();
    let less = world.update(&made, |spec| spec["ipFamilyPolicy"] = json!("SingleStack")).await;
    assert_eq!(shown(&less), "SingleStack IPv4 None");
}
