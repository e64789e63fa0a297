//! Rollouts played to their end without a server: the plan acts on ReplicaSets, a toy kubelet makes Pods available.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetStatus, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::plan::{Action, plan};
use super::revision::{REVISION, revision};
use super::status::{COMPLETE, Conditions, PROGRESSING, complete};
use super::wish::{Wish, actual, available, size};
use crate::meta;

fn template(image: &str) -> PodTemplateSpec {
    let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
    let mut template = PodTemplateSpec {
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        ..PodTemplateSpec::default()
    };
    template.metadata.get_or_insert_default().labels = Some([("app".into(), "web".into())].into());
    template
}

fn deployment(replicas: i32, surge: IntOrString, unavailable: IntOrString) -> Deployment {
    let rolling = RollingUpdateDeployment { max_surge: Some(surge), max_unavailable: Some(unavailable) };
    let strategy = DeploymentStrategy { type_: Some("RollingUpdate".into()), rolling_update: Some(rolling) };
    let mut d = Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(strategy),
            template: template("nginx:1"),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(2),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    };
    d.metadata.name = Some("web".into());
    d.metadata.namespace = Some("ns".into());
    d.metadata.uid = Some("d".into());
    d.metadata.generation = Some(1);
    d
}

/// A cluster of one Deployment.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: i64,
    log: Vec<String>,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), now: 1000, log: Vec::new() }
    }

    fn update(&mut self, change: impl FnOnce(&mut DeploymentSpec)) {
        change(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn old_pods_run(&self) -> bool {
        let template = &self.deployment.spec.as_ref().unwrap().template;
        self.sets.iter().any(|s| !super::revision::same_template(s, template) && actual(s) > 0)
    }

    /// One run of the controller; whether it wrote anything.
    fn step(&mut self) -> bool {
        self.now += 1;
        let now = Timestamp::from_second(self.now).unwrap();
        let plan = plan(&self.deployment, self.sets.clone(), self.old_pods_run(), now);
        let mut changed = self.deployment.status.as_ref() != Some(&plan.status);
        self.deployment.status = Some(plan.status);
        for action in plan.actions {
            changed = true;
            self.apply(action);
        }
        changed
    }

    fn apply(&mut self, action: Action) {
        let find = |sets: &mut Vec<ReplicaSet>, name: &str| {
            sets.iter().position(|s| meta::name(&s.metadata) == name).unwrap()
        };
        match action {
            Action::Create(mut set) => {
                self.log.push(format!("create r{} at {}", revision(&set), size(&set)));
                set.metadata.creation_timestamp = Some(meta::time(Timestamp::from_second(self.now).unwrap()));
                set.metadata.uid = set.metadata.name.clone();
                self.sets.push(*set);
            }
            Action::Update { set, annotations, .. } => {
                let at = find(&mut self.sets, &set);
                self.sets[at].metadata.annotations = Some(annotations);
                self.log.push(format!("r{} updated", revision(&self.sets[at])));
            }
            Action::Scale { set, from, to, annotations } => {
                let at = find(&mut self.sets, &set);
                self.sets[at].spec.as_mut().unwrap().replicas = Some(to);
                self.sets[at].metadata.annotations = Some(annotations);
                self.log.push(format!("r{} {from}->{to}", revision(&self.sets[at])));
            }
            Action::Delete { set, .. } => {
                let at = find(&mut self.sets, &set);
                self.log.push(format!("delete r{}", revision(&self.sets[at])));
                self.sets.remove(at);
            }
            Action::Revision(r) => {
                self.deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), r);
            }
        }
    }

    /// Pods follow sizes; at most `pace` new ones become available.
    fn kubelet(&mut self, mut pace: i32, broken: impl Fn(&ReplicaSet) -> bool) {
        for set in &mut self.sets {
            let have = available(set).min(size(set));
            let more = if broken(set) { 0 } else { (size(set) - have).min(pace) };
            pace -= more;
            let now = have + more;
            set.status = Some(ReplicaSetStatus {
                replicas: size(set),
                ready_replicas: Some(now),
                available_replicas: Some(now),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(size).sum()
    }

    fn ready(&self) -> i32 {
        self.sets.iter().map(|s| available(s).min(size(s))).sum()
    }

    fn reason(&self) -> String {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.clone().unwrap();
        Conditions(conditions).get(PROGRESSING).map(|c| c.reason.clone().unwrap()).unwrap_or_default()
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let moved = self.step();
            self.kubelet(1, |_| false);
            let status = self.deployment.status.clone().unwrap();
            if !moved && complete(&self.deployment, &Wish::of(&self.deployment), &status) {
                return;
            }
        }
        panic!("never settles: {:?}", self.log);
    }
}

fn percent(n: &str) -> IntOrString {
    IntOrString::String(format!("{n}%"))
}

#[test]
fn a_rollout_surges_by_one_and_says_so() {
    let mut world = World::new(deployment(3, percent("25"), percent("25")));
    world.step();
    assert_eq!(world.log, ["create r1 at 3"]);
    assert_eq!(world.reason(), "NewReplicaSetCreated");
    world.settle();
    world.log.clear();
    world.update(|s| s.template = template("nginx:2"));
    world.settle();
    assert_eq!(world.log, ["create r2 at 1", "r1 3->2", "r2 1->2", "r1 2->1", "r2 2->3", "r1 1->0"]);
    let status = world.deployment.status.as_ref().unwrap();
    assert_eq!((status.updated_replicas, status.available_replicas), (Some(3), Some(3)));
    assert_eq!(world.deployment.metadata.annotations.as_ref().unwrap()[REVISION], "2");
    // A rollback reuses the old ReplicaSet under a new revision.
    world.update(|s| s.template = template("nginx:1"));
    world.settle();
    assert_eq!(world.sets.len(), 2);
    let back = world.sets.iter().find(|s| size(s) == 3).unwrap();
    let annotations = meta::annotations(&back.metadata);
    assert_eq!(revision(back), 3);
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut world = World::new(deployment(2, percent("0"), percent("0")));
    world.update(|s| s.strategy.as_mut().unwrap().type_ = Some("Recreate".into()));
    world.settle();
    world.log.clear();
    world.update(|s| s.template = template("nginx:2"));
    world.step();
    assert_eq!(world.log, ["r1 2->0"]);
    world.step();
    assert_eq!(world.log, ["r1 2->0"]);
    world.settle();
    assert_eq!(world.log, ["r1 2->0", "create r2 at 2"]);
}

#[test]
fn a_broken_rollout_times_out_and_keeps_old_pods() {
    let mut world = World::new(deployment(4, IntOrString::Int(1), IntOrString::Int(0)));
    world.settle();
    world.update(|s| s.template = template("broken"));
    let broken = |s: &ReplicaSet| revision(s) == 2;
    for _ in 0..10 {
        world.step();
        world.kubelet(9, broken);
    }
    assert_eq!(world.reason(), "ReplicaSetUpdated");
    assert_eq!((world.total(), world.ready()), (5, 4));
    world.now += 601;
    world.step();
    assert_eq!(world.reason(), "ProgressDeadlineExceeded");
}

#[test]
fn a_rollout_scaled_in_its_middle_shares_in_proportion() {
    let mut world = World::new(deployment(10, IntOrString::Int(3), IntOrString::Int(2)));
    world.settle();
    world.update(|s| s.template = template("nginx:2"));
    world.step();
    world.kubelet(0, |_| false);
    world.step();
    world.kubelet(0, |_| false);
    world.step();
    world.kubelet(0, |_| false);
    let sizes = |w: &World| w.sets.iter().map(|s| (revision(s), size(s))).collect::<Vec<_>>();
    assert_eq!(sizes(&world), [(1, 8), (2, 5)]);
    world.log.clear();
    world.update(|s| s.replicas = Some(15));
    world.step();
    assert_eq!(world.log, ["r1 8->11", "r2 5->7"]);
}

#[test]
fn pausing_stops_the_rollout_but_not_scaling() {
    let mut world = World::new(deployment(3, percent("25"), percent("25")));
    world.settle();
    world.log.clear();
    world.update(|s| {
        s.paused = Some(true);
        s.template = template("nginx:2");
    });
    world.step();
    assert!(world.log.is_empty());
    assert_eq!(world.reason(), "DeploymentPaused");
    world.update(|s| s.replicas = Some(5));
    world.step();
    assert_eq!(world.log, ["r1 3->5"]);
    world.update(|s| s.paused = Some(false));
    world.settle();
    assert_eq!(world.sets.iter().map(size).collect::<Vec<_>>(), [0, 5]);
}

#[test]
fn history_keeps_the_newest() {
    let mut world = World::new(deployment(1, percent("25"), percent("25")));
    for version in 1..=5 {
        world.update(|s| s.template = template(&format!("nginx:{version}")));
        world.settle();
    }
    let mut kept: Vec<i64> = world.sets.iter().map(revision).collect();
    kept.sort_unstable();
    assert_eq!(kept, [3, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the strategy and the pace, a rollout ends, and never has too many Pods or too few available ones.
    #[test]
    fn rollouts_end_and_keep_their_bounds(
        replicas in 1..12i32,
        surge in 0..=4i32,
        unavailable in 0..=4i32,
        pace in 1..5i32,
        rollouts in 1..3usize,
    ) {
        prop_assume!(surge + unavailable > 0);
        let mut world =
            World::new(deployment(replicas, IntOrString::Int(surge), IntOrString::Int(unavailable)));
        world.settle();
        let wish = Wish::of(&world.deployment);
        for version in 0..rollouts {
            world.update(|s| s.template = template(&format!("nginx:{}", version + 2)));
            // The earlier rollouts are interrupted half way.
            let steps = if version + 1 == rollouts { 200 } else { 3 };
            for _ in 0..steps {
                world.step();
                prop_assert!(world.total() <= replicas + wish.max_surge, "{:?}", world.log);
                prop_assert!(world.ready() >= replicas - wish.max_unavailable, "{:?}", world.log);
                world.kubelet(pace, |_| false);
            }
        }
        prop_assert_eq!(world.reason(), COMPLETE);
        prop_assert_eq!(world.total(), replicas);
    }
}
