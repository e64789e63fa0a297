//! The objects of the add-on, by the names that ingress-nginx gave them.

use serde_json::{Value, json};

/// The namespace of all but what belongs to the cluster.
pub const NAMESPACE: &str = "ingress-nginx";
/// Name of the Deployment and of its Service.
pub const NAME: &str = "ingress-nginx-controller";
/// `spec.controller` of the class `nginx`.
pub const CONTROLLER: &str = "k8s.io/ingress-nginx";

/// All objects, in the order in which they are to be made; `image` is one whose program has the command
/// `ingress-controller`.
pub fn manifests(image: &str) -> Vec<Value> {
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "ingress-nginx", "namespace": NAMESPACE}}),
        role(),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "ingress-nginx"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ingress-nginx"},
            "subjects": [{"kind": "ServiceAccount", "name": "ingress-nginx", "namespace": NAMESPACE}]
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "nginx", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": CONTROLLER}
        }),
        service(),
        deployment(image),
    ];
    for object in &mut all {
        object["metadata"]["labels"] = labels();
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("skiff");
    }
    all
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"})
}

fn role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "ingress-nginx"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "secrets"], "verbs": ["list", "watch"]},
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
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"},
                {"name": "https", "port": 443, "targetPort": "https", "appProtocol": "https"}
            ]
        }
    })
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            // Two Pods cannot have the same ports of one node.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": labels()},
            "template": {
                "metadata": {"labels": labels()},
                "spec": {
                    "serviceAccountName": "ingress-nginx",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
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
        "args": ["ingress-controller", "--watch-ingress-without-class", "--publish-status-address=$(NODE_IP)"],
        "env": [{"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
        "resources": {"requests": {"cpu": "100m", "memory": "90Mi"}},
        "ports": [
            {"containerPort": 80, "hostPort": 80, "name": "http", "protocol": "TCP"},
            {"containerPort": 443, "hostPort": 443, "name": "https", "protocol": "TCP"}
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
