//! Finding a container's image by its pull policy, with upstream's Events.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::Api;

use crate::config::Agent;
use crate::edge::{Image, PullSecret};
use crate::pod;

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullError {
    /// `ErrImagePull`, `ErrImageNeverPull`, ...
    pub reason: &'static str,
    /// Details.
    pub message: String,
}

/// The image of a container, pulled if its policy wants that.
///
/// # Errors
/// With the waiting reason that the container's status shows.
pub async fn image(agent: &Agent, pod: &Pod, container: &Container) -> Result<Arc<Image>, PullError> {
    let name = container.image.as_deref().unwrap_or_default();
    let policy = policy(container);
    let here = agent.images.get(name).await;
    match (policy, here) {
        ("Never", None) => {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            agent.warning(pod, "ErrImageNeverPull", message.clone());
            agent.warning(pod, "Failed", "Error: ErrImageNeverPull");
            Err(PullError { reason: "ErrImageNeverPull", message })
        }
        (policy, Some(image)) if policy != "Always" || image.side_loaded => {
            agent.normal(pod, "Pulled", format!("Container image \"{name}\" already present on machine"));
            Ok(Arc::new(image))
        }
        _ => pull(agent, pod, name).await,
    }
}

/// The policy; for an absent one the API's default by tag.
fn policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let latest = !image.contains('@') && tag.is_none_or(|t| t == "latest");
    container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" })
}

async fn pull(agent: &Agent, pod: &Pod, name: &str) -> Result<Arc<Image>, PullError> {
    agent.normal(pod, "Pulling", format!("Pulling image \"{name}\""));
    let begin = Instant::now();
    let secrets = secrets(agent, pod).await;
    match agent.images.pull(name, secrets).await {
        Ok(image) => {
            let took = begin.elapsed();
            let took = if took.as_secs() == 0 {
                format!("{}ms", took.as_millis())
            } else {
                format!("{:.3}s", took.as_secs_f64())
            };
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
                image.size
            );
            agent.normal(pod, "Pulled", message);
            Ok(Arc::new(image))
        }
        Err(error) => {
            agent.warning(pod, "Failed", format!("Failed to pull image \"{name}\": {error}"));
            agent.warning(pod, "Failed", "Error: ErrImagePull");
            Err(PullError { reason: "ErrImagePull", message: error.to_string() })
        }
    }
}

/// The Pod's pull secrets; those that are missing or of another kind are left out, as upstream leaves them out.
async fn secrets(agent: &Agent, pod: &Pod) -> Vec<PullSecret> {
    let api: Api<Secret> = Api::namespaced(agent.client.clone(), pod::namespace(pod));
    let mut found = Vec::new();
    for reference in pod::spec(pod).image_pull_secrets.iter().flatten() {
        let Ok(Some(secret)) = api.get_opt(&reference.name).await else {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            agent.warning(pod, "FailedToRetrieveImagePullSecret", message);
            continue;
        };
        let kind = secret.type_.unwrap_or_default();
        let key = match kind.as_str() {
            "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
            "kubernetes.io/dockercfg" => ".dockercfg",
            _ => continue,
        };
        let data = secret.data.and_then(|mut d| d.remove(key));
        found.extend(data.map(|data| PullSecret { kind, data: data.0 }));
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn policies_by_tag() {
        for (image, expected) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ] {
            let container = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(policy(&container), expected, "{image}");
        }
        let container = Container { image_pull_policy: Some("Never".into()), ..Container::default() };
        assert_eq!(policy(&container), "Never");
    }
}
