//! The task of one Pod: messages in, actions out, status written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use runtime::Exit;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::record::Record;
use super::sandbox::Made;
use super::state::{ImageState, PodState, Probed, Run, Stage, Stop, Waiting};
use super::step::{self, Action};
use super::stop::Kill;
use super::{StartError, pull, sandbox, start, status, stop};
use crate::backoff::go_duration;
use crate::config::Agent;
use crate::directory::Directory;
use crate::edge::Image;
use crate::pod::{self, Role};
use crate::probe::{self, AbortOnDrop, Kind, Report};
use crate::volume::fetch::{self, Fetched, TokenCache};
use crate::volume::{self, payload};
use crate::{logs, patch};

/// What a worker is told.
#[derive(Debug)]
pub enum Msg {
    /// The API object as it is now.
    Update(Arc<Pod>),
    /// The API object is gone.
    Gone,
    /// A container ended.
    Exited(String, Exit),
    /// A ConfigMap or Secret of the Pod's namespace changed (its name).
    Changed(String),
    /// A probe of a container (name, runtime's id) has something to say.
    Probe(String, String, Report),
}

/// What an operation came to.
enum Outcome {
    Sandbox(Result<Made, String>),
    Volumes {
        refresh: bool,
        result: Result<(), String>,
    },
    Pulled(String, Result<Arc<Image>, pull::PullError>),
    Started(String, String, Result<Timestamp, StartError>),
    PostStarted(String, String, Result<(), String>),
    TornDown(Result<(), String>),
    ApiDeleted(Result<(), String>),
    Cleaned(Result<(), String>),
    Patched(Box<PodStatus>, Result<Box<Pod>, kube::Error>),
    /// A kill has nothing to say: the container's end does.
    Nothing,
}

struct Probes {
    started: watch::Sender<bool>,
    _tasks: Vec<AbortOnDrop>,
}

/// The task's own things.
pub struct Worker {
    agent: Arc<Agent>,
    directory: Arc<Directory>,
    pod: Arc<Pod>,
    state: PodState,
    inbox: mpsc::UnboundedReceiver<Msg>,
    outbox: mpsc::UnboundedSender<Msg>,
    tasks: JoinSet<Outcome>,
    /// Pulls and kills on their way, by container.
    pulls: HashMap<String, AbortHandle>,
    kills: HashMap<String, AbortHandle>,
    /// Ids of starts on their way, and exits that were told before the start's own outcome.
    starting: HashMap<String, String>,
    early: HashMap<String, Exit>,
    probes: HashMap<String, Probes>,
    tokens: Arc<Mutex<TokenCache>>,
    token_due: Option<Timestamp>,
    written: PodStatus,
    patching: bool,
    patch_after: Option<Timestamp>,
    /// Updates older than this version still carry a status from before our last write.
    version: u64,
    recorded: Record,
}

impl Worker {
    /// A worker for a Pod, with what is known of it from before.
    pub fn new(
        agent: Arc<Agent>,
        directory: Arc<Directory>,
        pod: Arc<Pod>,
        state: PodState,
        inbox: mpsc::UnboundedReceiver<Msg>,
        outbox: mpsc::UnboundedSender<Msg>,
    ) -> Self {
        let written = pod.status.clone().unwrap_or_default();
        Self {
            agent,
            directory,
            pod,
            state,
            inbox,
            outbox,
            tasks: JoinSet::new(),
            pulls: HashMap::new(),
            kills: HashMap::new(),
            starting: HashMap::new(),
            early: HashMap::new(),
            probes: HashMap::new(),
            tokens: Arc::default(),
            token_due: None,
            written,
            patching: false,
            patch_after: None,
            version: 0,
            recorded: Record::default(),
        }
    }

    /// Lives the Pod's life; ends when nothing of it is left, or at `stop` (containers then run on).
    pub async fn run(mut self, stop: CancellationToken) {
        self.begin_life();
        loop {
            let now = (self.agent.clock)();
            let step = step::step(&self.pod, &self.state, now);
            self.state.initialized = step.initialized;
            let gave_up = step.actions.iter().any(|a| matches!(a, Action::Fail { .. }));
            for action in step.actions {
                self.act(action, now);
            }
            if gave_up {
                continue;
            }
            self.publish(now);
            if step.finished {
                break;
            }
            let wake = [step.wake, self.token_due, self.patch_after].into_iter().flatten().min();
            let sleep = wake.map_or(Duration::from_secs(3600), |at| until(at, now));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(msg) = self.inbox.recv() => self.hear(msg),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(outcome) => self.learn(outcome),
                    Err(error) if error.is_panic() => tracing::error!(pod = self.name(), %error, "an operation panicked"),
                    Err(_) => {}
                },
                () = tokio::time::sleep(sleep) => self.timers(),
            }
            // Take what else has come, so that one status covers it all.
            while let Ok(msg) = self.inbox.try_recv() {
                self.hear(msg);
            }
            while let Some(Ok(outcome)) = self.tasks.try_join_next() {
                self.learn(outcome);
            }
        }
        let names: Vec<String> = self.state.containers.keys().cloned().collect();
        names.iter().for_each(|name| self.forget_run(name));
    }

    fn name(&self) -> String {
        pod::full_name(&self.pod)
    }

    fn begin_life(&mut self) {
        let now = (self.agent.clock)();
        let known = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let start = self.state.start_time.or(known).unwrap_or(now);
        // The API keeps whole seconds; the same value must come back from it.
        self.state.start_time = Some(Timestamp::from_second(start.as_second()).unwrap_or(start));
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if self.state.stop.is_none() && phase == "Failed" {
            let status = self.written.clone();
            let (reason, message) = (status.reason.unwrap_or_default(), status.message.unwrap_or_default());
            self.state.stop = Some(Stop::Failed { reason, message });
        }
        if self.state.sandbox == Stage::Todo && !step::mains_finished(&self.pod, &self.state) {
            self.rerun_init();
        }
        if let Some((reason, message)) = sandbox::refusal(&self.agent, &self.pod) {
            self.agent.warning(&self.pod, &reason, message.clone());
            self.state.stop = Some(Stop::Failed { reason, message });
        }
        self.check_deletion();
        let running: Vec<(String, String)> = self
            .state
            .containers
            .iter()
            .filter_map(|(name, c)| c.running_id().map(|id| (name.clone(), id.to_string())))
            .collect();
        for (name, id) in running {
            self.directory.route(&id, self.outbox.clone());
            self.ran(&name, &id);
        }
    }

    /// A new sandbox (after a reboot) is initialized anew.
    fn rerun_init(&mut self) {
        for (_, container) in pod::containers(&self.pod.clone()).filter(|(role, _)| *role == Role::Init) {
            let Some(known) = self.state.containers.get_mut(&container.name) else { continue };
            if let Some(ended) = known.ended().cloned() {
                known.last = Some(ended);
                known.restarts += 1;
                known.run = Run::New;
            }
        }
    }

    fn check_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self.pod.metadata.deletion_grace_period_seconds;
            self.stop(Stop::Deleted, grace.unwrap_or(30));
        }
    }

    /// Begins the way down, or shortens it.
    fn stop(&mut self, why: Stop, grace: i64) {
        let now = (self.agent.clock)();
        let deadline = now + SignedDuration::from_secs(grace.max(0));
        let shorter = self.state.deadline.is_none_or(|known| deadline < known);
        if shorter {
            self.state.deadline = Some(deadline);
            // Kills on their way have a longer patience: they are begun anew with the shorter one.
            for (name, kill) in std::mem::take(&mut self.kills) {
                kill.abort();
                if let Some(container) = self.state.containers.get_mut(&name) {
                    container.killing = false;
                }
            }
        }
        if self.state.stop != Some(Stop::Deleted) {
            self.state.stop = Some(why);
        }
        for (name, pull) in std::mem::take(&mut self.pulls) {
            pull.abort();
            self.container(&name).image = ImageState::Unknown;
        }
        self.probes.clear();
    }

    fn container(&mut self, name: &str) -> &mut super::state::ContainerState {
        self.state.containers.entry(name.to_string()).or_default()
    }

    fn hear(&mut self, msg: Msg) {
        match msg {
            Msg::Update(pod) => self.update(pod),
            Msg::Gone => {
                self.state.gone = true;
                // Removed by force: nobody set a grace period. Its processes still get a second to end.
                self.stop(Stop::Deleted, self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(1));
            }
            Msg::Exited(id, exit) => self.exited(&id, exit),
            Msg::Changed(name) => {
                let (maps, secrets) = payload::needs(&self.pod);
                let of_env = |c: &Container| {
                    let needs = crate::spec::env::needs(c);
                    needs.config_maps.contains(&name) || needs.secrets.contains(&name)
                };
                if maps.contains(&name) || secrets.contains(&name) {
                    self.refresh();
                }
                let waiting: Vec<String> = pod::containers(&self.pod)
                    .filter(|(_, c)| of_env(c))
                    .map(|(_, c)| c.name.clone())
                    .collect();
                for name in waiting {
                    if let Run::Refused { at } = &mut self.container(&name).run {
                        *at = Timestamp::UNIX_EPOCH;
                    }
                }
            }
            Msg::Probe(name, id, report) => self.probed(&name, &id, report),
        }
    }

    fn update(&mut self, pod: Arc<Pod>) {
        let version = pod.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        if !self.patching && version.is_none_or(|v| v >= self.version) {
            self.written = pod.status.clone().unwrap_or_default();
        } else {
            // Conditions of others (readiness gates) count at once.
            let fresh = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let own = |kind: &str| OWN_CONDITIONS.contains(&kind);
            let others: Vec<_> = fresh.filter(|c| !own(&c.type_)).cloned().collect();
            let list = self.written.conditions.get_or_insert_default();
            list.retain(|c| own(&c.type_));
            list.extend(others);
        }
        let before = std::mem::replace(&mut self.pod, pod);
        for (_, container) in pod::containers(&self.pod.clone()) {
            let old = pod::container(&before, &container.name);
            let changed = old.is_some_and(|(_, old)| old.image != container.image);
            let running = self.state.container(&container.name).running_id().is_some();
            if changed && running && !self.state.container(&container.name).killing {
                let grace = pod::spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
                let message = format!("Container {} definition changed, will be restarted", container.name);
                self.kill(&container.name, grace, message);
            }
        }
        if before.metadata.labels != self.pod.metadata.labels
            || before.metadata.annotations != self.pod.metadata.annotations
        {
            self.refresh();
        }
        self.check_deletion();
    }

    fn timers(&mut self) {
        let now = (self.agent.clock)();
        if self.token_due.is_some_and(|due| due <= now) {
            self.token_due = None;
            self.refresh();
        }
        if self.patch_after.is_some_and(|at| at <= now) {
            self.patch_after = None;
        }
    }

    /// Brings volumes made of API objects up to date.
    fn refresh(&mut self) {
        match &mut self.state.volumes {
            Stage::Failed { until, .. } => *until = Timestamp::UNIX_EPOCH,
            Stage::Done if self.state.stop.is_none() => self.set_up_volumes(true),
            _ => {}
        }
    }

    fn set_up_volumes(&mut self, refresh: bool) {
        let (agent, pod, tokens) = (self.agent.clone(), self.pod.clone(), self.tokens.clone());
        self.tasks.spawn(async move {
            let result = volumes(&agent, &pod, &tokens, refresh).await;
            Outcome::Volumes { refresh, result }
        });
    }

    fn act(&mut self, action: Action, now: Timestamp) {
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

    fn pull(&mut self, name: String) {
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

    fn start(&mut self, name: String) {
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
        let id = super::new_id();
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

    fn kill(&mut self, name: &str, grace: i64, message: String) {
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

    fn back_off(&mut self, name: &str, image: bool, until: Timestamp) {
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        let full = self.name();
        let wanted = pod::container(&pod, name).and_then(|(_, c)| c.image).unwrap_or_default();
        let known = self.container(name);
        if known.backoff_told == Some(until) {
            return;
        }
        known.backoff_told = Some(until);
        if image {
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

    fn learn(&mut self, outcome: Outcome) {
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

    fn finished(&self, event: &str, result: Result<(), String>, now: Timestamp) -> Stage {
        let Err(error) = result else { return Stage::Done };
        tracing::warn!(pod = self.name(), error, "removing a Pod");
        if !event.is_empty() {
            self.agent.warning(&self.pod, event, format!("error killing pod: {error}"));
        }
        Stage::Failed { until: now + SignedDuration::from_secs(1), times: 1 }
    }

    fn volumes_done(&mut self, refresh: bool, result: Result<(), String>, now: Timestamp) {
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

    fn started(&mut self, name: &str, id: &str, result: Result<Timestamp, StartError>) {
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
                    Run::Ended(super::state::Ended {
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
    fn ran(&mut self, name: &str, id: &str) {
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

    fn post_started(&mut self, name: &str) {
        self.container(name).post_started = true;
        self.release_probes(name);
    }

    fn release_probes(&mut self, name: &str) {
        let known = self.state.container(name);
        let started = known.post_started && known.probed.is_some_and(|p| p.started);
        if let Some(probes) = self.probes.get(name) {
            probes.started.send_replace(started);
        }
    }

    fn probed(&mut self, name: &str, id: &str, report: Report) {
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

    fn unhealthy(&mut self, name: &str, kind: Kind) {
        if self.state.container(name).killing || self.state.stop.is_some() {
            return;
        }
        let container = pod::container(&self.pod, name).map(|(_, c)| c).unwrap_or_default();
        let own = probe::of(&container, kind).and_then(|p| p.termination_grace_period_seconds);
        let grace = own.or(pod::spec(&self.pod).termination_grace_period_seconds).unwrap_or(30);
        let probe = kind.title().to_lowercase();
        self.kill(name, grace, format!("Container {name} failed {probe} probe, will be restarted"));
    }

    fn exited(&mut self, id: &str, exit: Exit) {
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
            let mut ended = super::ended(id, Some(started_at), &exit);
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
    fn forget_run(&mut self, name: &str) {
        self.probes.remove(name);
        if let Some(kill) = self.kills.remove(name) {
            kill.abort();
        }
    }

    fn status(&self, now: Timestamp) -> PodStatus {
        status::status(&self.pod, &self.state, &self.agent.config.node_ips, &self.written, now)
    }

    /// Tells the API, the server and the record what is new.
    fn publish(&mut self, now: Timestamp) {
        let record = Record::of(pod::namespace(&self.pod), pod::name(&self.pod), &self.state);
        if record != self.recorded && self.state.cleaned == Stage::Todo {
            let path = self.agent.paths(pod::uid(&self.pod)).record();
            if let Err(error) = record.write(&path) {
                tracing::warn!(pod = self.name(), %error, "the Pod's record was not written");
            }
            self.recorded = record;
        }
        self.directory.show(&self.pod, &self.state, &self.agent.host_ports);
        let quiet = self.state.sandbox == Stage::Busy
            && self.state.sandbox_failures == 0
            && self.state.stop.is_none();
        let held = self.patching || self.patch_after.is_some() || self.state.gone;
        if quiet || held || self.state.api_deleted != Stage::Todo {
            return;
        }
        let status = self.status(now);
        let Some(change) = patch::pod_status(pod::uid(&self.pod), &self.written, &status) else { return };
        self.patching = true;
        let (agent, pod) = (self.agent.clone(), self.pod.clone());
        self.tasks.spawn(async move {
            let result = write_status(&agent, &pod, &change).await;
            Outcome::Patched(Box::new(status), result.map(Box::new))
        });
    }

    fn patched(&mut self, sent: PodStatus, result: Result<Box<Pod>, kube::Error>, now: Timestamp) {
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

const OWN_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

fn until(at: Timestamp, now: Timestamp) -> Duration {
    // Timers have a granularity of a millisecond; waking a moment too early would wake twice.
    Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
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

async fn write_status(agent: &Agent, pod: &Pod, change: &serde_json::Value) -> Result<Pod, kube::Error> {
    let api: kube::Api<Pod> = kube::Api::namespaced(agent.client.clone(), pod::namespace(pod));
    api.patch_status(pod::name(pod), &kube::api::PatchParams::default(), &kube::api::Patch::Strategic(change))
        .await
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
