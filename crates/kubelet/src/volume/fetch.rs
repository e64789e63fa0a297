//! Fetches what volumes and environments are made of: ConfigMaps, Secrets, tokens.
//!
//! Objects are read from the API when a Pod is set up (never from a cache that may lag behind a `kubectl apply` of
//! ConfigMap and Pod in one go); watches only say when to look again.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, PostParams};

use super::payload::{self, TokenKey, Tokens};
use crate::pod;
use crate::spec::env::Sources;

/// Fetched objects and tokens.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Objects by name.
    pub sources: Sources,
    /// Tokens.
    pub tokens: Tokens,
}

/// A Pod's tokens and when to replace them.
#[derive(Debug, Default)]
pub struct TokenCache {
    held: HashMap<TokenKey, (String, Timestamp)>,
}

impl TokenCache {
    /// The tokens that the Pod's volumes need; those that are due are asked for anew.
    ///
    /// # Errors
    /// When the API server refuses and no usable token is held.
    pub async fn fetch(
        &mut self,
        client: &kube::Client,
        pod: &Pod,
        now: Timestamp,
    ) -> Result<Tokens, String> {
        let mut tokens = Tokens::new();
        for key in payload::token_needs(pod) {
            let due = self.held.get(&key).is_none_or(|(_, at)| *at <= now);
            if due {
                match request(client, pod, &key, now).await {
                    Ok(fresh) => drop(self.held.insert(key.clone(), fresh)),
                    // The old one is good for another fifth of its life.
                    Err(error) if self.held.contains_key(&key) => {
                        tracing::warn!(
                            pod = pod::full_name(pod),
                            error,
                            "cannot renew a service account token"
                        );
                    }
                    Err(error) => return Err(error),
                }
            }
            tokens.extend(self.held.get(&key).map(|(token, _)| (key.clone(), token.clone())));
        }
        Ok(tokens)
    }

    /// When the next token is due, if the Pod has any.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.held.values().map(|(_, at)| *at).min()
    }
}

/// A new token and when to replace it: after four fifths of its life, or a day.
async fn request(
    client: &kube::Client,
    pod: &Pod,
    key: &TokenKey,
    now: Timestamp,
) -> Result<(String, Timestamp), String> {
    let account =
        pod::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: if key.audience.is_empty() { Vec::new() } else { vec![key.audience.clone()] },
            expiration_seconds: Some(key.lifetime),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod::name(pod).into()),
                uid: Some(pod::uid(pod).into()),
            }),
        },
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), pod::namespace(pod));
    let fail = |error: String| format!("failed to fetch token: {error}");
    let answer: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &request)
        .await
        .map_err(|e| fail(api_error(&e)))?;
    let status = answer.status.ok_or_else(|| fail("the answer has no status".into()))?;
    let life = status.expiration_timestamp.0.duration_since(now);
    let renew = (life * 4 / 5).min(SignedDuration::from_hours(24));
    Ok((status.token, now + renew))
}

/// Reads the objects of these names; a missing one is `None`.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn objects(
    client: &kube::Client,
    namespace: &str,
    config_maps: &[String],
    secrets: &[String],
) -> Result<Sources, String> {
    let mut sources = Sources::default();
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in config_maps {
        if !sources.config_maps.contains_key(name) {
            let found = api.get_opt(name).await.map_err(|e| api_error(&e))?;
            sources.config_maps.insert(name.clone(), found.map(Arc::new));
        }
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in secrets {
        if !sources.secrets.contains_key(name) {
            let found = api.get_opt(name).await.map_err(|e| api_error(&e))?;
            sources.secrets.insert(name.clone(), found.map(Arc::new));
        }
    }
    Ok(sources)
}

/// The server's own words when it answered, otherwise the client's.
pub fn api_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
