//! The objects of the add-on, by the names that ingress-nginx gave them.
//!
//! Ports 80 and 443 of the node lead to the controller by a Service, not by host ports: those can be had by one Pod at a
//! time, and a rolling update would leave the node without. The node is the control plane's, whose address users have.
//!
//! The check at admission gets a new certificate whenever they are applied, by skiff itself: nobody in the cluster needs
//! the right to write one.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::ObjectKey;
use serde_json::{Value, json};

use crate::admission::Identity;

/// The namespace of all but what belongs to the cluster.
pub const NAMESPACE: &str = "ingress-nginx";
/// Name of the Deployment and of its Service.
pub const NAME: &str = "ingress-nginx-controller";
/// `spec.controller` of the class `nginx`.
pub const CONTROLLER: &str = "k8s.io/ingress-nginx";

/// The Service of the node's own ports.
const NODE: &str = "ingress-nginx-controller-node";
/// The Service of the check at admission, as ingress-nginx names it.
const ADMISSION: &str = "ingress-nginx-controller-admission";
/// The Secret of its certificate, and the configuration that tells the API server of it.
const ADMISSION_OBJECTS: &str = "ingress-nginx-admission";

/// The label of the nodes that the controller may run on.
pub const NODE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// All objects, in the order in which they are to be made; `image` is one whose program has the command
/// `ingress-controller`, `addresses` are those of the node with [`NODE_LABEL`].
///
/// # Errors
/// When no certificate can be made.
pub fn manifests(image: &str, addresses: &[IpAddr]) -> Result<Vec<Value>, rcgen::Error> {
    let identity = Identity::new(&ObjectKey::new(NAMESPACE, ADMISSION))?;
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "ingress-nginx", "namespace": NAMESPACE}}),
        cluster_role(),
        binding("Cluster"),
        role(),
        binding(""),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "nginx", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": CONTROLLER}
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}}),
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": ADMISSION_OBJECTS, "namespace": NAMESPACE},
            "type": "Opaque",
            "data": {
                "tls.crt": STANDARD.encode(&identity.certificate), "tls.key": STANDARD.encode(&identity.key),
            }
        }),
        service(),
        node_ports(addresses),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": ADMISSION, "namespace": NAMESPACE},
            "spec": {
                "type": "ClusterIP",
                "selector": labels(),
                "ports": [{"name": "https-webhook", "port": 443, "targetPort": "webhook", "appProtocol": "https"}]
            }
        }),
        deployment(image),
        webhook(&identity),
    ];
    for object in &mut all {
        object["metadata"]["labels"] = labels();
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("skiff");
    }
    Ok(all)
}

/// Asks the controller before an Ingress is written. While it cannot be asked, Ingresses are written all the same: the
/// controller says what is wrong with them later, and others may have controllers of their own.
fn webhook(identity: &Identity) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": ADMISSION_OBJECTS},
        "webhooks": [{
            "name": "validate.nginx.ingress.kubernetes.io",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {"namespace": NAMESPACE, "name": ADMISSION, "path": "/networking/v1/ingresses"},
                "caBundle": STANDARD.encode(&identity.authority)
            },
            "rules": [{
                "apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"], "resources": ["ingresses"],
                "operations": ["CREATE", "UPDATE"]
            }],
            "failurePolicy": "Ignore", "matchPolicy": "Equivalent", "sideEffects": "None", "timeoutSeconds": 5
        }]
    })
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"})
}

/// The binding of the (Cluster)Role to the controller's account.
fn binding(scope: &str) -> Value {
    let mut binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{scope}RoleBinding"),
        "metadata": {"name": "ingress-nginx"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{scope}Role"), "name": "ingress-nginx"},
        "subjects": [{"kind": "ServiceAccount", "name": "ingress-nginx", "namespace": NAMESPACE}]
    });
    if scope.is_empty() {
        binding["metadata"]["namespace"] = json!(NAMESPACE);
    }
    binding
}

/// For the controller to know its own Pods.
fn role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "ingress-nginx", "namespace": NAMESPACE},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    })
}

fn cluster_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "ingress-nginx"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "secrets", "configmaps"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"],
                "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
        ]
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "type": "NodePort",
            "selector": labels(),
            "ports": ports()
        }
    })
}

fn ports() -> Value {
    json!([
        {"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"},
        {"name": "https", "port": 443, "targetPort": "https", "appProtocol": "https"}
    ])
}

/// Ports 80 and 443 of the node's addresses; clients keep theirs.
fn node_ports(addresses: &[IpAddr]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NODE, "namespace": NAMESPACE},
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "externalIPs": addresses,
            "externalTrafficPolicy": "Local",
            "selector": labels(),
            "ports": ports()
        }
    })
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels()},
            "template": {
                "metadata": {"labels": labels()},
                "spec": {
                    "serviceAccountName": "ingress-nginx",
                    "nodeSelector": {"kubernetes.io/os": "linux", NODE_LABEL: ""},
                    "containers": [container(image)]
                }
            }
        }
    })
}

fn container(image: &str) -> Value {
    json!({
        "name": "controller",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "ingress-controller", "--watch-ingress-without-class", "--publish-status-address=$(NODE_IP)",
            format!("--configmap={NAMESPACE}/{NAME}"), format!("--admission-secret={NAMESPACE}/{ADMISSION_OBJECTS}"),
            "--shutdown-grace-period=3"
        ],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "90Mi"}},
        "ports": [
            {"containerPort": 80, "name": "http", "protocol": "TCP"},
            {"containerPort": 443, "name": "https", "protocol": "TCP"},
            {"containerPort": 8443, "name": "webhook", "protocol": "TCP"}
        ],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 10254}, "initialDelaySeconds": 10},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 10254}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532
        }
    })
}
