//! Validation of a Pod spec apart from its containers: volumes, DNS, scheduling, host settings, policies.

use serde_json::Value;

use super::super::checks;
use super::super::selector;
use super::super::value::{entries, flag, int, list, text, unset};
use super::container::{self, Shared};
use crate::field::{FieldError, FieldErrors};

/// A Pod spec (`path` is `spec`, or `spec.template.spec` of a workload).
pub fn spec(spec: &Value, path: &str, in_pod: bool, errors: &mut FieldErrors) {
    volumes(spec, path, errors);
    container::validate(&Shared { spec, in_pod }, path, errors);
    errors.one_of(spec, path, "restartPolicy", &["Always", "Never", "OnFailure"]);
    dns(spec, path, errors);
    for (key, value) in entries(spec, "nodeSelector") {
        let path = format!("{path}.nodeSelector");
        errors.messages(&path, key.as_str(), checks::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.messages(&path, value, checks::label_value(value));
    }
    for (key, check) in [
        ("hostname", checks::dns1123_label as fn(&str) -> Vec<String>),
        ("subdomain", checks::dns1123_label),
        ("nodeName", checks::dns1123_subdomain),
        ("serviceAccountName", checks::dns1123_subdomain),
        ("priorityClassName", checks::dns1123_subdomain),
        ("runtimeClassName", checks::dns1123_subdomain),
    ] {
        errors.optional_form(spec, path, key, check);
    }
    if let Some(n) = int(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), n, why));
    }
    errors.not_negative(spec, path, "terminationGracePeriodSeconds");
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        errors.present(secret, &format!("{path}.imagePullSecrets[{i}]"), "name");
    }
    tolerations(spec, path, errors);
    affinity(&spec["affinity"], &format!("{path}.affinity"), errors);
    spread(spec, path, errors);
    security(spec, path, errors);
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        errors.form(alias, &path, "ip", checks::ip);
        for (h, name) in list(alias, "hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.messages(&format!("{path}.hostnames[{h}]"), name, checks::dns1123_subdomain(name));
        }
    }
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let path = format!("{path}.readinessGates[{i}]");
        errors.form(gate, &path, "conditionType", checks::qualified_name);
    }
}

fn dns(spec: &Value, path: &str, errors: &mut FieldErrors) {
    errors.one_of(spec, path, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    let config = &spec["dnsConfig"];
    let path = format!("{path}.dnsConfig");
    let servers = list(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        let at = if config.is_null() { path.clone() } else { format!("{path}.nameservers") };
        errors.push(FieldError::required(at, why));
    }
    if servers.len() > 3 {
        let why = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(format!("{path}.nameservers"), config["nameservers"].clone(), why));
    }
    for (i, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        errors.messages(&format!("{path}.nameservers[{i}]"), server, checks::ip(server));
    }
    let searches = list(config, "searches");
    if searches.len() > 32 {
        let why = "must not have more than 32 search paths";
        errors.push(FieldError::invalid(format!("{path}.searches"), config["searches"].clone(), why));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let bare = if search == "." { "" } else { search.strip_suffix('.').unwrap_or(search) };
        if !bare.is_empty() {
            // Names of SRV owners have underscores; resolvers take them.
            let plain = bare.replace('_', "-");
            errors.messages(
                &format!("{path}.searches[{i}]"),
                search,
                checks::dns1123_subdomain(plain.trim_matches('-')),
            );
        }
    }
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.options[{i}]"), "must not be empty"));
        }
    }
}

fn tolerations(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, toleration) in list(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{i}]");
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        errors.optional_form(toleration, &path, "key", checks::qualified_name);
        if key.is_empty() && operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
        }
        if !toleration["tolerationSeconds"].is_null() && text(toleration, "effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), text(toleration, "effect"), why));
        }
        match operator {
            "" | "Equal" => {
                let value = text(toleration, "value");
                errors.messages(&format!("{path}.operator"), value, checks::label_value(value));
            }
            "Exists" => {
                if !text(toleration, "value").is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(format!("{path}.operator"), toleration.clone(), why));
                }
            }
            _ => errors.one_of(toleration, &path, "operator", &["Equal", "Exists"]),
        }
        errors.optional_one_of(toleration, &path, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}

fn affinity(affinity: &Value, path: &str, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = &affinity["nodeAffinity"];
    let node_path = format!("{path}.nodeAffinity");
    if !node[REQUIRED].is_null() {
        let terms = list(&node[REQUIRED], "nodeSelectorTerms");
        let at = format!("{node_path}.{REQUIRED}.nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(&at, "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(term, &format!("{at}[{i}]"), errors);
        }
    }
    for (i, preferred) in list(node, PREFERRED).iter().enumerate() {
        let at = format!("{node_path}.{PREFERRED}[{i}]");
        weight(preferred, &at, errors);
        node_term(&preferred["preference"], &format!("{at}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (rules, path) = (&affinity[kind], format!("{path}.{kind}"));
        for (i, term) in list(rules, REQUIRED).iter().enumerate() {
            pod_term(term, &format!("{path}.{REQUIRED}[{i}]"), errors);
        }
        for (i, preferred) in list(rules, PREFERRED).iter().enumerate() {
            let at = format!("{path}.{PREFERRED}[{i}]");
            weight(preferred, &at, errors);
            pod_term(&preferred["podAffinityTerm"], &format!("{at}.podAffinityTerm"), errors);
        }
    }
}

fn weight(preferred: &Value, path: &str, errors: &mut FieldErrors) {
    let weight = int(preferred, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"));
    }
}

/// One term of a node selector.
pub fn node_term(term: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["matchExpressions", "matchFields"] {
        for (i, expression) in list(term, key).iter().enumerate() {
            let path = format!("{path}.{key}[{i}]");
            let known = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
            selector::validate_operator(expression, &path, &known, errors);
            errors.messages(
                &format!("{path}.key"),
                text(expression, "key"),
                checks::qualified_name(text(expression, "key")),
            );
        }
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut FieldErrors) {
    selector::validate(&term["labelSelector"], &format!("{path}.labelSelector"), errors);
    selector::validate(&term["namespaceSelector"], &format!("{path}.namespaceSelector"), errors);
    if text(term, "topologyKey").is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    }
    errors.optional_form(term, path, "topologyKey", checks::qualified_name);
}

fn spread(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), skew, "must be greater than zero"));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        errors.one_of(constraint, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
        selector::validate(&constraint["labelSelector"], &format!("{path}.labelSelector"), errors);
    }
}

fn security(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let (context, at) = (&spec["securityContext"], format!("{path}.securityContext"));
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        container::id(context, &at, key, errors);
    }
    container::seccomp(&context["seccompProfile"], &format!("{at}.seccompProfile"), errors);
    errors.optional_one_of(context, &at, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{at}.shareProcessNamespace"), true, why));
    }
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        errors.present(sysctl, &format!("{at}.sysctls[{i}]"), "name");
    }
}

fn volumes(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        errors.form(volume, &path, "name", checks::dns1123_label);
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, v)| *k != "name" && !v.is_null())
            .map(|(k, _)| k)
            .collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(&path, "must specify a volume type")),
            [source] => volume_source(&volume[source.as_str()], &format!("{path}.{source}"), source, errors),
            [_, second, ..] => errors.push(FieldError::forbidden(
                format!("{path}.{second}"),
                "may not specify more than 1 volume type",
            )),
        }
    }
    errors.distinct(spec, path, "volumes", "name");
}

fn volume_source(source: &Value, path: &str, kind: &str, errors: &mut FieldErrors) {
    match kind {
        "configMap" => {
            errors.present(source, path, "name");
            items(source, path, errors);
        }
        "secret" => {
            errors.present(source, path, "secretName");
            items(source, path, errors);
        }
        "persistentVolumeClaim" => errors.present(source, path, "claimName"),
        "hostPath" => {
            errors.present(source, path, "path");
            if text(source, "path").split('/').any(|part| part == "..") {
                let why = "must not contain '..'";
                errors.push(FieldError::invalid(format!("{path}.path"), text(source, "path"), why));
            }
            let kinds = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            errors.one_of(source, path, "type", &kinds);
        }
        "emptyDir" => {
            if let Some(limit) = super::super::quantity::Quantity::of(&source["sizeLimit"])
                && limit.is_negative()
            {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(format!("{path}.sizeLimit"), why));
            }
        }
        "downwardAPI" => downward(source, path, errors),
        "projected" => projected(source, path, errors),
        "nfs" => {
            errors.present(source, path, "server");
            errors.present(source, path, "path");
        }
        _ => {}
    }
    mode(source, path, "defaultMode", errors);
}

fn mode(source: &Value, path: &str, key: &str, errors: &mut FieldErrors) {
    if let Some(mode) = int(source, key)
        && !(0..=0o777).contains(&mode)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(format!("{path}.{key}"), mode, why));
    }
}

fn items(source: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        errors.present(item, &path, "key");
        errors.present(item, &path, "path");
        container::local_path(text(item, "path"), &format!("{path}.path"), errors);
        mode(item, &path, "mode", errors);
    }
}

fn downward(source: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        errors.present(item, &path, "path");
        container::local_path(text(item, "path"), &format!("{path}.path"), errors);
        match (unset(&item["fieldRef"]), unset(&item["resourceFieldRef"])) {
            (true, true) => {
                errors.push(FieldError::required(&path, "one of fieldRef and resourceFieldRef is required"));
            }
            (false, false) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, "resource", why));
            }
            (false, true) => {
                let path = format!("{path}.fieldRef");
                container::field_path(&item["fieldRef"], &path, container::VOLUME_FIELDS, errors);
            }
            (true, false) => {
                errors.present(&item["resourceFieldRef"], &format!("{path}.resourceFieldRef"), "resource")
            }
        }
    }
}

fn projected(source: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, projection) in list(source, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        for kind in ["configMap", "secret"].iter().filter(|k| !projection[**k].is_null()) {
            let path = format!("{path}.{kind}");
            errors.present(&projection[*kind], &path, "name");
            items(&projection[*kind], &path, errors);
        }
        downward(&projection["downwardAPI"], &format!("{path}.downwardAPI"), errors);
        let token = &projection["serviceAccountToken"];
        if !token.is_null() {
            let path = format!("{path}.serviceAccountToken");
            errors.present(token, &path, "path");
            if int(token, "expirationSeconds").is_some_and(|s| s < 600) {
                let value = token["expirationSeconds"].clone();
                let why = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), value, why));
            }
        }
    }
}
