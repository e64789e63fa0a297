//! Whole specifications: Pod and image in, the fields that matter out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::pod::tests::pod;
use serde_json::{Value, json};

/// A base like the runtime's: enough of everything that the builder changes.
pub(crate) fn defaults() -> Defaults {
    let spec = serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]}}
    }));
    Defaults {
        spec: spec.unwrap(),
        capabilities: [Capability::Chown].into(),
        seccomp: |_| LinuxSeccomp::default(),
    }
}

fn built(pod_spec: Value, image: &ImageConfig, binds: &[Bind]) -> Result<Value, SpecError> {
    let pod = pod(json!({"metadata": {"name": "web-0", "namespace": "n", "uid": "u"}, "spec": pod_spec}));
    let env = [("A".to_string(), "1".to_string()), ("PATH".to_string(), "/mine".to_string())].into();
    let defaults = defaults();
    let spec = build(&Input {
        pod: &pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        role: Role::Main,
        image,
        accounts: user::Accounts { passwd: "www:x:33:33::/var/www:", group: "" },
        env: &env,
        binds,
        host_devices: &[],
        node_memory: 1 << 30,
        cgroup: "/skiff/p/podu/c".into(),
        pid_namespace: None,
        defaults: &defaults,
    })?;
    Ok(serde_json::to_value(spec).unwrap())
}

fn nginx() -> ImageConfig {
    ImageConfig {
        user: "www".into(),
        env: vec!["PATH=/img".into(), "IMG=1".into()],
        entrypoint: vec!["/entry".into()],
        cmd: vec!["cmd".into(), "$(A)".into()],
        working_dir: "/srv".into(),
        stop_signal: "SIGQUIT".into(),
    }
}

#[test]
fn command_and_args_follow_the_table_of_the_api() {
    for (command, args, expected) in [
        (json!(null), json!(null), json!(["/entry", "cmd", "$(A)"])),
        (json!(["/c", "$(A)"]), json!(null), json!(["/c", "1"])),
        (json!(null), json!(["a$(A)"]), json!(["/entry", "a1"])),
        (json!(["/c"]), json!(["$(B)"]), json!(["/c", "$(B)"])),
    ] {
        let spec =
            built(json!({"containers": [{"name": "c", "command": command, "args": args}]}), &nginx(), &[])
                .unwrap();
        assert_eq!(spec["process"]["args"], expected);
    }
    let none = built(json!({"containers": [{"name": "c"}]}), &ImageConfig::default(), &[]);
    assert_eq!(none.unwrap_err(), SpecError::NoCommand);
}

#[test]
fn an_ordinary_container() {
    let binds = [
        Bind {
            source: "/v/in".into(),
            destination: "/data/in".into(),
            read_only: true,
            recursive_read_only: false,
            propagation: Propagation::None,
        },
        Bind {
            source: "/v".into(),
            destination: "/data".into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::HostToContainer,
        },
    ];
    let spec = built(
        json!({"containers": [{"name": "c", "tty": true, "securityContext": {
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}}]}),
        &nginx(),
        &binds,
    )
    .unwrap();
    assert_eq!(
        spec["process"]["env"],
        json!(["PATH=/mine", "HOSTNAME=web-0", "TERM=xterm", "IMG=1", "A=1", "HOME=/var/www"])
    );
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["oomScoreAdj"], 1000);
    assert_eq!(spec["process"]["user"]["uid"], 33);
    assert_eq!(spec["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert_eq!(spec["process"]["capabilities"]["effective"], json!(["CAP_CHOWN"]));
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["linux"]["cgroupsPath"], "/skiff/p/podu/c");
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    let mounts: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(mounts, ["/proc", "/sys", "/data", "/data/in"]);
    assert_eq!(spec["mounts"][2]["options"], json!(["rbind", "rslave", "rw"]));
    assert_eq!(spec["mounts"][3]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn a_privileged_container_and_host_namespaces() {
    let spec = built(
        json!({"hostPID": true, "nodeName": "node", "hostNetwork": true,
        "containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
        &nginx(),
        &[],
    )
    .unwrap();
    assert_eq!(spec["linux"].get("maskedPaths"), None);
    assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "network"}]));
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
    assert_eq!(spec["mounts"][1]["options"], json!(["nosuid"]));
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("HOSTNAME=node")));
}

#[test]
fn stop_signals() {
    for (text, number) in [
        ("", 15),
        ("SIGQUIT", 3),
        ("QUIT", 3),
        ("sigusr1", 10),
        ("9", 9),
        ("SIGRTMIN+3", 37),
        ("nonsense", 15),
        ("0", 15),
    ] {
        assert_eq!(stop_signal(text), number, "{text}");
    }
}
