//! The cluster's API as the user's kubectl reaches it: through the kubeconfig, so that no root is needed.

use std::path::Path;

use anyhow::Context;
use cluster::kubeconfig::Kubeconfig;
use kube::Client;
use kube::config::KubeConfigOptions;

use super::existing;
use crate::program::advice;

/// Does `work` with a client of the cluster.
///
/// # Errors
/// When the kubeconfig does not have the cluster, or what `work` says.
pub fn with_client<T>(name: &str, work: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    existing(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(name).await?;
        work(client).await
    })
}

async fn client(name: &str) -> anyhow::Result<Client> {
    client_of(Kubeconfig::of_user().path(), name).await
}

/// A client of the cluster by that kubeconfig.
///
/// # Errors
/// When it does not have the cluster.
pub async fn client_of(kubeconfig: &Path, name: &str) -> anyhow::Result<Client> {
    let again = || {
        format!(
            "read the context {name:?} of {}; write it again: {}",
            kubeconfig.display(),
            advice("update-context", name)
        )
    };
    let config = kube::config::Kubeconfig::read_from(kubeconfig).with_context(again)?;
    let options = KubeConfigOptions { context: Some(name.to_owned()), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(config, &options).await.with_context(again)?;
    Client::try_from(config).context("make a client of the API server")
}

/// What went wrong in the API server's own words, with what to do when nobody answered.
pub fn said(name: &str, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!(status.message),
        other => anyhow::Error::from(other)
            .context(format!("ask the API server of {name:?}; does it run? {}", advice("start", name))),
    }
}
