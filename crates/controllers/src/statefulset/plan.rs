//! One step of a StatefulSet as a pure function: numbered Pods, made in order, removed in reverse, updated from the
//! top.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};

use crate::history::HASH_LABEL;
use crate::meta::{self, some_unless_zero};
use crate::pods;

/// The label with the Pod's own name, for Services that select one Pod.
pub(super) const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A revision: its name, which Pods carry as a label, and its template.
#[derive(Debug, Clone)]
pub(super) struct Revision {
    pub name: String,
    pub template: PodTemplateSpec,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Make this Pod, after these claims.
    Create(Box<Pod>, Vec<PersistentVolumeClaim>),
    /// Delete; a finished Pod is deleted to be made again.
    Delete(Arc<Pod>),
    /// Give the Pod back the labels of its identity.
    Identify(Arc<Pod>),
}

/// A StatefulSet's spec with defaults resolved.
#[derive(Debug, Clone)]
struct Wish {
    first: i32,
    replicas: i32,
    ordered: bool,
    /// `None` for OnDelete.
    partition: Option<i32>,
    min_ready: i32,
}

impl Wish {
    fn of(set: &StatefulSet) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.type_.as_deref() != Some("OnDelete");
        let partition = strategy.rolling_update.and_then(|r| r.partition).unwrap_or(0);
        Self {
            first: spec.ordinals.and_then(|o| o.start).unwrap_or(0),
            replicas: spec.replicas.unwrap_or(1),
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            partition: rolling.then_some(partition),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
        }
    }

    fn range(&self) -> std::ops::Range<i32> {
        self.first..self.first.saturating_add(self.replicas)
    }
}

/// The number at the end of a Pod's name, if the rest is the set's name.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    digits.parse().ok().filter(|n: &i32| *n >= 0 && n.to_string() == digits)
}

fn revision_of(pod: &Pod) -> &str {
    meta::labels(&pod.metadata).get(HASH_LABEL).map_or("", String::as_str)
}

fn identity_labels(pod_name: &str, ordinal: i32) -> [(String, String); 2] {
    [(POD_NAME.to_owned(), pod_name.to_owned()), (POD_INDEX.to_owned(), ordinal.to_string())]
}

/// The labels that a Pod of the set lacks.
pub(super) fn missing_labels(set: &str, pod: &Pod) -> Vec<(String, String)> {
    let name = meta::name(&pod.metadata);
    let Some(ordinal) = ordinal(set, name) else { return Vec::new() };
    let have = meta::labels(&pod.metadata);
    identity_labels(name, ordinal).into_iter().filter(|(k, v)| have.get(k) != Some(v)).collect()
}

/// The Pod of one number, in one revision.
fn make(set: &StatefulSet, revision: &Revision, ordinal: i32) -> (Pod, Vec<PersistentVolumeClaim>) {
    let set_name = meta::name(&set.metadata);
    let name = format!("{set_name}-{ordinal}");
    let mut pod =
        pods::from_template(meta::namespace(&set.metadata), meta::controller_ref(set), &revision.template);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(identity_labels(&name, ordinal));
    labels.insert(HASH_LABEL.into(), revision.name.clone());
    let spec = set.spec.as_ref();
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec.and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let mut claims = Vec::new();
    for template in spec.and_then(|s| s.volume_claim_templates.as_ref()).into_iter().flatten() {
        let volume = meta::name(&template.metadata).to_owned();
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{volume}-{name}"));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let selector = spec.and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
        claim.metadata.labels.get_or_insert_default().extend(selector);
        claim.status = None;
        let source =
            PersistentVolumeClaimVolumeSource { claim_name: format!("{volume}-{name}"), read_only: None };
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|v| v.name != volume);
        let persistent_volume_claim = Some(source);
        volumes.push(Volume { name: volume, persistent_volume_claim, ..Volume::default() });
        claims.push(claim);
    }
    (pod, claims)
}

/// Decides one step. `current` and `update` are the revisions that the status and the spec name.
pub(super) fn plan(
    set: &StatefulSet,
    owned: &[Arc<Pod>],
    current: &Revision,
    update: &Revision,
    now: Timestamp,
) -> Vec<Action> {
    if meta::deleting(&set.metadata) {
        return Vec::new();
    }
    let wish = Wish::of(set);
    let name = meta::name(&set.metadata);
    let by_number: BTreeMap<i32, &Arc<Pod>> =
        owned.iter().filter_map(|p| Some((ordinal(name, meta::name(&p.metadata))?, p))).collect();
    let step = Step { set, wish, by_number, current, update, now };
    step.run()
}

struct Step<'a> {
    set: &'a StatefulSet,
    wish: Wish,
    by_number: BTreeMap<i32, &'a Arc<Pod>>,
    current: &'a Revision,
    update: &'a Revision,
    now: Timestamp,
}

impl Step<'_> {
    fn healthy(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Running"
            && !meta::deleting(&pod.metadata)
            && pods::available(pod, self.wish.min_ready, self.now)
    }

    fn run(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.fill(&mut actions) && self.shrink(&mut actions) && actions.is_empty() {
            self.roll(&mut actions);
        }
        actions
    }

    /// Makes what is missing; `false` when the order asks to wait.
    fn fill(&self, actions: &mut Vec<Action>) -> bool {
        for number in self.wish.range() {
            let pod = self.by_number.get(&number);
            match pod {
                None => {
                    let (pod, claims) = make(self.set, self.revision_for(number), number);
                    actions.push(Action::Create(Box::new(pod), claims));
                }
                Some(pod) if pods::finished(pod) && !meta::deleting(&pod.metadata) => {
                    actions.push(Action::Delete((*pod).clone()));
                }
                Some(pod) => {
                    if !missing_labels(meta::name(&self.set.metadata), pod).is_empty() {
                        actions.push(Action::Identify((*pod).clone()));
                    }
                    if self.healthy(pod) {
                        continue;
                    }
                }
            }
            if self.wish.ordered {
                return false;
            }
        }
        true
    }

    /// New Pods below the partition are of the current revision.
    fn revision_for(&self, number: i32) -> &Revision {
        match self.wish.partition {
            Some(partition) if number < self.wish.first + partition => self.current,
            _ => self.update,
        }
    }

    /// Removes what is beyond the range, from the top; `false` when the order asks to wait.
    fn shrink(&self, actions: &mut Vec<Action>) -> bool {
        let range = self.wish.range();
        let condemned: Vec<&Arc<Pod>> =
            self.by_number.iter().rev().filter(|(n, _)| !range.contains(n)).map(|(_, p)| *p).collect();
        for pod in condemned {
            if !meta::deleting(&pod.metadata) {
                actions.push(Action::Delete(pod.clone()));
            }
            if self.wish.ordered {
                return false;
            }
        }
        true
    }

    /// Replaces one Pod of an old revision, from the top, once all above it are healthy.
    fn roll(&self, actions: &mut Vec<Action>) {
        let Some(partition) = self.wish.partition else { return };
        let from = self.wish.first + partition;
        for (_, pod) in self.by_number.iter().rev().filter(|(n, _)| **n >= from) {
            if revision_of(pod) != self.update.name && !meta::deleting(&pod.metadata) {
                actions.push(Action::Delete((*pod).clone()));
                return;
            }
            if !self.healthy(pod) {
                return;
            }
        }
    }
}

/// The status. `current` moves to `update` once all Pods are of it and ready.
pub(super) fn status(
    set: &StatefulSet,
    owned: &[Arc<Pod>],
    current: &str,
    update: &str,
    now: Timestamp,
) -> StatefulSetStatus {
    let wish = Wish::of(set);
    let number = |keep: &dyn Fn(&Pod) -> bool| {
        let alive =
            owned.iter().filter(|p| ordinal(meta::name(&set.metadata), meta::name(&p.metadata)).is_some());
        i32::try_from(alive.filter(|p| keep(p)).count()).unwrap_or(i32::MAX)
    };
    let runs = |p: &Pod| pods::phase(p) == "Running" && pods::ready(p);
    let old = set.status.clone().unwrap_or_default();
    let (replicas, ready) = (number(&|_| true), number(&runs));
    let of = |revision: &str| number(&|p| revision_of(p) == revision && !meta::deleting(&p.metadata));
    let updated = of(update);
    let rolled = wish.partition.is_some()
        && updated == wish.replicas
        && ready == wish.replicas
        && replicas == wish.replicas;
    let current = if rolled { update } else { current };
    StatefulSetStatus {
        replicas,
        ready_replicas: some_unless_zero(ready),
        available_replicas: Some(number(&|p| runs(p) && pods::available(p, wish.min_ready, now))),
        current_replicas: some_unless_zero(of(current)),
        updated_replicas: some_unless_zero(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(old.collision_count.unwrap_or(0)),
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    struct World {
        set: StatefulSet,
        current: Revision,
        update: Revision,
        pods: Vec<Pod>,
        log: Vec<String>,
    }

    fn revision(name: &str) -> Revision {
        Revision { name: name.into(), template: PodTemplateSpec::default() }
    }

    impl World {
        fn new(spec: serde_json::Value) -> Self {
            let mut spec = spec;
            spec["selector"] = json!({"matchLabels": {"app": "db"}});
            spec["template"] = json!({});
            spec["serviceName"] = "db".into();
            let meta = json!({"name": "db", "namespace": "ns", "uid": "db"});
            let set = serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap();
            let (current, update) = (revision("r1"), revision("r1"));
            Self { set, current, update, pods: vec![], log: vec![] }
        }

        /// One run, then every Pod becomes ready.
        fn step(&mut self) {
            let now = Timestamp::from_second(100).unwrap();
            let owned: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
            let mut line = Vec::new();
            for action in plan(&self.set, &owned, &self.current, &self.update, now) {
                match action {
                    Action::Create(pod, claims) => {
                        let name = meta::name(&pod.metadata).to_owned();
                        line.push(format!("+{name}@{}{}", revision_of(&pod), "c".repeat(claims.len())));
                        let mut ready = crate::fixtures::pod(&name).ready_at(1).build();
                        ready.metadata = pod.metadata;
                        self.pods.push(ready);
                    }
                    Action::Delete(pod) => {
                        line.push(format!("-{}", meta::name(&pod.metadata)));
                        self.pods.retain(|p| p.metadata.name != pod.metadata.name);
                    }
                    Action::Identify(pod) => line.push(format!("={}", meta::name(&pod.metadata))),
                }
            }
            let owned: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
            let status = status(&self.set, &owned, &self.current.name, &self.update.name, now);
            if status.current_revision.as_deref() == Some(&self.update.name) {
                self.current = self.update.clone();
            }
            self.set.status = Some(status);
            self.log.push(line.join(" "));
        }

        fn run(&mut self, steps: usize) -> Vec<String> {
            self.log.clear();
            (0..steps).for_each(|_| self.step());
            std::mem::take(&mut self.log)
        }
    }

    #[test]
    fn pods_come_in_order_and_go_in_reverse() {
        let mut world = World::new(json!({"replicas": 3}));
        assert_eq!(world.run(4), ["+db-0@r1", "+db-1@r1", "+db-2@r1", ""]);
        world.pods[0].status.as_mut().unwrap().phase = Some("Failed".into());
        world.pods.retain(|p| meta::name(&p.metadata) != "db-1");
        assert_eq!(world.run(4), ["-db-0", "+db-0@r1", "+db-1@r1", ""]);
        world.set.spec.as_mut().unwrap().replicas = Some(1);
        assert_eq!(world.run(3), ["-db-2", "-db-1", ""]);
        let mut world = World::new(json!({"replicas": 3, "podManagementPolicy": "Parallel"}));
        assert_eq!(world.run(2), ["+db-0@r1 +db-1@r1 +db-2@r1", ""]);
        world.set.spec.as_mut().unwrap().replicas = Some(0);
        assert_eq!(world.run(2), ["-db-2 -db-1 -db-0", ""]);
    }

    #[test]
    fn an_unready_pod_stops_the_line() {
        let mut world = World::new(json!({"replicas": 2}));
        world.run(1);
        world.pods[0].status.as_mut().unwrap().conditions = None;
        assert_eq!(world.run(2), ["", ""]);
    }

    #[test]
    fn updates_go_from_the_top_down_to_the_partition() {
        let mut world =
            World::new(json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}}));
        world.run(3);
        world.update = revision("r2");
        assert_eq!(world.run(5), ["-db-2", "+db-2@r2", "-db-1", "+db-1@r2", ""]);
        assert_eq!(world.set.status.as_ref().unwrap().updated_replicas, Some(2));
        assert_eq!(world.set.status.as_ref().unwrap().current_revision.as_deref(), Some("r1"));
        // Below the partition a lost Pod comes back as it was.
        world.pods.retain(|p| meta::name(&p.metadata) != "db-0");
        assert_eq!(world.run(1), ["+db-0@r1"]);
        world.set.spec.as_mut().unwrap().update_strategy = None;
        assert_eq!(world.run(3), ["-db-0", "+db-0@r2", ""]);
        assert_eq!(world.set.status.as_ref().unwrap().current_revision.as_deref(), Some("r2"));
    }

    #[test]
    fn claims_and_identity() {
        let claims = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        let world =
            World::new(json!({"replicas": 1, "ordinals": {"start": 5}, "volumeClaimTemplates": claims}));
        let made = plan(&world.set, &[], &world.current, &world.update, Timestamp::UNIX_EPOCH);
        let Action::Create(pod, claims) = &made[0] else { panic!("must create") };
        assert_eq!(meta::name(&claims[0].metadata), "data-db-5");
        assert_eq!(meta::labels(&claims[0].metadata)["app"], "db");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-5"), Some("db")));
        assert_eq!(
            spec.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap().claim_name,
            "data-db-5"
        );
        assert!(missing_labels("db", pod).is_empty());
        assert_eq!(
            (ordinal("db", "db-05"), ordinal("db", "db-x-1"), ordinal("db", "db-7")),
            (None, None, Some(7))
        );
    }
}
