//! How many Pods to make, which to delete, and what the status says: pure functions, one for ReplicaSet and
//! ReplicationController alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use crate::meta;
use crate::pods;

/// Most Pods made or deleted in one run.
const BURST: usize = 500;

/// What to do about the number of Pods.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Make so many.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<Pod>>),
}

/// Compares the active Pods with the wish. `crowding` counts per node the Pods of all sets under one Deployment.
pub(super) fn plan(
    wanted: i32,
    active: &[Arc<Pod>],
    crowding: &BTreeMap<String, usize>,
    now: Timestamp,
) -> Action {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match active.len() {
        have if have < wanted => Action::Create((wanted - have).min(BURST)),
        have if have > wanted => {
            let mut order = active.to_vec();
            order.sort_by(|a, b| pods::deletion_order(a, b, crowding, now));
            order.truncate((have - wanted).min(BURST));
            Action::Delete(order)
        }
        _ => Action::Nothing,
    }
}

/// The counts in a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub replicas: i32,
    pub fully_labelled: i32,
    pub ready: i32,
    pub available: i32,
}

/// Counts the active Pods.
pub(super) fn count(
    active: &[Arc<Pod>],
    template: &PodTemplateSpec,
    min_ready: i32,
    now: Timestamp,
) -> Counts {
    let wanted = template.metadata.as_ref().map(meta::labels);
    let labelled = |pod: &Pod| {
        let have = meta::labels(&pod.metadata);
        wanted.into_iter().flatten().all(|(key, value)| have.get(key) == Some(value))
    };
    let number = |keep: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|p| keep(p)).count()).unwrap_or(i32::MAX)
    };
    Counts {
        replicas: number(&|_| true),
        fully_labelled: number(&labelled),
        ready: number(&pods::ready),
        available: number(&|pod| pods::available(pod, min_ready, now)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;

    #[test]
    fn the_number_of_pods_follows_the_wish() {
        let now = Timestamp::from_second(100).unwrap();
        let pods: Vec<Arc<Pod>> =
            [pod("a").on("n").ready_at(1), pod("b").on("n"), pod("c").on("n").running()]
                .into_iter()
                .map(|p| Arc::new(p.build()))
                .collect();
        let none = BTreeMap::new();
        assert_eq!(plan(5, &pods, &none, now), Action::Create(2));
        assert_eq!(plan(9000, &pods, &none, now), Action::Create(BURST));
        assert_eq!(plan(3, &pods, &none, now), Action::Nothing);
        let Action::Delete(gone) = plan(1, &pods, &none, now) else { panic!("must delete") };
        assert_eq!(gone.iter().map(|p| meta::name(&p.metadata)).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn counts_tell_ready_from_available() {
        let now = Timestamp::from_second(100).unwrap();
        let mut template = PodTemplateSpec::default();
        template.metadata.get_or_insert_default().labels = Some([("app".into(), "x".into())].into());
        let pods = [
            pod("a").labelled("app", "x").ready_at(10),
            pod("b").labelled("app", "x").ready_at(95),
            pod("c").running(),
        ];
        let pods: Vec<_> = pods.into_iter().map(|p| Arc::new(p.build())).collect();
        let counts = Counts { replicas: 3, fully_labelled: 2, ready: 2, available: 1 };
        assert_eq!(count(&pods, &template, 10, now), counts);
    }
}
