//! Jobs played to their end without a server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{TRACKING, condition, plan};
use crate::fixtures::pod;
use crate::meta;

/// A Job with its Pods; `outcome` says how the n-th Pod ends.
struct World {
    job: Job,
    pods: Vec<Pod>,
    made: usize,
    now: i64,
    events: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut spec = spec;
        spec["template"] = json!({"spec": {"containers": [], "restartPolicy": "Never"}});
        let job = json!({"metadata": {"name": "job", "namespace": "ns", "uid": "job"}, "spec": spec});
        Self { job: serde_json::from_value(job).unwrap(), pods: vec![], made: 0, now: 1000, events: vec![] }
    }

    /// One run; the number of Pods made.
    fn step(&mut self) -> usize {
        if self.is_complete() {
            return 0;
        }
        let owned: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.job, &owned, Timestamp::from_second(self.now).unwrap());
        let stored = self.job.status.replace(plan.status);
        let uncounted = stored.and_then(|s| s.uncounted_terminated_pods).unwrap_or_default();
        for released in plan.release {
            let uid = meta::uid(&released.metadata).to_owned();
            let counted = uncounted.succeeded.iter().chain(&uncounted.failed).flatten().any(|u| *u == uid);
            let deleted = plan.delete.iter().any(|p| meta::uid(&p.metadata) == uid);
            assert!(counted || deleted, "{uid} released before it was stored");
            let pod = self.pods.iter_mut().find(|p| meta::uid(&p.metadata) == uid).unwrap();
            pod.metadata.finalizers = None;
        }
        for deleted in plan.delete {
            let at = self.pods.iter().position(|p| p.metadata.uid == deleted.metadata.uid).unwrap();
            if self.pods[at].metadata.finalizers.is_none() {
                self.pods.remove(at);
            } else {
                self.pods[at].metadata.deletion_timestamp = Some(meta::time(Timestamp::UNIX_EPOCH));
                self.pods[at].status.as_mut().unwrap().phase = Some("Failed".into());
            }
        }
        self.events.extend(plan.events.into_iter().map(|(reason, _)| reason.to_owned()));
        let made = plan.create.len();
        for index in plan.create {
            self.made += 1;
            let mut new = pod(&format!("p{}", self.made)).running();
            if let Some(index) = index {
                new = new.annotated(super::indexes::INDEX, &index.to_string());
            }
            let mut new = new.build();
            new.metadata.finalizers = Some(vec![TRACKING.into()]);
            self.pods.push(new);
        }
        made
    }

    /// All running Pods end like this.
    fn end(&mut self, phase: &str) {
        for pod in &mut self.pods {
            let status = pod.status.as_mut().unwrap();
            if status.phase.as_deref() == Some("Running") {
                status.phase = Some(phase.into());
                let ended = json!([{"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"terminated": {"exitCode": 0, "finishedAt": meta::time(Timestamp::from_second(self.now).unwrap())}}}]);
                status.container_statuses = serde_json::from_value(ended).unwrap();
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..6 {
            self.step();
        }
    }

    fn is(&self, type_: &str) -> bool {
        condition(self.job.status.as_ref().unwrap(), type_).is_some()
    }

    fn is_complete(&self) -> bool {
        self.job.status.is_some() && (self.is("Complete") || self.is("Failed"))
    }

    fn counts(&self) -> (i32, i32, i32) {
        let s = self.job.status.clone().unwrap();
        (s.active.unwrap_or(0), s.succeeded.unwrap_or(0), s.failed.unwrap_or(0))
    }
}

#[test]
fn a_job_runs_in_parallel_to_completion_and_counts_once() {
    let mut world = World::new(json!({"completions": 5, "parallelism": 2}));
    let mut waves = Vec::new();
    while !world.is_complete() && waves.len() < 20 {
        let made = world.step();
        if made > 0 {
            waves.push(made);
        }
        world.end("Succeeded");
    }
    assert_eq!(waves, [2, 2, 1]);
    assert_eq!(world.counts(), (0, 5, 0));
    assert_eq!(world.events, ["Completed"]);
    assert!(world.pods.iter().all(|p| p.metadata.finalizers.is_none()));
}

#[test]
fn failures_back_off_and_then_fail_the_job() {
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 2}));
    let mut starts = Vec::new();
    for _ in 0..200 {
        if world.step() > 0 {
            starts.push(world.now - 1000);
        }
        world.end("Failed");
        world.now += 1;
    }
    assert_eq!(starts, [0, 10, 30]);
    assert!(world.is("Failed"));
    assert_eq!(world.counts(), (0, 0, 3));
    assert_eq!(world.events, ["BackoffLimitExceeded"]);
}

#[test]
fn an_indexed_job_completes_each_index() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}));
    world.step();
    world.pods[1].status.as_mut().unwrap().phase = Some("Succeeded".into());
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("1"));
    world.end("Succeeded");
    world.settle();
    assert!(world.is("Complete"));
    assert_eq!(world.made, 3);
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("0-2"));
}

#[test]
fn suspension_and_deadline() {
    let mut world =
        World::new(json!({"completions": 1, "parallelism": 1, "suspend": true, "activeDeadlineSeconds": 30}));
    world.settle();
    assert_eq!((world.made, world.is("Suspended")), (0, true));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!(world.counts(), (1, 0, 0));
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.settle();
    assert_eq!(world.counts(), (0, 0, 0));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    world.now += 30;
    world.settle();
    assert!(world.is("Failed"));
    assert_eq!(world.events, ["Suspended", "Resumed", "Suspended", "Resumed", "DeadlineExceeded"]);
}

#[test]
fn a_work_queue_ends_when_all_have_ended() {
    let mut world = World::new(json!({"parallelism": 3}));
    world.step();
    world.pods[0].status.as_mut().unwrap().phase = Some("Succeeded".into());
    world.settle();
    assert_eq!(world.counts(), (2, 1, 0));
    world.end("Succeeded");
    world.settle();
    assert!(world.is("Complete"));
    assert_eq!((world.counts(), world.made), ((0, 3, 0), 3));
}
