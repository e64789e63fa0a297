//! When the change behind a new version of the endpoints happened.
//!
//! Upstream's rule: the earliest of the times that are newer than what was known at the last run, where a Pod's time
//! is its last Ready transition (or its creation) and a Service's is its creation.

use std::collections::HashMap;

use client::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;

use crate::{meta, pods};

#[derive(Default)]
struct Known {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// Times known per Service.
#[derive(Default)]
pub(super) struct Triggers(Mutex<HashMap<ObjectKey, Known>>);

impl Triggers {
    /// The annotation's value for this run, `None` if nothing newer happened (a Pod was deleted, say).
    pub fn next<'a>(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Option<String> {
        let mut all = self.0.lock();
        let known = all.entry(key.clone()).or_default();
        let made = meta::created(&service.metadata);
        let mut first = known.service.is_none_or(|before| made > before).then_some(made);
        let mut times = HashMap::new();
        for pod in pods {
            let time = changed(pod);
            let name = meta::name(&pod.metadata).to_owned();
            if known.pods.get(&name).is_none_or(|before| time > *before) {
                first = Some(first.map_or(time, |f| f.min(time)));
            }
            times.insert(name, time);
        }
        *known = Known { service: Some(made), pods: times };
        first.map(|t| t.to_string())
    }

    /// The Service is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

fn changed(pod: &Pod) -> Timestamp {
    let ready = pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref());
    ready.map_or_else(|| meta::created(&pod.metadata), |t| t.0)
}
