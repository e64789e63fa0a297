//! The one decision of a Pod's life: what to do now, given what is asked and what is there.
//!
//! Pure: it looks at the Pod, the [`PodState`] and the clock, and names actions; it is asked again after every change.
//! The order is upstream's: sandbox and volumes, init containers one after the other (sidecars stay), then the main
//! containers in their order; the way down is main containers, then sidecars in reverse, then the sandbox.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::state::{ContainerState, ImageState, PodState, Run, Stage, Stop};
use crate::pod::{self, Role};

/// Something to do; each runs as its own task and comes back as an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make namespaces and network.
    Sandbox,
    /// Set up the volumes.
    Volumes,
    /// Find or pull the image of a container.
    Pull(String),
    /// Create and start a container.
    Start(String),
    /// Stop a running container within so many seconds.
    Kill {
        /// Which.
        name: String,
        /// Grace in seconds.
        grace: i64,
    },
    /// A container waits after failures until then.
    BackOff {
        /// Which.
        name: String,
        /// Its image cannot be pulled (otherwise its process crashes).
        image: bool,
        /// Until when.
        until: Timestamp,
    },
    /// Give the Pod up.
    Fail {
        /// `status.reason`.
        reason: String,
        /// `status.message`.
        message: String,
    },
    /// Remove network and namespaces.
    TearDown,
    /// Write the last status and remove the API object.
    DeleteFromApi,
    /// Remove volumes, logs and files.
    Clean,
}

/// What [`step`] decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// What to begin now.
    pub actions: Vec<Action>,
    /// When to ask again if nothing happens before.
    pub wake: Option<Timestamp>,
    /// The init containers have done their work.
    pub initialized: bool,
    /// Nothing is left of the Pod: the worker can end.
    pub finished: bool,
}

impl Step {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// How long a refused start waits for another try.
const REFUSED_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Decides.
pub fn step(pod: &Pod, state: &PodState, now: Timestamp) -> Step {
    let mut step = Step { initialized: state.initialized || init_done(pod, state), ..Step::default() };
    if let Some(stop) = &state.stop {
        stopping(pod, state, stop, now, &mut step);
        return step;
    }
    let deadline = pod::spec(pod).active_deadline_seconds.zip(state.start_time);
    if let Some(at) = deadline.map(|(seconds, start)| start + SignedDuration::from_secs(seconds)) {
        if at <= now {
            let message = "Pod was active on the node longer than the specified deadline";
            step.act(Action::Fail { reason: "DeadlineExceeded".into(), message: message.into() });
            return step;
        }
        step.wake_at(at);
    }
    if init_failed(pod, state) {
        step.act(Action::Fail { reason: String::new(), message: String::new() });
        return step;
    }
    if step.initialized && mains_finished(pod, state) {
        finishing(pod, state, now, &mut step);
        return step;
    }
    prepare(state, now, &mut step);
    for (role, container) in eligible(pod, state, step.initialized) {
        advance(pod, state, role, &container, now, &mut step);
    }
    step
}

fn prepare(state: &PodState, now: Timestamp, step: &mut Step) {
    for (stage, action) in [(&state.sandbox, Action::Sandbox), (&state.volumes, Action::Volumes)] {
        if stage.is_due(now) {
            step.act(action);
        } else if let Stage::Failed { until, .. } = stage {
            step.wake_at(*until);
        }
    }
}

/// One init container after the other; a sidecar is done once it has started.
pub fn init_done(pod: &Pod, state: &PodState) -> bool {
    pod::containers(pod)
        .filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar))
        .all(|(r, c)| is_done(r, c, state))
}

fn is_done(role: Role, container: &Container, state: &PodState) -> bool {
    let known = state.container(&container.name);
    match role {
        Role::Init => known.ended().is_some_and(|e| e.code == 0),
        Role::Sidecar => {
            known.running_id().is_some() && known.post_started && known.probed.is_some_and(|p| p.started)
        }
        Role::Main | Role::Ephemeral => true,
    }
}

fn init_failed(pod: &Pod, state: &PodState) -> bool {
    let never = pod::restart_policy(pod) == "Never" && !state.initialized;
    never
        && pod::containers(pod).any(|(role, c)| {
            role == Role::Init && state.container(&c.name).ended().is_some_and(|e| e.code != 0)
        })
}

/// True when every main container has ended for good.
pub fn mains_finished(pod: &Pod, state: &PodState) -> bool {
    pod::containers(pod).filter(|(role, _)| *role == Role::Main).all(|(role, c)| {
        let known = state.container(&c.name);
        known.ended().is_some() && !restarts(pod, role, &known)
    })
}

/// Whether a container in this state is to run (again).
pub fn restarts(pod: &Pod, role: Role, container: &ContainerState) -> bool {
    let code = match &container.run {
        Run::New | Run::Refused { .. } => return true,
        Run::Starting | Run::Running { .. } => return false,
        Run::Ended(ended) => ended.code,
    };
    match (role, pod::restart_policy(pod)) {
        (Role::Sidecar, _) => true,
        (Role::Ephemeral, _) | (_, "Never") => false,
        (Role::Init, _) | (_, "OnFailure") => code != 0,
        _ => true,
    }
}

/// The containers whose turn it is, ephemeral ones first.
fn eligible(pod: &Pod, state: &PodState, initialized: bool) -> Vec<(Role, Container)> {
    let ephemeral = pod::spec(pod).ephemeral_containers.iter().flatten();
    let mut turn: Vec<(Role, Container)> =
        ephemeral.map(|e| (Role::Ephemeral, pod::from_ephemeral(e))).collect();
    for (role, container) in pod::containers(pod) {
        match role {
            Role::Init if initialized => {}
            Role::Init | Role::Sidecar => {
                turn.push((role, container.clone()));
                if !initialized && !is_done(role, container, state) {
                    return turn;
                }
            }
            Role::Main | Role::Ephemeral => turn.push((role, container.clone())),
        }
    }
    turn
}

fn advance(pod: &Pod, state: &PodState, role: Role, container: &Container, now: Timestamp, step: &mut Step) {
    let known = state.container(&container.name);
    if !restarts(pod, role, &known) || known.killing {
        return;
    }
    let name = container.name.clone();
    let crashed_at = match &known.run {
        Run::Ended(ended) => known.backoff.wait(ended.finished_at, now),
        Run::Refused { at } => Some(*at + REFUSED_RETRY).filter(|until| *until > now),
        _ => None,
    };
    if let Some(until) = crashed_at {
        step.wake_at(until);
        if matches!(known.run, Run::Ended(_)) {
            step.act(Action::BackOff { name, image: false, until });
        }
        return;
    }
    match &known.image {
        ImageState::Unknown => step.act(Action::Pull(name)),
        ImageState::Busy => {}
        ImageState::Failed { at } => match known.image_backoff.wait(*at, now) {
            Some(until) => {
                step.wake_at(until);
                step.act(Action::BackOff { name, image: true, until });
            }
            None => step.act(Action::Pull(name)),
        },
        ImageState::Ready(_) => {
            let prepared = state.sandbox == Stage::Done && state.volumes == Stage::Done;
            if prepared && !another_starts(pod, state, role, &container.name, step) {
                step.act(Action::Start(name));
            }
        }
    }
}

/// Main containers start one after the other, as upstream starts them: a postStart hook holds back the next.
fn another_starts(pod: &Pod, state: &PodState, role: Role, name: &str, step: &Step) -> bool {
    let earlier = pod::containers(pod).filter(|(r, _)| *r == role).take_while(|(_, c)| c.name != name);
    earlier.into_iter().any(|(_, c)| {
        let known = state.container(&c.name);
        known.run == Run::Starting
            || (known.running_id().is_some() && !known.post_started)
            || step.actions.contains(&Action::Start(c.name.clone()))
    })
}

/// The work is done: sidecars go, then the sandbox; statuses and logs stay until the API object is deleted.
fn finishing(pod: &Pod, state: &PodState, now: Timestamp, step: &mut Step) {
    let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    kill_in_order(pod, state, grace, step);
    if state.all_stopped() {
        tear_down(state, now, step);
    }
}

fn stopping(pod: &Pod, state: &PodState, stop: &Stop, now: Timestamp, step: &mut Step) {
    if !state.all_stopped() {
        let left = state.deadline.map_or(0, |d| d.duration_since(now).as_secs().max(0));
        kill_in_order(pod, state, left, step);
        return;
    }
    // A sandbox or volumes in the making must be finished before they can be removed.
    if state.sandbox == Stage::Busy || state.volumes == Stage::Busy || !tear_down(state, now, step) {
        return;
    }
    if *stop != Stop::Deleted {
        return;
    }
    if !state.gone && state.api_deleted != Stage::Done {
        if state.api_deleted.is_due(now) {
            step.act(Action::DeleteFromApi);
        } else if let Stage::Failed { until, .. } = state.api_deleted {
            step.wake_at(until);
        }
        return;
    }
    match &state.cleaned {
        Stage::Done => step.finished = true,
        stage if stage.is_due(now) => step.act(Action::Clean),
        Stage::Failed { until, .. } => step.wake_at(*until),
        _ => {}
    }
}

fn tear_down(state: &PodState, now: Timestamp, step: &mut Step) -> bool {
    match &state.torn_down {
        Stage::Done => return true,
        stage if stage.is_due(now) => step.act(Action::TearDown),
        Stage::Failed { until, .. } => step.wake_at(*until),
        _ => {}
    }
    false
}

/// Main, init and ephemeral containers at once; then sidecars, the last one first.
fn kill_in_order(pod: &Pod, state: &PodState, grace: i64, step: &mut Step) {
    let sidecars: Vec<&str> =
        pod::containers(pod).filter(|(r, _)| *r == Role::Sidecar).map(|(_, c)| c.name.as_str()).collect();
    let mut kill = |name: &str, known: &ContainerState| {
        if known.running_id().is_some() && !known.killing {
            step.act(Action::Kill { name: name.into(), grace });
        }
    };
    let mut others =
        state.containers.iter().filter(|(name, c)| c.is_alive() && !sidecars.contains(&name.as_str()));
    let mut any = false;
    for (name, known) in &mut others {
        kill(name, known);
        any = true;
    }
    if any {
        return;
    }
    if let Some(name) = sidecars.iter().rev().find(|name| state.container(name).is_alive()) {
        kill(name, &state.container(name));
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
