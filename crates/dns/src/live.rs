//! Follows the ConfigMap `coredns`: a Corefile that can be honoured holds at once, any other one is told with its line, as
//! an Event of the ConfigMap and in the log, and the last good one stays.

use std::sync::Arc;

use client::{Change, Informer, InformerGone, Recorder, Regarding};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::Config as Selection;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::respond::Responder;
use crate::zone::Options;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "coredns";
const KEY: &str = "Corefile";

/// The way from the ConfigMap to the server.
pub(crate) struct Live {
    maps: Informer<ConfigMap>,
    responder: Arc<Responder>,
    /// What of the API's objects has names, told to whoever follows them.
    options: watch::Sender<Options>,
    recorder: Recorder,
}

impl Live {
    pub(crate) fn new(
        client: Client,
        responder: Arc<Responder>,
        options: watch::Sender<Options>,
        recorder: Recorder,
    ) -> Self {
        let only = Selection::default().fields(&format!("metadata.name={NAME}"));
        Self { maps: Informer::start(Api::namespaced(client, NAMESPACE), only), responder, options, recorder }
    }

    /// Once the API has been heard; gives the ConfigMap that was looked at.
    pub(crate) async fn first(&self) -> Result<Option<Arc<ConfigMap>>, InformerGone> {
        self.maps.synced().await?;
        let map = self.maps.get(NAMESPACE, NAME);
        if let Some(map) = &map {
            self.apply(map);
        }
        Ok(map)
    }

    /// Each change after `seen`; ends only when the watch does.
    pub(crate) async fn follow(&self, mut seen: Option<Arc<ConfigMap>>) -> Result<(), InformerGone> {
        let mut changes = self.maps.subscribe();
        let mut probing = JoinSet::new();
        self.probe(&mut probing);
        while let Some(change) = changes.recv().await {
            // Without a ConfigMap the last good one stays.
            let Change::Applied { new, .. } = change else { continue };
            if seen.as_ref().is_none_or(|old| old.data != new.data) && self.apply(&new) {
                self.probe(&mut probing);
            }
            seen = Some(new);
        }
        self.maps.synced().await
    }

    fn probe(&self, probing: &mut JoinSet<()>) {
        probing.abort_all();
        let responder = self.responder.clone();
        probing.spawn(async move { responder.find_loops().await });
    }

    /// Whether it holds now.
    fn apply(&self, map: &ConfigMap) -> bool {
        match self.read(map) {
            Ok(config) => {
                let options = config.kubernetes().map(|kubernetes| kubernetes.options.clone());
                self.responder.configure(config);
                self.options.send_replace(options.unwrap_or_default());
                tracing::info!("the Corefile of ConfigMap {NAMESPACE}/{NAME} holds");
                true
            }
            Err(why) => {
                let message = format!("{why}; the last good configuration stays in force");
                tracing::error!("ConfigMap {NAMESPACE}/{NAME}: {message}");
                self.responder.metrics.reload_failed();
                self.recorder.warning(NAME, Regarding::of(map), "CorefileRejected", message);
                false
            }
        }
    }

    fn read(&self, map: &ConfigMap) -> Result<Config, String> {
        let text = map.data.as_ref().and_then(|data| data.get(KEY)).ok_or(format!("it has no key {KEY}"))?;
        let zone = self.responder.zone.as_ref().ok_or("this server has no zone")?;
        let domain = zone.read().origin().clone();
        Config::read(text, &domain).map_err(|error| error.to_string())
    }
}
