//! What operations, probes and the runtime report, and what follows from it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::Exit;
use tokio::sync::watch;

use super::{Msg, Outcome, Probes, Worker};
use crate::pod::Role;
use crate::probe::{self, Kind, Report};
use crate::worker::state::{Ended, ImageState, Probed, Run, Stage, Waiting};
use crate::worker::{StartError, ended, start, stop};
use crate::{logs, pod};

impl Worker {
    pub(super) fn learn(&mut self, outcome: Outcome) {
        let now = (self.agent.clock)();
        match outcome {
            Outcome::Nothing => {}
            Outcome::Sandbox(Ok(made)) => {
                self.state.sandbox = Stage::Done;
                self.state.ips = made.ips;
                self.state.pause = made.pause;
            }
            Outcome::Sandbox(Err(error)) => {
                self.agent.warning(
                    &self.pod,
                    "FailedCreatePodSandBox",
                    format!("Failed to create pod sandbox: {error}"),
                );
                self.state.sandbox = self.state.sandbox.failed(now, self.state.sandbox_failures);
                self.state.sandbox_failures += 1;
            }
            Outcome::Volumes { refresh, result } => self.volumes_done(refresh, result, now),
            Outcome::Pulled(name, result) => {
                self.pulls.remove(&name);
                let known = self.container(&name);
                match result {
                    Ok(image) => {
                        known.image_names = Some((image.reference.clone(), image.image_id.clone()));
                        known.image = ImageState::Ready(image);
                        known.image_backoff.reset();
                        known.waiting = None;
                    }
                    Err(error) => {
                        known.image = ImageState::Failed { at: now };
                        known.image_backoff.next(now, now);
                        known.waiting = Some(Waiting { reason: error.reason.into(), message: error.message });
                    }
                }
            }
            Outcome::Started(name, id, result) => self.started(&name, &id, result),
            Outcome::PostStarted(name, id, result) => {
                if self.state.container(&name).running_id() != Some(&id) {
                    return;
                }
                match result {
                    Ok(()) => self.post_started(&name),
                    Err(error) => {
                        self.agent.warning(
                            &self.pod,
                            "FailedPostStartHook",
                            format!("PostStartHook failed: {error}"),
                        );
                        let grace = pod::spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
                        self.kill(&name, grace, "FailedPostStartHook".into());
                    }
                }
            }
            Outcome::TornDown(result) => self.state.torn_down = self.finished("FailedKillPod", result, now),
            Outcome::ApiDeleted(result) => self.state.api_deleted = self.finished("", result, now),
            Outcome::Cleaned(result) => self.state.cleaned = self.finished("", result, now),
            Outcome::Patched(sent, result) => self.patched(*sent, result, now),
        }
    }

    pub(super) fn finished(&self, event: &str, result: Result<(), String>, now: Timestamp) -> Stage {
        let Err(error) = result else { return Stage::Done };
        tracing::warn!(pod = self.name(), error, "removing a Pod");
        if !event.is_empty() {
            self.agent.warning(&self.pod, event, format!("error killing pod: {error}"));
        }
        Stage::Failed { until: now + SignedDuration::from_secs(1), times: 1 }
    }

    pub(super) fn volumes_done(&mut self, refresh: bool, result: Result<(), String>, now: Timestamp) {
        if let Ok(tokens) = self.tokens.try_lock() {
            self.token_due = tokens.next_due();
        }
        if let Err(error) = &result {
            self.agent.warning(&self.pod, "FailedMount", error.clone());
        }
        match (refresh, result) {
            (true, _) => {
                // A token that could not be renewed is asked for again in a while.
                self.token_due = self.token_due.map(|due| due.max(now + SignedDuration::from_secs(10)));
            }
            (false, Ok(())) => self.state.volumes = Stage::Done,
            (false, Err(_)) => {
                self.state.volumes = self.state.volumes.failed(now, self.state.volume_failures);
                self.state.volume_failures += 1;
            }
        }
    }

    pub(super) fn started(&mut self, name: &str, id: &str, result: Result<Timestamp, StartError>) {
        let now = (self.agent.clock)();
        self.starting.remove(name);
        let early = self.early.remove(id);
        let known = self.container(name);
        known.image_names = match &known.image {
            ImageState::Ready(image) => Some((image.reference.clone(), image.image_id.clone())),
            _ => known.image_names.take(),
        };
        match result {
            Ok(started_at) => {
                known.run = Run::Running { id: id.to_string(), started_at };
                known.waiting = None;
                self.ran(name, id);
                if let Some(exit) = early {
                    self.exited(id, exit);
                }
            }
            Err(error) => {
                self.directory.unroute(id);
                let known = self.container(name);
                known.waiting = Some(Waiting { reason: error.reason.into(), message: error.message.clone() });
                known.image = ImageState::Unknown;
                known.run = if error.ran {
                    // Upstream's word for a process that never ran.
                    Run::Ended(Ended {
                        id: id.to_string(),
                        code: 128,
                        signal: None,
                        reason: "StartError".into(),
                        message: Some(error.message),
                        started_at: None,
                        finished_at: now,
                    })
                } else {
                    Run::Refused { at: now }
                };
            }
        }
    }

    /// A container runs (just started, or adopted): hook and probes begin.
    pub(super) fn ran(&mut self, name: &str, id: &str) {
        let Some((role, container)) = pod::container(&self.pod, name) else { return };
        let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
        let has_probes = matches!(role, Role::Main | Role::Sidecar);
        let (started, receiver) = watch::channel(false);
        if has_probes {
            let ip = self.state.ips.first().copied();
            let target = probe::Target { container: container.clone(), id: id.to_string(), ip };
            let (outbox, name, id) = (self.outbox.clone(), name.to_string(), id.to_string());
            let report = move |report| {
                // A worker that is gone needs no reports.
                let _ = outbox.send(Msg::Probe(name.clone(), id.clone(), report));
            };
            let tasks = probe::start(&self.agent, &target, receiver, report);
            self.probes.insert(target.container.name.clone(), Probes { started, _tasks: tasks });
        }
        let known = self.container(name);
        known.probed = Some(Probed {
            started: !has_probes || container.startup_probe.is_none(),
            ready: !has_probes || container.readiness_probe.is_none(),
        });
        match hook.filter(|_| !known.post_started) {
            None => self.post_started(name),
            Some(handler) => {
                let (agent, ip) = (self.agent.clone(), self.state.ips.first().copied());
                let (name, id) = (name.to_string(), id.to_string());
                self.tasks.spawn(async move {
                    let result = stop::hook(&agent, &handler, &container, &id, ip).await;
                    Outcome::PostStarted(name, id, result)
                });
            }
        }
    }

    pub(super) fn post_started(&mut self, name: &str) {
        self.container(name).post_started = true;
        self.release_probes(name);
    }

    pub(super) fn release_probes(&mut self, name: &str) {
        let known = self.state.container(name);
        let started = known.post_started && known.probed.is_some_and(|p| p.started);
        if let Some(probes) = self.probes.get(name) {
            probes.started.send_replace(started);
        }
    }

    pub(super) fn probed(&mut self, name: &str, id: &str, report: Report) {
        if self.state.container(name).running_id() != Some(id) {
            return;
        }
        let (kind, passed) = match report {
            Report::Failure(kind, text) => {
                self.agent.warning(&self.pod, "Unhealthy", format!("{} probe failed: {text}", kind.title()));
                return;
            }
            Report::Result(kind, passed) => (kind, passed),
        };
        match (kind, passed) {
            (Kind::Readiness, ready) => {
                if let Some(probed) = &mut self.container(name).probed {
                    probed.ready = ready;
                }
            }
            (Kind::Startup, true) => {
                if let Some(probed) = &mut self.container(name).probed {
                    probed.started = true;
                }
                self.release_probes(name);
            }
            (Kind::Liveness, true) => {}
            (Kind::Startup | Kind::Liveness, false) => self.unhealthy(name, kind),
        }
    }

    pub(super) fn unhealthy(&mut self, name: &str, kind: Kind) {
        if self.state.container(name).killing || self.state.stop.is_some() {
            return;
        }
        let container = pod::container(&self.pod, name).map(|(_, c)| c).unwrap_or_default();
        let own = probe::of(&container, kind).and_then(|p| p.termination_grace_period_seconds);
        let grace = own.or(pod::spec(&self.pod).termination_grace_period_seconds).unwrap_or(30);
        let probe = kind.title().to_lowercase();
        self.kill(name, grace, format!("Container {name} failed {probe} probe, will be restarted"));
    }

    pub(super) fn exited(&mut self, id: &str, exit: Exit) {
        if self.starting.values().any(|known| known == id) {
            self.early.insert(id.to_string(), exit);
            return;
        }
        let found =
            self.state.containers.iter().find(|(_, c)| c.running_id() == Some(id)).map(|(n, _)| n.clone());
        let Some(name) = found else { return };
        self.forget_run(&name);
        self.directory.unroute(id);
        let attempt = self.state.container(&name).restarts;
        let container = pod::container(&self.pod, &name).map(|(_, c)| c).unwrap_or_default();
        let dir = self.agent.paths(pod::uid(&self.pod)).attempt(&name, attempt);
        let log = self.agent.log_path(&self.pod, &name, attempt);
        let message = logs::termination_message(&container, &start::termination_log(&dir), &log, exit.code);
        let known = self.container(&name);
        if let Run::Running { started_at, .. } = known.run {
            let mut ended = ended(id, Some(started_at), &exit);
            ended.message = message;
            known.run = Run::Ended(ended);
        }
        known.killing = false;
        known.probed = None;
        known.waiting = None;
        // A restart looks for the image anew, as its policy says.
        known.image = ImageState::Unknown;
        let (agent, id) = (self.agent.clone(), id.to_string());
        let old_log = attempt.checked_sub(2).map(|old| self.agent.log_path(&self.pod, &name, old));
        self.tasks.spawn(async move {
            if let Err(error) = agent.containers.remove(&id).await {
                tracing::warn!(id, %error, "removing an ended container");
            }
            // The upper layer is of no use any more; the last words have been read.
            let _ = tokio::fs::remove_dir_all(&dir).await;
            if let Some(log) = old_log {
                let _ = tokio::fs::remove_file(log).await;
            }
            Outcome::Nothing
        });
    }

    /// Probes and kills of a run end with it.
    pub(super) fn forget_run(&mut self, name: &str) {
        self.probes.remove(name);
        if let Some(kill) = self.kills.remove(name) {
            kill.abort();
        }
    }

    pub(super) fn patched(&mut self, sent: PodStatus, result: Result<Box<Pod>, kube::Error>, now: Timestamp) {
        self.patching = false;
        match result {
            Ok(pod) => {
                let version = pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
                self.version = version.unwrap_or(self.version);
                self.written = pod.status.unwrap_or(sent);
            }
            // Deleted, or a successor of the same name: the watch will say so.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                self.patch_after = Some(now + SignedDuration::from_secs(1));
            }
            Err(error) => {
                tracing::warn!(pod = self.name(), %error, "the Pod's status was not written");
                self.patch_after = Some(now + SignedDuration::from_millis(500));
            }
        }
    }
}
