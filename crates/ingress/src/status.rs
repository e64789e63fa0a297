//! What users see of their Ingresses: the address in the status, and Events.

use std::net::IpAddr;
use std::time::Duration;

use client::{Change, Informer, InformerGone, ObjectKey, Recorder, Regarding};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::build::Ours;
use crate::replicas::Replicas;

/// The source of our Events.
pub(crate) const COMPONENT: &str = "nginx-ingress-controller";
/// How long after a refused write the next try comes.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a stopping controller may take to withdraw its address.
const FAREWELL: Duration = Duration::from_secs(3);

pub(crate) struct Status {
    pub client: Client,
    pub ours: Ours,
    pub address: Option<IpAddr>,
    pub ingresses: Informer<Ingress>,
    pub classes: Informer<IngressClass>,
    /// The Pod itself, where it may not be the only one.
    pub pod: Option<ObjectKey>,
}

impl Status {
    /// Keeps the statuses of our Ingresses and tells of each change of one, until `stop`; then takes the address back,
    /// unless another Pod goes on.
    pub async fn run(self, recorder: Recorder, stop: CancellationToken) -> Result<(), InformerGone> {
        let mut changes = self.ingresses.subscribe();
        let mut class_changes = self.classes.subscribe();
        // What was there before us is new to us.
        self.ingresses.list().iter().for_each(|ingress| self.tell(ingress, &recorder));
        let replicas = Replicas::of(&self.client, self.pod.as_ref()).await;
        let mut pod_changes = replicas.changes();
        tokio::select! {
            () = stop.cancelled() => {}
            synced = replicas.synced() => synced?,
        }
        loop {
            let settled = !replicas.writes() || self.publish(self.address).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(AGAIN), if !settled => {}
                change = changes.recv() => match change {
                    Some(Change::Applied { new, .. }) => self.tell(&new, &recorder),
                    Some(Change::Deleted(_)) => {}
                    None => return self.ingresses.synced().await,
                },
                change = class_changes.recv() => if change.is_none() {
                    return self.classes.synced().await;
                },
                () = pod_changes.next() => {}
            }
            while let Ok(change) = changes.try_recv() {
                if let Change::Applied { new, .. } = change {
                    self.tell(&new, &recorder);
                }
            }
        }
        if replicas.is_replaced().await {
            return Ok(());
        }
        if tokio::time::timeout(FAREWELL, self.publish(None)).await.is_err() {
            tracing::warn!("the API did not take the Ingresses' addresses back in time");
        }
        Ok(())
    }

    fn tell(&self, ingress: &Ingress, recorder: &Recorder) {
        if self.ours.serves(ingress, &self.classes.list()) {
            recorder.normal(COMPONENT, Regarding::of(ingress), "Sync", "Scheduled for sync".into());
        }
    }

    /// Writes the address where it is not; whether all is well.
    async fn publish(&self, address: Option<IpAddr>) -> bool {
        let classes = self.classes.list();
        let wanted = address.map(|a| a.to_string());
        let mut settled = true;
        for ingress in self.ingresses.filter(|i| self.ours.serves(i, &classes)) {
            if self.address.is_none() || shown(&ingress) == wanted {
                continue;
            }
            let list = wanted.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
            let patch = json!({"status": {"loadBalancer": {"ingress": list}}});
            let api: Api<Ingress> =
                Api::namespaced(self.client.clone(), &ingress.namespace().unwrap_or_default());
            match api.patch_status(&ingress.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(ingress = ingress.name_any(), %error, "the address was not written");
                    settled = false;
                }
            }
        }
        settled
    }
}

/// The only address in the status, if it is an address.
fn shown(ingress: &Ingress) -> Option<String> {
    let balancer = ingress.status.as_ref()?.load_balancer.as_ref()?;
    match balancer.ingress.as_deref()? {
        [only] => only.ip.clone(),
        _ => None,
    }
}
