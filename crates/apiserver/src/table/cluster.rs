//! Nodes, namespaces, events, and small kinds of the core group.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{age, age_of, count, int, list, none, or};
use super::{AGE, Column, NAME, Printer, boolean, number, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    Some(match plural {
        "nodes" => &NODES,
        "namespaces" => &NAMESPACES,
        "events" => &EVENTS,
        "secrets" => &SECRETS,
        "configmaps" => &CONFIG_MAPS,
        "serviceaccounts" => &SERVICE_ACCOUNTS,
        "resourcequotas" => &QUOTAS,
        "leases" => &LEASES,
        "priorityclasses" => &PRIORITY_CLASSES,
        "runtimeclasses" => &RUNTIME_CLASSES,
        _ => return None,
    })
}

fn name(object: &Value) -> Value {
    meta(object, "name").into()
}

static NODES: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: |o, now| {
        let info = &o["status"]["nodeInfo"];
        let address = |kind: &str| {
            let found = list(&o["status"]["addresses"]).iter().find(|a| a["type"] == kind);
            Value::from(found.map_or("<none>", |a| or(&a["address"], "<none>")))
        };
        vec![
            name(o),
            node_status(o).into(),
            node_roles(o).into(),
            age_of(o, now),
            or(&info["kubeletVersion"], "").into(),
            address("InternalIP"),
            address("ExternalIP"),
            or(&info["osImage"], "<unknown>").into(),
            or(&info["kernelVersion"], "<unknown>").into(),
            or(&info["containerRuntimeVersion"], "<unknown>").into(),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = list(&node["status"]["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        Some(c) if c["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let mut roles = Vec::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.push(or(value, ""));
        }
    }
    roles.retain(|r| !r.is_empty());
    roles.sort_unstable();
    none(roles.join(","))
}

static NAMESPACES: Printer = Printer {
    columns: &[NAME, text("Status"), AGE],
    cells: |o, now| vec![name(o), or(&o["status"]["phase"], "").into(), age_of(o, now)],
};

static EVENTS: Printer = Printer {
    columns: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        Column { name: "Count", kind: "integer", format: "", wide: true },
        Column { name: "Name", kind: "string", format: "name", wide: true },
    ],
    cells: event,
};

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let time = |keys: [&Value; 3]| {
        let known = keys.into_iter().find_map(|k| k.as_str().filter(|t| !t.is_empty()));
        known.map_or_else(|| "<unknown>".to_owned(), |t| age(t, now))
    };
    let (series, none) = (&event["series"], &Value::Null);
    let first = time([&event["firstTimestamp"], &event["eventTime"], none]);
    let last = if series.is_null() {
        time([&event["lastTimestamp"], &event["firstTimestamp"], &event["eventTime"]])
    } else {
        time([&series["lastObservedTime"], none, none])
    };
    let count = if series.is_null() { int(&event["count"]).max(1) } else { int(&series["count"]) };
    let target = &event["involvedObject"];
    let kind = or(&target["kind"], "").to_lowercase();
    let target_name = or(&target["name"], "");
    let object = if target_name.is_empty() { kind } else { format!("{kind}/{target_name}") };
    let component = or(&event["source"]["component"], or(&event["reportingComponent"], ""));
    let host = or(&event["source"]["host"], or(&event["reportingInstance"], ""));
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        last.into(),
        or(&event["type"], "").into(),
        or(&event["reason"], "").into(),
        object.into(),
        or(&target["fieldPath"], "").into(),
        source.into(),
        or(&event["message"], "").trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

static SECRETS: Printer = Printer {
    columns: &[NAME, text("Type"), number("Data"), AGE],
    cells: |o, now| vec![name(o), or(&o["type"], "").into(), count(&o["data"]).into(), age_of(o, now)],
};

static CONFIG_MAPS: Printer = Printer {
    columns: &[NAME, number("Data"), AGE],
    cells: |o, now| vec![name(o), (count(&o["data"]) + count(&o["binaryData"])).into(), age_of(o, now)],
};

static SERVICE_ACCOUNTS: Printer = Printer {
    columns: &[NAME, number("Secrets"), AGE],
    cells: |o, now| vec![name(o), count(&o["secrets"]).into(), age_of(o, now)],
};

static QUOTAS: Printer = Printer {
    columns: &[NAME, text("Request"), text("Limit"), AGE],
    cells: |o, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let status = &o["status"];
        for (key, hard) in status["hard"].as_object().into_iter().flatten() {
            let text = format!("{key}: {}/{}", or(&status["used"][key], "0"), or(hard, ""));
            if key.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
        }
        requests.sort();
        limits.sort();
        vec![name(o), requests.join(", ").into(), limits.join(", ").into(), age_of(o, now)]
    },
};

static LEASES: Printer = Printer {
    columns: &[NAME, text("Holder"), AGE],
    cells: |o, now| vec![name(o), or(&o["spec"]["holderIdentity"], "").into(), age_of(o, now)],
};

static PRIORITY_CLASSES: Printer = Printer {
    columns: &[NAME, number("Value"), boolean("Global-Default"), AGE, text("PreemptionPolicy")],
    cells: |o, now| {
        let global = o["globalDefault"].as_bool().unwrap_or(false);
        let policy = or(&o["preemptionPolicy"], "PreemptLowerPriority");
        vec![name(o), int(&o["value"]).into(), global.into(), age_of(o, now), policy.into()]
    },
};

static RUNTIME_CLASSES: Printer = Printer {
    columns: &[NAME, text("Handler"), AGE],
    cells: |o, now| vec![name(o), or(&o["handler"], "").into(), age_of(o, now)],
};
