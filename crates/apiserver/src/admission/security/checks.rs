//! The Pod Security Standards: what the levels baseline and restricted forbid, in upstream's words
//! (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::value::{entries, flag, list, text};
use crate::status::quote;

/// A Pod, or the template of one, under judgement by the standards of one minor version.
pub struct Subject<'a> {
    annotations: &'a Value,
    spec: &'a Value,
    containers: Vec<&'a Value>,
    /// Minor version of the standards.
    minor: u32,
}

/// Reason, and details in brackets.
pub type Offence = (String, String);

type Check = fn(&Subject<'_>) -> Option<Offence>;

/// Whether `restricted` has a stricter check of the same thing.
const BASELINE: [(Check, bool); 11] = [
    (app_armor, false),
    (added_capabilities, true),
    (host_namespaces, false),
    (host_paths, true),
    (host_ports, false),
    (privileged, false),
    (proc_mount, false),
    (selinux, false),
    (seccomp_baseline, true),
    (sysctls, false),
    (host_process, false),
];

/// The first minor version with the check.
const RESTRICTED: [(Check, u32); 6] = [
    (privilege_escalation, 8),
    (dropped_capabilities, 22),
    (volumes, 0),
    (non_root, 0),
    (user, 23),
    (seccomp_restricted, 19),
];

impl<'a> Subject<'a> {
    /// From a Pod or a template.
    pub fn new(pod: &'a Value, minor: u32) -> Self {
        let spec = &pod["spec"];
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        let containers = lists.iter().flat_map(|key| list(spec, key)).collect();
        Subject { annotations: &pod["metadata"]["annotations"], spec, containers, minor }
    }

    /// What the level baseline forbids.
    pub fn baseline(&self) -> Vec<Offence> {
        BASELINE.iter().filter_map(|(check, _)| check(self)).collect()
    }

    /// What the level restricted forbids.
    pub fn restricted(&self) -> Vec<Offence> {
        let baseline =
            BASELINE.iter().filter(|(_, replaced)| !(*replaced && self.replaces())).map(|(c, _)| c);
        let own = RESTRICTED.iter().filter(|(_, since)| *since <= self.minor).map(|(c, _)| c);
        baseline.chain(own).filter_map(|check| check(self)).collect()
    }

    /// Older standards had not all of the stricter checks.
    fn replaces(&self) -> bool {
        self.minor >= 22
    }

    fn context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    /// From 1.25 on some checks know that Windows has no such thing.
    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// Names of the containers that a predicate of their securityContext holds for.
    fn with(&self, holds: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers.iter().filter(|c| holds(&c["securityContext"])).map(|c| text(c, "name")).collect()
    }

    /// `pod and containers "a", "b"`; `None` when nobody did it.
    fn setters(&self, holds: impl Fn(&Value) -> bool) -> Option<String> {
        let containers = self.with(&holds);
        let mut parts = Vec::new();
        if holds(self.context()) {
            parts.push("pod".to_owned());
        }
        if !containers.is_empty() {
            parts.push(named("container", &containers));
        }
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    /// The values that the Pod and its containers have of something.
    fn values(&self, pick: impl Fn(&'a Value) -> Option<&'a str>) -> BTreeSet<&'a str> {
        let contexts = self.containers.iter().map(|c| &c["securityContext"]);
        std::iter::once(self.context()).chain(contexts).filter_map(pick).collect()
    }
}

fn plural(word: &str, n: usize) -> String {
    if n == 1 { word.to_owned() } else { format!("{word}s") }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quote).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn named(word: &str, names: &[&str]) -> String {
    format!("{} {}", plural(word, names.len()), quoted(names.iter().copied()))
}

fn offence(reason: impl Into<String>, detail: String) -> Option<Offence> {
    Some((reason.into(), detail))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn app_armor(s: &Subject<'_>) -> Option<Offence> {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |c: &Value| {
        c["appArmorProfile"].is_object()
            && !matches!(text(&c["appArmorProfile"], "type"), "RuntimeDefault" | "Localhost")
    };
    let mut setters: Vec<String> = s.setters(bad).into_iter().collect();
    let values = s.values(|c| bad(c).then(|| text(&c["appArmorProfile"], "type")));
    let mut shown: Vec<String> = values.into_iter().map(quote).collect();
    let notes: Vec<String> = s
        .annotations
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let profile = value.as_str().unwrap_or_default();
            let fine =
                profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
            (key.starts_with(KEY) && !fine).then(|| format!("{key}={}", quote(profile)))
        })
        .collect();
    if !notes.is_empty() {
        setters.push(plural("annotation", notes.len()));
        shown.extend(notes.iter().map(|note| quote(note)));
    }
    if setters.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), shown.join(", "));
    offence(plural("forbidden AppArmor profile", shown.len()), detail)
}

/// Capabilities that containers add beyond those allowed.
fn added<'a>(s: &Subject<'a>, allowed: &[&str]) -> Option<String> {
    let beyond = |c: &'a Value| texts(&c["capabilities"]["add"]).filter(|cap| !allowed.contains(cap));
    let containers = s.with(|c| texts(&c["capabilities"]["add"]).any(|cap| !allowed.contains(&cap)));
    let extra: BTreeSet<&str> = s.containers.iter().flat_map(|c| beyond(&c["securityContext"])).collect();
    (!extra.is_empty()).then(|| {
        let who = named("container", &containers);
        format!("{who} must not include {} in securityContext.capabilities.add", quoted(extra))
    })
}

fn added_capabilities(s: &Subject<'_>) -> Option<Offence> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    offence("non-default capabilities", added(s, &ALLOWED)?)
}

fn dropped_capabilities(s: &Subject<'_>) -> Option<Offence> {
    if s.is_windows() {
        return None;
    }
    let keeping = s.with(|c| !texts(&c["capabilities"]["drop"]).any(|cap| cap == "ALL"));
    let drop = (!keeping.is_empty()).then(|| {
        format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named("container", &keeping))
    });
    let details: Vec<String> = drop.into_iter().chain(added(s, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { offence("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(s: &Subject<'_>) -> Option<Offence> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|key| flag(s.spec, key))
        .map(|key| format!("{key}=true"))
        .collect();
    if set.is_empty() { None } else { offence("host namespaces", set.join(", ")) }
}

fn host_paths(s: &Subject<'_>) -> Option<Offence> {
    let names: Vec<&str> = list(s.spec, "volumes")
        .iter()
        .filter(|v| v["hostPath"].is_object())
        .map(|v| text(v, "name"))
        .collect();
    if names.is_empty() { None } else { offence("hostPath volumes", named("volume", &names)) }
}

fn host_ports(s: &Subject<'_>) -> Option<Offence> {
    let of = |c: &Value| -> Vec<i64> {
        list(c, "ports").iter().filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).collect()
    };
    let ports: BTreeSet<String> = s.containers.iter().flat_map(|c| of(c)).map(|p| p.to_string()).collect();
    let names: Vec<&str> =
        s.containers.iter().filter(|c| !of(c).is_empty()).map(|c| text(c, "name")).collect();
    if names.is_empty() {
        return None;
    }
    let (verb, what) = (if names.len() == 1 { "uses" } else { "use" }, plural("hostPort", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    offence("hostPort", format!("{} {verb} {what} {}", named("container", &names), ports.join(", ")))
}

fn privileged(s: &Subject<'_>) -> Option<Offence> {
    let names = s.with(|c| flag(c, "privileged"));
    let why = || format!("{} must not set securityContext.privileged=true", named("container", &names));
    if names.is_empty() { None } else { offence("privileged", why()) }
}

fn proc_mount(s: &Subject<'_>) -> Option<Offence> {
    let bad = |c: &Value| !matches!(text(c, "procMount"), "" | "Default");
    let names = s.with(bad);
    let values = s.values(|c| bad(c).then(|| text(c, "procMount")));
    if names.is_empty() {
        return None;
    }
    let who = named("container", &names);
    offence("procMount", format!("{who} must not set securityContext.procMount to {}", quoted(values)))
}

fn selinux(s: &Subject<'_>) -> Option<Offence> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && s.minor >= 31)
    };
    let has = |c: &Value, key: &str| !text(&c["seLinuxOptions"], key).is_empty();
    let bad = |c: &Value| !allowed(text(&c["seLinuxOptions"], "type")) || has(c, "user") || has(c, "role");
    let setters = s.setters(bad)?;
    let types = s.values(|c| Some(text(&c["seLinuxOptions"], "type")).filter(|kind| !allowed(kind)));
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", types.len()), quoted(types)));
    }
    for key in ["user", "role"] {
        if s.setters(|c| has(c, key)).is_some() {
            data.push(format!("{key} may not be set"));
        }
    }
    let detail = format!("{setters} set forbidden securityContext.seLinuxOptions: {}", data.join("; "));
    offence("seLinuxOptions", detail)
}

fn is_safe_profile(context: &Value) -> bool {
    matches!(text(&context["seccompProfile"], "type"), "RuntimeDefault" | "Localhost")
}

/// Profiles that are set and are none of the safe ones.
fn unsafe_seccomp(s: &Subject<'_>) -> Option<Offence> {
    let bad = |c: &Value| c["seccompProfile"].is_object() && !is_safe_profile(c);
    let setters = s.setters(bad)?;
    let values = s.values(|c| bad(c).then(|| text(&c["seccompProfile"], "type")));
    let detail = format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values));
    offence("seccompProfile", detail)
}

fn seccomp_baseline(s: &Subject<'_>) -> Option<Offence> {
    if s.minor >= 19 { unsafe_seccomp(s) } else { seccomp_annotations(s) }
}

/// Before the field there were annotations.
fn seccomp_annotations(s: &Subject<'_>) -> Option<Offence> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let keys = s.containers.iter().map(|c| format!("{CONTAINER}{}", text(c, "name")));
    let forbidden: BTreeSet<String> = std::iter::once(POD.to_owned())
        .chain(keys)
        .filter_map(|key| {
            let value = s.annotations.get(&key)?.as_str()?;
            let fine =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={}", quote(value)))
        })
        .collect();
    let what = plural("annotation", forbidden.len());
    let shown = forbidden.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if forbidden.is_empty() { None } else { offence("seccompProfile", format!("forbidden {what} {shown}")) }
}

fn seccomp_restricted(s: &Subject<'_>) -> Option<Offence> {
    if s.is_windows() {
        return None;
    }
    if let Some(bad) = unsafe_seccomp(s) {
        return Some(bad);
    }
    if is_safe_profile(s.context()) {
        return None;
    }
    let names = s.with(|c| !c["seccompProfile"].is_object());
    let why = || {
        let who = named("container", &names);
        format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        )
    };
    if names.is_empty() { None } else { offence("seccompProfile", why()) }
}

fn sysctls(s: &Subject<'_>) -> Option<Offence> {
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let allowed = |name: &str| ALLOWED.iter().any(|(known, since)| *known == name && *since <= s.minor);
    let names: Vec<&str> =
        list(s.context(), "sysctls").iter().map(|c| text(c, "name")).filter(|n| !allowed(n)).collect();
    if names.is_empty() { None } else { offence("forbidden sysctls", names.join(", ")) }
}

fn host_process(s: &Subject<'_>) -> Option<Offence> {
    let setters = s.setters(|c| flag(&c["windowsOptions"], "hostProcess"))?;
    offence("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(s: &Subject<'_>) -> Option<Offence> {
    let names = s.with(|c| c["allowPrivilegeEscalation"] != false);
    if names.is_empty() || s.is_windows() {
        return None;
    }
    let who = named("container", &names);
    offence(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn volumes(s: &Subject<'_>) -> Option<Offence> {
    const ALLOWED: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let mut names = Vec::new();
    let mut kinds = BTreeSet::new();
    for volume in list(s.spec, "volumes") {
        let sources: Vec<&str> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, v)| *key != "name" && !v.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        // Without a source it is an emptyDir.
        if sources.is_empty() || sources.iter().any(|kind| ALLOWED.contains(kind)) {
            continue;
        }
        names.push(text(volume, "name"));
        kinds.extend(sources.first());
    }
    if names.is_empty() {
        return None;
    }
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let what = plural("restricted volume type", kinds.len());
    let detail = format!("{} {verb} {what} {}", named("volume", &names), quoted(kinds));
    offence("restricted volume types", detail)
}

fn non_root(s: &Subject<'_>) -> Option<Offence> {
    const REASON: &str = "runAsNonRoot != true";
    if let Some(setters) = s.setters(|c| c["runAsNonRoot"] == false) {
        return offence(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    let names = s.with(|c| !c["runAsNonRoot"].is_boolean());
    if names.is_empty() || s.context()["runAsNonRoot"] == true {
        return None;
    }
    let who = named("container", &names);
    offence(REASON, format!("pod or {who} must set securityContext.runAsNonRoot=true"))
}

fn user(s: &Subject<'_>) -> Option<Offence> {
    let setters = s.setters(|c| c["runAsUser"] == 0)?;
    offence("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

/// Annotations that a check looks at.
pub fn relevant_annotations(pod: &Value) -> Vec<(&String, &Value)> {
    entries(&pod["metadata"], "annotations")
        .filter(|(key, _)| key.contains("seccomp.security.") || key.contains("apparmor.security."))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn baseline(spec: Value) -> String {
        shown(Subject::new(&json!({"spec": spec}), 33).baseline())
    }

    fn restricted(spec: Value, minor: u32) -> String {
        shown(Subject::new(&json!({"spec": spec}), minor).restricted())
    }

    fn shown(offences: Vec<Offence>) -> String {
        offences
            .into_iter()
            .map(|(reason, detail)| format!("{reason} ({detail})"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn with(context: Value) -> Value {
        json!({"containers": [{"name": "a", "securityContext": context}]})
    }

    #[test]
    fn baseline_table() {
        for (spec, expected) in [
            (with(json!({})), ""),
            (
                with(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"hostNetwork": true, "hostPID": true}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}, {"name": "b", "ports": [{"hostPort": 443}]}]}),
                "hostPort (containers \"a\", \"b\" use hostPorts 443, 80)",
            ),
            (
                with(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "NET_RAW"]}})),
                "non-default capabilities (container \"a\" must not include \"NET_RAW\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                with(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}, "sysctls": [{"name": "kernel.msgmax"}]}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\"), forbidden sysctls (kernel.msgmax)",
            ),
            (
                with(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
                "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
            (
                with(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
            ),
        ] {
            assert_eq!(baseline(spec), expected);
        }
    }

    #[test]
    fn restricted_table() {
        assert_eq!(
            restricted(with(json!({})), 33),
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(restricted(with(good.clone()), 33), "");
        let mut root = with(good);
        root["securityContext"] = json!({"runAsUser": 0});
        root["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "e", "emptyDir": {}}]);
        assert_eq!(
            restricted(root.clone(), 33),
            "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\"), runAsUser=0 (pod must not set runAsUser=0)"
        );
        assert!(!restricted(root, 22).contains("runAsUser"));
    }
}
