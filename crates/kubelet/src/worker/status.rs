//! The Pod's status as the API shows it: phase, conditions, container states, from what the worker knows. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::state::{ContainerState, Ended, PodState, Run, Stage, Stop};
use super::step;
use crate::pod::{self, Role};

/// The prefix of container ids in statuses.
pub const RUNTIME: &str = "skiff://";

/// The status to show now; `known` is the one the API has, for transition times and for what others wrote.
pub fn status(
    pod: &Pod,
    state: &PodState,
    host_ips: &[IpAddr],
    known: &PodStatus,
    now: Timestamp,
) -> PodStatus {
    let of_role = |roles: &[Role]| -> Vec<ContainerStatus> {
        let own = pod::containers(pod).filter(|(role, _)| roles.contains(role));
        own.map(|(role, c)| container_status(pod, state, role, c)).collect()
    };
    let init = of_role(&[Role::Init, Role::Sidecar]);
    let main = of_role(&[Role::Main]);
    let ephemeral = pod::spec(pod).ephemeral_containers.iter().flatten().map(pod::from_ephemeral);
    let ephemeral: Vec<ContainerStatus> =
        ephemeral.map(|c| container_status(pod, state, Role::Ephemeral, &c)).collect();
    let phase = phase(pod, state);
    let (reason, message) = match &state.stop {
        Some(Stop::Failed { reason, message }) => (some(reason), some(message)),
        _ => (None, None),
    };
    let conditions = conditions(pod, state, &phase, &main, known, now);
    let host_ip = host_ips.first().map(IpAddr::to_string);
    PodStatus {
        phase: Some(phase),
        reason,
        message,
        conditions: Some(conditions),
        host_ip,
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: state.ips.first().map(IpAddr::to_string),
        pod_ips: (!state.ips.is_empty())
            .then(|| state.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: state.start_time.map(Time),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        qos_class: Some(known.qos_class.clone().unwrap_or_else(|| pod::qos_class(pod).into())),
        nominated_node_name: known.nominated_node_name.clone(),
        resource_claim_statuses: known.resource_claim_statuses.clone(),
        ..PodStatus::default()
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_string())
}

fn container_status(pod: &Pod, state: &PodState, role: Role, container: &Container) -> ContainerStatus {
    let known = state.container(&container.name);
    let (image, image_id) = known.image_names.clone().unwrap_or_default();
    let image = if image.is_empty() { container.image.clone().unwrap_or_default() } else { image };
    let id = known.running_id().or_else(|| known.ended().map(|e| e.id.as_str()));
    let id = id.or_else(|| known.last.as_ref().map(|e| e.id.as_str())).filter(|id| !id.is_empty());
    let running = known.running_id().is_some();
    let started = running && known.post_started && known.probed.is_some_and(|p| p.started);
    let ready = match role {
        Role::Init => known.ended().is_some_and(|e| e.code == 0),
        Role::Ephemeral => false,
        Role::Main | Role::Sidecar => started && known.probed.is_some_and(|p| p.ready),
    };
    let (current, last) = states(pod, state, role, &known);
    ContainerStatus {
        name: container.name.clone(),
        image,
        image_id,
        container_id: id.map(|id| format!("{RUNTIME}{id}")),
        ready,
        started: if role == Role::Ephemeral { None } else { Some(started) },
        restart_count: i32::try_from(known.restarts).unwrap_or(i32::MAX),
        state: Some(current),
        last_state: last.map(|e| ApiState { terminated: Some(terminated(e)), ..ApiState::default() }),
        ..ContainerStatus::default()
    }
}

/// The present state and the one before, in the API's terms.
fn states<'a>(
    pod: &Pod,
    state: &PodState,
    role: Role,
    known: &'a ContainerState,
) -> (ApiState, Option<&'a Ended>) {
    match &known.run {
        Run::Running { started_at, .. } => {
            let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
            (ApiState { running: Some(running), ..ApiState::default() }, known.last.as_ref())
        }
        Run::Ended(ended) if !waits_for_restart(pod, state, role, known) => {
            (ApiState { terminated: Some(terminated(ended)), ..ApiState::default() }, known.last.as_ref())
        }
        Run::Ended(ended) => (waiting(pod, state, role, known), Some(ended)),
        Run::New | Run::Starting | Run::Refused { .. } => {
            (waiting(pod, state, role, known), known.last.as_ref())
        }
    }
}

/// An ended container shows as waiting only once it is told why it waits (CrashLoopBackOff, ErrImagePull, ...).
fn waits_for_restart(pod: &Pod, state: &PodState, role: Role, known: &ContainerState) -> bool {
    known.waiting.is_some() && state.stop.is_none() && step::restarts(pod, role, known)
}

fn waiting(pod: &Pod, state: &PodState, role: Role, known: &ContainerState) -> ApiState {
    let (reason, message) = match &known.waiting {
        Some(waiting) => (waiting.reason.clone(), some(&waiting.message)),
        None => {
            let has_init = pod::spec(pod).init_containers.as_ref().is_some_and(|c| !c.is_empty());
            let initializing = has_init && (role != Role::Main || !state.initialized);
            (if initializing { "PodInitializing" } else { "ContainerCreating" }.to_string(), None)
        }
    };
    let waiting = ContainerStateWaiting { reason: Some(reason), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

fn terminated(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: (!ended.id.is_empty()).then(|| format!("{RUNTIME}{}", ended.id)),
        exit_code: ended.code,
        signal: None,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: ended.started_at.map(Time),
        finished_at: Some(Time(ended.finished_at)),
    }
}

/// The phase, by upstream's rules (`getPhase`).
pub fn phase(pod: &Pod, state: &PodState) -> String {
    let phase = if matches!(state.stop, Some(Stop::Failed { .. })) {
        "Failed"
    } else {
        let mains: Vec<_> = pod::containers(pod)
            .filter(|(r, _)| *r == Role::Main)
            .map(|(_, c)| state.container(&c.name))
            .collect();
        let running = mains.iter().any(|c| c.running_id().is_some());
        let ended: Vec<&Ended> = mains.iter().filter_map(|c| c.ended().or(c.last.as_ref())).collect();
        let all_ended = mains.iter().all(|c| c.ended().is_some());
        let stopping = state.stop.is_some() && state.all_stopped();
        let policy = pod::restart_policy(pod);
        let started = state.initialized || step::init_done(pod, state);
        let waiting =
            mains.iter().any(|c| c.ended().is_none() && c.running_id().is_none() && c.last.is_none());
        let may_restart = |code: i32| match policy {
            "Always" => true,
            "OnFailure" => code != 0,
            _ => false,
        };
        if !started || waiting {
            if stopping { "Failed" } else { "Pending" }
        } else if running || !all_ended || (!stopping && ended.iter().any(|e| may_restart(e.code))) {
            "Running"
        } else if ended.iter().all(|e| e.code == 0) {
            "Succeeded"
        } else {
            "Failed"
        }
    };
    phase.to_string()
}

fn conditions(
    pod: &Pod,
    state: &PodState,
    phase: &str,
    mains: &[ContainerStatus],
    known: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let completed = phase == "Succeeded";
    let failed = phase == "Failed";
    let prepared = state.sandbox == Stage::Done && (!state.ips.is_empty() || pod::host_network(pod));
    let up = prepared && state.torn_down != Stage::Done;
    let mut list = vec![condition("PodReadyToStartContainers", up, "", "")];
    list.push(initialized(pod, state, completed));
    let unready: Vec<&str> = mains.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let containers = if completed {
        condition("ContainersReady", false, "PodCompleted", "")
    } else if failed {
        condition("ContainersReady", false, "PodFailed", "")
    } else if unready.is_empty() {
        condition("ContainersReady", true, "", "")
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        condition("ContainersReady", false, "ContainersNotReady", &message)
    };
    list.push(ready(pod, &containers, known));
    list.push(containers);
    if condition_of(known, "PodScheduled").is_none() {
        list.push(condition("PodScheduled", true, "", ""));
    }
    let own: Vec<String> = list.iter().map(|c| c.type_.clone()).collect();
    let others = known.conditions.iter().flatten().filter(|c| !own.contains(&c.type_));
    list.extend(others.cloned());
    for condition in &mut list {
        let before = condition_of(known, &condition.type_);
        let same =
            before.filter(|b| b.status == condition.status).and_then(|b| b.last_transition_time.clone());
        condition.last_transition_time = Some(same.unwrap_or(Time(now)));
    }
    list
}

fn initialized(pod: &Pod, state: &PodState, completed: bool) -> PodCondition {
    if completed {
        return condition("Initialized", true, "PodCompleted", "");
    }
    let missing: Vec<&str> = pod::containers(pod)
        .filter(|(role, _)| matches!(role, Role::Init | Role::Sidecar))
        .filter(|(role, c)| {
            let known = state.container(&c.name);
            match role {
                Role::Init => known.ended().is_none_or(|e| e.code != 0),
                _ => !known.probed.is_some_and(|p| p.started),
            }
        })
        .map(|(_, c)| c.name.as_str())
        .collect();
    if state.initialized || missing.is_empty() {
        return condition("Initialized", true, "", "");
    }
    let message = format!("containers with incomplete status: [{}]", missing.join(" "));
    condition("Initialized", false, "ContainersNotInitialized", &message)
}

fn ready(pod: &Pod, containers: &PodCondition, known: &PodStatus) -> PodCondition {
    if containers.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers.clone() };
    }
    let mut unmet = Vec::new();
    for gate in pod::spec(pod).readiness_gates.iter().flatten() {
        match condition_of(known, &gate.condition_type) {
            None => unmet.push(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => unmet.push(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => {}
        }
    }
    if unmet.is_empty() {
        return condition("Ready", true, "", "");
    }
    condition("Ready", false, "ReadinessGatesNotReady", &unmet.join(", "))
}

fn condition(kind: &str, met: bool, reason: &str, message: &str) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if met { "True" } else { "False" }.into(),
        reason: some(reason),
        message: some(message),
        ..PodCondition::default()
    }
}

fn condition_of<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
