//! Volumes: where they are on the node, what is in them, how they are kept up to date.
//!
//! Volumes made of API objects are written through [`atomic`]; secrets and tokens only to a tmpfs. Memory-backed
//! emptyDirs are mounted by the shim, in whose mount namespace all containers live. Volume types that this node does
//! not have are refused by name.

pub mod atomic;
pub mod fetch;
pub mod ownership;
pub mod payload;
pub mod subpath;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};

use crate::config::{Agent, PodPaths};
use crate::pod;
use crate::spec::{Bind, Propagation, SpecError, expand};
use fetch::Fetched;

/// Why a volume cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {why}")]
pub struct MountError {
    /// Its name in the Pod.
    pub volume: String,
    /// The cause.
    pub why: String,
}

/// Sets all volumes of a Pod up; a `refresh` brings only those made of API objects up to date.
///
/// # Errors
/// The first volume that cannot be.
pub async fn set_up(agent: &Agent, pod: &Pod, fetched: &Fetched, refresh: bool) -> Result<(), MountError> {
    let paths = agent.paths(pod::uid(pod));
    // Files offer metadata and resources only, so volumes need not wait for the network.
    let facts = agent.facts(&[]);
    let inputs = payload::Inputs { sources: &fetched.sources, tokens: &fetched.tokens, facts: &facts };
    let group = fs_group(pod);
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let fail = |why: String| MountError { volume: volume.name.clone(), why };
        if let Some(payload) = payload::of(pod, volume, &inputs).map_err(fail)? {
            let target = location(&paths, volume).map_err(fail)?;
            atomic::write(&target, &payload, group, Timestamp::now()).map_err(|e| fail(e.to_string()))?;
        } else if refresh {
            continue;
        } else if let Some(source) = &volume.empty_dir {
            let target = location(&paths, volume).map_err(fail)?;
            empty_dir(agent, source, &target, group).await.map_err(fail)?;
        } else if let Some(source) = &volume.host_path {
            host_path(source).map_err(fail)?;
        } else {
            location(&paths, volume).map_err(fail)?;
        }
    }
    Ok(())
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref().and_then(|c| c.fs_group)?;
    u32::try_from(group).ok()
}

/// Where a volume is on the node.
///
/// # Errors
/// For volume types that this node does not have.
pub fn location(paths: &PodPaths, volume: &Volume) -> Result<PathBuf, String> {
    let own = |plugin: &str| Ok(paths.volume(plugin, &volume.name));
    if volume.config_map.is_some() {
        own("configmap")
    } else if volume.secret.is_some() {
        own("secret")
    } else if volume.downward_api.is_some() {
        own("downward-api")
    } else if volume.projected.is_some() {
        own("projected")
    } else if volume.empty_dir.is_some() {
        own("empty-dir")
    } else if let Some(source) = &volume.host_path {
        Ok(PathBuf::from(&source.path))
    } else {
        Err(format!("volumes of type {} are not supported by this node", kind(volume)))
    }
}

fn kind(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).ok();
    let fields = fields.as_ref().and_then(|v| v.as_object());
    let kind = fields.into_iter().flatten().map(|(name, _)| name.clone()).find(|name| name != "name");
    kind.unwrap_or_else(|| "unknown".into())
}

/// A node path as the agent sees it from its own mount namespace.
fn view(node_root: &Path, path: &Path) -> PathBuf {
    node_root.join(path.strip_prefix("/").unwrap_or(path))
}

async fn empty_dir(
    agent: &Agent,
    source: &EmptyDirVolumeSource,
    target: &Path,
    group: Option<u32>,
) -> Result<(), String> {
    let fresh = !target.exists();
    let text = |e: io::Error| e.to_string();
    fs::create_dir_all(target).map_err(text)?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {
            if fresh {
                fs::set_permissions(target, fs::Permissions::from_mode(0o777)).map_err(text)?;
                group.map_or(Ok(()), |g| ownership::set_group(target, g, false)).map_err(text)?;
            }
        }
        "Memory" => {
            let limit = source.size_limit.as_ref().and_then(client::quantity::units).filter(|n| *n > 0);
            let size = limit.and_then(|n| u64::try_from(n).ok());
            agent.containers.mount_tmpfs(target, size, 0o777).await.map_err(|e| e.to_string())?;
            let seen = view(&agent.containers.node_root(), target);
            group.map_or(Ok(()), |g| ownership::set_group(&seen, g, false)).map_err(text)?;
        }
        other => return Err(format!("emptyDir medium \"{other}\" is not supported by this node")),
    }
    Ok(())
}

fn host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let meta = fs::metadata(path);
    let check = |good: bool, what: &str| {
        if good { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {what}", source.path)) }
    };
    let text = |e: io::Error| format!("cannot prepare hostPath {}: {e}", source.path);
    let is = |test: fn(&fs::FileType) -> bool| meta.as_ref().is_ok_and(|m| test(&m.file_type()));
    match source.type_.as_deref().unwrap_or_default() {
        "" if meta.is_err() => fs::create_dir_all(path).map_err(text),
        "" => Ok(()),
        "DirectoryOrCreate" => {
            if meta.is_err() {
                fs::create_dir_all(path).map_err(text)?;
                return fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(text);
            }
            check(is(fs::FileType::is_dir), "a directory")
        }
        "Directory" => check(is(fs::FileType::is_dir), "a directory"),
        "FileOrCreate" => {
            if meta.is_err() {
                fs::write(path, b"").map_err(text)?;
                return fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(text);
            }
            check(is(fs::FileType::is_file), "a file")
        }
        "File" => check(is(fs::FileType::is_file), "a file"),
        "Socket" => check(is(FileTypeExt::is_socket), "a socket"),
        "CharDevice" => check(is(FileTypeExt::is_char_device), "a character device"),
        "BlockDevice" => check(is(FileTypeExt::is_block_device), "a block device"),
        other => Err(format!("unknown hostPath type \"{other}\"")),
    }
}

/// The bind mounts that a container's `volumeMounts` ask for.
///
/// # Errors
/// For unknown volumes, sub paths that lead out, and mount options that cannot be honoured.
pub fn binds(
    paths: &PodPaths,
    pod: &Pod,
    container: &Container,
    node_root: &Path,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Bind>, SpecError> {
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod::spec(pod).volumes.iter().flatten().find(|v| v.name == mount.name);
        let volume =
            volume.ok_or_else(|| SpecError::Invalid(format!("volume \"{}\" not found", mount.name)))?;
        let base = location(paths, volume).map_err(SpecError::Invalid)?;
        let sub = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
            (Some(sub), _) if !sub.is_empty() => Some(sub.to_string()),
            (_, Some(expr)) if !expr.is_empty() => Some(expanded(expr, &lookup)?),
            _ => None,
        };
        let memory = volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"));
        let source = match sub {
            Some(sub) => {
                // A memory-backed volume is mounted where only the shim is: look at it from there.
                let seen = if memory { view(node_root, &base) } else { base.clone() };
                let inside = subpath::resolve(&seen, &sub).map_err(|e| {
                    let (mount, container) = (&mount.name, &container.name);
                    SpecError::Invalid(format!(
                        "failed to prepare subPath for volumeMount \"{mount}\" of container \"{container}\": {e}"
                    ))
                })?;
                base.join(inside)
            }
            None => base,
        };
        let propagation = match mount.mount_propagation.as_deref().unwrap_or("None") {
            "None" | "" => Propagation::None,
            "HostToContainer" => Propagation::HostToContainer,
            other => {
                return Err(SpecError::Invalid(format!(
                    "mountPropagation {other} is not supported by this node"
                )));
            }
        };
        let api_objects =
            volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some();
        let read_only = mount.read_only == Some(true) || api_objects || volume.downward_api.is_some();
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        let destination = Path::new("/").join(&mount.mount_path);
        binds.push(Bind {
            source,
            destination,
            read_only,
            recursive_read_only: recursive && read_only,
            propagation,
        });
    }
    Ok(binds)
}

fn expanded(expr: &str, lookup: &impl Fn(&str) -> Option<String>) -> Result<String, SpecError> {
    let missing = std::cell::RefCell::new(None);
    let text = expand::expand(expr, |name| {
        let value = lookup(name);
        if value.is_none() {
            *missing.borrow_mut() = Some(name.to_string());
        }
        value
    });
    match missing.into_inner() {
        None => Ok(text),
        Some(name) => {
            Err(SpecError::Config(format!("failed to expand subPathExpr {expr:?}: unknown variable {name}")))
        }
    }
}

/// Removes all that volumes of a Pod left; memory-backed ones are unmounted first.
///
/// # Errors
/// The last failure; removal goes on past errors.
pub async fn tear_down(agent: &Agent, pod: &Pod) -> Result<(), String> {
    let paths = agent.paths(pod::uid(pod));
    let mut result = Ok(());
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let memory = volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"));
        if memory
            && let Ok(target) = location(&paths, volume)
            && target.exists()
            && let Err(error) = agent.containers.unmount(&target).await
        {
            result = Err(error.to_string());
        }
    }
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::{Value, json};

    fn paths(dir: &Path) -> PodPaths {
        PodPaths { root: dir.join("root"), volatile: dir.join("run") }
    }

    fn bind(volume: Value, mount: Value, dir: &Path) -> Result<Bind, String> {
        let pod = crate::pod::tests::pod(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "volumes": [volume], "containers": [{"name": "c", "volumeMounts": [mount]}]}}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let lookup = |name: &str| (name == "POD").then(|| "web".to_string());
        binds(&paths(dir), &pod, container, Path::new("/"), lookup)
            .map(|mut b| b.remove(0))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn mounts_become_binds() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let got = bind(
            json!({"name": "v", "secret": {"secretName": "s"}}),
            json!({"name": "v", "mountPath": "/s"}),
            dir.path(),
        )
        .unwrap();
        assert_eq!(
            (got.source, got.read_only),
            (dir.path().join("run/volumes/kubernetes.io~secret/v"), true)
        );
        let empty = json!({"name": "v", "emptyDir": {}});
        fs::create_dir_all(dir.path().join("root/volumes/kubernetes.io~empty-dir/v")).unwrap();
        let got = bind(
            empty.clone(),
            json!({"name": "v", "mountPath": "d", "subPathExpr": "$(POD)/x"}),
            dir.path(),
        )
        .unwrap();
        assert_eq!(got.source, at("root/volumes/kubernetes.io~empty-dir/v/web/x"));
        assert_eq!((got.destination.to_str(), got.read_only), (Some("/d"), false));
        let error =
            bind(empty.clone(), json!({"name": "v", "mountPath": "/d", "subPathExpr": "$(NO)"}), dir.path())
                .unwrap_err();
        assert!(error.contains("unknown variable NO"), "{error}");
        let error = bind(
            empty.clone(),
            json!({"name": "v", "mountPath": "/d", "mountPropagation": "Bidirectional"}),
            dir.path(),
        )
        .unwrap_err();
        assert_eq!(error, "mountPropagation Bidirectional is not supported by this node");
        let error = bind(empty, json!({"name": "w", "mountPath": "/d"}), dir.path()).unwrap_err();
        assert_eq!(error, "volume \"w\" not found");
    }

    #[test]
    fn other_types_are_refused_by_name() {
        let volume =
            serde_json::from_value(json!({"name": "v", "nfs": {"server": "s", "path": "/"}})).unwrap();
        let error = location(&paths(Path::new("/x")), &volume).unwrap_err();
        assert_eq!(error, "volumes of type nfs are not supported by this node");
    }

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| {
            let path = dir.path().join(name).to_string_lossy().into_owned();
            host_path(&HostPathVolumeSource { path, type_: Some(kind.into()) })
        };
        assert!(check("d", "Directory").unwrap_err().ends_with("is not a directory"));
        check("d", "DirectoryOrCreate").unwrap();
        check("d", "Directory").unwrap();
        assert!(check("d", "File").is_err() && check("d", "FileOrCreate").is_err());
        check("f", "FileOrCreate").unwrap();
        assert!(
            check("f", "Socket").is_err()
                && check("f", "CharDevice").is_err()
                && check("f", "BlockDevice").is_err()
        );
        check("made/deep", "").unwrap();
        assert!(dir.path().join("made/deep").is_dir());
    }
}
