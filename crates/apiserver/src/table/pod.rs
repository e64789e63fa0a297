//! Pods: the status column sums up phase, containers and init containers in one word.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{age, age_of, containers, int, is_true, labels, list, or};
use super::{AGE, NAME, Printer, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    match plural {
        "pods" => Some(&PODS),
        "podtemplates" => Some(&TEMPLATES),
        _ => None,
    }
}

static PODS: Printer = Printer {
    columns: &[
        NAME,
        text("Ready"),
        text("Status"),
        text("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    cells: pod,
};

static TEMPLATES: Printer = Printer {
    columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
    cells: |o, _| {
        let (names, images) = containers(&o["template"]["spec"]);
        vec![meta(o, "name").into(), names, images, labels(&o["template"]["metadata"]["labels"]).into()]
    },
};

/// What the containers of a Pod add up to.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, container: &Value) {
        self.restarts += int(&container["restartCount"]);
        let ended = container["lastState"]["terminated"]["finishedAt"].as_str().and_then(|t| t.parse().ok());
        self.last_restart = self.last_restart.max(ended);
    }
}

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, age(&at.to_string(), now))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = list(&pod["status"]["podIPs"]).first().map_or(&pod["status"]["podIP"], |first| &first["ip"]);
    vec![
        meta(pod, "name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age_of(pod, now),
        or(ip, "<none>").into(),
        or(&pod["spec"]["nodeName"], "<none>").into(),
        or(&pod["status"]["nominatedNodeName"], "<none>").into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|g| g["conditionType"].as_str().is_some_and(|t| is_true(pod, t))).count();
    format!("{met}/{}", gates.len())
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let phase = or(&status["phase"], "");
    let mut summary = Summary {
        ready: 0,
        total: list(&spec["containers"]).len(),
        reason: or(&status["reason"], phase).to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if list(&status["conditions"]).iter().any(gated) {
        summary.reason = "SchedulingGated".into();
    }
    let mut sidecars = Summary { ready: 0, total: 0, reason: String::new(), restarts: 0, last_restart: None };
    let initializing = init_containers(pod, &mut summary, &mut sidecars);
    if !initializing || is_true(pod, "Initialized") {
        summary.restarts = sidecars.restarts;
        summary.last_restart = sidecars.last_restart;
        main_containers(pod, &mut summary);
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Walks the init containers up to the first that has not done its part; whether there is one.
fn init_containers(pod: &Value, summary: &mut Summary, sidecars: &mut Summary) -> bool {
    let specs = list(&pod["spec"]["initContainers"]);
    let is_sidecar =
        |name: &Value| specs.iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always");
    summary.total += specs.iter().filter(|c| c["restartPolicy"] == "Always").count();
    for (i, container) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        summary.count_restarts(container);
        let sidecar = is_sidecar(&container["name"]);
        if sidecar {
            sidecars.count_restarts(container);
        }
        let (ended, waiting) =
            (&container["state"]["terminated"], or(&container["state"]["waiting"]["reason"], ""));
        if !ended.is_null() && int(&ended["exitCode"]) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        summary.reason = if !ended.is_null() {
            format!("Init:{}", end_reason(ended))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", specs.len())
        };
        return true;
    }
    false
}

fn end_reason(ended: &Value) -> String {
    match (or(&ended["reason"], ""), int(&ended["signal"])) {
        ("", 0) => format!("ExitCode:{}", int(&ended["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    for container in list(&pod["status"]["containerStatuses"]).iter().rev() {
        summary.count_restarts(container);
        let state = &container["state"];
        let waiting = or(&state["waiting"]["reason"], "");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !state["terminated"].is_null() {
            summary.reason = end_reason(&state["terminated"]);
        } else if container["ready"] == true && !state["running"].is_null() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        summary.reason = if is_true(pod, "Ready") { "Running".into() } else { "NotReady".into() };
    }
}
