//! The built-in kinds: one row each, in the order discovery shows them.

use crate::resource::{Resource, SelectableField};
use crate::strategy::NameRule;

const fn field(label: &'static str, pointer: &'static str, absent: &'static str) -> SelectableField {
    SelectableField { label, pointer, absent }
}

const POD: &[SelectableField] = &[
    field("spec.nodeName", "/spec/nodeName", ""),
    field("spec.restartPolicy", "/spec/restartPolicy", ""),
    field("spec.schedulerName", "/spec/schedulerName", ""),
    field("spec.serviceAccountName", "/spec/serviceAccountName", ""),
    field("spec.hostNetwork", "/spec/hostNetwork", "false"),
    field("status.phase", "/status/phase", ""),
    field("status.podIP", "/status/podIP", ""),
    field("status.podIPs", "/status/podIP", ""),
    field("status.nominatedNodeName", "/status/nominatedNodeName", ""),
];

/// Events are stored in their core/v1 form; both names of a field select.
const EVENT: &[SelectableField] = &[
    field("involvedObject.kind", "/involvedObject/kind", ""),
    field("involvedObject.namespace", "/involvedObject/namespace", ""),
    field("involvedObject.name", "/involvedObject/name", ""),
    field("involvedObject.uid", "/involvedObject/uid", ""),
    field("involvedObject.apiVersion", "/involvedObject/apiVersion", ""),
    field("involvedObject.resourceVersion", "/involvedObject/resourceVersion", ""),
    field("involvedObject.fieldPath", "/involvedObject/fieldPath", ""),
    field("regarding.kind", "/involvedObject/kind", ""),
    field("regarding.namespace", "/involvedObject/namespace", ""),
    field("regarding.name", "/involvedObject/name", ""),
    field("regarding.uid", "/involvedObject/uid", ""),
    field("regarding.apiVersion", "/involvedObject/apiVersion", ""),
    field("regarding.resourceVersion", "/involvedObject/resourceVersion", ""),
    field("regarding.fieldPath", "/involvedObject/fieldPath", ""),
    field("reason", "/reason", ""),
    field("reportingComponent", "/reportingComponent", ""),
    field("reportingController", "/reportingComponent", ""),
    field("source", "/source/component", ""),
    field("type", "/type", ""),
];

const PHASE: &[SelectableField] = &[field("status.phase", "/status/phase", "")];
const NODE: &[SelectableField] = &[field("spec.unschedulable", "/spec/unschedulable", "false")];
const SECRET: &[SelectableField] = &[field("type", "/type", "")];
const REPLICAS: &[SelectableField] = &[field("status.replicas", "/status/replicas", "0")];
const JOB: &[SelectableField] = &[field("status.successful", "/status/succeeded", "0")];
const CSR: &[SelectableField] = &[field("spec.signerName", "/spec/signerName", "")];
const SERVICE: &[SelectableField] =
    &[field("spec.clusterIP", "/spec/clusterIP", ""), field("spec.type", "/spec/type", "")];

const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const WRITE: &[&str] = &["create"];
const STATUS: &[&str] = &["get", "patch", "update"];

/// All rows.
pub fn resources() -> Vec<Resource> {
    let mut rows = core();
    rows.extend(apps_and_batch());
    rows.extend(reviews());
    rows.extend(networking());
    rows.extend(policies());
    rows.extend(infrastructure());
    rows.extend(crate::usage::resources());
    rows
}

fn core() -> Vec<Resource> {
    let row = |kind, plural| Resource::new("", "v1", kind, plural);
    vec![
        row("Binding", "bindings").only(WRITE),
        row("ConfigMap", "configmaps").short(&["cm"]),
        row("Endpoints", "endpoints").short(&["ep"]),
        row("Event", "events").short(&["ev"]).fields(EVENT),
        row("LimitRange", "limitranges").short(&["limits"]),
        row("Namespace", "namespaces")
            .cluster()
            .short(&["ns"])
            .only(&["create", "delete", "get", "list", "patch", "update", "watch"])
            .named(NameRule::Label)
            .own("finalize", &["update"])
            .status()
            .fields(PHASE),
        row("Node", "nodes")
            .cluster()
            .short(&["no"])
            .sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY)
            .status()
            .fields(NODE),
        row("PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).status().returning_deleted(),
        row("PersistentVolume", "persistentvolumes").cluster().short(&["pv"]).status().returning_deleted(),
        row("Pod", "pods")
            .short(&["po"])
            .all()
            .sub("attach", ("", "v1", "PodAttachOptions"), CONNECT)
            .sub("binding", ("", "v1", "Binding"), WRITE)
            .own("ephemeralcontainers", STATUS)
            .sub("eviction", ("policy", "v1", "Eviction"), WRITE)
            .sub("exec", ("", "v1", "PodExecOptions"), CONNECT)
            .own("log", &["get"])
            .sub("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT)
            .sub("proxy", ("", "v1", "PodProxyOptions"), PROXY)
            .own("resize", STATUS)
            .status()
            .generations()
            .returning_deleted()
            .fields(POD),
        row("PodTemplate", "podtemplates").returning_deleted(),
        row("ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .all()
            .scale()
            .status()
            .generations()
            .fields(REPLICAS),
        row("ResourceQuota", "resourcequotas").short(&["quota"]).status().returning_deleted(),
        row("Secret", "secrets").fields(SECRET),
        row("ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), WRITE)
            .returning_deleted(),
        row("Service", "services")
            .short(&["svc"])
            .all()
            .named(NameRule::Dns1035)
            .sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY)
            .status()
            .returning_deleted()
            .fields(SERVICE),
    ]
}

fn apps_and_batch() -> Vec<Resource> {
    let apps = |kind, plural| Resource::new("apps", "v1", kind, plural);
    let batch = |kind, plural| Resource::new("batch", "v1", kind, plural);
    let hpa = |version| {
        Resource::new("autoscaling", version, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .all()
            .status()
    };
    vec![
        apps("ControllerRevision", "controllerrevisions"),
        apps("DaemonSet", "daemonsets").short(&["ds"]).all().status().generations(),
        apps("Deployment", "deployments").short(&["deploy"]).all().scale().status().generations(),
        apps("ReplicaSet", "replicasets")
            .short(&["rs"])
            .all()
            .scale()
            .status()
            .generations()
            .fields(REPLICAS),
        apps("StatefulSet", "statefulsets").short(&["sts"]).all().scale().status().generations(),
        Resource::new("events.k8s.io", "v1", "Event", "events")
            .short(&["ev"])
            .stored_as("", "v1", "events")
            .fields(EVENT),
        hpa("v2"),
        hpa("v1").stored_as("autoscaling", "v2", "horizontalpodautoscalers"),
        batch("CronJob", "cronjobs").short(&["cj"]).all().status().generations(),
        batch("Job", "jobs").all().status().generations().fields(JOB),
    ]
}

fn reviews() -> Vec<Resource> {
    let authn =
        |kind, plural| Resource::new("authentication.k8s.io", "v1", kind, plural).cluster().only(WRITE);
    let authz = |kind, plural| Resource::new("authorization.k8s.io", "v1", kind, plural).only(WRITE);
    vec![
        authn("SelfSubjectReview", "selfsubjectreviews"),
        authn("TokenReview", "tokenreviews"),
        authz("LocalSubjectAccessReview", "localsubjectaccessreviews"),
        authz("SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        authz("SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        authz("SubjectAccessReview", "subjectaccessreviews").cluster(),
    ]
}

fn networking() -> Vec<Resource> {
    let net = |kind, plural| Resource::new("networking.k8s.io", "v1", kind, plural);
    vec![
        Resource::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .cluster()
            .short(&["csr"])
            .own("approval", STATUS)
            .status()
            .fields(CSR),
        net("IngressClass", "ingressclasses").cluster().generations(),
        net("Ingress", "ingresses").short(&["ing"]).status().generations(),
        net("IPAddress", "ipaddresses").cluster().short(&["ip"]).named(NameRule::PathSegment),
        net("NetworkPolicy", "networkpolicies").short(&["netpol"]).generations(),
        net("ServiceCIDR", "servicecidrs").cluster().status(),
        Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").generations(),
        Resource::new("coordination.k8s.io", "v1", "Lease", "leases"),
    ]
}

fn policies() -> Vec<Resource> {
    let rbac = |kind, plural| {
        Resource::new("rbac.authorization.k8s.io", "v1", kind, plural).named(NameRule::PathSegment)
    };
    let admission = |kind, plural| {
        Resource::new("admissionregistration.k8s.io", "v1", kind, plural).cluster().generations()
    };
    let category = |mut row: Resource| {
        row.categories.push("api-extensions".into());
        row
    };
    vec![
        Resource::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .status()
            .generations(),
        rbac("ClusterRoleBinding", "clusterrolebindings").cluster(),
        rbac("ClusterRole", "clusterroles").cluster(),
        rbac("RoleBinding", "rolebindings"),
        rbac("Role", "roles"),
        category(admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")),
        category(admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies").status()),
        category(admission("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")),
        category(admission("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")),
    ]
}

fn infrastructure() -> Vec<Resource> {
    let storage = |kind, plural| Resource::new("storage.k8s.io", "v1", kind, plural).cluster();
    let mut crd =
        Resource::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster()
            .short(&["crd", "crds"])
            .status()
            .generations();
    crd.categories.push("api-extensions".into());
    let mut capacity = storage("CSIStorageCapacity", "csistoragecapacities");
    capacity.namespaced = true;
    vec![
        crd,
        Resource::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
            .cluster()
            .short(&["pc"])
            .generations(),
        Resource::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster(),
        storage("CSIDriver", "csidrivers").returning_deleted(),
        storage("CSINode", "csinodes").returning_deleted(),
        capacity.returning_deleted(),
        storage("StorageClass", "storageclasses").short(&["sc"]).returning_deleted(),
        storage("VolumeAttachment", "volumeattachments").status().returning_deleted(),
    ]
}
