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
use super::state::{ImageState, PodState, Run, Stage, Stop};
use super::step::{self, Action};
use super::{StartError, pull, sandbox, status};
use crate::config::Agent;
use crate::directory::Directory;
use crate::edge::Image;
use crate::patch;
use crate::pod::{self, Role};
use crate::probe::{AbortOnDrop, Report};
use crate::volume::fetch::TokenCache;
use crate::volume::payload;

mod act;
mod learn;

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

    /// Takes over what an earlier life of the agent has left; to be called once, before [`Worker::run`].
    pub fn begin_life(&mut self) {
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
}

const OWN_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

fn until(at: Timestamp, now: Timestamp) -> Duration {
    // Timers have a granularity of a millisecond; waking a moment too early would wake twice.
    Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
}

async fn write_status(agent: &Agent, pod: &Pod, change: &serde_json::Value) -> Result<Pod, kube::Error> {
    let api: kube::Api<Pod> = kube::Api::namespaced(agent.client.clone(), pod::namespace(pod));
    api.patch_status(pod::name(pod), &kube::api::PatchParams::default(), &kube::api::Patch::Strategic(change))
        .await
}
