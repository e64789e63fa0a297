//! What is remembered of a Pod across restarts of the agent: one small file per Pod.
//!
//! It maps the runtime's container ids to names and attempts and keeps what the runtime forgets (how earlier runs
//! ended, back-off). It is replaced by rename, so a crash leaves the old or the new one.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use runtime::{ContainerStatus, Snapshot, State};
use serde::{Deserialize, Serialize};

use super::pause::PauseProcess;
use super::state::{ContainerState, Ended, PodState, Run, Stage};
use crate::backoff::Backoff;
use crate::pod;

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The Pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// First process of the shared pid namespace.
    #[serde(default)]
    pub pause: Option<PauseProcess>,
    /// When the agent first saw it.
    pub start_time: Option<Timestamp>,
    /// Init containers have done their work in this sandbox.
    pub initialized: bool,
    /// By container name.
    pub containers: BTreeMap<String, Kept>,
}

/// One container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where it was.
    pub run: Run,
    /// How it ended before.
    pub last: Option<Ended>,
    /// Restarts.
    pub restarts: u32,
    /// Failures.
    pub backoff: Backoff,
    /// postStart is done.
    pub post_started: bool,
    /// Image names of the run.
    pub image_names: Option<(String, String)>,
}

impl Record {
    /// From the worker's state.
    pub fn of(namespace: &str, name: &str, state: &PodState) -> Self {
        let kept = |c: &ContainerState| Kept {
            // A start in flight is not known to have happened; the runtime's list will tell.
            run: if c.run == Run::Starting { Run::New } else { c.run.clone() },
            last: c.last.clone(),
            restarts: c.restarts,
            backoff: c.backoff.clone(),
            post_started: c.post_started,
            image_names: c.image_names.clone(),
        };
        Self {
            namespace: namespace.into(),
            name: name.into(),
            ips: state.ips.clone(),
            pause: state.pause.clone(),
            start_time: state.start_time,
            initialized: state.initialized,
            containers: state.containers.iter().map(|(n, c)| (n.clone(), kept(c))).collect(),
        }
    }

    /// From the status that the API has, for a Pod whose record is lost: what has ended must not run again.
    pub fn from_status(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let lists = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let mut record = Self {
            namespace: pod::namespace(pod).into(),
            name: pod::name(pod).into(),
            start_time: status.start_time.as_ref().map(|t| t.0),
            ..Self::default()
        };
        for known in lists.into_iter().flatten().flatten() {
            let restarts = u32::try_from(known.restart_count).unwrap_or(0);
            let state = known.state.clone().unwrap_or_default();
            let run = match (state.terminated, state.running) {
                (Some(end), _) => Run::Ended(Ended {
                    id: known
                        .container_id
                        .as_deref()
                        .and_then(|id| id.rsplit('/').next())
                        .unwrap_or_default()
                        .into(),
                    code: end.exit_code,
                    signal: end.signal,
                    reason: end.reason.unwrap_or_default(),
                    message: end.message,
                    started_at: end.started_at.map(|t| t.0),
                    finished_at: end.finished_at.map_or(Timestamp::UNIX_EPOCH, |t| t.0),
                }),
                (None, Some(running)) => Run::Running {
                    id: known.container_id.clone().unwrap_or_default(),
                    started_at: running.started_at.map_or(Timestamp::UNIX_EPOCH, |t| t.0),
                },
                _ => Run::New,
            };
            let names = (!known.image_id.is_empty()).then(|| (known.image.clone(), known.image_id.clone()));
            let kept = Kept { run, restarts, image_names: names, ..Kept::default() };
            record.containers.insert(known.name.clone(), kept);
        }
        record
    }

    /// Reads a record; one that is not there or torn is none.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let tmp = path.with_extension("tmp");
        std::fs::write(&tmp, serde_json::to_vec(self)?)?;
        std::fs::rename(&tmp, path)
    }

    /// The state to go on from: what the record says, corrected by what the runtime really has.
    ///
    /// With the sandbox gone (a reboot) everything is made anew: containers that ran count as ended.
    pub fn adopt(&self, uid: &str, snapshot: &Snapshot, now: Timestamp) -> PodState {
        let alive = snapshot.sandboxes.iter().any(|s| s == uid);
        let running: BTreeMap<&str, &ContainerStatus> =
            snapshot.containers.iter().map(|c| (c.id.as_str(), c)).collect();
        let mut state = PodState { start_time: self.start_time, ..PodState::default() };
        if alive {
            state.sandbox = Stage::Done;
            state.ips = self.ips.clone();
            state.pause = self.pause.clone();
            state.initialized = self.initialized;
        }
        for (name, kept) in &self.containers {
            let mut container = ContainerState {
                run: kept.run.clone(),
                last: kept.last.clone(),
                restarts: kept.restarts,
                backoff: kept.backoff.clone(),
                post_started: kept.post_started,
                image_names: kept.image_names.clone(),
                ..ContainerState::default()
            };
            if let Run::Running { id, started_at } = &kept.run {
                container.run =
                    now_is(running.get(id.as_str()).copied().filter(|_| alive), id, *started_at, now);
            }
            state.containers.insert(name.clone(), container);
        }
        state
    }
}

fn now_is(status: Option<&ContainerStatus>, id: &str, started_at: Timestamp, now: Timestamp) -> Run {
    match status {
        Some(status) if status.state == State::Running => Run::Running { id: id.into(), started_at },
        Some(ContainerStatus { exit: Some(exit), .. }) => {
            Run::Ended(super::ended(id, Some(started_at), exit))
        }
        _ => Run::Ended(Ended {
            id: id.into(),
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: Some("The container could not be located when the pod was terminated".into()),
            started_at: Some(started_at),
            finished_at: now,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn record() -> Record {
        let running = Run::Running { id: "r".into(), started_at: Timestamp::UNIX_EPOCH };
        let kept = Kept { run: running, restarts: 2, ..Kept::default() };
        Record {
            namespace: "n".into(),
            name: "p".into(),
            ips: vec!["10.244.0.9".parse().unwrap()],
            initialized: true,
            containers: [("c".to_string(), kept)].into(),
            ..Record::default()
        }
    }

    fn status(state: State) -> ContainerStatus {
        let exit = (state == State::Exited).then_some(runtime::Exit {
            code: 3,
            signal: None,
            oom_killed: false,
            finished_at: 5_000_000_000,
        });
        ContainerStatus { id: "r".into(), sandbox: "u".into(), state, pid: 1, started_at: 0, exit }
    }

    #[test]
    fn what_runs_is_adopted_and_what_is_gone_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/u/record.json");
        assert_eq!(Record::read(&path), None);
        record().write(&path).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!(read, record());
        let now = Timestamp::from_second(9).unwrap();
        let snapshot = |sandboxes: &[&str], containers| Snapshot {
            sandboxes: sandboxes.iter().map(|s| s.to_string()).collect(),
            containers,
        };
        let state = read.adopt("u", &snapshot(&["u"], vec![status(State::Running)]), now);
        assert_eq!((state.sandbox, state.ips.len(), state.initialized), (Stage::Done, 1, true));
        assert_eq!(state.containers["c"].running_id(), Some("r"));
        let state = read.adopt("u", &snapshot(&["u"], vec![status(State::Exited)]), now);
        assert_eq!(state.containers["c"].ended().unwrap().code, 3);
        // After a reboot nothing is there.
        let state = read.adopt("u", &snapshot(&[], vec![]), now);
        assert_eq!((state.sandbox, state.ips.len(), state.initialized), (Stage::Todo, 0, false));
        let ended = state.containers["c"].ended().unwrap().clone();
        assert_eq!((ended.reason.as_str(), state.containers["c"].restarts), ("ContainerStatusUnknown", 2));
    }
}
