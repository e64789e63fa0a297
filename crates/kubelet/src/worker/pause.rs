//! The first process of a shared pid namespace: with `shareProcessNamespace` somebody must outlive each container.
//!
//! It is a container like any other in the Pod's sandbox, from the built-in image, that reaps children and waits.

use std::collections::HashSet;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, SecurityContext};
use runtime::{ContainerSpec, Rootfs};
use serde::{Deserialize, Serialize};

use super::sandbox;
use crate::config::{Agent, Pause};
use crate::pod::{self, Role};
use crate::spec;

/// A running pause process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseProcess {
    /// The runtime's id.
    pub id: String,
    /// Process id on the node.
    pub pid: i32,
}

/// Starts it.
///
/// # Errors
/// With the reason.
pub async fn start(agent: &Agent, pod: &Pod, pause: &Pause) -> Result<PauseProcess, String> {
    let image = agent.images.get(&pause.image).await;
    let image = image.ok_or_else(|| format!("the pause image \"{}\" is not present", pause.image))?;
    let drop_all = Capabilities { drop: Some(vec!["ALL".into()]), add: None };
    let container = Container {
        name: "POD".into(),
        args: Some(pause.args.clone()),
        security_context: Some(SecurityContext {
            capabilities: Some(drop_all),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let id = super::new_id();
    let described = spec::build(&spec::Input {
        pod,
        container: &container,
        role: Role::Main,
        image: &image.config,
        accounts: spec::user::Accounts::default(),
        env: &indexmap::IndexMap::new(),
        binds: &image.binds,
        host_devices: &[],
        node_memory: agent.capacity.memory_bytes,
        cgroup: format!("{}/{id}", sandbox::cgroup(agent, pod)),
        pid_namespace: None::<PathBuf>,
        defaults: &spec::Defaults { capabilities: HashSet::new(), ..agent.defaults.clone() },
    });
    let paths = agent.paths(pod::uid(pod));
    let scratch = paths.attempt("POD", 0).join("scratch");
    std::fs::create_dir_all(&scratch).map_err(|e| e.to_string())?;
    let created = ContainerSpec {
        id: id.clone(),
        sandbox: pod::uid(pod).into(),
        spec: described.map_err(|e| e.to_string())?,
        rootfs: Rootfs::Overlay { lower: image.layers.clone(), scratch },
        log_path: paths.attempt("POD", 0).join("log"),
        stdin: false,
        stdin_once: false,
    };
    agent.containers.create(created).await.map_err(|e| e.to_string())?;
    let status = agent.containers.start(&id).await.map_err(|e| e.to_string())?;
    Ok(PauseProcess { id, pid: status.pid })
}

/// Ends it.
///
/// # Errors
/// When the runtime refuses.
pub async fn remove(agent: &Agent, pause: &PauseProcess) -> Result<(), String> {
    if let Err(error) = agent.containers.kill(&pause.id, libc::SIGKILL).await {
        tracing::debug!(id = pause.id, %error, "ending a pause process");
    }
    agent.containers.remove(&pause.id).await.map_err(|e| e.to_string())
}
