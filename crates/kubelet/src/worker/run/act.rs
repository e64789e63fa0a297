//! From decisions to operations: each action becomes a task whose outcome comes back to the worker.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Mutex;

use super::{Outcome, Worker, write_status};
use crate::backoff::go_duration;
use crate::config::Agent;
use crate::volume::fetch::{self, Fetched, TokenCache};
use crate::volume::{self, payload};
use crate::worker::state::{ImageState, Run, Stage, Stop, Waiting};
use crate::worker::step::Action;
use crate::worker::stop::Kill;
use crate::worker::{pull, sandbox, start, stop};
use crate::{patch, pod, worker};

impl Worker {
    pub(super) fn set_up_volumes(&mut self, refresh: bool) {
        let (agent, pod, tokens) = (self.agent.clone(), self.pod.clone(), self.tokens.clone());
        self.tasks.spawn(async move {
            let result = volumes(&agent, &pod, &tokens, refresh).await;
            Outcome::Volumes { refresh, result }
        });
    }

    pub(super) fn act(&mut self, action: Action, now: Timestamp) {
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        match action {
            Action::Sandbox => {
                self.state.sandbox = Stage::Busy;
                self.tasks.spawn(async move { Outcome::Sandbox(sandbox::make(&agent, &pod).await) });
            }
            Action::Volumes => {
                self.state.volumes = Stage::Busy;
                self.set_up_volumes(false);
            }
            Action::Pull(name) => self.pull(name),
            Action::Start(name) => self.start(name),
            Action::Kill { name, grace } => {
                let message = format!("Stopping container {name}");
                self.kill(&name, grace, message);
            }
            Action::BackOff { name, image, until } => self.back_off(&name, image, until),
            Action::Fail { reason, message } => {
                if !reason.is_empty() {
                    self.agent.normal(&self.pod, &reason, message.clone());
                }
                let grace = pod::spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
                self.stop(Stop::Failed { reason, message }, grace);
            }
            Action::TearDown => {
                self.state.torn_down = Stage::Busy;
                let pause = self.state.pause.clone();
                let task =
                    async move { Outcome::TornDown(sandbox::remove(&agent, &pod, pause.as_ref()).await) };
                self.tasks.spawn(task);
            }
            Action::DeleteFromApi => {
                self.state.api_deleted = Stage::Busy;
                let last = self.status(now);
                let change = patch::pod_status(pod::uid(&self.pod), &self.written, &last);
                self.tasks.spawn(async move { Outcome::ApiDeleted(delete(&agent, &pod, change).await) });
            }
            Action::Clean => {
                self.state.cleaned = Stage::Busy;
                self.tasks.spawn(async move { Outcome::Cleaned(clean(&agent, &pod).await) });
            }
        }
    }

    pub(super) fn pull(&mut self, name: String) {
        let Some((_, container)) = pod::container(&self.pod, &name) else { return };
        self.container(&name).image = ImageState::Busy;
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        let task_name = name.clone();
        let handle = self.tasks.spawn(async move {
            let result = pull::image(&agent, &pod, &container).await;
            Outcome::Pulled(task_name, result)
        });
        self.pulls.insert(name, handle);
    }

    pub(super) fn start(&mut self, name: String) {
        let now = (self.agent.clock)();
        let Some((role, container)) = pod::container(&self.pod, &name) else { return };
        let target = pod::spec(&self.pod).ephemeral_containers.iter().flatten();
        let target = target.filter(|e| e.name == name).find_map(|e| e.target_container_name.clone());
        let target_id = target.and_then(|t| self.state.container(&t).running_id().map(String::from));
        let pause = self.state.pause.as_ref().map(|p| p.pid);
        let ips = self.state.ips.clone();
        let known = self.container(&name);
        let ImageState::Ready(image) = known.image.clone() else { return };
        if let Run::Ended(ended) = &known.run {
            let ended = ended.clone();
            known.backoff.next(ended.finished_at, now);
            known.last = Some(ended);
            known.restarts += 1;
        }
        known.run = Run::Starting;
        known.post_started = false;
        known.probed = None;
        let attempt = known.restarts;
        let id = worker::new_id();
        self.starting.insert(name.clone(), id.clone());
        self.directory.route(&id, self.outbox.clone());
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        self.tasks.spawn(async move {
            let pid_of = match target_id {
                Some(target) => pid_of(&agent, &target).await,
                None => pause,
            };
            let plan = start::Plan { container, role, image, id: id.clone(), attempt, ips, pid_of };
            let result = start::start(&agent, &pod, &plan).await;
            Outcome::Started(name, id, result)
        });
    }

    pub(super) fn kill(&mut self, name: &str, grace: i64, message: String) {
        let Some((_, container)) = pod::container(&self.pod, name) else { return };
        let known = self.container(name);
        let Some(id) = known.running_id().map(String::from) else { return };
        known.killing = true;
        let signal = match &known.image {
            ImageState::Ready(image) => crate::spec::stop_signal(&image.config.stop_signal),
            _ => libc::SIGTERM,
        };
        let ip = self.state.ips.first().copied();
        let plan = Kill { container, id, ip, signal, grace, message, now: grace <= 0 };
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        let handle = self.tasks.spawn(async move {
            stop::kill(&agent, &pod, &plan).await;
            Outcome::Nothing
        });
        if let Some(before) = self.kills.insert(name.to_string(), handle) {
            before.abort();
        }
    }

    pub(super) fn back_off(&mut self, name: &str, image: bool, until: Timestamp) {
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        let full = self.name();
        let wanted = pod::container(&pod, name).and_then(|(_, c)| c.image).unwrap_or_default();
        let known = self.container(name);
        if known.backoff_told == Some(until) {
            return;
        }
        known.backoff_told = Some(until);
        if image {
            // Only a failed pull is spoken of as backing off; an image that may not be pulled stays what it is.
            if known.waiting.as_ref().is_some_and(|w| w.reason != "ErrImagePull") {
                return;
            }
            let text = format!("Back-off pulling image \"{wanted}\"");
            let cause = known.waiting.as_ref().filter(|w| w.reason.starts_with("Err"));
            let message = match cause {
                Some(cause) => format!("{text}: {}: {}", cause.reason, cause.message),
                None => text.clone(),
            };
            agent.normal(&pod, "BackOff", text);
            agent.warning(&pod, "Failed", "Error: ImagePullBackOff");
            known.waiting = Some(Waiting { reason: "ImagePullBackOff".into(), message });
        } else {
            let delay = go_duration(known.backoff.delay());
            let message = format!("back-off {delay} restarting failed container={name} pod={full}");
            agent.warning(
                &pod,
                "BackOff",
                format!("Back-off restarting failed container {name} in pod {full}"),
            );
            known.waiting = Some(Waiting { reason: "CrashLoopBackOff".into(), message });
        }
    }
}

async fn volumes(agent: &Agent, pod: &Pod, tokens: &Mutex<TokenCache>, refresh: bool) -> Result<(), String> {
    let (maps, secrets) = payload::needs(pod);
    let first = pod::spec(pod).volumes.iter().flatten().next().map(|v| v.name.clone()).unwrap_or_default();
    let named = |why: String| volume::MountError { volume: first.clone(), why }.to_string();
    let sources = fetch::objects(&agent.client, pod::namespace(pod), &maps, &secrets).await.map_err(named)?;
    let tokens = tokens.lock().await.fetch(&agent.client, pod, (agent.clock)()).await.map_err(named)?;
    let fetched = Fetched { sources, tokens };
    volume::set_up(agent, pod, &fetched, refresh).await.map_err(|e| e.to_string())
}

async fn pid_of(agent: &Agent, id: &str) -> Option<i32> {
    let all = agent.containers.list().await.ok()?;
    all.containers.into_iter().find(|c| c.id == id).map(|c| c.pid)
}

/// Writes the last status and deletes the object; one that is gone or replaced is fine.
async fn delete(agent: &Agent, pod: &Pod, last: Option<serde_json::Value>) -> Result<(), String> {
    let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
    if let Some(change) = last {
        match write_status(agent, pod, &change).await {
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
    }
    let api: kube::Api<Pod> = kube::Api::namespaced(agent.client.clone(), pod::namespace(pod));
    let uid = Some(pod::uid(pod).to_string());
    let params = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(kube::api::Preconditions { uid, resource_version: None }),
        ..kube::api::DeleteParams::default()
    };
    match api.delete(pod::name(pod), &params).await {
        Ok(_) => Ok(()),
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes everything that the Pod left on the node.
async fn clean(agent: &Agent, pod: &Pod) -> Result<(), String> {
    volume::tear_down(agent, pod).await?;
    let paths = agent.paths(pod::uid(pod));
    for dir in [paths.volatile, paths.root, agent.log_dir(pod)] {
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
