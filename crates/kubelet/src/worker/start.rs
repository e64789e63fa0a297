//! Creating and starting one container: everything fetched, described, made.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::{ContainerSpec, Rootfs};

use super::{StartError, sandbox};
use crate::config::Agent;
use crate::edge::Image;
use crate::pod::{self, Role};
use crate::spec::{self, Bind, Propagation, SpecError, devices, env, user::Accounts};
use crate::volume::{self, fetch};

/// What a start needs to know.
#[derive(Debug)]
pub struct Plan {
    /// The container.
    pub container: Container,
    /// Its role.
    pub role: Role,
    /// Its image.
    pub image: std::sync::Arc<Image>,
    /// The id it will have.
    pub id: String,
    /// Restarts so far.
    pub attempt: u32,
    /// The Pod's addresses.
    pub ips: Vec<IpAddr>,
    /// A pid namespace to join, as the pid of one of its processes.
    pub pid_of: Option<i32>,
}

/// Creates and starts; the moment of the start.
///
/// # Errors
/// With the waiting reason and message that the status shows.
pub async fn start(agent: &Agent, pod: &Pod, plan: &Plan) -> Result<Timestamp, StartError> {
    let described = describe(agent, pod, plan).await.map_err(|error| {
        let reason = match error {
            SpecError::NoCommand | SpecError::Build(_) => "CreateContainerError",
            SpecError::Config(_) | SpecError::Invalid(_) => "CreateContainerConfigError",
        };
        agent.warning(pod, "Failed", format!("Error: {error}"));
        StartError { reason, message: error.to_string(), ran: false }
    })?;
    let failed = |message: String| {
        agent.warning(pod, "Failed", format!("Error: {message}"));
        StartError { reason: "RunContainerError", message, ran: true }
    };
    let name = &plan.container.name;
    if let Err(error) = agent.containers.create(described).await {
        return Err(failed(format!("failed to create container: {error}")));
    }
    agent.normal(pod, "Created", format!("Created container: {name}"));
    match agent.containers.start(&plan.id).await {
        Ok(status) => {
            agent.normal(pod, "Started", format!("Started container {name}"));
            let at = i64::try_from(status.started_at / 1_000_000_000).ok().filter(|s| *s > 0);
            Ok(at.and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_else(Timestamp::now))
        }
        Err(error) => {
            if let Err(error) = agent.containers.remove(&plan.id).await {
                tracing::warn!(id = plan.id, %error, "removing a container that did not start");
            }
            Err(failed(format!("failed to start container: {error}")))
        }
    }
}

async fn describe(agent: &Agent, pod: &Pod, plan: &Plan) -> Result<ContainerSpec, SpecError> {
    let container = &plan.container;
    let paths = agent.paths(pod::uid(pod));
    let needs = env::needs(container);
    let namespace = pod::namespace(pod);
    let sources = fetch::objects(&agent.client, namespace, &needs.config_maps, &needs.secrets).await;
    let sources = sources.map_err(SpecError::Config)?;
    let services = agent.services.filter(|s| {
        let of = s.metadata.namespace.as_deref();
        of == Some(namespace) || (of == Some("default") && s.metadata.name.as_deref() == Some("kubernetes"))
    });
    let env = env::environment(pod, container, &services, &sources, &agent.facts(&plan.ips))?;
    let attempt = paths.attempt(&container.name, plan.attempt);
    let io = |e: std::io::Error| SpecError::Build(format!("cannot prepare the container's files: {e}"));
    let scratch = attempt.join("scratch");
    std::fs::create_dir_all(&scratch).map_err(io)?;
    let mut binds =
        volume::binds(&paths, pod, container, &agent.containers.node_root(), |name| env.get(name).cloned())?;
    add_managed(&mut binds, container, &attempt, &|name: &str| paths.etc(name)).map_err(io)?;
    for bind in &plan.image.binds {
        if !binds.iter().any(|b| b.destination == bind.destination) {
            binds.push(bind.clone());
        }
    }
    let read = |path: &str| read_from_layers(&plan.image.layers, path).unwrap_or_default();
    let (passwd, group) = (read("etc/passwd"), read("etc/group"));
    let privileged = spec::security::privileged(container);
    let host_devices = if privileged { devices::of_node(Path::new("/dev")) } else { Vec::new() };
    let built = spec::build(&spec::Input {
        pod,
        container,
        role: plan.role,
        image: &plan.image.config,
        accounts: Accounts { passwd: &passwd, group: &group },
        env: &env,
        binds: &binds,
        host_devices: &host_devices,
        node_memory: agent.capacity.memory_bytes,
        cgroup: format!("{}/{}", sandbox::cgroup(agent, pod), plan.id),
        pid_namespace: plan.pid_of.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid"))),
        defaults: &agent.defaults,
    })?;
    let log_path = agent.log_path(pod, &container.name, plan.attempt);
    if let Some(dir) = log_path.parent() {
        std::fs::create_dir_all(dir).map_err(io)?;
    }
    Ok(ContainerSpec {
        id: plan.id.clone(),
        sandbox: pod::uid(pod).into(),
        spec: built,
        rootfs: Rootfs::Overlay { lower: plan.image.layers.clone(), scratch },
        log_path,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
    })
}

/// Adds the managed files of /etc and the termination log, except where the Pod mounts something of its own.
fn add_managed(
    binds: &mut Vec<Bind>,
    container: &Container,
    attempt: &Path,
    etc: &dyn Fn(&str) -> PathBuf,
) -> std::io::Result<()> {
    let log = termination_log(attempt);
    std::fs::write(&log, b"")?;
    std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let log_target = container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let read_only = spec::security::context(container).read_only_root_filesystem == Some(true);
    let managed = [
        (etc("hosts"), PathBuf::from("/etc/hosts"), false),
        (etc("hostname"), PathBuf::from("/etc/hostname"), read_only),
        (etc("resolv.conf"), PathBuf::from("/etc/resolv.conf"), read_only),
        (log, Path::new("/").join(log_target.unwrap_or("/dev/termination-log")), false),
    ];
    for (source, destination, read_only) in managed {
        if !binds.iter().any(|b| b.destination == destination) {
            let propagation = Propagation::None;
            binds.push(Bind { source, destination, read_only, recursive_read_only: false, propagation });
        }
    }
    Ok(())
}

/// Where a container's attempt writes its last words.
pub fn termination_log(attempt: &Path) -> PathBuf {
    attempt.join("termination-log")
}

/// A file of the image: from the topmost layer that has it; symbolic links are not followed, whiteouts end the search.
fn read_from_layers(layers: &[PathBuf], path: &str) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    for layer in layers.iter().rev() {
        let mut here = layer.clone();
        let mut parts = Path::new(path).components().peekable();
        while let Some(part) = parts.next() {
            here.push(part);
            let Ok(meta) = std::fs::symlink_metadata(&here) else { break };
            let kind = meta.file_type();
            if kind.is_char_device() || kind.is_symlink() {
                return None;
            }
            if parts.peek().is_none() {
                return std::fs::read_to_string(&here).ok();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn account_files_come_from_the_topmost_layer_and_never_from_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (a, b, c) = (layer("a"), layer("b"), layer("c"));
        std::fs::write(a.join("etc/passwd"), "a").unwrap();
        assert_eq!(read_from_layers(&[a.clone(), b.clone()], "etc/passwd").as_deref(), Some("a"));
        std::fs::write(b.join("etc/passwd"), "b").unwrap();
        assert_eq!(read_from_layers(&[a.clone(), b.clone()], "etc/passwd").as_deref(), Some("b"));
        std::os::unix::fs::symlink("/etc/passwd", c.join("etc/passwd")).unwrap();
        assert_eq!(read_from_layers(&[a, b, c], "etc/passwd"), None);
    }

    #[test]
    fn managed_files_give_way_to_the_pods_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = Bind {
            source: "/v".into(),
            destination: "/etc/hosts".into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::None,
        };
        let mut binds = vec![own];
        let container =
            Container { termination_message_path: Some("/tmp/last".into()), ..Container::default() };
        add_managed(&mut binds, &container, dir.path(), &|name: &str| PathBuf::from("/pod").join(name))
            .unwrap();
        let list: Vec<_> =
            binds.iter().map(|b| (b.source.to_str().unwrap(), b.destination.to_str().unwrap())).collect();
        let log = dir.path().join("termination-log");
        let expected = [
            ("/v", "/etc/hosts"),
            ("/pod/hostname", "/etc/hostname"),
            ("/pod/resolv.conf", "/etc/resolv.conf"),
            (log.to_str().unwrap(), "/tmp/last"),
        ];
        assert_eq!(list, expected);
    }
}
