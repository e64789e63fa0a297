//! Objects for tests, built in a line each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

/// Builds a Pod in namespace `ns`.
pub(crate) struct PodBuilder(Pod);

/// An unscheduled, pending Pod; its uid is its name.
pub(crate) fn pod(name: &str) -> PodBuilder {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(name.into());
    pod.spec = Some(PodSpec::default());
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    PodBuilder(pod)
}

impl PodBuilder {
    pub fn build(self) -> Pod {
        self.0
    }

    pub fn on(mut self, node: &str) -> Self {
        self.0.spec.as_mut().unwrap().node_name = Some(node.into());
        self
    }

    pub fn phase(mut self, phase: &str) -> Self {
        self.0.status.as_mut().unwrap().phase = Some(phase.into());
        self
    }

    pub fn running(self) -> Self {
        self.phase("Running")
    }

    pub fn ready_at(self, second: i64) -> Self {
        let mut me = self.running();
        me.0.status.as_mut().unwrap().conditions = Some(vec![PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::from_second(second).unwrap())),
            ..PodCondition::default()
        }]);
        me
    }

    pub fn created_at(mut self, second: i64) -> Self {
        self.0.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        self
    }

    pub fn deleting(mut self) -> Self {
        self.0.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        self
    }

    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    pub fn owned_by(mut self, kind: &str, uid: &str) -> Self {
        self.0.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            name: uid.into(),
            uid: uid.into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]);
        self
    }

    pub fn ip(mut self, ip: &str) -> Self {
        let status = self.0.status.as_mut().unwrap();
        status.pod_ip = Some(ip.into());
        status.pod_ips.get_or_insert_default().push(PodIP { ip: ip.into() });
        self
    }
}
