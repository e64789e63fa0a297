//! Services as a client makes and changes them: defaults, offences, what is taken and given back, types.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod families;

use super::*;
use crate::config::Config;
use crate::kinds::fake::{Fake, context};
use crate::resource::{GroupResource, Resource};

pub(crate) fn config() -> Config {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Config {
        advertise_address: "192.168.49.2".parse().unwrap(),
        advertise_port: 8443,
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        node_ports: 30000..=32767,
        policies: crate::config::Enforcement::Full,
        client_ca: vec![],
        service_account_key: crate::auth::jwt::tests::key_pem(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
        kubelet_tls: Arc::new(tls),
        audit: None,
    }
}

struct World {
    services: Services,
    cx: Context,
}

fn world(stored: &[Value]) -> World {
    world_of(&config(), stored)
}

fn world_of(config: &Config, stored: &[Value]) -> World {
    let stored: Vec<_> = stored.iter().map(|s| ("", "services", s.clone())).collect();
    World {
        services: Services { allocators: Allocators::new(config) },
        cx: context(Resource::new("", "v1", "Service", "services").status(), "shop", Fake::with(&stored)),
    }
}

impl World {
    async fn create(&self, name: &str, spec: Value) -> Result<Value, String> {
        let mut object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        self.services.default(&mut object);
        self.services.prepare_create(&self.cx, &mut object);
        let errors = self.services.validate(&self.cx, &object);
        if !errors.is_empty() {
            return Err(errors.to_string());
        }
        let kept = self.services.allocate(&self.cx, &mut object, None).await.map_err(|e| e.to_string())?;
        kept.keep();
        self.services.created(&self.cx, &object).await;
        Ok(object)
    }

    async fn update(&self, old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
        let mut new = old.clone();
        change(&mut new["spec"]);
        self.services.default(&mut new);
        self.services.prepare_update(&self.cx, &mut new, old);
        let errors = self.services.validate_update(&self.cx, &new, old);
        if !errors.is_empty() {
            return Err(errors.to_string());
        }
        let kept = self.services.allocate(&self.cx, &mut new, Some(old)).await.map_err(|e| e.to_string())?;
        kept.keep();
        self.services.updated(&self.cx, &new, old).await;
        Ok(new)
    }

    async fn records(&self) -> Vec<String> {
        let resource = GroupResource::new("networking.k8s.io", "ipaddresses");
        let (all, _) = self.cx.objects.list(&resource, None).await.unwrap();
        all.iter().map(|r| super::super::value::name(r).to_owned()).collect()
    }
}

#[tokio::test]
async fn a_plain_service_gets_its_fields() {
    let world = world(&[]);
    let made =
        world.create("web", json!({"ports": [{"port": 80}], "selector": {"app": "web"}})).await.unwrap();
    let spec = &made["spec"];
    let ip = spec["clusterIP"].as_str().unwrap();
    assert_eq!(
        *spec,
        json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"app": "web"},
            "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIP": ip, "clusterIPs": [ip]})
    );
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
    assert_eq!(world.records().await, [ip]);
    world.services.deleted(&world.cx, &made).await;
    assert!(world.records().await.is_empty());
}

#[tokio::test]
async fn offences() {
    let world = world(&[]);
    let port = json!([{"port": 80}]);
    let table = [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]",
        ),
        (
            json!({"ports": [{"port": 0}]}),
            "[spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 80}], "type": "NodePort"}),
            "Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            json!({"ports": port, "clusterIP": "1.2.3.4"}),
            "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
        ),
        (
            json!({"ports": port, "clusterIP": "x"}),
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"ports": port, "loadBalancerClass": "a/b"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": port, "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"ports": port, "externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"ports": port, "type": "NodePort", "clusterIP": "None"}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            json!({"ports": port, "sessionAffinity": "Me"}),
            "spec.sessionAffinity: Unsupported value: \"Me\": supported values: \"ClientIP\", \"None\"",
        ),
        (
            json!({"ports": port, "ipFamilyPolicy": "RequireDualStack"}),
            "Service \"x\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
    ];
    for (spec, expected) in table {
        assert_eq!(world.create("x", spec).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn what_is_taken_stays_taken_and_comes_back() {
    let dns = json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 53, "nodePort": 30053}]}});
    let world = world(&[dns]);
    let wish = json!({"ports": [{"port": 80, "nodePort": 30053}], "type": "NodePort"});
    assert!(
        world
            .create("x", wish.clone())
            .await
            .unwrap_err()
            .ends_with("Invalid value: 30053: provided port is already allocated")
    );
    let refused =
        world.create("x", json!({"ports": [{"port": 80}], "clusterIP": "10.96.0.10"})).await.unwrap_err();
    assert!(
        refused.ends_with("failed to allocate IP 10.96.0.10: provided IP is already allocated"),
        "{refused}"
    );
    assert_eq!(world.records().await, ["10.96.0.10"], "repaired at start");

    // A refused write leaves nothing behind: the address of the first try is free for the second.
    let both =
        json!({"ports": [{"port": 80, "nodePort": 30053}], "type": "NodePort", "clusterIP": "10.96.0.77"});
    world.create("x", both).await.unwrap_err();
    world.create("x", json!({"ports": [{"port": 80}], "clusterIP": "10.96.0.77"})).await.unwrap();
}

#[tokio::test]
async fn type_changes() {
    let world = world(&[]);
    let node_port = json!({"ports": [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53}], "type": "NodePort"});
    let made = world.create("web", node_port).await.unwrap();
    let ports = &made["spec"]["ports"];
    assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"], "one number for both protocols");
    assert_eq!(made["spec"]["externalTrafficPolicy"], "Cluster");

    // A client that sends neither address nor node ports keeps them.
    let same = world
        .update(&made, |spec| {
            for key in ["clusterIP", "clusterIPs"] {
                spec.as_object_mut().unwrap().remove(key);
            }
            spec["ports"] = json!([{"name": "b", "port": 53}]);
        })
        .await
        .unwrap();
    assert_eq!(same["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(same["spec"]["ports"][0]["nodePort"], made["spec"]["ports"][1]["nodePort"]);

    let moved = world.update(&made, |spec| spec["clusterIP"] = json!("10.96.0.99")).await.unwrap_err();
    assert_eq!(moved, "spec.clusterIPs[0]: Invalid value: [\"10.96.0.99\"]: may not change once set");

    let named = world
        .update(&made, |spec| {
            spec["type"] = json!("ExternalName");
            spec["externalName"] = json!("example.com");
        })
        .await
        .unwrap();
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "externalTrafficPolicy", "internalTrafficPolicy"] {
        assert!(named["spec"].get(key).is_none(), "{key}");
    }
    assert!(named["spec"]["ports"][0].get("nodePort").is_none());
    assert!(world.records().await.is_empty());

    let back = world.update(&named, |spec| spec["type"] = json!("ClusterIP")).await.unwrap();
    assert!(back["spec"]["clusterIP"].is_string() && back["spec"].get("externalName").is_none());
}

#[tokio::test]
async fn a_load_balancer_keeps_its_class_and_loses_its_status_with_the_type() {
    let world = world(&[]);
    let spec =
        |more: &str| json!({"ports": [{"port": 80}], "type": "LoadBalancer", "loadBalancerClass": more});
    let mut made = world.create("web", spec("example.com/a")).await.unwrap();
    assert!(made["spec"]["ports"][0]["nodePort"].is_u64());
    let changed = |spec: &mut Value| spec["loadBalancerClass"] = json!("example.com/b");
    let refused = world.update(&made, changed).await.unwrap_err();
    assert_eq!(refused, "spec.loadBalancerClass: Invalid value: \"example.com/b\": may not change once set");

    let judge = |point: Value| {
        let mut new = made.clone();
        new["status"]["loadBalancer"]["ingress"] = json!([point]);
        world.services.default(&mut new);
        (world.services.validate_status_update(&world.cx, &new, &made).to_string(), new)
    };
    let (_, told) = judge(json!({"ip": "192.168.49.101"}));
    assert_eq!(told["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.168.49.101", "ipMode": "VIP"}]));
    assert!(world.services.validate_status_update(&world.cx, &told, &made).is_empty());
    let table = [
        (
            json!({"ip": "x"}),
            "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"hostname": "a.example", "ipMode": "VIP"}),
            "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set",
        ),
        (
            json!({"ip": "192.168.49.101", "ipMode": "Magic"}),
            "status.loadBalancer.ingress[0].ipMode: Unsupported value: \"Magic\": supported values: \"Proxy\", \"VIP\"",
        ),
    ];
    for (point, expected) in table {
        assert_eq!(judge(point).0, expected);
    }
    made = told;
    let plain = world.update(&made, |spec| spec["type"] = json!("ClusterIP")).await.unwrap();
    assert_eq!(plain["status"]["loadBalancer"], json!({}));
    for key in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        assert!(plain["spec"].get(key).is_none(), "{key}");
    }
}

#[tokio::test]
async fn headless() {
    let world = world(&[]);
    let made = world.create("db", json!({"clusterIP": "None", "selector": {"app": "db"}})).await.unwrap();
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(world.records().await.is_empty());
    let bare = world.create("ext", json!({"clusterIP": "None"})).await.unwrap();
    assert_eq!(bare["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(bare["spec"]["ipFamilyPolicy"], "RequireDualStack");
}
