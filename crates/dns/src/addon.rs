//! The objects of the add-on, by the names that upstream gave them.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

/// Where Pods send their questions, and what they ask about.
#[derive(Debug, Clone)]
pub struct AddonConfig {
    /// The cluster IPs of the Service `kube-dns`, one per IP family of the cluster, the main one first.
    pub cluster_ips: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The image whose program has the command `dns`.
    pub image: String,
    /// How many Pods.
    pub replicas: u32,
    /// The host's addresses, for `host.skiff.internal`.
    pub host: Vec<IpAddr>,
}

impl AddonConfig {
    /// One Pod of the built-in image for `cluster.local`.
    pub fn new(cluster_ips: Vec<IpAddr>) -> Self {
        Self {
            cluster_ips,
            cluster_domain: "cluster.local".to_owned(),
            image: "localhost/skiff:latest".to_owned(),
            replicas: 1,
            host: Vec::new(),
        }
    }
}

/// All objects of the add-on, in the order in which they are to be made.
pub fn manifests(config: &AddonConfig) -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": "kube-system"}}),
        role(),
        role_binding(),
        own_role(),
        own_role_binding(),
        config_map(config),
        deployment(config),
        service(config),
    ]
}

fn role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "system:coredns", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "rules": [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
        ]
    })
}

fn role_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]
    })
}

/// Its own configuration, and what it has to say about it.
fn own_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "coredns", "namespace": "kube-system"},
        "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
        ]
    })
}

fn own_role_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "coredns", "namespace": "kube-system"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "coredns"},
        "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]
    })
}

/// What the server does until somebody edits the ConfigMap, in the words of CoreDNS.
pub fn corefile(domain: &str, host: &[IpAddr], resolv_conf: &Path) -> String {
    let named = |addr: &IpAddr| format!("        {addr} host.skiff.internal host.minikube.internal\n");
    let lines: String = host.iter().map(named).collect();
    let hosts =
        if lines.is_empty() { lines } else { format!("    hosts {{\n{lines}        fallthrough\n    }}\n") };
    format!(
        ".:53 {{
    errors
    health {{
        lameduck 5s
    }}
    ready
    autopath @kubernetes
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus :9153
{hosts}    forward . {} {{
        max_concurrent 1000
    }}
    cache 30
    loop
    reload
    loadbalance
}}
",
        resolv_conf.display()
    )
}

fn config_map(config: &AddonConfig) -> Value {
    let corefile = corefile(&config.cluster_domain, &config.host, Path::new("/etc/resolv.conf"));
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "namespace": "kube-system"},
        "data": {"Corefile": corefile}
    })
}

fn deployment(config: &AddonConfig) -> Value {
    let mut args = vec!["dns".to_owned()];
    if config.cluster_domain != "cluster.local" {
        args.push(format!("--zone={}", config.cluster_domain));
    }
    let labels = json!({"k8s-app": "kube-dns"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {
            "replicas": config.replicas,
            // Even a single Pod goes only once its successor answers.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "system-cluster-critical",
                    "serviceAccountName": "coredns",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [
                        {"key": "CriticalAddonsOnly", "operator": "Exists"},
                        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
                    ],
                    // The node's own resolver, not this server itself.
                    "dnsPolicy": "Default",
                    "containers": [container(config, &args)]
                }
            }
        }
    })
}

fn container(config: &AddonConfig, args: &[String]) -> Value {
    json!({
        "name": "coredns",
        "image": config.image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "ports": [
            {"containerPort": 53, "name": "dns", "protocol": "UDP"},
            {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
            {"containerPort": 9153, "name": "metrics", "protocol": "TCP"}
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": 8080, "scheme": "HTTP"},
            "initialDelaySeconds": 60, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 5
        },
        // Probed often until the first success: names are asked for as soon as the cluster is up.
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181, "scheme": "HTTP"}, "periodSeconds": 1},
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

fn service(config: &AddonConfig) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}
        },
        "spec": {
            "selector": {"k8s-app": "kube-dns"},
            "clusterIP": config.cluster_ips.first(),
            "clusterIPs": config.cluster_ips,
            "ipFamilyPolicy": if config.cluster_ips.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153}
            ]
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
    use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};

    use super::*;

    #[test]
    fn the_objects_are_of_their_types_and_fit_together() {
        let all = manifests(&AddonConfig::new(vec!["10.96.0.10".parse().unwrap()]));
        let [account, role, binding, own, own_binding, config, deployment, service] =
            <[Value; 8]>::try_from(all).unwrap();
        let account: ServiceAccount = serde_json::from_value(account).unwrap();
        let role: ClusterRole = serde_json::from_value(role).unwrap();
        let binding: ClusterRoleBinding = serde_json::from_value(binding).unwrap();
        let own: Role = serde_json::from_value(own).unwrap();
        let own_binding: RoleBinding = serde_json::from_value(own_binding).unwrap();
        let config: ConfigMap = serde_json::from_value(config).unwrap();
        let deployment: Deployment = serde_json::from_value(deployment).unwrap();
        let service: Service = serde_json::from_value(service).unwrap();
        let pod = deployment.spec.unwrap().template;
        assert_eq!(pod.metadata.unwrap().labels, service.spec.as_ref().unwrap().selector);
        assert_eq!(pod.spec.unwrap().service_account_name, account.metadata.name);
        assert_eq!(binding.role_ref.name, role.metadata.name.unwrap());
        assert_eq!(own_binding.role_ref.name, own.metadata.name.unwrap());
        assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.10"));
        assert!(config.data.unwrap()["Corefile"].contains("kubernetes cluster.local in-addr.arpa"));
    }
}
