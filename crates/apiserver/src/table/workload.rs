//! Kinds that run Pods.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{
    age, age_of, containers, count, duration, int, is_true, labels, list, or, seconds_since, selector,
};
use super::{AGE, Column, NAME, Printer, number, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    Some(match plural {
        "deployments" => &DEPLOYMENTS,
        "replicasets" | "replicationcontrollers" => &REPLICAS,
        "statefulsets" => &STATEFUL_SETS,
        "daemonsets" => &DAEMON_SETS,
        "jobs" => &JOBS,
        "cronjobs" => &CRON_JOBS,
        "controllerrevisions" => &REVISIONS,
        "horizontalpodautoscalers" => &AUTOSCALERS,
        _ => return None,
    })
}

const CONTAINERS: Column = wide("Containers");
const IMAGES: Column = wide("Images");
const SELECTOR: Column = wide("Selector");

fn name(object: &Value) -> Value {
    meta(object, "name").into()
}

/// Ready of desired.
fn ready(object: &Value) -> Value {
    let desired = object["spec"]["replicas"].as_i64().unwrap_or(1);
    format!("{}/{desired}", int(&object["status"]["readyReplicas"])).into()
}

fn template(object: &Value) -> [Value; 2] {
    let (names, images) = containers(&object["spec"]["template"]["spec"]);
    [names, images]
}

static DEPLOYMENTS: Printer = Printer {
    columns: &[NAME, text("Ready"), text("Up-to-date"), text("Available"), AGE, CONTAINERS, IMAGES, SELECTOR],
    cells: |o, now| {
        let [names, images] = template(o);
        let status = &o["status"];
        vec![
            name(o),
            ready(o),
            int(&status["updatedReplicas"]).into(),
            int(&status["availableReplicas"]).into(),
            age_of(o, now),
            names,
            images,
            selector(&o["spec"]["selector"]).into(),
        ]
    },
};

static REPLICAS: Printer = Printer {
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |o, now| {
        let [names, images] = template(o);
        let status = &o["status"];
        vec![
            name(o),
            o["spec"]["replicas"].as_i64().unwrap_or(1).into(),
            int(&status["replicas"]).into(),
            int(&status["readyReplicas"]).into(),
            age_of(o, now),
            names,
            images,
            selector(&o["spec"]["selector"]).into(),
        ]
    },
};

static STATEFUL_SETS: Printer = Printer {
    columns: &[NAME, text("Ready"), AGE, CONTAINERS, IMAGES],
    cells: |o, now| {
        let [names, images] = template(o);
        vec![name(o), ready(o), age_of(o, now), names, images]
    },
};

static DAEMON_SETS: Printer = Printer {
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        text("Node Selector"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |o, now| {
        let [names, images] = template(o);
        let status = &o["status"];
        vec![
            name(o),
            int(&status["desiredNumberScheduled"]).into(),
            int(&status["currentNumberScheduled"]).into(),
            int(&status["numberReady"]).into(),
            int(&status["updatedNumberScheduled"]).into(),
            int(&status["numberAvailable"]).into(),
            labels(&o["spec"]["template"]["spec"]["nodeSelector"]).into(),
            age_of(o, now),
            names,
            images,
            selector(&o["spec"]["selector"]).into(),
        ]
    },
};

static JOBS: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Completions"),
        text("Duration"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |o, now| {
        let [names, images] = template(o);
        vec![
            name(o),
            job_status(o).into(),
            completions(o).into(),
            job_duration(o, now).into(),
            age_of(o, now),
            names,
            images,
            selector(&o["spec"]["selector"]).into(),
        ]
    },
};

fn job_status(job: &Value) -> &'static str {
    if is_true(job, "Complete") {
        "Complete"
    } else if is_true(job, "Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if is_true(job, "Suspended") {
        "Suspended"
    } else if is_true(job, "FailureTarget") {
        "FailureTarget"
    } else if is_true(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let done = int(&job["status"]["succeeded"]);
    match (job["spec"]["completions"].as_i64(), int(&job["spec"]["parallelism"])) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let status = &job["status"];
    let Some(running) = status["startTime"].as_str().and_then(|t| seconds_since(t, now)) else {
        return String::new();
    };
    let since_end = status["completionTime"].as_str().and_then(|t| seconds_since(t, now)).unwrap_or(0);
    duration(running - since_end)
}

static CRON_JOBS: Printer = Printer {
    columns: &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        text("Suspend"),
        number("Active"),
        text("Last Schedule"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |o, now| {
        let job = &o["spec"]["jobTemplate"]["spec"];
        let (names, images) = containers(&job["template"]["spec"]);
        let last = o["status"]["lastScheduleTime"].as_str();
        let suspended = match o["spec"]["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        vec![
            name(o),
            or(&o["spec"]["schedule"], "").into(),
            or(&o["spec"]["timeZone"], "<none>").into(),
            suspended.into(),
            count(&o["status"]["active"]).into(),
            last.map_or_else(|| "<none>".into(), |t| age(t, now)).into(),
            age_of(o, now),
            names,
            images,
            selector(&job["selector"]).into(),
        ]
    },
};

static REVISIONS: Printer = Printer {
    columns: &[NAME, text("Controller"), number("Revision"), AGE],
    cells: |o, now| {
        let owner = list(&o["metadata"]["ownerReferences"]).iter().find(|r| r["controller"] == true);
        let owner = owner.map_or_else(
            || "<none>".to_owned(),
            |r| {
                let kind = or(&r["kind"], "").to_lowercase();
                let group = or(&r["apiVersion"], "").split_once('/').map_or("", |(group, _)| group);
                format!("{}/{}", crate::status::qualified(group, &kind), or(&r["name"], ""))
            },
        );
        vec![name(o), owner.into(), int(&o["revision"]).into(), age_of(o, now)]
    },
};

static AUTOSCALERS: Printer = Printer {
    columns: &[
        NAME,
        text("Reference"),
        text("Targets"),
        text("MinPods"),
        text("MaxPods"),
        number("Replicas"),
        AGE,
    ],
    cells: |o, now| {
        let target = &o["spec"]["scaleTargetRef"];
        let min = o["spec"]["minReplicas"].as_i64();
        vec![
            name(o),
            format!("{}/{}", or(&target["kind"], ""), or(&target["name"], "")).into(),
            targets(o).into(),
            min.map_or_else(|| "<unset>".to_owned(), |n| n.to_string()).into(),
            int(&o["spec"]["maxReplicas"]).into(),
            int(&o["status"]["currentReplicas"]).into(),
            age_of(o, now),
        ]
    },
};

/// Current and wanted value per metric; two at the most.
fn targets(autoscaler: &Value) -> String {
    let metrics = list(&autoscaler["spec"]["metrics"]);
    if metrics.is_empty() {
        return "<none>".into();
    }
    let current = list(&autoscaler["status"]["currentMetrics"]);
    let texts: Vec<String> = metrics
        .iter()
        .enumerate()
        .take(2)
        .map(|(i, m)| metric(m, current.get(i).unwrap_or(&Value::Null)))
        .collect();
    match metrics.len() - texts.len() {
        0 => texts.join(", "),
        more => format!("{} + {more} more...", texts.join(", ")),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (source, prefix, suffix) = match or(&spec["type"], "") {
        "Resource" => ("resource", format!("{}: ", or(&spec["resource"]["name"], "")), ""),
        "ContainerResource" => {
            ("containerResource", format!("{}: ", or(&spec["containerResource"]["name"], "")), "")
        }
        "Pods" => ("pods", String::new(), ""),
        "Object" => (
            "object",
            String::new(),
            if spec["object"]["target"]["type"] == "AverageValue" { " (avg)" } else { "" },
        ),
        "External" => (
            "external",
            String::new(),
            if spec["external"]["target"]["averageValue"].is_null() { "" } else { " (avg)" },
        ),
        _ => return "<unknown type>".into(),
    };
    let (wanted, now) = (&spec[source]["target"], &status[source]["current"]);
    if let Some(percent) = wanted["averageUtilization"].as_i64() {
        let current =
            now["averageUtilization"].as_i64().map_or_else(|| "<unknown>".to_owned(), |n| format!("{n}%"));
        return format!("{prefix}{current}/{percent}%");
    }
    let key = if wanted["averageValue"].is_null() { "value" } else { "averageValue" };
    format!("{prefix}{}/{}{suffix}", or(&now[key], "<unknown>"), or(&wanted[key], "<auto>"))
}
