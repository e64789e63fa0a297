//! The caches that all components of one process read: each object is decoded and kept once, whoever looks at it, as
//! upstream's controllers share theirs (client-go's SharedInformerFactory).

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client};

use crate::Informer;

/// The kinds that every component looks at; cloning shares them.
#[derive(Debug, Clone)]
pub struct SharedInformers {
    /// Of all namespaces.
    pub pods: Informer<Pod>,
    /// All.
    pub nodes: Informer<Node>,
    /// All.
    pub namespaces: Informer<Namespace>,
}

impl SharedInformers {
    /// Starts to follow them. Must be called inside a runtime.
    pub fn start(client: &Client) -> Self {
        let all = watcher::Config::default;
        Self {
            pods: Informer::start(Api::all(client.clone()), all()),
            nodes: Informer::start(Api::all(client.clone()), all()),
            namespaces: Informer::start(Api::all(client.clone()), all()),
        }
    }
}
