//! What a Pod's worker knows: sandbox, volumes, images, containers. Plain data; `step` reads it, outcomes change it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::pause::PauseProcess;
use crate::backoff::Backoff;
use crate::edge::Image;

/// A step of preparation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stage {
    /// Not begun.
    #[default]
    Todo,
    /// An action is at it.
    Busy,
    /// Done.
    Done,
    /// It failed; try again then.
    Failed {
        /// Earliest next attempt.
        until: Timestamp,
        /// How often in a row.
        times: u32,
    },
}

impl Stage {
    /// True when an attempt may begin now.
    pub fn is_due(&self, now: Timestamp) -> bool {
        match self {
            Self::Todo => true,
            Self::Failed { until, .. } => *until <= now,
            Self::Busy | Self::Done => false,
        }
    }

    /// The stage after one more failure: half a second doubled up to two minutes.
    pub fn failed(&self, now: Timestamp, times_before: u32) -> Self {
        let delay = SignedDuration::from_millis((500i64 << times_before.min(8)).min(122_000));
        Self::Failed { until: now + delay, times: times_before + 1 }
    }
}

/// How a container's process ended, as its status tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The runtime's id.
    pub id: String,
    /// Exit code.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// Start.
    pub started_at: Option<Timestamp>,
    /// End.
    pub finished_at: Timestamp,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Run {
    /// Never started by this Pod.
    #[default]
    New,
    /// A start is on its way.
    Starting,
    /// It runs.
    Running {
        /// The runtime's id.
        id: String,
        /// Since.
        started_at: Timestamp,
    },
    /// It ended.
    Ended(Ended),
    /// A start failed before the process ran (no process, no exit code).
    Refused {
        /// When.
        at: Timestamp,
    },
}

/// Why a container waits, as `state.waiting` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `ErrImagePull`, `CreateContainerConfigError`, ...
    pub reason: String,
    /// Details.
    pub message: String,
}

/// Pulling an image.
#[derive(Debug, Clone, Default)]
pub enum ImageState {
    /// Not asked for yet.
    #[default]
    Unknown,
    /// On its way.
    Busy,
    /// Here.
    Ready(Arc<Image>),
    /// Not to be had now.
    Failed {
        /// When the attempt failed.
        at: Timestamp,
    },
}

/// What the probes of a container said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// The startup probe has passed (or there is none).
    pub started: bool,
    /// The readiness probe passes (or there is none).
    pub ready: bool,
}

/// One container of the Pod.
#[derive(Debug, Clone, Default)]
pub struct ContainerState {
    /// Its image.
    pub image: ImageState,
    /// Failures of its image.
    pub image_backoff: Backoff,
    /// Where it is.
    pub run: Run,
    /// How it ended before the present run.
    pub last: Option<Ended>,
    /// Restarts so far; also the number of its log file.
    pub restarts: u32,
    /// Failures of its process.
    pub backoff: Backoff,
    /// Why it waits, if something went wrong.
    pub waiting: Option<Waiting>,
    /// Probe results of the present run; `None` without a run.
    pub probed: Option<Probed>,
    /// A kill is on its way.
    pub killing: bool,
    /// postStart is done (or there is none) for the present run.
    pub post_started: bool,
    /// `status.image` and `status.imageID` of the present run.
    pub image_names: Option<(String, String)>,
    /// When it was told apart that it crash-loops, so that the event is written once per wait.
    pub backoff_told: Option<Timestamp>,
}

impl ContainerState {
    /// The id of the running process' container.
    pub fn running_id(&self) -> Option<&str> {
        if let Run::Running { id, .. } = &self.run { Some(id) } else { None }
    }

    /// True while a process exists or is being made.
    pub fn is_alive(&self) -> bool {
        matches!(self.run, Run::Running { .. } | Run::Starting)
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<&Ended> {
        if let Run::Ended(ended) = &self.run { Some(ended) } else { None }
    }
}

/// Why the whole Pod is being stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The API object is being deleted, or is gone.
    Deleted,
    /// The agent gave the Pod up: phase Failed with this reason and message.
    Failed {
        /// `status.reason`.
        reason: String,
        /// `status.message`.
        message: String,
    },
}

/// Everything known of one Pod.
#[derive(Debug, Clone, Default)]
pub struct PodState {
    /// When the agent first saw it.
    pub start_time: Option<Timestamp>,
    /// Its namespaces and network.
    pub sandbox: Stage,
    /// Failures of the sandbox in a row.
    pub sandbox_failures: u32,
    /// Failures of the volumes in a row.
    pub volume_failures: u32,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// First process of the shared pid namespace (`shareProcessNamespace`).
    pub pause: Option<PauseProcess>,
    /// Its volumes.
    pub volumes: Stage,
    /// By container name.
    pub containers: BTreeMap<String, ContainerState>,
    /// Init containers have all done their work once; they do not run again in this sandbox.
    pub initialized: bool,
    /// The Pod is being stopped.
    pub stop: Option<Stop>,
    /// When all must be killed (set with `stop`).
    pub deadline: Option<Timestamp>,
    /// The API object is gone: there is no status to write any more.
    pub gone: bool,
    /// Sandbox and network are taken down.
    pub torn_down: Stage,
    /// The API object was told to go.
    pub api_deleted: Stage,
    /// Volumes, logs and files are removed.
    pub cleaned: Stage,
}

impl PodState {
    /// The state of a container; a name not seen before is new.
    pub fn container(&self, name: &str) -> std::borrow::Cow<'_, ContainerState> {
        match self.containers.get(name) {
            Some(known) => std::borrow::Cow::Borrowed(known),
            None => std::borrow::Cow::Owned(ContainerState::default()),
        }
    }

    /// True when no process of the Pod is left or being made.
    pub fn all_stopped(&self) -> bool {
        self.containers.values().all(|c| !c.is_alive())
    }
}
